"""scikit-learn's MLPClassifier, its Adam swapped.

Whole fits of `fastadam.sklearn` on the digits, float32, take turns in one process. The speed-up is over scikit-learn's
own Adam. The share is the time of a fit whose optimizer does nothing, over the time of this one. In the end the losses
with fastadam must be scikit-learn's.
"""

import contextlib
import functools
import statistics
import time
import warnings

import numpy as np

import fastadam

from .results import must_have, promise, ratio
from .workers import take_turns

CASES = [((256, 256), 32, 8), ((256, 256), 200, 20), ((1024, 1024), 32, 2), ((1024, 1024), 200, 5)]
SETTLING = 0.2  # seconds: OpenBLAS's threads look for work for a tenth of a second after the fit before
OWN, NOTHING, DEFAULT, SHARED = "scikit-learn's Adam", "no optimizer", "fastadam default", "fastadam shared team"


def contenders():
    """{name: (class of MLPClassifier, the context of its fit)}"""
    from sklearn.neural_network import MLPClassifier

    from fastadam.sklearn import AdamOptimizer, FastMLPClassifier

    class OnAllThreads(AdamOptimizer):
        threads = fastadam.config()["threads"]

    class Nothing(AdamOptimizer):
        def update_params(self, params, grads):
            self.t += 1

    def swapped(optimizer):
        return type("Swapped", (FastMLPClassifier,), {"optimizer_class": optimizer}), contextlib.nullcontext

    return {
        OWN: (MLPClassifier, contextlib.nullcontext),
        DEFAULT: swapped(AdamOptimizer),
        "fastadam all threads": swapped(OnAllThreads),
        SHARED: (FastMLPClassifier, fastadam.share_threads_with_blas),
        NOTHING: swapped(Nothing),
    }


def fits(hidden, batch, epochs, rounds):
    """{name: seconds of a fit, one for each round}"""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    losses = {}

    def fit(name, kind, context):
        model = kind(hidden, batch_size=batch, max_iter=epochs, n_iter_no_change=10**6, random_state=0)
        with context():
            time.sleep(SETTLING)
            start = time.perf_counter()
            model.fit(x, y)
            seconds = time.perf_counter() - start
        losses[name] = model.loss_
        return seconds

    seconds = take_turns({name: functools.partial(fit, name, *what) for name, what in contenders().items()}, rounds)
    for name, loss in losses.items():
        agrees = abs(loss - losses[OWN]) < 0.05 * losses[OWN]
        assert agrees == (name != NOTHING), f"{name}: loss {loss}, scikit-learn's {losses[OWN]}"
    return seconds


def rows(case, seconds):
    for name, samples in seconds.items():
        gains = {"speed-up": ratio(seconds[OWN], samples), "share": ratio(seconds[NOTHING], samples)}
        yield {"hidden, batch": case, "optimizer": name, "fit, s": statistics.median(samples), **gains}


def promises(case, batch, seconds):
    share = {"hidden, batch": case, "what": f"share of the default, batch {batch}"}
    yield promise(share, ">= 0.9" if batch == 200 else ">= 0.75", ratio(seconds[NOTHING], seconds[DEFAULT]))
    what = {"hidden, batch": case, "what": "share of the shared team over the default's"}
    yield promise(what, "> 1", ratio(seconds[DEFAULT], seconds[SHARED]))


def measure(chosen):
    must_have("sklearn", "scikit-learn")
    warnings.filterwarnings("ignore", "Stochastic Optimizer: Maximum iterations")  # as many epochs as we want
    for hidden, batch, epochs in CASES[:1] if chosen.quick else CASES:
        case = f"{'x'.join(map(str, hidden))}, {batch}"
        seconds = fits(hidden, batch, *((2, 2) if chosen.quick else (epochs, 15)))
        yield "fits", rows(case, seconds)
        yield "promises", promises(case, batch, seconds)
