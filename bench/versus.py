"""Side by side with every peer: python -m bench versus [--quick] [--peers A,B] [--workloads X,Y] [--save]

Every contender lives in a process of its own, fastadam's variants and the limits (limits.c) share one; they take turns.
All get all threads, except "fastadam default" (after 24 steps) and "fastadam.adam_update", which run as they come.
Results are checked against float64 after timing. A peer that is not installed, or has no such rule or element type, is
reported as absent. Shown are ratios, medians over the rounds with quartiles, and shares of the limits.
"""

import argparse
import statistics

import fastadam

from .harness import about, announce, load, save
from .peers import PEERS
from .runner import LARGE, LIMITS, Runner
from .workers import Worker, take_turns
from .workloads import WORKLOADS

OURS = [*LIMITS, "fastadam", "fastadam default", "fastadam.adam_update"]
SLOW = {"NumPy tutorial", "NumPy in place", "scikit-learn", "thinc", "autograd"}  # seconds a step at 64 Mi


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
        for name, why in worker("finish").items():
            absent[name] = why
            del seconds[name]
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
        shares = (f"{quartiles(samples, seconds[limit])[1]:.2f}" if limit in seconds else "" for limit in LIMITS)
        bare = ""
        if base(name) != "fastadam" and base(name) in seconds:
            bare = f"{quartiles(seconds[base(name)], samples)[1]:.2f}"
        print(
            f"| {workload.name} | {name} | {statistics.median(samples) * 1e3:.4g} | {speed:.1f} | {' | '.join(shares)} "
            f"| {middle:.2f} ({low:.2f} to {high:.2f}) | {bare} |",
            flush=True,
        )
    for name, why in result["absent"].items():
        if name not in LIMITS:
            print(f"| {workload.name} | {name} | absent: {why} | | | | | |", flush=True)


def kept(workloads, peers):
    """Saved results, if machine, versions and date are the same, but for those that are measured anew."""
    saved = load("versus") or {"about": None, "results": []}
    if saved["about"] != about():
        raise SystemExit(f"--add: the saved results are of {saved['about']}; this is {about()}")
    for result in saved["results"]:
        if result["workload"] in workloads:
            for part in "seconds", "absent":
                result[part] = {name: what for name, what in result[part].items() if name not in peers}
    return [result for result in saved["results"] if {*result["seconds"], *result["absent"]} - {*OURS}]


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m bench versus", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small workloads, few rounds: a smoke test")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--save", action="store_true", help="keep the results in bench/results/")
    parser.add_argument(
        "--add", action="store_true", help="as --save, and keep what was saved today and is not measured anew"
    )
    chosen = parser.parse_args(arguments)
    if chosen.quick and (chosen.save or chosen.add):
        parser.error("--quick is no measurement to keep")
    for option, names in ("--peers", PEERS), ("--workloads", WORKLOADS):
        unknown = set(getattr(chosen, option[2:]).split(",")).difference(names)
        if unknown:
            parser.error(f"{option}: there is no {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
    workloads = [WORKLOADS[name] for name in chosen.workloads.split(",")]
    if chosen.quick:
        workloads = [w for w in workloads if w.size <= 1 << 20]
    announce()
    columns = ("workload", "contender", "ms a step", "GB/s", *LIMITS, "against fastadam", "against adam_update")
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    ours = Worker(Runner, OURS)
    peers = {name: Worker(Runner, [name]) for name in chosen.peers.split(",")}
    results = kept(chosen.workloads.split(","), peers) if chosen.add else []
    for workload in workloads:
        groups = [[name] for name in peers] if workload.nbytes >= LARGE else [list(peers)]
        for group in groups:
            rounds = 3 if chosen.quick or (workload.nbytes >= LARGE and group[0] in SLOW) else 15
            results.append(measure(workload.name, ours, {name: peers[name] for name in group}, rounds))
            show(results[-1])
            if chosen.save or chosen.add:
                save("versus", results)
            if workload.nbytes >= LARGE:  # what its allocator keeps would be missing later
                for name in group:
                    peers[name].close()
                    peers[name] = Worker(Runner, [name])
    for worker in [ours, *peers.values()]:
        worker.close()
    if any(why.startswith("FAILED") for result in results for why in result["absent"].values()):
        raise SystemExit("a contender failed")
