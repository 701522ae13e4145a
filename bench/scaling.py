"""Against threads, number of parameters and number of arrays: python -m bench scaling [--quick] [--save]

The memory limit (the same bytes read and written in C, limits.c) takes turns with the step, with as many threads.
"""

import argparse
import os
import statistics

import numpy as np

import fastadam

from .harness import alternate, announce, memory_limit, save
from .peers import Fastadam, check
from .workloads import placed

SIZES = [10**k for k in range(2, 10)]
ARRAYS = [10**k for k in range(1, 6)]
SPLIT = 1_000_000  # parameters in all while the number of arrays grows
WORK = 20_000_000  # elements a turn, so that small steps are repeated


def free_memory():
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def thread_counts(available):
    """1, 2, 4 ... and all."""
    return sorted({*(2**k for k in range(available.bit_length())), available})


def measure(size, arrays, threads, rounds):
    """Seconds a step and seconds at the memory limit, one each for every round, for each number of threads."""
    params = [np.broadcast_to(np.float32(1), size // arrays)] * arrays  # takes no memory: contenders make copies
    grads = [placed(np.broadcast_to(np.float32(0.5), size // arrays), 528) for _ in range(arrays)]
    contender = Fastadam(params, grads, None)
    state = contender.optimizer.state[0]
    flat = [contender.arrays[0], grads[0], state["exp_avg"], state["exp_avg_sq"]]  # the limit leaves them as they are
    if arrays > 1:
        flat = [placed(np.broadcast_to(np.float32(1), size), place) for place in (0, 256, 512, 768)]

    def order(count):
        contender.optimizer.threads = count

    turns = {}
    for count in threads:
        turns["step", count] = (lambda c=count: order(c), lambda: contender.step(grads))
        turns["limit", count] = memory_limit(*flat, threads=count)
    calls = max(1, min(1000, WORK // size))
    timings = alternate(turns, rounds, calls)
    check(contender, params, grads, len(threads) * calls * (rounds + 1))
    return [
        {"size": size, "arrays": arrays, "threads": count, "seconds": timings["step", count].samples,
         "limit": timings["limit", count].samples}
        for count in threads
    ]  # fmt: skip


def show(rows):
    alone = statistics.median(rows[0]["seconds"])
    for row in rows:
        seconds, limit = (statistics.median(row[key]) for key in ("seconds", "limit"))
        efficiency = alone / seconds / row["threads"]
        print(
            f"| {row['size']:.0e} | {row['arrays']} | {row['threads']} | {seconds * 1e3:.4g} "
            f"| {28 * row['size'] / seconds / 1e9:.1f} | {limit / seconds:.2f} | {efficiency:.2f} |",
            flush=True,
        )


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m bench scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: a smoke test")
    parser.add_argument("--save", action="store_true", help="keep the results in bench/results/")
    chosen = parser.parse_args(arguments)
    announce()
    print("| parameters | arrays | threads | ms a step | GB/s | share of limit | efficiency |")
    print("|---|---|---|---|---|---|---|", flush=True)
    threads = thread_counts(fastadam.config()["threads"])
    cases = [(size, 1) for size in SIZES] + [(SPLIT, arrays) for arrays in ARRAYS]
    results = []
    for size, arrays in cases:
        if chosen.quick and (size > 10**6 or arrays > 1000):
            continue
        if 22 * size > free_memory():  # p, g, m, v, another gradient in the check, and a little
            print(f"| {size:.0e} | {arrays} | not enough free memory here | | | | |", flush=True)
            results.append({"size": size, "arrays": arrays, "absent": "not enough free memory"})
            continue
        rows = measure(size, arrays, threads, 3 if chosen.quick or size > 10**8 else 11)
        show(rows)
        results += rows
    if chosen.save:
        save("scaling", results)
