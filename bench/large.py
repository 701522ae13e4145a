"""Large: how much model fits.

A language model of characters in plain NumPy, dense layers of 67 million parameters each, trained on Python's standard
library, each run in a process of its own. A gradient is given to `step_one` as soon as it is there, so there is memory
for one. Peak is that of the process, all included. "Kept" are parameters and state. The limit reads and writes as many
bytes as the steps must, with next to no arithmetic; its share is its time over that of the steps, iteration by
iteration.
"""

import resource
import statistics
import sys
import time
from dataclasses import dataclass, field

import numpy as np

import fastadam

from .limits import memory_limit
from .results import promise, ratio
from .rows import available
from .transformer import SYMBOLS, cross_entropy, library_text
from .workers import in_new_process

CONTEXT = 16
MOST = 24  # GiB


@dataclass(frozen=True)
class Run:
    blocks: int
    options: dict = field(default_factory=dict)
    width: int = 4096
    steps: int = 40
    batch: int = 128
    lr: float = 1e-4

    @property
    def needs(self):
        """Bytes, roughly: parameters, state, one gradient."""
        size = 8 * self.blocks * self.width**2
        state = {"bfloat16": 4, "8bit": 2.1}.get(self.options.get("state_dtype"), 8)
        return size * (4 + state) + 16 * self.width**2 + (1 << 30)


RUNS = {
    "0.5 G float32": Run(4),
    "0.5 G bfloat16": Run(4, {"state_dtype": "bfloat16"}),
    "0.5 G 8bit": Run(4, {"state_dtype": "8bit"}),
    "2.1 G 8bit": Run(16, {"state_dtype": "8bit"}, steps=24, batch=64),
}
CHOICES = {"runs": RUNS}


def norm(x):
    """Layer norm without parameters, and what its way back needs."""
    centred = x - x.mean(axis=1, keepdims=True)
    inverse = 1 / np.sqrt((centred * centred).mean(axis=1, keepdims=True) + 1e-5)
    return centred * inverse, inverse


def norm_back(normed, inverse, d):
    return inverse * (d - d.mean(axis=1, keepdims=True) - normed * (d * normed).mean(axis=1, keepdims=True))


class Wide:
    """A vector for each of 16 characters, side by side; blocks that add a rectified layer of it; the next character."""

    def __init__(self, rng, width, blocks, dtype=np.float32):
        def dense(inputs, outputs, gain):
            array = rng.standard_normal((inputs, outputs), dtype)
            array *= dtype(gain * inputs**-0.5)
            return array

        self.blocks = blocks
        self.params = {"embedding": rng.standard_normal((SYMBOLS, width // CONTEXT), dtype)}
        for i in range(blocks):
            self.params[f"up.{i}"] = dense(width, 4 * width, 2**0.5)
            self.params[f"down.{i}"] = dense(4 * width, width, blocks**-0.5)
        # Zeros: with random ones Adam's first steps change the scores far too much.
        self.params["out"] = np.zeros((width, SYMBOLS), dtype)
        self.memory = np.empty(4 * width * width, dtype)  # of one gradient

    def scores(self, contexts):
        kept, x = [], self.params["embedding"][contexts].reshape(len(contexts), -1)
        for i in range(self.blocks):
            normed, inverse = norm(x)
            hidden = np.maximum(normed @ self.params[f"up.{i}"], 0)
            kept.append((normed, inverse, hidden))
            x = x + hidden @ self.params[f"down.{i}"]
        normed, inverse = norm(x)
        return normed @ self.params["out"], kept, normed, inverse

    def product(self, a, b):
        """a.T @ b in the one memory for gradients."""
        shape = a.shape[1], b.shape[1]
        return np.matmul(a.T, b, out=self.memory[: shape[0] * shape[1]].reshape(shape))

    def train(self, contexts, following, step):
        """The loss; calls step(name, gradient) when nothing needs the old parameter any more."""
        p = self.params
        scores, kept, normed, inverse = self.scores(contexts)
        loss, d = cross_entropy(scores, following)
        d_out, d = d, d @ p["out"].T
        step("out", self.product(normed, d_out))
        d = norm_back(normed, inverse, d)
        for i in reversed(range(self.blocks)):
            normed, inverse, hidden = kept.pop()
            d_hidden = (d @ p[f"down.{i}"].T) * (hidden > 0)
            step(f"down.{i}", self.product(hidden, d))
            d_normed = d_hidden @ p[f"up.{i}"].T
            step(f"up.{i}", self.product(normed, d_hidden))
            d = d + norm_back(normed, inverse, d_normed)
        one_hot = np.eye(SYMBOLS, dtype=d.dtype)[contexts.ravel()]
        step("embedding", self.product(one_hot, d.reshape(contexts.size, -1)))
        return loss


def peak():
    """GiB that this process has had at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def best_of(function, calls=5):
    """Seconds of a call; during the first ones BLAS's threads may still look for work."""
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def train(run):
    """One run, in this process."""
    rng, text = np.random.default_rng(0), library_text()
    model = Wide(rng, run.width, run.blocks)
    size = sum(p.size for p in model.params.values())
    lr = fastadam.schedules.warmup_cosine(run.lr, warmup_steps=run.steps // 4, total_steps=run.steps)
    optimizer = fastadam.Adam(model.params, lr=lr, **run.options)
    state = optimizer.nbytes
    moved = 12 * size + 2 * state  # read and write parameters and state, read gradients
    largest = max(model.params.values(), key=lambda p: p.size)
    limit = memory_limit(largest, model.memory, threads=fastadam.config()["threads"])
    losses, seconds, iterations, limits = [], [], [], []

    def step(name, grad):
        start = time.perf_counter()
        optimizer.step_one(name, grad)
        seconds[-1] += time.perf_counter() - start

    with fastadam.share_threads_with_blas():
        for _ in range(run.steps):
            begins = rng.integers(len(text) - CONTEXT, size=run.batch)
            pieces = text[begins[:, None] + np.arange(CONTEXT + 1)]
            seconds.append(0.0)
            start = time.perf_counter()
            losses.append(model.train(pieces[:, :-1], pieces[:, -1], step))
            iterations.append(time.perf_counter() - start)
            limits.append(best_of(limit) * moved / (12 * largest.size))
    return {
        "parameters": size,
        "kept": (4 * size + state) / size,
        "peak": peak(),
        "losses": losses,
        "seconds": seconds,
        "iterations": iterations,
        "limits": limits,
    }


def measure(chosen):
    for name in chosen.runs:
        run = RUNS[name]
        if chosen.quick:
            run = Run(2, run.options, width=256, steps=30, batch=64, lr=1e-3)
        if available() < run.needs:
            yield "absent", [{"run": name, "why": f"it needs {run.needs / 2**30:.0f} GiB of free memory"}]
            continue
        found = in_new_process(train, run)
        losses, part = found["losses"], max(2, run.steps // 8)
        first, last = statistics.mean(losses[:2]), statistics.mean(losses[-part:])
        assert last < first, f"{name}: the loss went from {first:.3g} to {last:.3g}"
        warm = slice(2, None)  # the first steps touch new memory
        yield "runs", [{
            "run": name,
            "parameters": f"{found['parameters']:.3g}",
            "bytes kept a parameter": found["kept"],
            "peak, GiB": found["peak"],
            "steps": run.steps,
            "first loss": first,
            "last loss": last,
            "s an iteration": statistics.median(found["iterations"][warm]),
            "s of its steps": statistics.median(found["seconds"][warm]),
            "share of the steps": ratio(found["seconds"][warm], found["iterations"][warm]),
            "share of the limit": ratio(found["limits"][warm], found["seconds"][warm]),
        }]  # fmt: skip
        yield "promises", [promise({"run": name, "what": "last loss over first"}, "<= 0.8", last / first)]
        yield "promises", [promise({"run": name, "what": "peak, GiB"}, f"<= {MOST}", found["peak"])]
