"""One team of threads for OpenBLAS and the optimizers."""

import ctypes
import os
import threading
import warnings
from typing import Any

from fastadam import _core

SETTERS = [
    f"{prefix}openblas_set_threads_callback_function{suffix}"
    for prefix in ("", "scipy_")
    for suffix in ("", "64_", "_64")
]
lock = threading.Lock()  # made anew in forked children, where nobody may be left to release it
users: dict[str, int] = {}  # file of an OpenBLAS that is shared -> how many SharedThreads have asked for it


class SharedThreads:
    """What `share_threads_with_blas` did. A context manager; leaving it, or `undo`, gives the threads back.

    ``libraries`` has a dict for each BLAS in the process: library (str, its file), kind (str, "openblas" for one),
    version (str or None), shared (bool) and why (str, empty if shared).
    """

    def __init__(self) -> None:
        self.libraries: list[dict[str, Any]] = []
        self._setters: dict[str, int] = {}  # file -> address
        for blas in blas_libraries():
            setter, why = setter_of(blas)
            self.libraries.append(
                {
                    "library": blas.filepath,
                    "kind": blas.internal_api,
                    "version": blas.version,
                    "shared": bool(setter),
                    "why": why,
                }
            )
            if setter:
                self._setters[blas.filepath] = setter
        with lock:
            for library, setter in self._setters.items():
                users[library] = users.get(library, 0) + 1
                _core.share_with_blas(setter, True)

    def undo(self) -> None:
        """Give OpenBLAS its own threads back, if nobody else has asked for sharing. A second call does nothing."""
        with lock:
            self._undo()  # a call, as in optimizer.py

    def _undo(self) -> None:
        for library, setter in self._setters.items():
            users[library] -= 1
            if not users[library]:
                del users[library]
                _core.share_with_blas(setter, False)
        self._setters = {}

    def __enter__(self) -> "SharedThreads":
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        lines = [
            f"{entry['library']} ({entry['kind']} {entry['version']}): {entry['why'] or 'shared'}"
            for entry in self.libraries
        ]
        return "<SharedThreads" + "".join(f"\n  {line}" for line in lines) + ">"


def renew_lock() -> None:
    global lock
    lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_lock)


def blas_libraries() -> list[Any]:
    try:
        from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            "share_threads_with_blas() finds BLAS libraries with threadpoolctl, which is not installed: "
            "python -m pip install threadpoolctl"
        ) from error
    return [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]


def setter_of(blas: Any) -> tuple[int, str]:
    """The address of the function that supplies threads to this BLAS; or 0, and why there is none."""
    if not _core.has_openmp():
        return 0, "this build of fastadam has no OpenMP, so there is no team to share"
    if blas.internal_api != "openblas":
        return 0, f"{blas.internal_api} has no interface for threads from outside; only OpenBLAS has"
    if blas.threading_layer != "pthreads":
        return 0, f"this OpenBLAS has no threads of its own to replace (its threading is {blas.threading_layer!r})"
    for name in SETTERS:
        if hasattr(blas.dynlib, name):
            return ctypes.cast(getattr(blas.dynlib, name), ctypes.c_void_p).value or 0, ""
    return 0, f"OpenBLAS {blas.version} has no interface for threads from outside; newer ones have"


def shared_libraries() -> list[str]:
    """The files of the OpenBLAS libraries that run on our team now."""
    return sorted(users)


def share_threads_with_blas() -> SharedThreads:
    """Let NumPy's OpenBLAS compute on the optimizers' threads, so that one team serves both.

    Without it a program has two teams, OpenBLAS's and OpenMP's, and after each matrix product OpenBLAS's threads go on
    waiting, busily, on the cores that a step could use. With it both run on OpenMP's team, taking turns: steps in a
    training loop can use all cores. Every OpenBLAS in the process is found (NumPy's and SciPy's wheels bring one each);
    libraries that are loaded later need another call. Call it, and leave it, while no other thread is inside a
    BLAS call. Results do not change. While it lasts, Python threads that call the same BLAS take turns; but
    do not factorise (``np.linalg.solve``, ``inv``, ``det``) in one thread while another is inside BLAS: OpenBLAS's LU
    bypasses this interface in part, and both can hang.

    Returns
    -------
    SharedThreads
        Says what was done for each library; a context manager, and its method ``undo`` ends the sharing.

    Raises
    ------
    ImportError
        If threadpoolctl is not installed.

    Warns
    -----
    RuntimeWarning
        If there is no BLAS whose threads can be replaced (MKL, BLIS, Accelerate, old OpenBLAS), with the
        reason; nothing has changed then.

    Examples
    --------
    >>> import fastadam
    >>> with fastadam.share_threads_with_blas() as sharing:
    ...     pass  # train
    >>> fastadam.config()["blas_shared"]
    []

    Notes
    -----
    OpenBLAS's threads callback (``openblas_set_threads_callback_function``). It has one callback at a time: a program
    that set its own loses it.
    """
    shared = SharedThreads()
    if not any(entry["shared"] for entry in shared.libraries):
        found = "; ".join(f"{entry['library']}: {entry['why']}" for entry in shared.libraries) or "no BLAS was found"
        warnings.warn(f"share_threads_with_blas() changed nothing: {found}", RuntimeWarning, stacklevel=2)
    return shared
