"""What this installation is and how it runs."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy

import fastadam
from fastadam import _core, threads

try:
    __version__ = version("fastadam")
except PackageNotFoundError:  # a frozen program, or a bare copy of the package: pyproject.toml has it, and is not here
    __version__ = "unknown"


def config() -> dict[str, Any]:
    """What this installation is and how it runs, as a dict.

    Keys: version ("unknown" if only a copy of the package's files is here), python, numpy, machine (str); isa, the
    kernel path in use, and isa_available, all paths of this build and CPU; openmp (bool), False for a serial build;
    threads (int), the most that a step would take now;
    openmp_waits, who decided how OpenMP's workers wait between steps: "passive" (fastadam did: they soon sleep),
    "environment" (OMP_WAIT_POLICY, GOMP_SPINCOUNT or KMP_BLOCKTIME), "loaded before fastadam" (another package) or
    "no OpenMP"; blas_shared (list of str), every OpenBLAS that `share_threads_with_blas` has put on one team
    with steps; steps_on (str), whose threads the last step that could take several was given: "fastadam" (threads that
    OpenBLAS computes on, too) or "OpenMP" (also before the first one); advice (str), what might make this program
    faster, or empty.

    Examples
    --------
    >>> import fastadam
    >>> fastadam.config()["isa"] in fastadam.config()["isa_available"]
    True
    """
    return {
        "version": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "machine": platform.machine(),
        "isa": _core.isa(),
        "isa_available": _core.isas_available(),
        "openmp": _core.has_openmp(),
        "threads": _core.get_num_threads(),
        "openmp_waits": fastadam._wait_policy,
        "blas_shared": sorted(threads.users),
        "steps_on": _core.steps_on(),
        "advice": threads.advice(),
    }


def show_config() -> None:
    """Print `config`, one line each, for bug reports."""
    for name, value in config().items():
        print(f"{name + ':':15}{value}")
