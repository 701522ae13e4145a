"""With others on the machine.

A step of 1 Mi float32 while another process keeps one core busy, after warming up; and the CPU time of 100 steps of
10 000 parameters, 5 ms apart. Medians of rounds, each in a new process. Results are checked against float64.
"""

import multiprocessing
import statistics
import time

import fastadam

from .peers import check
from .results import Results, milliseconds, options, promise
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


def main(arguments):
    chosen = options("busy", __doc__, arguments)
    results = Results()
    rounds, warm, count = (1, 50, 200) if chosen.quick else (5, 300, 3000)
    threads = fastadam.config()["threads"]
    found = {name: ([], [], []) for name in NAMES}
    for _ in range(rounds):
        for name, (median, late, cpu) in found.items():
            env = VARIANTS[name][1]
            seconds = in_new_process(beside_a_busy_process, name, threads, warm, count, environment=env)
            median.append(statistics.median(seconds))
            late.append(sorted(seconds)[int(0.95 * count)])
            cpu.append(in_new_process(cpu_of_rare_steps, name, threads, environment=env))
    columns = "median, ms", "95th percentile, ms", "CPU of 100 rare steps, ms"
    rows = [
        {"optimizer": name, **dict(zip(columns, map(milliseconds, seconds), strict=True))}
        for name, seconds in found.items()
    ]
    results.add("steps", rows)
    default, serial = rows[:2]
    for column, bar in (columns[1], "<= 2"), (columns[2], "<= 1.5"):
        measured = default[column] / serial[column]
        results.add("promises", [promise({"what": f"{column.split(',')[0]}, default over 1 thread"}, bar, measured)])
    if chosen.save:
        results.save(chosen.save)
