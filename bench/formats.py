"""Formats of gradients, state and parameters.

The time of a step of Adam on one array, over that of the same step with all in float32. Contenders take turns in one
process. The limit is the time in which the float32 step, which is bound by memory, moves as many bytes. Then the 8-bit
optimizers of others, each in a process of its own, over our step with 8-bit state. Every result is checked.
"""

import functools
import time

import numpy as np

import fastadam
from fastadam import _core

from .low_peers import LOW_PEERS, check
from .results import milliseconds, promise, ratio
from .workers import PAUSE, Worker, take_turns
from .workloads import Workload

FORMATS = {  # name: (of parameters, of gradients, options)
    "float32": ("float32", "float32", {}),
    "bfloat16 gradient": ("float32", "bfloat16", {}),
    "float16 gradient": ("float32", "float16", {}),
    "bfloat16 state": ("float32", "float32", {"state_dtype": "bfloat16"}),
    "8bit state": ("float32", "float32", {"state_dtype": "8bit"}),
    "bfloat16 parameters": ("bfloat16", "bfloat16", {}),
    "bfloat16 parameters and state": ("bfloat16", "bfloat16", {"state_dtype": "bfloat16"}),
    "bfloat16 parameters, 8bit state": ("bfloat16", "bfloat16", {"state_dtype": "8bit"}),
    "bfloat16 parameters of 24 bits, 8bit state": ("bfloat16", "bfloat16", {"state_dtype": "8bit", "master_bits": 24}),
}
CACHE, MIDDLE, LARGE = 1 << 14, 1 << 24, 1 << 26
CASES = [(CACHE, 1, "avx2"), (CACHE, 1, None), (MIDDLE, 1, None), (MIDDLE, 2, None), (LARGE, 2, None)]
CHOICES = {"elements": [str(n) for n in dict.fromkeys(case[0] for case in CASES)]}
BARS = [  # elements, threads, instruction set, format, its time over float32's
    (CACHE, 1, "avx2", "bfloat16 gradient", "<= 1.2"),
    (CACHE, 1, "avx2", "float16 gradient", "<= 1.8"),
    (CACHE, 1, "avx2", "bfloat16 state", "<= 2.4"),
    (CACHE, 1, "avx2", "8bit state", "<= 3.4"),
    (CACHE, 1, "avx2", "bfloat16 parameters", "<= 1.8"),
    (LARGE, 2, "avx512", "bfloat16 gradient", "<= 1.0"),
    (LARGE, 2, "avx512", "bfloat16 state", "<= 1.05"),
    (LARGE, 2, "avx512", "8bit state", "<= 2.2"),
]
LIMIT_BAR = (LARGE, 2, "avx512", "bfloat16 state", ">= 0.65")
PEER_BARS = {"bitsandbytes": ">= 8", "torchao": ">= 8", "bitsandbytes-cpu-fork": ">= 1.5"}
MOST_STEPS = 2000  # in a turn


def dtype_of(name):
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


class Ours:
    """One array in a format, and its steps."""

    def __init__(self, name, elements, threads):
        of_param, of_grad, options = FORMATS[name]
        (param,), (grad,) = Workload("", ((elements,),)).make()
        self.name, self.steps, self.grad = name, 0, grad.astype(dtype_of(of_grad))
        self.param = param.astype(dtype_of(of_param))
        self.start = self.param.astype(np.float32)
        self.optimizer = fastadam.Adam(self.param, threads=threads, weight_decay=0.0, **options)
        stored = [
            array for array in self.optimizer.state_dict(raw=True)["state"][0].values() if hasattr(array, "nbytes")
        ]
        self.bytes = (self.param.nbytes + self.optimizer.nbytes) / elements
        self.moved = (self.grad.nbytes + 2 * self.param.nbytes + 2 * sum(array.nbytes for array in stored)) / elements

    def step(self, count=1):
        for _ in range(count):
            self.optimizer.step(self.grad)
        self.steps += count

    def check(self):
        """A gradient that stays the same moves each element by lr a step."""
        check(self.name, [self.start], [self.grad.astype(np.float32)], [self.optimizer.master(0)], self.steps)


def seconds_of(function, count):
    start = time.perf_counter()
    function(count)
    return (time.perf_counter() - start) / count


def measure_case(elements, threads, isa, rounds, pause):
    """{format: seconds, one for each round}, {format: what was measured}"""
    ours = {}
    for name in FORMATS:
        try:
            ours[name] = Ours(name, elements, threads)
        except ImportError:  # no ml_dtypes
            continue
    count = min(MOST_STEPS, max(1, (1 << 22) // elements))
    turns = {name: functools.partial(seconds_of, each.step, count) for name, each in ours.items()}
    before = _core.isa()
    try:
        _core.select_isa(isa)
        seconds = take_turns(turns, rounds, pause)
    finally:
        _core.select_isa(before)
    for each in ours.values():
        each.check()
    return seconds, ours


class PeerOrOurs:
    """8-bit state on one array, in a process of its own."""

    def __init__(self, name, elements, threads):
        (self.param,), (self.grad,) = Workload("", ((elements,),)).make()
        self.name, self.start, self.steps = name, self.param.copy(), 0
        if name in FORMATS:
            optimizer = fastadam.AdamW(self.param, threads=threads, weight_decay=0.0, **FORMATS[name][2])
            self.run = lambda: optimizer.step(self.grad)
        else:
            optimizer = LOW_PEERS[name]([self.param], threads)
            self.run = lambda: optimizer.step([self.grad])
        self.step()  # which may compile

    def step(self):
        self.steps += 1
        self.run()

    def seconds(self):
        return seconds_of(lambda _: self.step(), 1)

    def check(self):
        check(self.name, [self.start], [self.grad], [self.param], self.steps)


def measure_peers(elements, threads, rounds, pause):
    """{name: seconds, one for each round}, {name: why absent}"""
    workers, absent = {}, {}
    for name in ["float32", "8bit state", *LOW_PEERS]:
        try:
            workers[name] = Worker(PeerOrOurs, name, elements, threads)
        except ImportError as error:
            absent[name] = str(error)
    try:
        turns = {name: functools.partial(worker, "seconds") for name, worker in workers.items()}
        seconds = take_turns(turns, rounds, pause)
        for worker in workers.values():
            worker("check")
    finally:
        for worker in workers.values():
            worker.close()
    return seconds, absent


def measure(chosen):
    for elements, threads, isa in CASES:
        if str(elements) not in chosen.elements or (chosen.quick and elements > CACHE):
            continue
        isa = isa or _core.isas_available()[-1]
        if isa not in _core.isas_available():
            continue
        rounds, pause = (3, 0) if chosen.quick else (9 if elements == LARGE else 41, PAUSE)
        seconds, ours = measure_case(elements, threads, isa, rounds, pause)
        case = {"elements": elements, "threads": threads, "isa": isa}
        rows = []
        for name, each in ours.items():
            row = {**case, "format": name, "ms": milliseconds(seconds[name])}
            row["over float32"] = ratio(seconds[name], seconds["float32"])
            limit = [base * each.moved / ours["float32"].moved for base in seconds["float32"]]
            row["limit over ours"] = None if elements == CACHE else ratio(limit, seconds[name])
            rows.append({**row, "bytes kept": each.bytes, "bytes moved": each.moved})
        yield "steps", rows
        found = {row["format"]: row for row in rows}
        promises = [
            promise({**case, "what": f"{name} over float32"}, bar, found[name]["over float32"])
            for *where, name, bar in BARS
            if where == [elements, threads, isa] and name in found
        ]
        *where, name, bar = LIMIT_BAR
        if where == [elements, threads, isa] and name in found:
            promises.append(promise({**case, "what": f"limit over {name}"}, bar, found[name]["limit over ours"]))
        yield "promises", promises
    for threads in (1,) if chosen.quick else (1, 2):
        elements = CACHE if chosen.quick else MIDDLE
        if str(MIDDLE) not in chosen.elements:
            continue
        seconds, absent = measure_peers(elements, threads, 3 if chosen.quick else 15, 0 if chosen.quick else PAUSE)
        case = {"elements": elements, "threads": threads}
        base = seconds["8bit state"]
        yield (
            "peers",
            [
                {**case, "contender": name, "ms": milliseconds(its), "over our 8bit state": ratio(its, base)}
                for name, its in seconds.items()
            ],
        )
        yield "absent", [{**case, "contender": name, "why": why} for name, why in absent.items()]
        yield (
            "promises",
            [
                promise({**case, "what": f"{name} over our 8bit state"}, PEER_BARS[name], ratio(seconds[name], base))
                for name in PEER_BARS
                if name in seconds
            ],
        )
