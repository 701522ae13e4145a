"""A recommender, whose steps update only the rows of its tables that are in the batch: python examples/recommender.py

Matrix factorisation in NumPy: a vector for each user and each item, learned from observed pairs against random ones.
Five ways to step, from the same start, with the same batches. torch is optional; --picture needs matplotlib.
It takes about a minute. docs/rows.md has a run, and what it says.
"""

import argparse
import importlib.util
import time

import numpy as np

import fastadam

RATE, ADAGRAD_RATE = 1e-2, 8e-2  # each the best of three, by the loss of held-out pairs
BATCH, NEGATIVES, WIDTH = 1024, 4, 64


def observed_pairs(rng, users=20_000, items=50_000, pairs=1_000_000):
    """Of each pair the user, and the item that was observed with some random ones: (pairs,), (pairs, 1 + NEGATIVES).

    The user has chosen it out of 8 by a hidden taste. A few items are among these 8 again and again.
    """
    popularity = np.cumsum(rng.permutation(np.arange(1, items + 1) ** -0.8))
    taste, kind = (rng.standard_normal((count, 6), np.float32) for count in (users, items))
    who, shown = rng.integers(users, size=pairs), rng.integers(items, size=(pairs, 1 + NEGATIVES))
    for part in (slice(begin, begin + 50_000) for begin in range(0, pairs, 50_000)):
        offered = np.searchsorted(popularity, rng.random((len(who[part]), 8)) * popularity[-1])
        fit = np.einsum("bd,bkd->bk", taste[who[part]], kind[offered]) + rng.gumbel(size=offered.shape)
        shown[part, 0] = np.take_along_axis(offered, fit.argmax(axis=1, keepdims=True), axis=1)[:, 0]
    return who, shown


def start(users, items, dtype=np.float32):
    """Two tables of vectors, a table of single numbers, and a dense array."""
    rng = np.random.default_rng(0)
    vectors = {"user": rng.standard_normal((users, WIDTH)), "item": rng.standard_normal((items, WIDTH))}
    params = {name: (0.1 * table).astype(dtype) for name, table in vectors.items()}
    return params | {"bias": np.zeros(items, dtype), "offset": np.zeros(1, dtype)}


def scores(params, who, shown):
    vectors = np.einsum("bd,bkd->bk", params["user"][who], params["item"][shown])
    return vectors + params["bias"][shown] + params["offset"]


def loss(score):
    """Logistic, the mean over all pairs; observed ones are in column 0."""
    return (np.logaddexp(0, score).sum() - score[:, 0].sum()) / score.size


def gradients(params, who, shown):
    """Of the loss: rows of the tables, and an array."""
    error = 1 / (1 + np.exp(-scores(params, who, shown)))
    error[:, 0] -= 1
    error /= error.size
    of_items = error[:, :, None] * params["user"][who][:, None]
    return {
        "user": fastadam.Rows(who, np.einsum("bk,bkd->bd", error, params["item"][shown])),
        "item": fastadam.Rows(shown.ravel(), of_items.reshape(-1, WIDTH)),
        "bias": fastadam.Rows(shown.ravel(), error.ravel()),
        "offset": error.sum().reshape(1),
    }


def dense(params):
    """Adam. All rows move at each step, most of them by what is left of their moments."""
    opt = fastadam.Adam(params, lr=RATE)

    def step(grads):
        whole = {name: np.zeros_like(p) for name, p in params.items()} | {"offset": grads["offset"]}
        for name in "user", "item", "bias":
            np.add.at(whole[name], grads[name].rows, grads[name].grads)
        opt.step(whole)

    return step


def numpy_rows(params, beta1=0.9, beta2=0.999, eps=1e-8):
    """What fastadam.Adam computes from rows."""
    state, count = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in params.items()}, 0

    def step(grads):
        nonlocal count
        count += 1
        for name, g in grads.items():
            p, (m, v), rows = params[name], state[name], slice(None)
            if isinstance(g, fastadam.Rows):
                rows, inverse = np.unique(g.rows, return_inverse=True)
                given, g = g.grads, np.zeros((len(rows), *p.shape[1:]), p.dtype)
                np.add.at(g, inverse, given)
            m[rows] = new_m = beta1 * m[rows] + (1 - beta1) * g
            v[rows] = new_v = beta2 * v[rows] + (1 - beta2) * g * g
            p[rows] -= RATE / (1 - beta1**count) * new_m / (np.sqrt(new_v / (1 - beta2**count)) + eps)

    return step


def torch_sparse(params):
    """SparseAdam on the same memory. It refuses dense gradients, so the offset has an optimizer of its own."""
    import torch

    tensors = {name: torch.from_numpy(p) for name, p in params.items()}
    *tables, offset = tensors.values()
    optimizers = torch.optim.SparseAdam(tables, lr=RATE), torch.optim.Adam([offset], lr=RATE)

    def step(grads):
        offset.grad = torch.from_numpy(grads["offset"])
        for name in "user", "item", "bias":
            index, values = torch.from_numpy(grads[name].rows)[None], torch.from_numpy(grads[name].grads)
            tensors[name].grad = torch.sparse_coo_tensor(index, values, params[name].shape, check_invariants=False)
        for optimizer in optimizers:
            optimizer.step()

    return step


WAYS = {  # functions of the arrays that return a function of the gradients, which steps
    "fastadam.Adam, rows": lambda params: fastadam.Adam(params, lr=RATE).step,
    "fastadam.RowAdagrad, rows": lambda params: fastadam.RowAdagrad(params, lr=ADAGRAD_RATE).step,
    "Adam in NumPy, rows": numpy_rows,
    "torch SparseAdam": torch_sparse,
    "fastadam.Adam, dense": dense,
}


def train(make, params, data, held_out, steps):
    """Seconds and held-out losses; the seconds of gradients and of a step; how often an observed pair scores more."""
    step, rng, seconds, curve = make(params), np.random.default_rng(1), np.zeros(2), []
    for number in range(steps + 1):
        if number % max(1, steps // 20) == 0 or number == steps:
            score = scores(params, *held_out)
            curve.append((seconds.sum(), loss(score)))
        if number < steps:
            batch = rng.integers(len(data[0]), size=BATCH)
            begin = time.perf_counter()
            grads = gradients(params, *(part[batch] for part in data))
            between = time.perf_counter()
            step(grads)
            seconds += between - begin, time.perf_counter() - between
    return np.array(curve), seconds / steps, (score[:, :1] > score[:, 1:]).mean()


def draw(curves, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    plot = figure.subplots()
    for name, curve in curves.items():
        plot.plot(*curve.T, label=name)
    plot.set(xlabel="seconds, gradients included", ylabel="loss of held-out pairs", xlim=0)
    plot.set_title("The same number of steps for all; of those with dense gradients a fifth")
    plot.legend()
    figure.savefig(path, dpi=90)


def main(arguments=None, users=20_000, items=50_000, pairs=1_000_000):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--picture", help="where to write it, as PNG")
    options = parser.parse_args(arguments)
    everything, rest, curves = observed_pairs(np.random.default_rng(0), users, items, pairs), pairs // 50, {}
    held_out, data = [part[:rest] for part in everything], [part[rest:] for part in everything]
    print("| | steps | gradients, ms | step, ms | loss | AUC |\n|---|---|---|---|---|---|")
    for name, make in WAYS.items():
        if make is torch_sparse and not importlib.util.find_spec("torch"):
            print(f"| {name} | torch is not installed | | | | |")
            continue
        steps = options.steps // 5 if make is dense else options.steps
        curves[name], (passes, step), auc = train(make, start(users, items), data, held_out, steps)
        columns = f"{1e3 * passes:.2f} | {1e3 * step:.2f} | {curves[name][-1, 1]:.4f} | {auc:.4f}"
        print(f"| {name} | {steps} | {columns} |", flush=True)
    if options.picture:
        draw(curves, options.picture)
    return curves


if __name__ == "__main__":
    main()
