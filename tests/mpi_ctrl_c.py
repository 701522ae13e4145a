"""Ctrl-C in calls of ours, one function for each test in test_mpi.py: python -m mpi4py tests/mpi_ctrl_c.py NAME.

Rank 0 gets it, out of something of the user's that the call calls. All ranks come to the end of the call first.
"""

import contextlib
import signal
import sys

from helpers import assert_same_bits
from mpi_ranks import RANK, RANKS, gradients, model

import fastadam
import fastadam.mpi


def interrupt():
    if RANK == 0:
        signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def interrupted():
    """Ctrl-C comes out of this block, on rank 0 alone."""
    came = False
    try:
        yield
    except KeyboardInterrupt:
        came = True
    assert came == (RANK == 0)


def assert_has_stepped(opt, steps=1):
    """As one process would."""
    params = model()
    one = fastadam.Adam(params, accumulate=RANKS)
    for step in range(steps):
        for rank in range(RANKS):
            one.step(gradients(params, step, rank))
    for key, p in params.items():
        assert_same_bits(opt.params[key], p, key)


def in_a_step():
    class Grads(dict):
        def __getitem__(self, name):
            interrupt()
            return super().__getitem__(name)

    opt = fastadam.mpi.Sharded(fastadam.Adam, model())
    with interrupted():
        opt.step(Grads(gradients(opt.params, 0, RANK)))
    assert_has_stepped(opt)


def in_the_constructor():
    class Own(fastadam.Adam):  # it is made twice: of all parameters, and of this rank's part
        def __init__(self, params, **options):
            interrupt()
            super().__init__(params, **options)

    opt = object.__new__(fastadam.mpi.Sharded)
    with interrupted():
        opt.__init__(Own, model())
    opt.step(gradients(opt.params, 0, RANK))
    assert_has_stepped(opt)


def in_front_of_averages():
    """Then rank 0 is never in the block, and waits where the others leave it."""

    class Own(fastadam.Adam):
        def swap_ema(self):
            interrupt()
            return super().swap_ema()

    opt = fastadam.mpi.Sharded(Own, model(), ema_decay=0.5)
    opt.step(gradients(opt.params, 0, RANK))
    with interrupted(), opt.swap_ema():
        assert RANK != 0
    assert_has_stepped(opt)
    opt.step(gradients(opt.params, 1, RANK))
    assert_has_stepped(opt, 2)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
