"""Inside a NumPy training loop: python -m bench loop [--quick] [--contenders A,B] [--save [NAME]]

A hand-written float32 MLP, 64-h-h-10, whose forward and backward pass are BLAS calls: what matters is not the step's
own time but the whole iteration, because threads that wait can slow the BLAS calls that follow. Contenders take turns,
in a new process each time, one model after the other: a shared machine can be half as fast for some minutes, so only
what was measured within seconds can be compared. In the end all must have trained, and fastadam's variants have the
same loss to the last bit. optax and autograd are not here: one keeps its parameters in its own arrays, the other owns
the loop.
"""

import argparse
import statistics

import numpy as np

import fastadam

from .harness import announce, save
from .runner import VARIANTS, train
from .workers import in_new_process

# width, batch, iterations, rounds
CASES = [(256, 32, 400, 15), (1024, 32, 80, 11), (2048, 64, 24, 7), (4096, 64, 8, 5)]
QUICK = [(256, 32, 50, 2)]
FEW = 3  # rounds, the first ones, that other libraries take part in: they take most of the time


def agree(losses):
    """One result, whatever the threads; and every optimizer is Adam."""
    ours = {loss for name, loss in losses.items() if name.startswith("fastadam")}
    assert len(ours) <= 1, f"fastadam's bits depend on the number of threads: {losses}"
    trained = [loss for name, loss in losses.items() if name != "no optimizer"]
    assert max(trained, default=0) < 0.5 * losses.get("no optimizer", np.inf), f"one does not train: {losses}"


def measure(names, width, batch, iterations, rounds):
    """Seconds of forward and backward, and of the step, in each round."""
    threads = fastadam.config()["threads"]
    result = {"width": width, "batch": batch, "seconds": {}, "alone": {}, "touched": {}, "absent": {}}
    losses = {}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            if number >= FEW and not name.startswith(("fastadam", "no optimizer")):
                continue
            try:
                forward_backward, step, alone, touched, losses[name] = in_new_process(
                    train, name, width, batch, iterations, threads, environment=VARIANTS[name][1]
                )
            except ImportError as error:
                result["absent"][name] = str(error)
                continue
            result["seconds"].setdefault(name, []).append((forward_backward, step))
            result["alone"].setdefault(name, []).append(alone)
            result["touched"].setdefault(name, []).append(touched)
    agree(losses)
    return result


def show(result):
    for name, samples in result["seconds"].items():
        forward_backward, step = (statistics.median(column) * 1e3 for column in zip(*samples, strict=True))
        totals = sorted(sum(sample) * 1e3 for sample in samples)
        print(
            f"| {result['width']}, {result['batch']} | {name} | {forward_backward:.3g} | {step:.3g} "
            f"| {statistics.median(result['alone'][name]) * 1e3:.3g} "
            f"| {statistics.median(result['touched'][name]) * 1e3:.3g} "
            f"| {statistics.median(totals):.3g} ({totals[0]:.3g} to {totals[-1]:.3g}) |",
            flush=True,
        )
    for name, why in result["absent"].items():
        print(f"| {result['width']}, {result['batch']} | {name} | absent: {why} | | | | |", flush=True)


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m bench loop", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest model, few rounds: a smoke test")
    parser.add_argument("--contenders", default=",".join(VARIANTS))
    parser.add_argument("--save", nargs="?", const="loop", metavar="NAME", help="keep the results in bench/results/")
    chosen = parser.parse_args(arguments)
    names = chosen.contenders.split(",")
    announce()
    print("Milliseconds an iteration: medians of rounds (smallest to largest).\n")
    columns = ["width, batch", "optimizer", "forward + backward", "step", "step back to back", "step touched", "total"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    results = []
    for case in QUICK if chosen.quick else CASES:
        results.append(measure(names, *case))
        show(results[-1])
    if chosen.save:
        save(chosen.save, results)
