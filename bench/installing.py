"""From nothing to the first step.

`pip install` into a new virtual environment, the network's part included; fastadam is compiled from source. Then
Python's start, import and one step of 1000 parameters, and the same in a second process. DeepSpeed compiles its kernel
at the first step. Megabytes are what is installed, with NumPy.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .results import Results, options

ROOT = Path(__file__).parent.parent
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
FIRST_STEP = """
import sys; sys.path.insert(0, {root!r})
import numpy, bench.peers as peers
params, grads = [numpy.ones(1000, 'float32')], [numpy.ones(1000, 'float32')]
contender = peers.CONTENDERS[{contender!r}](params, grads, 1)
contender.run(1)
peers.check(contender, params, grads, 1)
"""


def pins():
    lines = (
        line.split("#")[0].strip() for line in Path(__file__).with_name("requirements.txt").read_text().splitlines()
    )
    return {line.split("==")[0]: line for line in lines if line}


def seconds(command, **options):
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def megabytes(folder):
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def measure(contender, asked):
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, "venv/bin/python")
        seconds([sys.executable, "-m", "venv", str(python.parent.parent)])
        before = megabytes(python.parent.parent)
        wanted = [pins().get(package, package) for package in asked]
        install = seconds([python, "-m", "pip", "install", "-q", "numpy", *wanted], cwd=ROOT)
        size = megabytes(python.parent.parent) - before
        # Away from the checkout, so that the package is the installed one; and kernels are compiled anew.
        env = {**os.environ, "TORCH_EXTENSIONS_DIR": str(Path(folder, "kernels")), "PATH":
               f"{python.parent}{os.pathsep}{os.environ['PATH']}"}  # fmt: skip
        bench = Path(folder, "bench")
        bench.mkdir()
        for name in "__init__.py", "peers.py", "workloads.py":
            (bench / name).write_text((ROOT / "bench" / name).read_text())
        code = FIRST_STEP.format(root=folder, contender=contender)
        first, second = (seconds([python, "-c", code], cwd=folder, env=env) for _ in range(2))
    return {"pip install, s": install, "first step, s": first, "in the next process, s": second, "MB installed": size}


def main(arguments):
    chosen = options("installing", __doc__, arguments, packages=PACKAGES)
    results = Results()
    for name in ["fastadam"] if chosen.quick else chosen.packages:
        results.add("packages", [{"package": name, **measure(*PACKAGES[name])}])
    if chosen.save:
        results.save(chosen.save)
