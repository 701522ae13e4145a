"""Groups, frozen arrays and layers added while training, in NumPy alone: python examples/groups.py

A small network learns one function. Then a second head joins the optimizer and learns another one while the rest is
frozen, and at last both heads and the layer below them train on. Weight decay leaves biases and norms alone.
"""

import numpy as np

import fastadam


def groups(params):
    """Two groups of the arrays in `params`, a dict by name: matrices, which decay, and all others, which do not.

    Decay pulls towards zero. That keeps matrices small; a bias, or the gain of a norm, would only be in the wrong
    place. So would the vectors of an embedding that hardly any batch has: they would decay all the same.
    """
    decay = [name for name, array in params.items() if array.ndim > 1 and "embedding" not in name]
    rest = [name for name in params if name not in decay]
    return [
        {"params": {name: params[name] for name in decay}},
        {"params": {name: params[name] for name in rest}, "weight_decay": 0.0},
    ]


def in_groups(grads, parts):
    """Gradients by name in the shape of the groups `parts`: what step() takes."""
    return [{name: grads[name] for name in part["params"]} for part in parts]


def new_head(name, rng):
    return {f"{name}.W": rng.standard_normal((32, 1)) / np.sqrt(32), f"{name}.b": np.zeros(1)}


def loss_and_gradients(params, head, x, y):
    """Mean squared error of linear, norm, ReLU, head; an array that this head does not use has the gradient None."""
    a = x @ params["body.W"] + params["body.b"]
    deviation = np.sqrt(a.var(axis=1, keepdims=True) + 1e-5)
    normal = (a - a.mean(axis=1, keepdims=True)) / deviation
    scaled = normal * params["norm.gain"] + params["norm.shift"]
    hidden = np.maximum(scaled, 0)
    error = (hidden @ params[f"{head}.W"] + params[f"{head}.b"])[:, 0] - y

    d_out = 2 * error[:, None] / len(y)
    d_scaled = (d_out @ params[f"{head}.W"].T) * (scaled > 0)
    d_normal = d_scaled * params["norm.gain"]
    along = (d_normal * normal).mean(axis=1, keepdims=True) * normal
    d_a = (d_normal - d_normal.mean(axis=1, keepdims=True) - along) / deviation
    grads = dict.fromkeys(params) | {
        "body.W": x.T @ d_a,
        "body.b": d_a.sum(axis=0),
        "norm.gain": (d_scaled * normal).sum(axis=0),
        "norm.shift": d_scaled.sum(axis=0),
        f"{head}.W": hidden.T @ d_out,
        f"{head}.b": d_out.sum(axis=0),
    }
    return float((error**2).mean()), grads


def frozen(grads, prefixes):
    """The gradients with None for the arrays whose names begin so: they, their state and counters stay as they are."""
    return {name: None if name.startswith(prefixes) else grad for name, grad in grads.items()}


def main():
    """Train in three phases of 300 steps and print each one's losses; returns params, optimizer, losses, copies."""
    rng = np.random.default_rng(0)
    params = {
        "body.W": rng.standard_normal((4, 32)) / 2,
        "body.b": np.zeros(32),
        "norm.gain": np.ones(32),
        "norm.shift": np.zeros(32),
        **new_head("first", rng),
    }
    targets = {"first": lambda x: np.sin(x).sum(axis=1), "second": lambda x: np.abs(x).sum(axis=1)}
    parts = groups(params)
    matrices, others = parts
    matrices["lr"] = lambda count: 0.01 * min(1, (count + 1) / 50)  # warm-up
    others["lr"] = lambda count: 0.01 * 0.997**count
    opt = fastadam.AdamW(parts, weight_decay=0.01)
    losses, copies = [], []

    def train(what, heads, freeze=()):
        for number in range(300):
            x = rng.standard_normal((64, 4))
            head = heads[number % len(heads)]
            loss, grads = loss_and_gradients(params, head, x, targets[head](x))
            opt.step(in_groups(frozen(grads, freeze), parts))
            losses.append(loss)
        copies.append({name: array.copy() for name, array in params.items()})
        print(f"{what:34} loss {np.mean(losses[-300:-280]):.3f} -> {np.mean(losses[-20:]):.3f}")

    train("first head", ["first"])

    added = new_head("second", rng)
    params |= added
    for part in groups(added):  # their schedules begin at 0; those of frozen groups wait
        part["lr"] = lambda count: 0.02 * min(1, (count + 1) / 20)
        parts.append(part)
        opt.add_param_group(part)
    train("second head added, rest frozen", ["second"], freeze=("body", "norm", "first"))
    kept = [name for name in copies[0] if np.array_equal(copies[0][name], copies[1][name])]
    print(f"{'':34} unchanged to the bit: {', '.join(kept)}")

    train("both heads by turns, norm frozen", ["first", "second"], freeze=("norm",))

    print(f"\n{'':12}{'steps':>6}{'decay':>7}{'next lr':>10}")
    for part, group in zip(parts, opt.param_groups, strict=True):
        count = max(opt.state[name]["step"] for name in part["params"])
        for name in part["params"]:
            print(f"{name:12}{opt.state[name]['step']:>6}{group['weight_decay']:>7}{group['lr'](count):>10.5f}")
    return params, opt, losses, copies


if __name__ == "__main__":
    main()
