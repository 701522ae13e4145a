"""What this installation is and how it runs."""

import os
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
    """What this installation is and how it runs.

    Returns
    -------
    dict
        * "version": str, of fastadam; "unknown" if only a copy of the package's files is here.
        * "python", "numpy", "machine": str, two versions, and the kind of processor.
        * "isa": str, the kernel path in use. "isa_available": list of str, all paths of this build and CPU.
        * "openmp": bool, False for a serial build.
        * "threads": int, the most that a step would take now.
        * "openmp_waits": str, who decided how OpenMP's workers wait between steps: "passive" (fastadam did: they soon
          sleep), "environment" (OMP_WAIT_POLICY, GOMP_SPINCOUNT or KMP_BLOCKTIME), "loaded before fastadam" (another
          package) or "no OpenMP".
        * "blas_shared": list of str, every OpenBLAS that `share_threads_with_blas` has put on one team with steps.
        * "steps_on": str, whose threads the last step that could take several was given: "fastadam" (OpenBLAS computes
          on them, too) or "OpenMP" (also before the first step).
        * "advice": str, what might make this program faster, or empty.

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


INSTRUCTIONS = {"baseline": "the baseline instructions", "avx2": "AVX2", "avx512": "AVX-512"}


def verdict(found: dict[str, Any]) -> str:
    """What `config` found, in one sentence."""
    threads = "one thread" if found["threads"] == 1 else f"up to {found['threads']} threads"
    how = f"steps run on {threads}, with {INSTRUCTIONS[found['isa']]}"
    if not found["openmp"]:
        return f"This build has no OpenMP, so {how}."
    if found["isa"] != found["isa_available"][-1]:
        return f"FASTADAM_ISA is set, so {how}, although {INSTRUCTIONS[found['isa_available'][-1]]} would be faster."
    if found["openmp_waits"] == "loaded before fastadam":
        return f"Another package has loaded OpenMP, whose threads may not sleep between steps: {how}."
    return f"All is well: {how}{'; see advice for what may help a loop' * bool(found['advice'])}."


def show_config() -> None:
    """Print a sentence, and `config`, one line each, for bug reports."""
    found = config()
    print(f"{verdict(found)}\n")
    for name, value in found.items():
        print(f"{name + ':':15}{value}")


def get_include() -> str:
    """The folder of the C headers ``fastadam_api.h`` and ``fastadam_import.h``, for a compiler's ``-I``.

    docs/c-interface.md has complete programs in C, Cython and numba.

    Examples
    --------
    >>> import os, fastadam
    >>> sorted(os.listdir(fastadam.get_include()))
    ['fastadam_api.h', 'fastadam_import.h']
    """
    return os.path.join(os.path.dirname(fastadam.__file__), "include")
