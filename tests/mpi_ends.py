"""How ranks end, one function for each test in test_mpi.py: python -m mpi4py tests/mpi_ends.py NAME."""

import os
import signal
import sys

import numpy as np
from mpi_ranks import COMM, LAST, RANK, gradients, model

import fastadam
import fastadam.mpi


def one_raises():
    """Outside of a step."""
    opt = fastadam.mpi.Sharded(fastadam.Adam, model())
    if LAST:
        raise ArithmeticError("of one rank alone")
    opt.step(gradients(opt.params, 0, RANK))


def fewer_batches():
    fastadam.mpi.Sharded(fastadam.SGD, [np.ones(3)])  # another, which ends with the program, too
    opt = fastadam.mpi.Sharded(fastadam.Adam, model())
    for _ in range(2 if LAST else 3):
        opt.step(gradients(opt.params, 0, RANK))


def one_exits():
    """While the others wait in a call that is not ours."""
    fastadam.mpi.Sharded(fastadam.Adam, model())
    if LAST:
        sys.exit(3)
    COMM.Barrier()


blocks = []  # one that is lost would be left


def one_keeps_its_averages():
    """It never leaves its block of swap_ema."""
    opt = fastadam.mpi.Sharded(fastadam.Adam, model(), ema_decay=0.5)
    opt.step(gradients(opt.params, 0, RANK))
    blocks.append(opt.swap_ema())
    blocks[0].__enter__()
    if not LAST:
        blocks[0].__exit__(None, None, None)


def one_is_killed():
    opt = fastadam.mpi.Sharded(fastadam.Adam, model())
    while True:
        opt.step(gradients(opt.params, 0, RANK))
        if LAST and opt.steps == 5:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
