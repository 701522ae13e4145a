"""Scaling.

Against threads (ordered with `threads=`), parameters in one array, and number of arrays of 10^6 parameters in all.
Efficiency is the speed-up over one thread divided by the threads. The memory limit, the same bytes read and written in
C, takes turns with the step, on as many threads.
"""

import os
import statistics

import numpy as np

import fastadam

from .limits import alternate, memory_limit
from .peers import Fastadam, check
from .results import ratio
from .workloads import placed

SIZES = [10**k for k in range(2, 10)]
ARRAYS = [10**k for k in range(1, 6)]
SPLIT = 1_000_000  # parameters in all while the number of arrays grows
WORK = 20_000_000  # elements a turn, so that small steps are repeated


def alternating(size, arrays, threads, rounds):
    """{(step or limit, threads): seconds, one for each round}"""
    params = [np.broadcast_to(np.float32(1), size // arrays)] * arrays  # takes no memory: contenders make copies
    grads = [placed(np.broadcast_to(np.float32(0.5), size // arrays), 528) for _ in range(arrays)]
    contender = Fastadam(params, grads, None)
    state = contender.optimizer.state[0]
    flat = [contender.arrays[0], grads[0], state["exp_avg"], state["exp_avg_sq"]]  # the limit leaves them as they are
    if arrays > 1:
        flat = [placed(np.broadcast_to(np.float32(1), size), place) for place in (0, 256, 512, 768)]
    turns = {}
    for count in threads:
        order = lambda count=count: setattr(contender.optimizer, "threads", count)  # noqa: E731
        turns["step", count] = order, lambda: contender.step(grads)
        turns["limit", count] = memory_limit(*flat, threads=count)
    calls = max(1, min(1000, WORK // size))
    timings = alternate(turns, rounds, calls)
    check(contender, params, grads, contender.optimizer.steps)
    return timings


def rows(size, arrays, timings):
    for threads in [count for what, count in timings if what == "step"]:
        seconds = statistics.median(timings["step", threads])
        yield {
            "parameters": f"{size:.0e}",
            "arrays": arrays,
            "threads": threads,
            "ms a step": seconds * 1e3,
            "GB/s": 28e-9 * size / seconds,
            "share of the limit": ratio(timings["limit", threads], timings["step", threads]),
            "efficiency": statistics.median(timings["step", 1]) / seconds / threads,
        }


def measure(chosen):
    available = fastadam.config()["threads"]
    threads = sorted({*(2**k for k in range(available.bit_length())), available})
    for size, arrays in [(size, 1) for size in SIZES] + [(SPLIT, arrays) for arrays in ARRAYS]:
        if chosen.quick and (size > 10**6 or arrays > 1000):
            continue
        if 22 * size > os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):  # p, g, m, v, and g again to check
            yield "absent", [{"parameters": f"{size:.0e}", "why": "not enough free memory"}]
        else:
            timings = alternating(size, arrays, threads, 3 if chosen.quick or size > 10**8 else 11)
            yield "steps", rows(size, arrays, timings)
