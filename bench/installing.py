"""From nothing to the first step.

`pip install` into a new virtual environment, the network's part included; fastadam is compiled from source. Then
Python's start, import and one step of 1000 parameters, and the same in a second process. DeepSpeed compiles its kernel
at the first step. Megabytes are what is installed, with NumPy.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BENCH = Path(__file__).parent
PACKAGES = {  # name -> contender, what pip is asked for besides NumPy
    "fastadam": ("fastadam", ["."]),
    "scikit-learn": ("scikit-learn", ["scikit-learn"]),
    "numba": ("numba prange", ["numba"]),
    "thinc": ("thinc", ["thinc"]),
    "autograd": ("autograd", ["autograd"]),
    "optax": ("optax jit", ["optax", "jax"]),
    "torch": ("torch fused", ["torch"]),
    "deepspeed": ("DeepSpeed CPUAdam", ["deepspeed", "torch", "ninja", "setuptools"]),
}
CHOICES = {"packages": PACKAGES}
FIRST_STEP = """
import numpy, bench.peers as peers
params, grads = [numpy.ones(1000, 'float32')], [numpy.ones(1000, 'float32')]
contender = peers.CONTENDERS[{contender!r}](params, grads, 1)
contender.run(1)
peers.check(contender, params, grads, 1)
"""


def pin(package):
    """As in requirements.txt."""
    lines = (line.split("#")[0].strip() for line in (BENCH / "requirements.txt").read_text().splitlines())
    return next((line for line in lines if line.split("==")[0] == package), package)


def seconds(*command, **options):
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def install(contender, asked):
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "venv/bin/python")
        seconds(sys.executable, "-m", "venv", f"{folder}/venv")
        size = -sum(file.lstat().st_size for file in Path(folder).rglob("*"))
        pip = seconds(python, "-m", "pip", "install", "-q", "numpy", *map(pin, asked), cwd=BENCH.parent)
        size += sum(file.lstat().st_size for file in Path(folder).rglob("*"))
        # Away from the checkout, so that the package is the installed one; and kernels are compiled anew.
        path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "TORCH_EXTENSIONS_DIR": f"{folder}/kernels", "PATH": path}
        Path(folder, "bench").mkdir()
        for name in "__init__.py", "peers.py", "workloads.py":
            shutil.copy(BENCH / name, f"{folder}/bench")
        code = FIRST_STEP.format(contender=contender)
        first, second = (seconds(python, "-c", code, cwd=folder, env=env) for _ in range(2))
    columns = "pip install, s", "first step, s", "in the next process, s", "MB installed"
    return dict(zip(columns, (pip, first, second, size / 1e6), strict=True))


def measure(chosen):
    for name in ["fastadam"] if chosen.quick else chosen.packages:
        yield "packages", [{"package": name, **install(*PACKAGES[name])}]
