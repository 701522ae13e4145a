"""A whole training loop in NumPy, with what real ones need: python examples/train.py [epochs]

AdamW with warm-up and cosine decay, no weight decay on biases, clipping, averaged weights, and a checkpoint after each
epoch. Stop it and start it again: it goes on where it was, to the last bit.
"""

import sys
from pathlib import Path

import numpy as np

import fastadam

rng = np.random.default_rng(0)
x = rng.standard_normal((2000, 8), np.float32)
y = np.sin(x).sum(axis=1, keepdims=True)


def layer(inputs, outputs):
    weight = rng.standard_normal((inputs, outputs), np.float32) / np.float32(inputs**0.5)
    return {"weight": weight, "bias": np.zeros(outputs, np.float32)}


net = {"hidden": layer(8, 256), "out": layer(256, 1)}


def loss_and_grads(x, y):
    """Mean squared error of a network with one hidden layer, and its gradients in the shape of `net`."""
    hidden, out = net["hidden"], net["out"]
    h = np.maximum(x @ hidden["weight"] + hidden["bias"], 0)
    error = h @ out["weight"] + out["bias"] - y
    d_out = error * np.float32(2 / len(x))
    d_h = (d_out @ out["weight"].T) * (h > 0)
    return float((error**2).mean()), {
        "hidden": {"weight": x.T @ d_h, "bias": d_h.sum(axis=0)},
        "out": {"weight": h.T @ d_out, "bias": d_out.sum(axis=0)},
    }


epochs, batch = int(sys.argv[1]) if len(sys.argv) > 1 else 30, 50
steps = 30 * len(x) // batch

opt = fastadam.AdamW(
    net,  # any nesting of dicts, lists and arrays
    lr=fastadam.schedules.warmup_cosine(5e-3, warmup_steps=steps // 20, total_steps=steps),
    weight_decay=0.01,
    overrides={"*.bias": {"weight_decay": 0.0}},  # no decay on biases
    max_norm=1.0,  # clip by the norm of all gradients
    ema_decay=0.99,  # average the weights
)
checkpoint, first = Path("train.safetensors"), 0
if checkpoint.exists():
    first = 1 + fastadam.load(checkpoint, params=net, optimizer=opt)["epoch"]

fastadam.share_threads_with_blas()  # products and steps on the same threads
for epoch in range(first, epochs):
    order = np.random.default_rng(epoch).permutation(len(x))
    for rows in order.reshape(-1, batch):
        loss, grads = loss_and_grads(x[rows], y[rows])
        opt.step(grads)  # in place: the arrays in net change
    fastadam.save(checkpoint, params=net, optimizer=opt, metadata={"epoch": epoch})

with opt.swap_ema():  # in here net has the averages
    print(f"loss with averaged weights: {loss_and_grads(x, y)[0]:.4f}")
