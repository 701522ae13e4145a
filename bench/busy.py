"""With others on the machine: python -m bench busy [--quick] [--save]

A step of 1 Mi float32 while another process keeps one core busy: milliseconds at the median and at the 95th percentile,
default settings beside one thread and all threads, after warming up. And the CPU time that 100 steps of 10 000
parameters burn, 5 ms apart. Each in a new process; results are checked against float64.
"""

import argparse
import multiprocessing
import statistics
import time

import fastadam

from .harness import announce, save
from .peers import check
from .runner import VARIANTS
from .workers import in_new_process
from .workloads import Workload

NAMES = ["fastadam default", "fastadam 1 thread", "fastadam OpenMP threads", "fastadam OpenMP threads spinning"]


def make(name, size, threads):
    params, grads = Workload("", ((size,),)).make()
    contender = VARIANTS[name][0](params, grads, threads)

    def finish(steps):
        check(contender, params, grads, steps)

    return contender, finish


def spin(begun):
    begun.set()
    while True:
        pass


def beside_a_busy_process(name, threads, warm, count):
    """Seconds of each step."""
    contender, finish = make(name, 1 << 20, threads)
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    neighbour = context.Process(target=spin, args=(begun,), daemon=True)
    neighbour.start()
    try:
        assert begun.wait(60)
        contender.run(warm)
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            contender.run(1)
            seconds.append(time.perf_counter() - start)
        assert neighbour.is_alive()
    finally:
        neighbour.kill()
    finish(warm + count)
    return seconds


def cpu_of_rare_steps(name, threads):
    """Seconds of CPU time, those of sleeping between the steps included."""
    contender, finish = make(name, 10_000, threads)
    contender.run(20)
    start = time.process_time()
    for _ in range(100):
        contender.run(1)
        time.sleep(0.005)
    spent = time.process_time() - start
    finish(120)
    return spent


def percentile(samples, share=0.95):
    return sorted(samples)[int(share * len(samples))]


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m bench busy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round: a smoke test")
    parser.add_argument("--save", action="store_true", help="keep the results in bench/results/")
    chosen = parser.parse_args(arguments)
    announce()
    rounds, warm, count = (1, 50, 200) if chosen.quick else (5, 300, 3000)
    threads = fastadam.config()["threads"]
    results = [{"name": name, "median": [], "p95": [], "cpu": []} for name in NAMES]
    for _ in range(rounds):
        for result in results:
            env = VARIANTS[result["name"]][1]
            seconds = in_new_process(beside_a_busy_process, result["name"], threads, warm, count, environment=env)
            result["median"].append(statistics.median(seconds))
            result["p95"].append(percentile(seconds))
            result["cpu"].append(in_new_process(cpu_of_rare_steps, result["name"], threads, environment=env))
    print("Medians of rounds.\n")
    print("| optimizer | busy neighbour: median, ms | 95th percentile, ms | CPU of 100 rare steps, ms |")
    print("|---|---|---|---|")
    for result in results:
        cells = (f"{statistics.median(result[column]) * 1e3:.3g}" for column in ("median", "p95", "cpu"))
        print(f"| {result['name']} | {' | '.join(cells)} |", flush=True)
    if chosen.save:
        save("busy", results)
