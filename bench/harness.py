"""Side-by-side timing: alternate the contenders in one process, report ratios of medians with their spread."""

import ctypes
import functools
import platform
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fastadam


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
def memory_limit():
    """The C functions of memory_limit.c, compiled for this machine: {float32: f, float64: f}."""
    source = Path(__file__).with_name("memory_limit.c")
    library = Path(tempfile.mkdtemp(), "memory_limit.so")
    flags = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))

    def call(function, p, g, m, v, threads):
        function(*(ctypes.c_void_p(x.ctypes.data) for x in (p, g, m, v)), ctypes.c_int64(p.size), threads)

    return {
        np.float32: functools.partial(call, loaded.memory_limit_f32),
        np.float64: functools.partial(call, loaded.memory_limit_f64),
    }


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
