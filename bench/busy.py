"""With others on the machine.

A step of 1 Mi float32 while another process keeps one core busy, after warming up; and the CPU time of 100 steps of
10 000 parameters, 5 ms apart. Medians of rounds, each in a new process. Results are checked against float64.
"""

import statistics
import subprocess
import sys
import time

import fastadam

from .peers import check
from .results import milliseconds, promise
from .runner import VARIANTS
from .workers import in_new_process
from .workloads import Workload

NAMES = ["fastadam default", "fastadam 1 thread", "fastadam OpenMP threads", "fastadam OpenMP threads spinning"]
COLUMNS = "median, ms", "95th percentile, ms", "CPU of 100 rare steps, ms"


def steps(name, threads, size, warm, count, pause=0.0):
    """Seconds of each step, and of CPU time in all, those of sleeping between the steps included."""
    params, grads = Workload("", ((size,),)).make()
    contender = VARIANTS[name][0](params, grads, threads)
    contender.run(warm)
    seconds, begin = [], time.process_time()
    for _ in range(count):
        start = time.perf_counter()
        contender.run(1)
        seconds.append(time.perf_counter() - start)
        time.sleep(pause) if pause else None
    cpu = time.process_time() - begin
    check(contender, params, grads, warm + count)
    return seconds, cpu


def beside_a_busy_process(*arguments):
    spin = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(spin, stdout=subprocess.PIPE) as neighbour:
        try:
            neighbour.stdout.readline()
            seconds, _ = steps(*arguments)
            assert neighbour.poll() is None
        finally:
            neighbour.kill()
    return seconds


def measure(chosen):
    rounds, warm, count = (1, 50, 200) if chosen.quick else (5, 300, 3000)
    threads, found = fastadam.config()["threads"], {name: [] for name in NAMES}
    for _ in range(rounds):
        for name in NAMES:
            env = VARIANTS[name][1]
            busy = in_new_process(beside_a_busy_process, name, threads, 1 << 20, warm, count, environment=env)
            _, cpu = in_new_process(steps, name, threads, 10_000, 20, 100, 0.005, environment=env)
            found[name].append((statistics.median(busy), sorted(busy)[int(0.95 * count)], cpu))
    medians = {name: map(milliseconds, zip(*samples, strict=True)) for name, samples in found.items()}
    rows = [{"optimizer": name, **dict(zip(COLUMNS, columns, strict=True))} for name, columns in medians.items()]
    yield "steps", rows
    for column, bar in (COLUMNS[1], "<= 2"), (COLUMNS[2], "<= 1.5"):
        what = f"{column.split(',')[0]}, default over 1 thread"
        yield "promises", [promise({"what": what}, bar, rows[0][column] / rows[1][column])]
