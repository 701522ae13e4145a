"""Steps on the threads of the OpenBLAS that NumPy computes with."""

import atexit
import contextlib
import ctypes
import os
import threading
import warnings
from pathlib import Path
from typing import Any

from fastadam import _core

PREFIXES, SUFFIXES = ("", "scipy_"), ("", "64_", "_64")  # of names in OpenBLAS's builds
lock = threading.Lock()  # made anew in forked children, where nobody may be left to release it
users = 0  # how many SharedThreads have ordered steps on OpenBLAS's threads
lender = ""  # the file of the OpenBLAS whose threads steps may take


class SharedThreads:
    """What `share_threads_with_blas` did. A context manager; leaving it, or `undo`, takes the order back.

    ``libraries`` has a dict for each BLAS in the process: library (str, its file), kind (str, "openblas" for one),
    version (str or None), shared (bool) and why (str, empty if shared).
    """

    def __init__(self) -> None:
        self.libraries = look()
        self._ordered = any(entry["shared"] for entry in self.libraries)
        if self._ordered:
            with lock:
                order(1)

    def undo(self) -> None:
        """Let steps choose again, if nobody else has asked for sharing. A second call does nothing."""
        with lock:
            self._undo()  # a call, as in optimizer.py

    def _undo(self) -> None:
        if self._ordered:
            self._ordered = False
            order(-1)

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


def order(change: int) -> None:
    global users
    users += change
    _core.order_from_blas(change)


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
    return [library for library in quietly(ThreadpoolController).lib_controllers if library.user_api == "blas"]


def quietly(controller: Any) -> Any:
    with warnings.catch_warnings(action="ignore"):  # of OpenMP runtimes that we have nothing to do with
        return controller()


def is_numpys(path: str) -> bool:
    """Is it the library that came with NumPy, or one that came with no package, as conda's and Debian's?"""
    folder = Path(path).parent
    return "numpy" in (*folder.parts[-2:], folder.stem) or not folder.name.endswith((".libs", ".dylibs"))


def address_of(blas: Any, name: str) -> int:
    for spelt in (f"{prefix}{name}{suffix}" for prefix in PREFIXES for suffix in SUFFIXES):
        if hasattr(blas.dynlib, spelt):
            return ctypes.cast(getattr(blas.dynlib, spelt), ctypes.c_void_p).value or 0
    return 0


def lending(blas: Any) -> tuple[tuple[int, int] | None, str]:
    """The addresses of what lends this BLAS's threads and of what counts them; or None, and why there is nothing."""
    if not _core.has_openmp():
        return None, "this build of fastadam has no OpenMP, so its steps are serial"
    if blas.internal_api != "openblas":
        return None, f"{blas.internal_api} does not lend its threads; OpenBLAS does"
    if blas.threading_layer != "pthreads":
        return None, f"this OpenBLAS has no threads of its own (its threading is {blas.threading_layer!r})"
    if not is_numpys(blas.filepath):
        return None, "NumPy does not compute with it"
    functions = address_of(blas, "gotoblas_pthread"), address_of(blas, "openblas_get_num_threads")
    return (functions, "") if all(functions) else (None, f"OpenBLAS {blas.version} does not lend its threads")


def look() -> list[dict[str, Any]]:
    """What each BLAS in the process can do for us, as `SharedThreads.libraries`."""
    found = []
    for blas in blas_libraries():
        functions, why = lending(blas)
        if functions and blas.filepath != lender:
            why = f"steps take the threads of {lender}" if lender else "it was loaded after fastadam, too late to lend"
        found.append(
            {
                "library": blas.filepath,
                "kind": blas.internal_api,
                "version": blas.version,
                "shared": blas.filepath == lender,
                "why": why,
            }
        )
    return found


def find_lender() -> None:
    """When fastadam is imported: only a BLAS that was loaded before can lend its threads (csrc/forks.c).

    FASTADAM_BORROW=0 forbids to borrow them, unless `share_threads_with_blas` orders it.
    """
    with contextlib.suppress(Exception):  # whatever threadpoolctl makes of the libraries here, steps need none of them
        _find_lender()  # a call, as in optimizer.py


def _find_lender() -> None:
    global lender
    for blas in blas_libraries():
        functions, _ = lending(blas)
        if functions:
            _core.borrow_from(*functions, only_if_ordered=os.environ.get("FASTADAM_BORROW") == "0")
            atexit.register(_core.stop_borrowing)
            lender = blas.filepath
            break


def share_threads_with_blas() -> SharedThreads:
    """Take steps on the threads of NumPy's OpenBLAS, so that one team serves both.

    OpenBLAS's threads do not sleep after a product: they look for the next one, busily, for a tenth of a second. Steps
    that take other threads compete with them for the cores. By default steps begin on OpenBLAS's threads, and from
    time to time fastadam measures whether products keep these awake, else it leaves them alone; this orders them,
    always and without a look. Results do not change. It does harm where NumPy's products are not what the program
    computes with: the threads that steps wake look for work for a tenth of a second then, too.

    Returns
    -------
    SharedThreads
        Says what was done for each BLAS in the process; a context manager, and its method ``undo`` ends it.

    Raises
    ------
    ImportError
        If threadpoolctl is not installed.

    Warns
    -----
    RuntimeWarning
        If NumPy's BLAS does not lend its threads (MKL, BLIS, Accelerate, the OpenBLAS of NumPy's wheels from 2.5 on),
        with the reason; nothing has changed then.

    Examples
    --------
    >>> import fastadam
    >>> with fastadam.share_threads_with_blas() as sharing:
    ...     pass  # train
    >>> fastadam.config()["blas_shared"]
    []

    Notes
    -----
    OpenBLAS's ``gotoblas_pthread``, which runs a function on its threads. Its header does not declare it, and NumPy's
    wheels export it up to 2.4.
    """
    shared = SharedThreads()
    if not any(entry["shared"] for entry in shared.libraries):
        found = "; ".join(f"{entry['library']}: {entry['why']}" for entry in shared.libraries) or "no BLAS was found"
        warnings.warn(f"share_threads_with_blas() changed nothing: {found}", RuntimeWarning, stacklevel=2)
    return shared


find_lender()
