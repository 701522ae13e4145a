"""Threads inside a NumPy training loop: python -m bench loop

An MLP in plain NumPy (forward, backward, Adam step) with one thread and with all, alternating, under the three ways in
which OpenMP's workers can wait: as fastadam loads them (asleep), asleep or spinning because the environment says so.
The loss after the last step is compared between the contenders: it has the same bits.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import fastadam
from fastadam.demo import MLP

from .harness import describe_machine

CASES = [(256, 32, 300), (512, 32, 100), (1024, 32, 30), (2048, 64, 8)]  # width, batch, iterations a round
ROUNDS = 7


def iterate(model, optimizer, x, y, count):
    forward_backward = step = 0.0
    for _ in range(count):
        start = time.perf_counter()
        loss, grads = model.loss_and_gradients(x, y)
        middle = time.perf_counter()
        optimizer.step(grads)
        end = time.perf_counter()
        forward_backward += middle - start
        step += end - middle
    return forward_backward / count * 1e3, step / count * 1e3, loss


def run_case(width, batch, count):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((batch, 64)).astype(np.float32), rng.integers(0, 10, batch)
    contenders = {}
    for threads in 1, fastadam.get_num_threads():
        model = MLP([64, width, width, 10], np.random.default_rng(1))
        contenders[threads] = (model, fastadam.Adam(model.params, threads=threads), [])
    for _ in range(ROUNDS):
        for model, optimizer, samples in contenders.values():
            samples.append(iterate(model, optimizer, x, y, count))
    assert len({samples[-1][2] for _, _, samples in contenders.values()}) == 1, "bits depend on the number of threads"
    for threads, (_, _, samples) in contenders.items():
        forward_backward, step = (statistics.median(s[i] for s in samples) for i in (0, 1))
        total = statistics.median(s[0] + s[1] for s in samples)
        waits = fastadam.config()["openmp_waits"]
        policy = os.environ.get("OMP_WAIT_POLICY", "") if waits == "environment" else "as loaded"
        print(
            f"| {width}, {batch} | {policy} | {threads} | {forward_backward:.2f} | {step:.2f} | {total:.2f} |",
            flush=True,
        )


def main(arguments):
    if arguments == ["one policy"]:
        for case in CASES:
            run_case(*case)
        return
    print(describe_machine())
    print("Milliseconds an iteration, medians of alternating rounds.\n")
    print(
        "| width, batch | workers | threads | forward + backward | step | total |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for policy in None, "passive", "active":
        env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        if policy:
            env["OMP_WAIT_POLICY"] = policy
        command = [sys.executable, "-m", "bench", "loop", "one policy"]
        subprocess.run(command, env=env, check=True, cwd=Path(__file__).parent.parent)
