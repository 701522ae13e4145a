"""One team of threads for every OpenBLAS in the process and the optimizers' steps."""

import ctypes
import os
import re
import threading
import warnings
from typing import Any

from fastadam import _core

PREFIXES, SUFFIXES = ("", "scipy_"), ("", "64_", "_64")  # of names in OpenBLAS's builds
WITH_CALLBACK = 0, 3, 29  # older ones keep no work buffers for threads that are not their own
SETTER = "openblas_set_threads_callback_function"
SHARED = "shared, on fastadam's threads, through its callback"
lock = threading.Lock()  # made anew in forked children, where nobody may be left to release it
users: dict[str, set["SharedThreads"]] = {}  # file of an OpenBLAS that is shared -> who has asked for it


class SharedThreads:
    """What `share_threads_with_blas` did. A context manager; leaving it, or `undo`, ends the sharing.

    Entering it after its end shares again. `with` blocks of one object do not nest: the first that is left ends it.
    Printing it shows what was done for each BLAS, and whether it has ended.

    Attributes
    ----------
    libraries : list of dict
        For each BLAS in the process: "library" (its file), "kind" ("openblas", for one), "version" (str or None),
        "shared" (bool), "threads" (whose they are: "fastadam"; empty if not shared) and "why" (why not; empty if
        shared).
    """

    def __init__(self) -> None:
        self.libraries: list[dict[str, Any]] = []
        self._shared: dict[str, int] = {}  # file -> address of what sets its callback
        for blas in blas_libraries():
            why = refusal(blas) or why_no_threads(threads_of(blas))
            if not why:
                self._shared[blas.filepath] = address_of(blas, SETTER)
                # If a fork before fastadam's import has ended its threads, this makes them, while nobody computes.
                call(blas, "openblas_set_num_threads", None, blas.num_threads)
            entry = {"library": blas.filepath, "kind": blas.internal_api, "version": blas.version, "why": why}
            self.libraries.append(entry | {"shared": not why, "threads": "" if why else "fastadam"})
        self.__enter__()

    # _share and _undo can be interrupted anywhere, and called again.

    def _share(self) -> None:
        for library, setter in self._shared.items():
            mine = users.setdefault(library, set())
            if not mine:
                _core.share_with_blas(setter, True)
            mine.add(self)
        _core.share_steps(bool(users))

    def undo(self) -> None:
        """End the sharing, unless somebody else has asked for it, too. A second call does nothing."""
        with lock:
            self._undo()

    def _undo(self) -> None:
        for library, setter in self._shared.items():
            if library not in users:
                continue
            others = users[library]
            others.discard(self)
            if not others:
                _core.share_with_blas(setter, False)
                del users[library]
        _core.share_steps(bool(users))

    def __enter__(self) -> "SharedThreads":
        try:
            with lock:
                self._share()  # a call, as in optimizer.py
        except BaseException:  # Ctrl-C
            self.undo()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        ended = bool(self._shared) and not any(self in users.get(library, ()) for library in self._shared)
        lines = [f"{e['library']} ({e['kind']} {e['version']}): {e['why'] or SHARED}" for e in self.libraries]
        return f"<SharedThreads{', ended' * ended}" + "".join(f"\n  {line}" for line in lines) + ">"


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
    with warnings.catch_warnings(action="ignore"):  # of OpenMP runtimes that we have nothing to do with
        return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def address_of(blas: Any, name: str) -> int:
    for spelt in (f"{prefix}{name}{suffix}" for prefix in PREFIXES for suffix in SUFFIXES):
        if hasattr(blas.dynlib, spelt):
            return ctypes.cast(getattr(blas.dynlib, spelt), ctypes.c_void_p).value or 0
    return 0


def call(blas: Any, name: str, result: Any, *numbers: int) -> Any:
    """None if it has no such function."""
    address = address_of(blas, name)
    return ctypes.CFUNCTYPE(result, *[ctypes.c_int] * len(numbers))(address)(*numbers) if address else None


def refusal(blas: Any) -> str:
    """Why it cannot run jobs on our threads, whose numbers its own do not have (csrc/team_shared.c); or ""."""
    if not _core.has_openmp():
        return "this build of fastadam has no OpenMP, so its steps are serial"
    if not _core.SHARED_TEAM:
        return "this build of fastadam has no threads to share (csrc/team_shared.c)"
    if blas.internal_api != "openblas":
        return f"{blas.internal_api} has no interface for threads to share; only OpenBLAS has"
    if blas.threading_layer != "pthreads":
        return f"this OpenBLAS has no threads of its own (its threading is {blas.threading_layer!r})"
    if tuple(map(int, re.findall(r"\d+", blas.version or "")[:3])) < WITH_CALLBACK:
        newer = ".".join(map(str, WITH_CALLBACK))
        return f"OpenBLAS {blas.version} has no interface for threads to share; {newer} and newer have"
    if not address_of(blas, SETTER) or not blas.num_threads:
        return "this OpenBLAS was built without its interface for threads to share"
    numbers, threads = numbers_of(blas), threads_of(blas)
    if numbers < _core.BLAS_NUMBERS:
        built = f"was built for {numbers} threads" if numbers else "does not say for how many threads it was built"
        return f"this OpenBLAS {built}, and sharing needs {_core.BLAS_NUMBERS}"
    if threads > _core.MOST_CALLBACK:
        return (
            f"this OpenBLAS has {threads} threads, and sharing can give it {_core.MOST_CALLBACK}: set "
            f"OPENBLAS_NUM_THREADS={_core.MOST_CALLBACK} in the environment before Python starts, or less"
        )
    return ""


def why_no_threads(wanted: int) -> str:
    """Why the system cannot give this many, one for each of its jobs, which wait for each other; or ""."""
    there = _core.threads_to_share(wanted)
    if there >= wanted:
        return ""
    return (
        f"sharing needs {wanted} threads for it, and the system has {there}: raise its limit on threads (ulimit -u, "
        f"ulimit -v, the pids limit of a container), or set OPENBLAS_NUM_THREADS={there} in the environment before "
        "Python starts"
    )


def numbers_of(blas: Any) -> int:
    """How many threads it was built for; 0 if it does not say."""
    found = re.search(rb"MAX_THREADS=(\d+)", call(blas, "openblas_get_config", ctypes.c_char_p) or b"")
    return int(found[1]) if found else 0


def threads_of(blas: Any) -> int:
    """How many it has, those above a limit that was set since included: they stay."""
    at_start = call(blas, "openblas_get_num_procs", ctypes.c_int) or 0
    for name in "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS":
        wanted = re.match(r"\s*0*([1-9]\d*)", os.environ.get(name, ""))
        if wanted:
            at_start = min(at_start, int(wanted[1]))
            break
    return max(at_start, blas.num_threads)


def advice() -> str:
    """For `config`: what to call if an OpenBLAS with several threads could share them and does not; else empty."""
    if users or _core.get_num_threads() < 2:
        return ""
    try:
        libraries = blas_libraries()
    except Exception:  # whatever threadpoolctl makes of these libraries, this is only advice
        return ""
    if not any(library.num_threads and library.num_threads > 1 and not refusal(library) for library in libraries):
        return ""
    return "call fastadam.share_threads_with_blas() once if this program trains next to NumPy's products"


def share_threads_with_blas() -> SharedThreads:
    """Let steps and every OpenBLAS in the process run on the same threads, so that one team serves both.

    OpenBLAS's threads do not sleep after a product: they look for the next one, busily, for a tenth of a second. Steps
    that take other threads compete with them for the cores. So products run on threads of fastadam's, through
    OpenBLAS's threads callback, and steps take those, too. They look for work for 20 ms before they sleep. Libraries
    that are loaded later need another call. Results do not change. Where other programs keep the cores busy, it makes a
    loop slower.

    Python threads that call any such OpenBLAS take turns. Share, and end it, while no thread is inside BLAS. Do not
    raise OpenBLAS's threads above 32 later. In the first second of products after a fork, do not factorise
    (``np.linalg.solve``, ``inv``, ``det``) in one Python thread while another multiplies: that can hang.

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
        If there is no BLAS to share threads with, with the reason; nothing has changed then. MKL, BLIS and Accelerate
        cannot, nor can an OpenBLAS that is older than 0.3.29, was built for fewer than 64 threads or has more than 32;
        nor if the system has no threads for it. (A product in a forked child makes them anew, and ends the process if
        the system has none any more.)

    Notes
    -----
    It takes OpenBLAS's ``openblas_set_threads_callback_function``. There is one at a time: a program that has set its
    own loses it.

    Examples
    --------
    >>> import fastadam
    >>> with fastadam.share_threads_with_blas() as sharing:
    ...     pass  # train
    >>> fastadam.config()["blas_shared"]
    []
    """
    shared = SharedThreads()
    if not any(entry["shared"] for entry in shared.libraries):
        found = "; ".join(f"{entry['library']}: {entry['why']}" for entry in shared.libraries) or "no BLAS was found"
        warnings.warn(f"share_threads_with_blas() changed nothing: {found}", RuntimeWarning, stacklevel=2)
    return shared
