"""A tagger of spaCy, its Adam swapped.

`fastadam.thinc` does it. Trainings of four epochs on sentences that are made up take turns in one process. The speed-up
is over thinc's own Adam. The share is the time of a training without a step over the time of this one. In the end the
losses with fastadam must be thinc's.
"""

import time

import numpy as np

from .results import must_have, promise, ratio
from .workers import take_turns

SENTENCES = 192
LEARN_RATES = {8: 1e-4, 32: 5e-4}  # by batch: higher ones end near 0, where rounding decides
OWN, OURS, NOTHING = "thinc's Adam", "fastadam.thinc", "no optimizer"


def contenders(learn_rate):
    from thinc.api import Adam

    import fastadam.thinc

    def nothing(key, weights, gradient, lr_scale=1.0):
        gradient.fill(0)
        return weights, gradient

    options = {"learn_rate": learn_rate, "L2": 0.01}  # the rest of spaCy's are the defaults
    return {OWN: lambda: Adam(**options), OURS: lambda: fastadam.thinc.Adam(**options), NOTHING: lambda: nothing}


class Timed:
    """An optimizer, and how long its calls took."""

    def __init__(self, optimizer):
        self.optimizer, self.seconds = optimizer, 0.0

    def __call__(self, *args, **options):
        start = time.perf_counter()
        found = self.optimizer(*args, **options)
        self.seconds += time.perf_counter() - start
        return found


def examples(nlp, words=200, tags=7, length=12):
    """The tag is the word's number modulo the tags."""
    from spacy.tokens import Doc
    from spacy.training import Example

    for ids in np.random.default_rng(0).integers(words, size=(SENTENCES, length)):
        doc = Doc(nlp.vocab, words=[f"w{i}" for i in ids])
        yield Example.from_dict(doc, {"tags": [f"T{i % tags}" for i in ids]})


def train(make, batch, epochs):
    """Seconds of the training, seconds of its steps, and the loss of the last epoch."""
    import spacy
    from thinc.api import fix_random_seed

    fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe("tagger")
    data = list(examples(nlp))
    nlp.initialize(lambda: data)
    optimizer, random = Timed(make()), np.random.default_rng(1)
    start = time.perf_counter()
    for _ in range(epochs):
        losses = {}
        for rows in random.permutation(SENTENCES).reshape(-1, batch):
            nlp.update([data[i] for i in rows], sgd=optimizer, losses=losses)
    return time.perf_counter() - start, optimizer.seconds, losses["tagger"]


def fits(batch, epochs, rounds):
    """{name: (seconds of each training, seconds of its steps)}"""
    turns = {
        name: lambda make=make: train(make, batch, epochs) for name, make in contenders(LEARN_RATES[batch]).items()
    }
    found = {name: [*zip(*results, strict=True)] for name, results in take_turns(turns, rounds).items()}
    own = found[OWN][2][0]
    for name, (_, _, losses) in found.items():
        for loss in losses:
            agrees = abs(loss - own) < 0.01 * own
            assert agrees == (name != NOTHING), f"{name}: loss {loss}, thinc's {own}"
    return {name: (seconds, steps) for name, (seconds, steps, _) in found.items()}


def rows(batch, found):
    for name, (seconds, steps) in found.items():
        gains = {"speed-up": ratio(found[OWN][0], seconds), "share": ratio(found[NOTHING][0], seconds)}
        of_steps = ratio(found[OWN][1], steps) if name != NOTHING else None
        yield {
            "batch": batch,
            "optimizer": name,
            "training, s": float(np.median(seconds)),
            **gains,
            "speed-up of the steps": of_steps,
        }


def measure(chosen):
    must_have("spacy", "spacy")
    for batch in [32] if chosen.quick else LEARN_RATES:
        found = fits(batch, *((4, 1) if chosen.quick else (4, 5)))
        yield "fits", rows(batch, found)
        gain = ratio(found[OWN][0], found[OURS][0])
        yield "promises", [promise({"batch": batch, "what": "speed-up of the training"}, ">= 1.05", gain)]
