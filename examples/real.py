"""SGD, momentum, RMSprop, Adam and AdamW on two real tasks, each with its best learning rate: python examples/real.py

Handwritten digits (an MLP), and Python's help texts (a language model of characters), both in plain NumPy. Needs the
[demo] extra; takes about five minutes, and seconds with --quick. docs/comparison.md has a run, and what it says.
"""

import argparse
import functools
import itertools
import math
import time
from dataclasses import dataclass

import matplotlib
import numpy as np
from char_model import CharModel, cross_entropy, examples, python_help
from groups import groups, in_groups
from PIL import Image
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import fastadam
from fastadam.gallery.demo import MLP

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OPTIMIZERS = {
    "SGD": fastadam.SGD,
    "SGD, momentum 0.9": functools.partial(fastadam.SGD, momentum=0.9),
    "RMSprop": fastadam.RMSprop,
    "Adam": fastadam.Adam,
    "AdamW, decay 0.1": functools.partial(fastadam.AdamW, weight_decay=0.1),
}
RATES = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0]  # the same for all
SWEEP_SEEDS = [100, 101]  # a rate is chosen on these,
SEEDS = [0, 1, 2, 3, 4]  # and results are from these


@dataclass
class Task:
    name: str
    make_model: object  # from a generator of random numbers
    parts: dict  # "train", "validation" (chooses rates) and "test" (is reported): inputs and labels
    steps: int
    scale: str  # of the picture's losses
    batch: int = 64


@dataclass
class Run:
    model: object
    losses: list  # of the batches
    seconds: float


class Digits:
    """The demo's MLP, with its arrays by name."""

    def __init__(self, rng):
        self.mlp = MLP([64, 128, 128, 10], rng)
        self.params = self.by_name(self.mlp.params)

    @staticmethod
    def by_name(tree):
        return {f"{kind}.{i}": array for kind, arrays in tree.items() for i, array in enumerate(arrays)}

    def scores(self, x):
        return self.mlp.activations(x)[-1]

    def loss_and_gradients(self, x, labels):
        loss, grads = self.mlp.loss_and_gradients(x, labels)
        return loss, self.by_name(grads)


def digits(steps):
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return Task("digits", Digits, split((x / 16).astype(np.float32)[order], y[order]), steps, "log")


def help_texts(steps):
    contexts, following, characters = examples(python_help())
    return Task(
        "help texts", functools.partial(CharModel, characters=characters), split(contexts, following), steps, "linear"
    )


def split(x, y):
    a, b = int(0.8 * len(x)), int(0.9 * len(x))
    return {"train": (x[:a], y[:a]), "validation": (x[a:b], y[a:b]), "test": (x[b:], y[b:])}


@np.errstate(all="ignore")  # rates that are too large end in infinity and NaN
def train(task, make_optimizer, rate, seed):
    """One run. The seed is the model's start and the batches; the rate falls along a cosine to 0, for everybody."""
    rng = np.random.default_rng(seed)
    model = task.make_model(rng)
    parts = groups(model.params)
    optimizer = make_optimizer(
        parts, lr=lambda count: rate * (1 + math.cos(math.pi * count / task.steps)) / 2, threads=1
    )
    x, y = task.parts["train"]
    losses = []
    begin = time.perf_counter()
    for _ in range(task.steps):
        rows = rng.integers(len(x), size=task.batch)
        loss, grads = model.loss_and_gradients(x[rows], y[rows])
        losses.append(loss)
        if not math.isfinite(loss):
            losses += [math.inf] * (task.steps - len(losses))
            break
        optimizer.step(in_groups(grads, parts))
    return Run(model, losses, time.perf_counter() - begin)


@np.errstate(all="ignore")
def evaluate(model, x, y, about=10_000):
    """Loss (infinity for NaN) and accuracy on that many examples, or all there are, evenly spread."""
    spread = slice(None, None, max(1, len(x) // about))
    scores = model.scores(x[spread])
    loss, _ = cross_entropy(scores, y[spread])
    return math.inf if math.isnan(loss) else loss, float((scores.argmax(axis=1) == y[spread]).mean())


def sweep(task, rates, seeds, progress):
    """For each optimizer the median validation loss at each rate."""
    table = {name: {} for name in OPTIMIZERS}
    for (name, make), rate in itertools.product(OPTIMIZERS.items(), rates):
        losses = []
        for seed in seeds:
            losses.append(evaluate(train(task, make, rate, seed).model, *task.parts["validation"])[0])
            progress.update()
        table[name][rate] = float(np.median(losses))
    return table


def compare(task, rates, sweep_seeds, seeds, progress):
    """The sweep, the rate that it chose for each optimizer, and the runs with that rate."""
    table = sweep(task, rates, sweep_seeds, progress)
    best = {name: min(row, key=row.get) for name, row in table.items()}
    runs = {}
    for name, make in OPTIMIZERS.items():
        runs[name] = []
        for seed in seeds:
            runs[name].append(train(task, make, best[name], seed))
            progress.update()
    return table, best, runs


def middle_and_range(values, form):
    return f"{np.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def report(task, table, best, runs):
    """The sweep and the results as tables in Markdown."""
    rates = list(next(iter(table.values())))
    print(f"\n### {task.name}: {task.steps} steps of {task.batch} examples\n")
    print(f"| validation loss at rate | {' | '.join(f'{rate:g}' for rate in rates)} |\n|{'---|' * (len(rates) + 1)}")
    for name, row in table.items():
        cells = [f"**{row[rate]:.3f}**" if rate == best[name] else f"{row[rate]:.3f}" for rate in rates]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| | rate | training loss | test loss | test accuracy | seconds |\n|---|---|---|---|---|---|")
    for name, seeds in runs.items():
        trained = [evaluate(run.model, *task.parts["train"])[0] for run in seeds]
        test, accuracy = zip(*(evaluate(run.model, *task.parts["test"]) for run in seeds), strict=True)
        columns = (trained, "#.3g"), (test, "#.3g"), (accuracy, ".1%"), ([run.seconds for run in seeds], ".2f")
        print(f"| {name} | {best[name]:g} | {' | '.join(middle_and_range(*column) for column in columns)} |")


def draw(outcomes, path):
    """The batches' losses, averaged over a thirtieth of the run: median of the seeds, and all of them as a band."""
    figure, plots = plt.subplots(1, len(outcomes), figsize=(11, 4.2), layout="constrained")
    for plot, (task, best, runs) in zip(plots, outcomes, strict=True):
        window = max(1, task.steps // 30)
        for name, seeds in runs.items():
            losses = np.array([run.losses[: task.steps // window * window] for run in seeds])
            smooth = losses.reshape(len(seeds), -1, window).mean(axis=2)
            steps = (np.arange(smooth.shape[1]) + 0.5) * window
            (line,) = plot.plot(steps, np.median(smooth, axis=0), label=f"{name}: {best[name]:g}")
            plot.fill_between(steps, smooth.min(axis=0), smooth.max(axis=0), color=line.get_color(), alpha=0.2, lw=0)
        plot.set(
            title=f"Training loss: {task.name}",
            xlabel="step",
            ylabel=f"loss, mean of {window} steps",
            yscale=task.scale,
        )
        plot.legend(title="optimizer: highest rate")
    figure.savefig(path, dpi=90)
    plt.close(figure)
    if str(path).endswith(".png"):  # 128 colours: a quarter of the size, and no difference to be seen
        with Image.open(path) as drawn:
            small = drawn.convert("RGB").quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        small.save(path, optimize=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rates, seeds and steps: a smoke test")
    parser.add_argument("--picture", default="real-comparison.png", help="where to write it (%(default)s)")
    options = parser.parse_args(arguments)
    if options.quick:
        tasks, rates, sweep_seeds, seeds = (
            [digits(100), help_texts(100)],
            [1e-3, 1e-2, 1e-1],
            SWEEP_SEEDS[:1],
            SEEDS[:3],
        )
    else:
        tasks, rates, sweep_seeds, seeds = [digits(600), help_texts(1500)], RATES, SWEEP_SEEDS, SEEDS

    total = len(tasks) * len(OPTIMIZERS) * (len(rates) * len(sweep_seeds) + len(seeds))
    outcomes = []
    with threadpool_limits(1, "blas"), tqdm(total=total, unit="run") as progress:  # products too small for two
        for task in tasks:
            table, best, runs = compare(task, rates, sweep_seeds, seeds, progress)
            outcomes.append((task, table, best, runs))
    for outcome in outcomes:
        report(*outcome)
    draw([(task, best, runs) for task, _, best, runs in outcomes], options.picture)
    print(f"\nPicture: {options.picture}")
    return outcomes


if __name__ == "__main__":
    main()
