"""The main job on real data: train an MLP written in plain NumPy on handwritten digits.

Once with Adam as tutorials write it in NumPy, once with fastadam, from the same start and on the same batches, taking
turns epoch by epoch.
"""

import itertools
import math
import os
import time
from pathlib import Path

import numpy as np

import fastadam


class MLP:
    """Rectified layers and a softmax, float32, with hand-written gradients."""

    def __init__(self, sizes, rng):
        self.weights = [
            (rng.standard_normal((a, b)) * np.sqrt(2 / a)).astype(np.float32) for a, b in itertools.pairwise(sizes)
        ]
        self.biases = [np.zeros(b, np.float32) for b in sizes[1:]]

    @property
    def params(self):
        return {"weights": self.weights, "biases": self.biases}

    def activations(self, x):
        layers = [x]
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = layers[-1] @ weight + bias
            layers.append(np.maximum(x, 0, out=x) if len(layers) < len(self.weights) else x)
        return layers

    def loss_and_gradients(self, x, labels):
        layers = self.activations(x)
        scores = layers[-1] - layers[-1].max(axis=1, keepdims=True)
        probabilities = np.exp(scores)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        rows = np.arange(len(x))
        loss = -np.log(probabilities[rows, labels] + 1e-12).mean()
        delta = probabilities
        delta[rows, labels] -= 1
        delta /= np.float32(len(x))
        weights, biases = [], []
        for layer, weight in zip(layers[-2::-1], self.weights[::-1], strict=True):
            weights.append(layer.T @ delta)
            biases.append(delta.sum(axis=0))
            delta = (delta @ weight.T) * (layer > 0)
        return float(loss), {"weights": weights[::-1], "biases": biases[::-1]}

    def accuracy(self, x, labels):
        return float((self.activations(x)[-1].argmax(axis=1) == labels).mean())


class NumpyAdam:
    """Adam as tutorials write it."""

    def __init__(self, params, lr):
        self.params = params["weights"] + params["biases"]
        self.lr, self.t = lr, 0
        self.m = [np.zeros_like(p) for p in self.params]
        self.v = [np.zeros_like(p) for p in self.params]

    def step(self, grads):
        self.t += 1
        for p, g, m, v in zip(self.params, grads["weights"] + grads["biases"], self.m, self.v, strict=True):
            m[...] = 0.9 * m + 0.1 * g
            v[...] = 0.999 * v + 0.001 * g**2
            m_hat = m / (1 - 0.9**self.t)
            v_hat = v / (1 - 0.999**self.t)
            p -= self.lr * m_hat / (np.sqrt(v_hat) + 1e-8)


class Run:
    """One way of training, epoch by epoch, and what it took."""

    def __init__(self, name, make_optimizer, data, hidden, batch):
        self.name, self.data, self.batch = name, data, batch
        self.rng = np.random.default_rng(0)
        self.model = MLP([data[0].shape[1], hidden, hidden, 10], self.rng)
        self.optimizer = make_optimizer(self.model.params)
        self.losses = []
        self.step_seconds = self.total_seconds = 0.0

    def epoch(self):
        x, _, y, _ = self.data
        begin = time.perf_counter()
        order = self.rng.permutation(len(x))
        for start in range(0, len(order) - self.batch + 1, self.batch):
            rows = order[start : start + self.batch]
            loss, grads = self.model.loss_and_gradients(x[rows], y[rows])
            before = time.perf_counter()
            self.optimizer.step(grads)
            self.step_seconds += time.perf_counter() - before
            self.losses.append(loss)
        self.total_seconds += time.perf_counter() - begin

    @property
    def accuracy(self):
        _, x, _, y = self.data
        return self.model.accuracy(x, y)


def draw(runs, path):
    """Loss curves, and where the time went."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (curves, bars) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for run, style in zip(runs, ("-", "--"), strict=True):
        window = min(20, len(run.losses))
        smooth = np.convolve(run.losses, np.ones(window) / window, mode="valid")
        curves.semilogy(np.arange(len(smooth)) + window, smooth, style, label=run.name)
    curves.set(title="Training loss", xlabel="step", ylabel=f"loss, mean of {window} steps")
    curves.legend()
    names = [run.name for run in runs]
    rest = [run.total_seconds - run.step_seconds for run in runs]
    bars.barh(names, rest, color="lightgray", label="forward and backward")
    drawn = bars.barh(names, [run.step_seconds for run in runs], left=rest, color="tab:orange", label="Adam step")
    bars.bar_label(drawn, [f" step {run.step_seconds:.2f} s" for run in runs])
    bars.margins(x=0.25)
    bars.invert_yaxis()
    bars.set(title="Where the time went", xlabel="seconds")
    bars.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


EPOCHS = 30
QUICK = 3  # epochs of `--quick`


def busy():
    """A sentence if others want a CPU that this program may use, or wanted it in the last minute; else None."""
    try:
        load, present = os.getloadavg()[0], os.cpu_count() or 1
    except (AttributeError, OSError):  # not Unix, or it cannot be told
        return None
    usable = fastadam.get_num_threads()
    if present - load > usable - 1:
        return None
    return (
        f"The machine is busy, or was a moment ago, so the figures below will be off. "
        f"(Its load average is {load:.1f}; it has {present} CPUs, and the demo may use {usable}.)"
    )


def main(path="fastadam-demo.png", hidden=512, epochs=EPOCHS, batch=32):
    """Train both ways, print what each took, and write a picture to `path`; returns the two runs."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
        from tqdm import tqdm
    except ImportError as error:
        raise SystemExit(f"the demo needs {error.name}: python -m pip install 'fastadam[demo]'") from error

    kinds = FigureCanvasBase.get_supported_filetypes()
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind and kind not in kinds:  # said now, not after the training
        raise SystemExit(f"--output must end in one of {', '.join(f'.{k}' for k in kinds)}, got {str(path)!r}")

    x, y = load_digits(return_X_y=True)
    data = train_test_split((x / 16).astype(np.float32), y, test_size=0.2, random_state=0, stratify=y)
    makers = {
        "NumPy Adam": lambda params: NumpyAdam(params, lr=1e-3),
        "fastadam": lambda params: fastadam.Adam(params, lr=1e-3),
    }
    runs = [Run(name, make, data, hidden, batch) for name, make in makers.items()]
    warning = busy()
    if warning:
        print(warning)
    with fastadam.share_threads_with_blas(), tqdm(range(epochs), desc="training both, in turns", unit="epoch") as bar:
        for done in bar:
            for run in runs:
                run.epoch()
            if done == 0:
                seconds = epochs * sum(run.total_seconds for run in runs)
                bar.write(f"Training takes about {math.ceil(seconds)} s here.")
    numpy_run, fast_run = runs

    print(f"\nDigits, MLP 64-{hidden}-{hidden}-10, float32, batch {batch}, {len(fast_run.losses)} steps")
    print(f"{'':14}{'accuracy':>10}{'final loss':>12}{'step':>12}{'total':>12}")
    for run in runs:
        print(
            f"{run.name:14}{run.accuracy:>10.1%}{np.mean(run.losses[-20:]):>12.2e}"
            f"{run.step_seconds:>10.2f} s{run.total_seconds:>10.2f} s"
        )
    for what, before, after in (
        ("step", numpy_run.step_seconds, fast_run.step_seconds),
        ("whole training", numpy_run.total_seconds, fast_run.total_seconds),
    ):
        verdict = f"{before / after:.1f}x faster" if after <= before else f"{after / before:.1f}x slower"
        print(f"The {what} is {verdict} with fastadam.")
    draw(runs, path)
    print(f"Picture: {path}")
    return runs
