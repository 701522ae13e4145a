"""The character model of char_model.py, on two processes: mpiexec -n 2 python -m mpi4py examples/mpi_train.py

Each batch has two halves. Two ranks take one each; one rank takes both, one after the other, and steps on their mean.
The parameters are the same bits. It takes some seconds. --picture needs matplotlib.
"""

import argparse
import sys
import zlib
from pathlib import Path

import numpy as np
from mpi4py import MPI

import fastadam
import fastadam.mpi

sys.path.insert(0, str(Path(__file__).parent))  # python -m mpi4py does not

from char_model import CharModel, examples, python_help

HALVES = 2


def train(steps, batch=256, hidden=128):
    """The optimizer, and the loss of each half of each batch that this rank has seen."""
    rank, ranks = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    if ranks not in (1, HALVES):
        raise SystemExit(f"there are {HALVES} halves: run it on 1 rank or on {HALVES}")
    contexts, following, characters = examples(python_help())
    model = CharModel(np.random.default_rng(rank), characters, hidden=hidden)  # those of rank 0 count
    opt = fastadam.mpi.Sharded(
        fastadam.AdamW,
        model.params,
        lr=fastadam.schedules.warmup_cosine(5e-3, warmup_steps=steps // 20, total_steps=steps),
        weight_decay=0.01,
        overrides={"*.b": {"weight_decay": 0.0}},
        max_norm=1.0,
        accumulate=HALVES // ranks,
    )
    model.params = opt.params  # the arrays that are updated
    losses, batches = [], np.random.default_rng(0)
    for _ in range(steps):
        rows = batches.integers(len(contexts), size=(HALVES, batch // HALVES))  # the same on all ranks
        for half in range(rank, HALVES, ranks):
            loss, grads = model.loss_and_gradients(contexts[rows[half]], following[rows[half]])
            losses.append(loss)
            opt.step(grads)
    return opt, losses


def picture(path, losses):
    from matplotlib.figure import Figure

    smooth = np.convolve(losses, np.ones(25) / 25, "valid")
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(smooth)
    axes.set(xlabel="half batches of rank 0", ylabel="loss, mean of 25", title="A model of characters")
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--picture", type=Path)
    chosen = parser.parse_args()
    opt, losses = train(chosen.steps)
    held = ", ".join(f"{name} {size / 2**20:.2f}" for name, size in opt.rank_bytes.items())
    if MPI.COMM_WORLD.rank == 0:
        crc = zlib.crc32(b"".join(p.tobytes() for p in opt.params.values()))
        print(f"loss {np.mean(losses[:10]):.3f}, at the end {np.mean(losses[-10:]):.3f}")
        print(f"parameters: CRC {crc:08x}, on 1 rank or {HALVES}")
        print(f"rank 0 of {MPI.COMM_WORLD.size} holds, MiB: {held}")
        if chosen.picture:
            picture(chosen.picture, losses)


if __name__ == "__main__":
    main()
