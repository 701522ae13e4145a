"""Side-by-side timing: alternate the contenders in one process, report ratios of medians with their spread."""

import ctypes
import functools
import json
import platform
import re
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

import fastadam

RESULTS = Path(__file__).with_name("results")


@dataclass
class Timing:
    """Seconds per call, one sample per round."""

    samples: list[float]

    @property
    def median(self):
        return statistics.median(self.samples)

    @property
    def spread(self):
        """The middle half of the samples, relative to the median."""
        low, _, high = statistics.quantiles(self.samples, n=4)
        return (high - low) / self.median


def alternate(contenders, rounds, calls=1):
    """Time each of {name: function} `calls` times per round, taking turns; a function is (prepare, run) or run."""
    samples = {name: [] for name in contenders}
    for number in range(rounds + 1):  # the first round warms up
        for name, contender in contenders.items():
            prepare, run = contender if isinstance(contender, tuple) else (None, contender)
            if prepare:
                prepare()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            if number:
                samples[name].append((time.perf_counter() - start) / calls)
    return {name: Timing(times) for name, times in samples.items()}


def ratio(timings, name, base):
    """Median of the rounds' ratios name/base, with its quartiles: drift that hits both cancels."""
    pairs = zip(timings[name].samples, timings[base].samples, strict=True)
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    return middle, low, high


@functools.cache
def limits():
    """The library of limits.c, compiled for this machine."""
    source = Path(__file__).with_name("limits.c")
    library = Path(tempfile.mkdtemp(), "limits.so")
    flags = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, str(source), "-o", str(library), "-lm"], check=True)
    loaded = ctypes.CDLL(str(library))
    for function in loaded.arithmetic_limit_f32, loaded.arithmetic_limit_f64:
        function.restype = ctypes.c_double
    loaded.reading_limit.restype = ctypes.c_uint64
    return loaded


def suffix(dtype):
    return {"float32": "f32", "float64": "f64"}[np.dtype(dtype).name]


def memory_limit(p, g, *state, threads):
    """A function without arguments that reads and writes these arrays as a step does."""
    function = limits()[f"memory_limit_{suffix(p.dtype)}"]
    arrays = [p, g, *state]
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in arrays] + [ctypes.c_void_p(None)] * (6 - len(arrays))

    def move():
        function(*pointers, ctypes.c_int64(arrays[0].size), threads, ctypes.c_double(0))  # which keeps the arrays alive

    return move


def reading_limit(array, threads):
    """A function without arguments that reads an array once, but for what follows its last whole cache line."""
    lines = ctypes.c_int64(array.nbytes // 64)
    return lambda: limits().reading_limit(ctypes.c_void_p(array.ctypes.data), lines, threads)


def arithmetic_limit(size, dtype, threads):
    """A function without arguments that takes as many square roots and quotients as a step."""
    function = limits()[f"arithmetic_limit_{suffix(dtype)}"]
    return functools.partial(function, ctypes.c_int64(size), threads, ctypes.c_double(1))


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def describe_machine():
    config = fastadam.config()
    return (
        f"{cpu_name()}, {config['threads']} threads; fastadam {config['version']} ({config['isa']}), "
        f"NumPy {config['numpy']}, Python {config['python']}, {platform.platform()}"
    )


def announce():
    print(describe_machine(), flush=True)


PACKAGES = ("numpy", "numba", "scikit-learn", "thinc", "autograd", "jax", "optax", "torch", "deepspeed")


def about():
    installed = {distribution.name.lower(): distribution.version for distribution in distributions()}
    versions = {package: installed[package] for package in PACKAGES if package in installed}
    return {"machine": describe_machine(), "versions": versions, "date": time.strftime("%Y-%m-%d")}


def load(name):
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def save(name, results):
    """Keep results with machine, versions and date in bench/results/, from which `python -m bench report` draws."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"about": about(), "results": rounded(results)}, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda samples: " ".join(samples[0].split()), text)  # a list on one line
    (RESULTS / f"{name}.json").write_text(text + "\n")


def rounded(value):
    """Four digits of every float."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
