"""Steps of one small array from compiled code.

Through the table of the C interface, and through adam_f32, each in a loop in C without the GIL, beside
fastadam.adam_update from Python. They take turns, and their results must be the same bits.
"""

import ctypes
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

import fastadam
from fastadam import _core

from .results import promise, ratio
from .workers import take_turns

SIZES = (1, 16, 1024, 16384)
BAR = "<= 0.6"  # of a step through the table over adam_update, of one element


def pointer_in(capsule):
    name, pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return pointer(capsule, name(capsule))


class Options(ctypes.Structure):
    """fastadam_options, which is only filled and passed on."""

    _fields_ = [("size", ctypes.c_size_t), ("others", ctypes.c_char * 120)]


class Array(ctypes.Structure):
    _fields_ = [("param", ctypes.c_void_p), ("grad", ctypes.c_void_p), ("state", ctypes.c_void_p * 3)]
    _fields_ += [
        ("n", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("step", ctypes.c_int64),
        ("product", ctypes.c_double),
    ]


def compiled():
    target = Path(tempfile.mkdtemp(), "embedded.so")
    source = Path(__file__).with_name("embedded.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", f"-I{fastadam.get_include()}", source, "-o", target], check=True)
    return ctypes.CDLL(str(target))


class Steps:
    """Of one array, and how many it has taken."""

    def __init__(self, size):
        rng = np.random.default_rng(size)
        self.param, self.grad = rng.standard_normal((2, size), np.float32)
        self.m, self.v = np.zeros((2, size), np.float32)
        addresses = [array.ctypes.data for array in (self.param, self.grad, self.m, self.v)]
        self.array = Array(*addresses[:2], (ctypes.c_void_p * 3)(*addresses[2:]), size, 32, 0, 1.0)

    def arrays(self):
        return self.param, self.m, self.v

    def in_python(self, turns):
        update, (p, g, m, v), first = fastadam.adam_update, (self.param, self.grad, self.m, self.v), self.array.step
        start = time.perf_counter()
        for step in range(first + 1, first + turns + 1):
            update(p, g, m, v, step)
        seconds = time.perf_counter() - start
        self.array.step += turns
        return seconds / turns

    def in_c(self, function, *given):
        def run(turns):
            start = time.perf_counter()
            result = function(*given, ctypes.byref(self.array), ctypes.c_int64(turns))
            seconds = time.perf_counter() - start
            assert result >= 1
            return seconds / turns

        return run


def measure(chosen):
    library, options, table = compiled(), Options(), ctypes.c_void_p(pointer_in(_core._C_API))
    fill = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
    fill_at = ctypes.c_void_p.from_address(table.value + 16).value
    assert fill(fill_at)(b"Adam", ctypes.addressof(options), ctypes.sizeof(options)) == 0
    scalars = ctypes.c_void_p(pointer_in(_core.__pyx_capi__["adam_f32"]))
    for size in SIZES:
        turns, rounds = max(20, 20_000 // (1 + size // 64)), 3 if chosen.quick else 51
        steps = {name: Steps(size) for name in ("adam_update from Python", "table", "adam_f32")}
        runs = {
            "adam_update from Python": steps["adam_update from Python"].in_python,
            "table": steps["table"].in_c(library.through_table, table, ctypes.byref(options)),
            "adam_f32": steps["adam_f32"].in_c(library.through_scalars, scalars, ctypes.byref(options)),
        }
        found = take_turns({name: lambda run=run, turns=turns: run(turns) for name, run in runs.items()}, rounds, 0)
        most = max(each.array.step for each in steps.values())  # a turn that was disturbed has been taken again
        for name, each in steps.items():
            runs[name](most + 1 - each.array.step)
        for each in steps.values():
            for ours, theirs in zip(each.arrays(), steps["table"].arrays(), strict=True):
                assert np.array_equal(ours, theirs) and np.isfinite(ours).all()
        base = found["adam_update from Python"]
        for name, seconds in found.items():
            what = {"elements": size, "steps through": name, "ns": round(statistics.median(seconds) * 1e9)}
            bar = BAR if (size, name) == (1, "table") else ""
            yield "embedded", [promise(what, bar, ratio(seconds, base))]
