"""Load the compiled part, with workers that soon sleep between steps, or an ImportError that says what to do."""

import importlib
import os
import re
import sys

# What a user may have chosen: any of these is left alone.
WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# What is set while the runtime is loaded. libgomp's workers look for work 2000 times, 40 to 100 microseconds, and then
# sleep. That is enough for steps back to back (waking them costs as much), and too short to slow BLAS calls in between.
OURS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"}


def openmp_runtimes() -> set[str]:
    """The OpenMP libraries in this process; packages bring their own copies, so there can be several."""
    try:
        with open("/proc/self/maps") as maps:
            mapped = maps.read()
    except OSError:  # not Linux
        return set()
    return set(re.findall(r"/.*/lib(?:gomp|omp|iomp)[^/\n]*$", mapped, re.MULTILINE))


def load() -> str:
    """Import fastadam._core; returns who decided how the workers of its OpenMP runtime wait.

    Runtimes read their wait policy once, when they are loaded. By default workers spin between parallel regions, and
    so do those of NumPy's OpenBLAS: the two then fight for the same cores, and a training loop gets up to ten times
    slower (docs/design.md). So ours are asked to sleep soon, unless the user has decided otherwise.
    """
    refuse_subinterpreters()
    if any(name in os.environ for name in WAIT_SETTINGS):
        import_core()
        return "environment"
    before = openmp_runtimes()
    os.environ.update(OURS)
    try:
        import_core()
    finally:
        for name in OURS:
            del os.environ[name]
    if not sys.modules["fastadam._core"].has_openmp():
        return "no OpenMP"
    return "loaded before fastadam" if before and openmp_runtimes() == before else "passive"


def refuse_subinterpreters() -> None:
    """Before anything is set up: CPython 3.11 would take us there, and hang when the process ends."""
    try:
        import ctypes

        address = ctypes.PYFUNCTYPE(ctypes.c_void_p)
        here, main = (address((f"PyInterpreterState_{name}", ctypes.pythonapi))() for name in ("Get", "Main"))
    except ImportError as error:
        if "subinterpreter" not in str(error):  # CPython 3.12 does not even load ctypes in one
            raise
        here, main = 1, 0
    if here != main:
        raise ImportError(
            "fastadam works in Python's main interpreter only, and this is a subinterpreter: import it in the main one "
            "or in another process (multiprocessing). Under mod_wsgi set WSGIApplicationGroup %{GLOBAL}."
        )


def import_core() -> None:
    try:
        # The compiled part imports these. Freezers such as PyInstaller look for imports in .py files only.
        from fastadam import _checks, _cpus, _forks, _layout, _names, _numbers  # noqa: F401

        importlib.import_module("fastadam._core")
    except ImportError as error:
        if error.name == "fastadam._core":  # no file for this interpreter
            package = os.path.dirname(__file__)
            is_clone = os.path.exists(os.path.join(os.path.dirname(package), "setup.py"))
            raise ImportError(
                "fastadam's compiled part is not here, or is for another Python version, operating system or processor "
                f"({error}). Build it for this Python: run 'python -m pip install -e .' in a clone of fastadam."
                + is_clone
                * f" After 'pip install .' start Python in another folder: it has taken {package}, the source."
            ) from error
        if error.path and os.path.dirname(error.path) == os.path.dirname(__file__):  # the file does not load
            error.add_note(
                "fastadam's compiled part needs what is named above. If it is a library, install that (libgomp.so.1 is "
                "in Debian's package libgomp1, and in libgomp of other systems); otherwise build fastadam on this "
                "system: run 'python -m pip install -e .' in a clone of it."
            )
        elif "numpy" in str(error):
            error.add_note(
                "fastadam needs NumPy as new as the one it was built with: 'python -m pip install -U numpy'."
            )
        raise
