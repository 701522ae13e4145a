"""What the quality of a format is measured on: models in plain NumPy, their data, how long they train."""

import runpy

import numpy as np

from fastadam.gallery.demo import MLP

from .transformer import EXAMPLE, Transformer, library_text


class Task:
    """`model(rng)` makes one, `batch(rng)` what its loss is of in a step, `final(model)` says where it has got to."""

    steps = quick_steps = 0
    lr, betas = 1e-3, (0.9, 0.999)
    bars = "%", 2.0, 5.0  # the unit of a mean difference to float32; the most for 16 bits; for 8

    def __init__(self, quick=False):
        self.quick = quick
        if quick:
            self.steps = self.quick_steps
        self.load()


class DigitsModel:
    """The demo's MLP, with its arrays by name."""

    def __init__(self, rng, sizes=(64, 128, 128, 10)):
        self.mlp = MLP(list(sizes), rng)
        self.params = self.by_name(self.mlp.params)

    @staticmethod
    def by_name(tree):
        return {f"{kind}.{i}": array for kind, arrays in tree.items() for i, array in enumerate(arrays)}

    def loss_and_gradients(self, x, labels):
        loss, grads = self.mlp.loss_and_gradients(x, labels)
        return loss, self.by_name(grads)


class Digits(Task):
    """scikit-learn's digits, in batches; in the end the loss on all of them."""

    steps, quick_steps = 1500, 60
    model = staticmethod(DigitsModel)

    def load(self):
        from sklearn.datasets import load_digits

        x, self.labels = load_digits(return_X_y=True)
        self.x = (x / 16).astype(np.float32)

    def batch(self, rng):
        rows = rng.integers(len(self.x), size=64)
        return self.x[rows], self.labels[rows]

    def final(self, model):
        return model.loss_and_gradients(self.x, self.labels)[0]


class FullBatch(Digits):
    """All digits at every step: nothing but rounding is random."""

    steps, quick_steps = 500, 15
    bars = "%", 5.0, 5.0

    def batch(self, rng):
        return self.x, self.labels


class FullBatchSlow(FullBatch):
    betas = 0.99, 0.999


class Characters(Task):
    """examples/char_model.py on Python's help; in the end the loss on every tenth place of the text."""

    steps, quick_steps, lr = 3000, 100, 3e-3

    def load(self):
        example = runpy.run_path(str(EXAMPLE))
        self.contexts, self.following, self.characters = example["examples"](example["python_help"]())
        self.make, self.cross_entropy = example["CharModel"], example["cross_entropy"]

    def model(self, rng):
        return self.make(rng, self.characters)

    def batch(self, rng):
        rows = rng.integers(len(self.contexts), size=64)
        return self.contexts[rows], self.following[rows]

    def final(self, model):
        every = slice(None, None, 100 if self.quick else 10)
        return self.cross_entropy(model.scores(self.contexts[every]), self.following[every])[0]


class Code(Task):
    """A transformer on Python's standard library; in the end the loss on 256 pieces of it."""

    steps, quick_steps, lr = 300, 40, 3e-3
    bars = "nats", 0.002, 0.01

    def load(self):
        self.text = library_text(200_000 if self.quick else 4_000_000)
        self.sizes = {"width": 16, "heads": 2, "blocks": 2, "context": 16} if self.quick else {"context": 64}

    def model(self, rng):
        return Transformer(rng, **self.sizes)

    def pieces(self, begins):
        pieces = self.text[begins[:, None] + np.arange(self.sizes["context"] + 1)]
        return pieces[:, :-1], pieces[:, 1:]

    def batch(self, rng):
        return self.pieces(rng.integers(len(self.text) - self.sizes["context"], size=16))

    def final(self, model):
        begins = np.linspace(0, len(self.text) - self.sizes["context"] - 1, 256).astype(int)
        return float(np.mean([model.loss(*self.pieces(some)) for some in begins.reshape(16, 16)]))


TASKS = {
    "digits": Digits,
    "full batch beta1 0.9": FullBatch,
    "full batch beta1 0.99": FullBatchSlow,
    "characters": Characters,
    "transformer": Code,
}
