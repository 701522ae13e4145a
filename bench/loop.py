"""Inside a NumPy training loop: python -m bench loop [--quick] [--contenders A,B] [--save]

A hand-written float32 MLP, 64-h-h-10, whose forward and backward pass are BLAS calls: what matters is not the step's
own time but the whole iteration, because threads that wait can slow the BLAS calls that follow. Every contender trains
in a process of its own; they take turns. In the end all must have trained, and fastadam's variants have the same loss
to the last bit. optax and autograd are not here: one keeps its parameters in its own arrays, the other owns the loop.
"""

import argparse
import statistics

import numpy as np

import fastadam

from .harness import announce, save
from .runner import VARIANTS, Training
from .workers import Worker, take_turns

CASES = [(256, 32, 200), (1024, 32, 30), (2048, 64, 8), (4096, 64, 3)]  # width, batch, iterations a turn


def agree(losses):
    """One result, whatever the threads; and every optimizer is Adam."""
    ours = {loss for name, loss in losses.items() if name.startswith("fastadam")}
    assert len(ours) <= 1, f"fastadam's bits depend on the number of threads: {losses}"
    trained = [loss for name, loss in losses.items() if name != "no optimizer"]
    assert max(trained) < 0.5 * losses.get("no optimizer", np.inf), f"one does not train: {losses}"


def run_case(workers, width, batch, count, rounds):
    turns, absent = {}, {}
    for name, worker in workers.items():
        why = worker("prepare", width, batch, fastadam.config()["threads"])
        if why:
            absent[name] = why
        else:
            turns[name] = lambda worker=worker: worker("turn", count)
    seconds = take_turns(turns, rounds)
    agree({name: workers[name]("finish") for name in turns})
    return {"width": width, "batch": batch, "seconds": seconds, "absent": absent}


def show(result):
    for name, samples in result["seconds"].items():
        forward_backward, step = (statistics.median(column) * 1e3 for column in zip(*samples, strict=True))
        totals = sorted(sum(sample) * 1e3 for sample in samples)
        print(
            f"| {result['width']}, {result['batch']} | {name} | {forward_backward:.3g} | {step:.3g} "
            f"| {statistics.median(totals):.3g} ({totals[0]:.3g} to {totals[-1]:.3g}) |",
            flush=True,
        )
    for name, why in result["absent"].items():
        print(f"| {result['width']}, {result['batch']} | {name} | absent: {why} | | |", flush=True)


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m bench loop", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest model, few rounds: a smoke test")
    parser.add_argument("--contenders", default=",".join(VARIANTS))
    parser.add_argument("--save", action="store_true", help="keep the results in bench/results/")
    chosen = parser.parse_args(arguments)
    names = chosen.contenders.split(",")
    announce()
    print("Milliseconds an iteration: medians of turns (smallest to largest).\n")
    print("| width, batch | optimizer | forward + backward | step | total |\n|---|---|---|---|---|", flush=True)
    workers = {name: Worker(Training, name, environment=VARIANTS[name][1]) for name in names}
    results = []
    for width, batch, count in CASES[:1] if chosen.quick else CASES:
        results.append(run_case(workers, width, batch, 20 if chosen.quick else count, 3 if chosen.quick else 7))
        show(results[-1])
    for worker in workers.values():
        worker.close()
    if chosen.save:
        save("loop", results)
