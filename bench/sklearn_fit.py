"""scikit-learn's MLPClassifier with its Adam swapped: python -m bench sklearn_fit [--quick] [--save [NAME]]

Whole fit() times on the digits, float32, by examples/sklearn_mlp.py, which shows users how to swap; beside the same fit
with an optimizer that does nothing, the ceiling of what any optimizer can gain. They take turns in one process. After
timing, the losses with fastadam must be scikit-learn's.
"""

import argparse
import contextlib
import functools
import importlib.util
import statistics
import time
import warnings
from pathlib import Path

import numpy as np

import fastadam

from .harness import announce, save
from .workers import take_turns

CASES = [((256, 256), 32, 8), ((256, 256), 200, 20), ((1024, 1024), 32, 2), ((1024, 1024), 200, 5)]

SETTLING = 0.2  # seconds: OpenBLAS's threads look for work for a tenth of a second after the fit before


def load_example():
    path = Path(__file__).parent.parent / "examples" / "sklearn_mlp.py"
    spec = importlib.util.spec_from_file_location("sklearn_mlp", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Idle:
    """An optimizer that does nothing."""

    def step(self, grads):
        pass


def contenders():
    """{name: (class of MLPClassifier, what surrounds its fit)}"""
    example = load_example()

    def swapped(make_optimizer):
        return type("Swapped", (example.FastMLPClassifier,), {"make_optimizer": staticmethod(make_optimizer)})

    adam = functools.partial(fastadam.Adam, eps_hat=True)

    plain = contextlib.nullcontext
    return {
        "scikit-learn's Adam": (example.MLPClassifier, plain),
        "fastadam default": (example.FastMLPClassifier, plain),
        "fastadam 1 thread": (swapped(functools.partial(adam, threads=1)), plain),
        "fastadam all threads": (swapped(functools.partial(adam, threads=fastadam.config()["threads"])), plain),
        "fastadam shared team": (example.FastMLPClassifier, fastadam.share_threads_with_blas),
        "no optimizer": (swapped(lambda params, **options: Idle()), plain),
    }


def run_case(hidden, batch, epochs, rounds):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    losses = {}

    def fit(name, kind, around):
        model = kind(hidden, batch_size=batch, max_iter=epochs, n_iter_no_change=10**6, random_state=0)
        with around():
            time.sleep(SETTLING)
            start = time.perf_counter()
            model.fit(x, y)
            seconds = time.perf_counter() - start
        losses[name] = model.loss_
        return seconds

    seconds = take_turns({name: functools.partial(fit, name, *what) for name, what in contenders().items()}, rounds)
    own = losses["scikit-learn's Adam"]
    for name, loss in losses.items():
        agrees = abs(loss - own) < 0.05 * own
        assert agrees == (name != "no optimizer"), f"{name}: loss {loss}, scikit-learn's {own}"
    return {"hidden": "x".join(map(str, hidden)), "batch": batch, "epochs": epochs, "seconds": seconds}


def show(result):
    seconds = {name: statistics.median(samples) for name, samples in result["seconds"].items()}
    for name, own in seconds.items():
        faster, share = seconds["scikit-learn's Adam"] / own, seconds["no optimizer"] / own
        print(
            f"| {result['hidden']}, {result['batch']} | {name} | {own:.2f} | {faster:.2f} | {share:.2f} |", flush=True
        )


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m bench sklearn_fit", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest case, few rounds: a smoke test")
    parser.add_argument(
        "--save", nargs="?", const="sklearn_fit", metavar="NAME", help="keep the results in bench/results/"
    )
    chosen = parser.parse_args(arguments)
    if importlib.util.find_spec("sklearn") is None:
        raise SystemExit("scikit-learn is not installed: python -m pip install scikit-learn")
    warnings.filterwarnings("ignore", "Stochastic Optimizer: Maximum iterations")  # as many epochs as we want
    announce()
    print("| hidden, batch | optimizer | fit, s | speed-up | share of the ceiling |\n|---|---|---|---|---|", flush=True)
    results = []
    for hidden, batch, epochs in CASES[:1] if chosen.quick else CASES:
        results.append(run_case(hidden, batch, 2 if chosen.quick else epochs, 2 if chosen.quick else 15))
        show(results[-1])
    if chosen.save:
        save(chosen.save, results)
