"""Side by side with every peer: python -m bench versus [--quick] [--peers A,B] [--workloads X,Y] [--save]

Every contender lives in a process of its own, fastadam's variants and the memory limit share one; they take turns. All
get all threads, except "fastadam default". Results are checked against float64 after timing. A peer that is not
installed, or has no such update rule, is reported as absent. Shown are ratios, medians over the rounds with quartiles.
"""

import argparse
import statistics
import time

import numpy as np

import fastadam

from .harness import announce, memory_limit, save
from .peers import CONTENDERS, PEERS, Contender, check
from .workers import Worker, take_turns
from .workloads import WORKLOADS, placed

OURS = ["memory limit", "fastadam", "fastadam default", "fastadam.adam_update"]
SLOW = {"NumPy tutorial", "NumPy in place", "scikit-learn", "thinc", "autograd"}  # seconds a step at 64 Mi
BLOCK = 0.02  # seconds of work per turn, at least one step
LARGE = 1 << 27  # bytes of parameters: such contenders meet fastadam one by one, or memory runs out


class MemoryLimit(Contender):
    """Reads and writes what a step must, with next to no arithmetic, in C (memory_limit.c)."""

    rules = ("Adam", "AdamW")

    def setup(self, threads):
        self.limit, self.threads = memory_limit()[self.arrays[0].dtype.type], threads
        flat = np.concatenate([p.ravel() for p in self.arrays])
        self.arrays = [placed(flat, place) for place in (0, 256, 512, 768)]

    def step(self, grads):
        self.limit(*self.arrays, self.threads)


class Runner:
    """In a process of its own: contenders on one workload."""

    def __init__(self, names):
        self.names = names

    def prepare(self, workload, threads):
        """{name: steps per turn}, or {name: why it is absent}."""
        self.workload = WORKLOADS[workload]
        self.params, self.grads = self.workload.make()
        self.contenders, self.taken, self.steps, absent = {}, {}, {}, {}
        for name in self.names:
            make = MemoryLimit if name == "memory limit" else CONTENDERS[name]
            try:
                contender = make(self.params, self.grads, threads, self.workload.rule)
                contender.run(1)  # compiles and allocates
            except (ImportError, NotImplementedError) as error:
                absent[name] = str(error)
                continue
            except Exception as error:
                absent[name] = f"FAILED: {error}"
                continue
            self.contenders[name], self.taken[name] = contender, 1
            self.steps[name] = 1
            once = min(self.turn(name) for _ in range(2 if self.workload.nbytes < LARGE else 1))
            self.steps[name] = max(1, min(2000, int(BLOCK / once)))
        return absent

    def turn(self, name):
        """Seconds a step."""
        contender, steps = self.contenders[name], self.steps[name]
        contender.run(1)  # brings its data back into the cache
        start = time.perf_counter()
        contender.run(steps)
        seconds = time.perf_counter() - start
        self.taken[name] += steps + 1
        return seconds / steps

    def finish(self):
        for name, contender in self.contenders.items():
            if name != "memory limit":
                check(contender, self.params, self.grads, self.taken[name])
        self.contenders = self.params = self.grads = None


def measure(workload, ours, peers, rounds):
    """One workload, all contenders in turn: {name: seconds a step, one for each round}, {name: why absent}."""
    threads = fastadam.config()["threads"]
    absent = ours("prepare", workload, threads)
    turns = {name: lambda name=name: ours("turn", name) for name in OURS if name not in absent}
    present = []
    for name, worker in peers.items():
        why = worker("prepare", workload, threads)
        absent.update(why)
        if not why:
            turns[name] = lambda name=name, worker=worker: worker("turn", name)
            present.append(worker)
    seconds = take_turns(turns, rounds)
    for worker in [ours, *present]:
        worker("finish")
    return {"workload": workload, "seconds": seconds, "absent": absent}


def quartiles(ours, theirs):
    """Of the rounds' ratios theirs / ours: drift that hits both cancels."""
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3


def base(name):
    """What a contender is compared with: function with function, everything else with the class."""
    return "fastadam.adam_update" if name in ("numba serial", "numba prange") else "fastadam"


def show(result):
    seconds, workload = result["seconds"], WORKLOADS[result["workload"]]
    for name, samples in seconds.items():
        low, middle, high = quartiles(seconds["fastadam"], samples)
        speed = workload.step_bytes / statistics.median(samples) / 1e9
        limit = f"{quartiles(samples, seconds['memory limit'])[1]:.2f}" if "memory limit" in seconds else ""
        bare = ""
        if base(name) != "fastadam" and base(name) in seconds:
            bare = f"{quartiles(seconds[base(name)], samples)[1]:.2f}"
        print(
            f"| {workload.name} | {name} | {statistics.median(samples) * 1e3:.4g} | {speed:.1f} | {limit} "
            f"| {middle:.2f} ({low:.2f} to {high:.2f}) | {bare} |",
            flush=True,
        )
    for name, why in result["absent"].items():
        if name != "memory limit":
            print(f"| {workload.name} | {name} | absent: {why} | | | | |", flush=True)


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m bench versus", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small workloads, few rounds: a smoke test")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--save", action="store_true", help="keep the results in bench/results/")
    chosen = parser.parse_args(arguments)
    workloads = [WORKLOADS[name] for name in chosen.workloads.split(",")]
    if chosen.quick:
        workloads = [w for w in workloads if w.size <= 1 << 20]
    announce()
    print("| workload | contender | ms a step | GB/s | share of limit | against fastadam | against adam_update |")
    print("|---|---|---|---|---|---|---|", flush=True)
    ours = Worker(Runner, OURS)
    peers = {name: Worker(Runner, [name]) for name in chosen.peers.split(",")}
    results = []
    for workload in workloads:
        groups = [[name] for name in peers] if workload.nbytes >= LARGE else [list(peers)]
        for group in groups:
            rounds = 3 if chosen.quick or (workload.nbytes >= LARGE and group[0] in SLOW) else 7
            results.append(measure(workload.name, ours, {name: peers[name] for name in group}, rounds))
            show(results[-1])
    for worker in [ours, *peers.values()]:
        worker.close()
    if chosen.save:
        save("versus", results)
    if any(why.startswith("FAILED") for result in results for why in result["absent"].values()):
        raise SystemExit("a contender failed")
