"""Load the compiled part, with workers that soon sleep between steps, or an ImportError that says what to do."""

import importlib
import os
import sys
from pathlib import Path

# What a user may have chosen: any of these is left alone.
WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# What is set while the runtime is loaded. libgomp's workers look 2000 times, 40 to 100 microseconds, before they sleep:
# enough for steps back to back (waking them costs as much), and no harm to the BLAS calls between others.
OURS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "2000"}


def openmp_runtimes() -> set[str]:
    """The OpenMP libraries in this process; packages bring their own copies, so there can be several."""
    try:
        mapped = Path("/proc/self/maps").read_text().split()
    except OSError:  # not Linux
        return set()
    return {path for path in mapped if Path(path).name.startswith(("libgomp", "libomp", "libiomp"))}


def load() -> str:
    """Import fastadam._core; returns who decided how the workers of its OpenMP runtime wait.

    Runtimes read their wait policy once, when they are loaded. By default workers spin between parallel regions, and
    so do those of NumPy's OpenBLAS: the two then fight for the same cores, and a training loop gets up to ten times
    slower (docs/design.md). So ours are asked to sleep soon, unless the user has decided otherwise.
    """
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


def import_core() -> None:
    try:
        importlib.import_module("fastadam._core")
    except ImportError as error:
        if "FASTADAM_ISA" in str(error):
            raise
        raise ImportError(
            f"fastadam's compiled part cannot be loaded ({error}). It belongs to one Python version, operating system "
            "and processor: reinstall it here with 'python -m pip install --force-reinstall fastadam'. In a source "
            "checkout run 'python -m pip install -e .' first."
        ) from error
