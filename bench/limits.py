"""What no step can be faster than: limits.c, compiled for this machine. And timing of functions that take turns."""

import ctypes
import functools
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from .peers import Contender
from .workers import take_turns
from .workloads import RULES, placed


def alternate(contenders, rounds, calls=1):
    """{name: seconds a call, one for each round}; each takes its turn, and is a function, or (prepare, function)."""

    def seconds(contender):
        prepare, run = contender if isinstance(contender, tuple) else (None, contender)
        if prepare:
            prepare()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    return take_turns({name: functools.partial(seconds, each) for name, each in contenders.items()}, rounds, 0)


@functools.cache
def library(dtype):
    built, real = Path(tempfile.mkdtemp(), "limits.so"), {"float32": "float", "float64": "double"}[dtype.name]
    flags = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]
    source = Path(__file__).with_name("limits.c")
    subprocess.run(["cc", *flags, f"-DREAL={real}", source, "-o", built, "-lm"], check=True)
    loaded = ctypes.CDLL(str(built))
    loaded.arithmetic_limit.restype, loaded.reading_limit.restype = ctypes.c_double, ctypes.c_uint64
    return loaded


def memory_limit(*arrays, threads):
    """A function that reads and writes the arrays as a step does: parameter, gradient, and up to four of state."""
    function = library(arrays[0].dtype).memory_limit
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in arrays] + [ctypes.c_void_p(None)] * (6 - len(arrays))

    def move():
        function(*pointers, ctypes.c_int64(arrays[0].size), threads, ctypes.c_double(0))  # which keeps the arrays alive

    return move


def reading_limit(array, threads):
    """A function that reads an array once, but for what follows its last whole cache line."""
    lines = ctypes.c_int64(array.nbytes // 64)
    return lambda: library(array.dtype).reading_limit(ctypes.c_void_p(array.ctypes.data), lines, threads)


class MemoryLimit(Contender):
    """Reads and writes what a step must, with next to no arithmetic."""

    rules = tuple(rule for rule in RULES if rule != "clipped")

    def setup(self, threads):
        flat = np.concatenate([p.ravel() for p in self.arrays])
        self.arrays = [placed(flat, 256 * i % 1024 + 64 * (i // 4)) for i in range(2 + RULES[self.rule][2])]
        self.limit = memory_limit(*self.arrays, threads=threads)

    def step(self, grads):
        self.limit()


class ArithmeticLimit(MemoryLimit):
    """As many square roots and quotients as a step, which moves no memory."""

    rules = ("Adam", "AdamW", "AMSGrad")

    def setup(self, threads):
        function = library(self.arrays[0].dtype).arithmetic_limit
        size = ctypes.c_int64(sum(p.size for p in self.arrays))
        self.limit = functools.partial(function, size, threads, ctypes.c_double(1))


LIMITS = {"memory limit": MemoryLimit, "arithmetic limit": ArithmeticLimit}
