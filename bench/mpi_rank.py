"""What each rank of `python -m bench mpi` runs; rank 0 prints what was measured.

The bound is what must be done in any case: copies of as many bytes as the rank gets from others, gradients and
parameters, and a step of its part. Steps and bounds take turns; the slowest rank counts.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import fastadam
import fastadam.mpi

COMM = MPI.COMM_WORLD


def memory(field):
    """Bytes of this process, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def main(size, rounds, max_norm):
    bare = memory("VmRSS")
    given = {"W": np.zeros(size, np.float32)}
    options = {"lr": 1e-3, "threads": 1, "max_norm": max_norm}
    opt = fastadam.mpi.Sharded(fastadam.AdamW, given, **options)
    grads = {"W": np.full(size, 0.5, np.float32)}
    del given
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    opt.step(grads)
    opt.step(grads)
    above = memory("VmHWM") - bare - 2 * 4 * size

    part = size // COMM.size
    own = {"W": np.zeros(part, np.float32)}
    alone = fastadam.AdamW(own, **options)
    own_grads, others = {"W": grads["W"][:part]}, np.zeros(size - part, np.float32)

    def bound():
        np.copyto(others, grads["W"][part:])  # gradients
        np.copyto(others, grads["W"][part:])  # as many bytes of parameters
        alone.step(own_grads)

    def seconds(function):
        COMM.Barrier()
        start = time.perf_counter()
        function()
        taken = np.array([time.perf_counter() - start])
        slowest = np.empty(1)
        COMM.Allreduce(taken, slowest, op=MPI.MAX)
        return float(slowest[0])

    bound()
    pairs = [(seconds(lambda: opt.step(grads)), seconds(bound)) for _ in range(rounds)]
    steps, bounds = zip(*pairs, strict=True)
    alone.step(own_grads)  # as many steps as the other; clipped by the norm of a part, it differs by eps
    got = opt.params["W"][:part]
    assert np.allclose(got, own["W"], rtol=1e-3, atol=0) if max_norm else np.array_equal(got, own["W"])
    assert not max_norm or (opt.params["W"] == got[0]).all()
    tops = np.empty(COMM.size, np.int64)
    COMM.Allgather(np.array([above]), tops)
    if COMM.rank == 0:
        found = {"steps": steps, "bounds": bounds, "above": int(tops.max()), "held": opt.rank_bytes}
        print("result", json.dumps(found), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if sys.argv[3:] else None)
