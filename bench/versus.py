"""Side by side with every peer: python -m bench versus [--quick] [--peers A,B] [--workloads X,Y] [--json FILE]

Each peer gets a process of its own, in which it and fastadam take turns, workload by workload; a pause before each turn
lets workers that spin go to sleep. Results are checked against float64 after timing. A peer that is not installed is
reported as absent. Beware: a peer whose workers spin (torch, numba) slows fastadam in the same process, too.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fastadam

from .harness import alternate, describe_machine
from .peers import CONTENDERS, check
from .workloads import WORKLOADS

PACKAGES = {"numba": "numba", "scikit": "scikit-learn", "thinc": "thinc", "autograd": "autograd", "optax": "optax",
            "torch": "torch", "DeepSpeed": "deepspeed", "NumPy": "numpy", "fastadam": "fastadam"}  # fmt: skip
SLOW = {"NumPy tutorial", "NumPy in place", "scikit-learn", "thinc", "autograd"}  # seconds a step at 64 Mi
BLOCK = 0.02  # seconds of work per sample, at least one step


def steps_per_block(contender):
    contender.run(2)
    start = time.perf_counter()
    contender.run(3)
    once = (time.perf_counter() - start) / 3
    return max(1, min(2000, int(BLOCK / once)))


def settle(contender):
    """Let the other's workers go to sleep, and bring this one's data back into the cache."""
    time.sleep(0.03)
    contender.run(1)


def measure(workload, name, rounds):
    """Seconds a step for fastadam and for the peer, and the ratio, with quartiles."""
    threads = fastadam.config()["threads"]
    params, grads = workload.make()
    contenders, taken = {}, {}
    for key in ("fastadam", name):
        contenders[key] = CONTENDERS[key](params, grads, threads)
        contenders[key].run(1)  # compiles and allocates
        taken[key] = 1
    blocks = {}
    for key, contender in contenders.items():
        blocks[key] = steps_per_block(contender)
        taken[key] += 5
    turns = {key: (lambda c=c: settle(c), lambda c=c, k=blocks[key]: c.run(k)) for key, c in contenders.items()}
    timings = alternate(turns, rounds)
    for key, contender in contenders.items():
        taken[key] += (blocks[key] + 1) * (rounds + 1)
        check(contender, params, grads, taken[key])
    ours = [t / blocks["fastadam"] for t in timings["fastadam"].samples]
    peer = [t / blocks[name] for t in timings[name].samples]
    ratios = [b / a for a, b in zip(ours, peer, strict=True)]
    return {
        "workload": workload.name,
        "peer": name,
        "fastadam_s": statistics.median(ours),
        "peer_s": statistics.median(peer),
        "ratio": statistics.quantiles(ratios, n=4),
    }


def run_one(name, workloads, rounds):
    """In a process of its own: a line of JSON for each workload."""
    for workload in workloads:
        few = 3 if workload.size > 1 << 25 and name in SLOW else rounds
        try:
            print(json.dumps(measure(WORKLOADS[workload.name], name, few)), flush=True)
        except ImportError as error:
            print(json.dumps({"peer": name, "absent": str(error)}), flush=True)
            return


def installed():
    found = {}
    for package in PACKAGES.values():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m bench versus", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small workloads, few rounds: a smoke test")
    parser.add_argument("--peers", default=",".join(name for name in CONTENDERS if name != "fastadam"))
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--json", type=Path, help="where to keep the results")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    workloads = [WORKLOADS[name] for name in chosen.workloads.split(",")]
    if chosen.quick:
        workloads = [w for w in workloads if w.size <= 1 << 20]
    rounds = 3 if chosen.quick else 15
    if chosen.one:
        run_one(chosen.peers, workloads, rounds)
        return
    results = []
    print(describe_machine())
    print(
        "| peer | workload | fastadam, ms | peer, ms | peer / fastadam (quartiles) |\n|---|---|---|---|---|", flush=True
    )
    for name in chosen.peers.split(","):
        command = [sys.executable, "-m", "bench", "versus", "--one", "--peers", name]
        command += ["--workloads", ",".join(w.name for w in workloads)] + ["--quick"] * chosen.quick
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as child:
            for line in child.stdout:
                if not line.startswith("{"):
                    continue  # a peer that talks
                result = json.loads(line)
                results.append(result)
                if "absent" in result:
                    print(f"| {name} | absent: {result['absent']} | | | |", flush=True)
                    continue
                low, middle, high = result["ratio"]
                print(
                    f"| {name} | {result['workload']} | {result['fastadam_s'] * 1e3:.4g} "
                    f"| {result['peer_s'] * 1e3:.4g} | {middle:.2f} ({low:.2f} to {high:.2f}) |",
                    flush=True,
                )
        if child.returncode:
            results.append({"peer": name, "failed": child.returncode})
            print(f"| {name} | FAILED, exit status {child.returncode} | | | |", flush=True)
    if chosen.json:
        about = {"machine": describe_machine(), "versions": installed(), "date": time.strftime("%Y-%m-%d"),
                 "system": platform.platform()}  # fmt: skip
        chosen.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    if any("failed" in result for result in results):
        raise SystemExit("a contender failed")
