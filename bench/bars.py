"""The promises about speed and memory, measured side by side in one run: python -m bench bars [--quick]

Every row checks its result against the NumPy twin after timing.
"""

import argparse
import mmap
import tracemalloc

import numpy as np

import fastadam
from fastadam import _core, reference

from .harness import alternate, describe_machine, memory_limit, ratio, reading_limit
from .workloads import placed

LR = 1e-3


def make(n, dtype, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.standard_normal(n, dtype)
    g = rng.standard_normal(n, dtype)
    return p, g


class Checked:
    """One array under an optimizer whose first elements are compared with the twin's in the end."""

    def __init__(self, n, dtype, threads, name="Adam", **options):
        p, g = make(n, dtype)
        self.p, self.g = placed(p, 16), placed(g, 528)
        self.name, self.options = name, options
        self.opt = getattr(fastadam, name)(self.p, lr=LR, threads=threads, **options)
        self.start = self.p[:1000].copy()
        fresh = self.opt.state[0]
        self.state = {k: v[:1000].copy() if isinstance(v, np.ndarray) else v for k, v in fresh.items()}

    def step(self):
        self.opt.step(self.g)

    def check(self):
        p, g, state = self.start.copy(), self.g[:1000], self.state
        around = {k: state.pop(k) for k in ("ema", "grad_sum", "grad_count") if k in state}
        rule = {k: v for k, v in self.options.items() if k not in fastadam.optimizer.Around.__annotations__}
        scale = 1.0
        if "max_norm" in self.options:
            norm = float(np.linalg.norm(self.g.astype(np.float64)))
            assert abs(self.opt.grad_norm - norm) <= 1e-12 * norm
            scale = min(1.0, self.options["max_norm"] / (self.opt.grad_norm + 1e-6))
        update = getattr(reference, f"{self.name.lower()}_update")
        steps = self.opt.state[0]["step"]
        for _ in range(min(steps, 2000)):
            state["step"] += 1
            clipped = reference.gradient([g], [1.0], g.dtype, self.options.get("max_value"))
            product = update(p, clipped, **state, lr=LR, grad_scale=scale, **rule)
            if product is not None:
                state["mu_product"] = product
            if "ema" in around:
                reference.ema_update(around["ema"], p, self.options["ema_decay"])
        if steps <= 2000:
            assert np.array_equal(p, self.p[:1000]), "the step and its twin differ"
            assert "ema" not in around or np.array_equal(around["ema"], self.opt.ema[0][:1000])
        else:  # too many for the twin: constant gradients move each parameter by lr a step
            assert self.name == "Adam" and not rule
            expected = p.astype(float) + (steps - 2000) * -LR * np.sign(g)
            assert np.allclose(self.p[:1000], expected, rtol=1e-2, atol=steps * LR * 1e-2)


def row(what, bar, value, ok):
    print(f"| {what} | {bar} | {value} | {'' if bar == 'reported' else 'met' if ok else 'MISSED'} |", flush=True)


def show(r):
    return f"{r[0]:.2f} ({r[1]:.2f} to {r[2]:.2f})"


FAMILY = [  # optimizer, options, arrays of its state
    ("SGD", {}, 0),
    ("SGD", {"momentum": 0.9}, 1),
    ("RMSprop", {}, 1),
    ("RMSprop", {"momentum": 0.9, "centered": True}, 3),
    ("Adagrad", {}, 1),
    ("NAdam", {}, 2),
    ("RAdam", {}, 2),
    ("Adamax", {}, 2),
    ("Adam", {"amsgrad": True}, 3),
    ("Adam", {"ema_decay": 0.999}, 3),
]


def bar_memory_speed(n, rounds, dtype, threads, name="Adam", options=None, arrays=2):
    ours = Checked(n, dtype, threads, name, **(options or {}))
    limit = memory_limit(
        placed(ours.p, 272), ours.g, *(placed(ours.p, 784 + 64 * i) for i in range(arrays)), threads=threads
    )
    timings = alternate({"step": ours.step, "limit": limit}, rounds)
    ours.check()
    share = ratio(timings, "limit", "step")
    moved = (3 + 2 * arrays) * np.dtype(dtype).itemsize
    speed = moved * n / timings["step"].median / 1e9
    what = ", ".join([name, *(f"{k}={v}" for k, v in (options or {}).items())])
    row(
        f"1 x {n >> 20} Mi {dtype.__name__}, {threads} threads, {what}, {moved} B an element: against the memory limit",
        ">= 0.95",
        f"{show(share)}, {speed:.0f} GB/s",
        round(share[0], 2) >= 0.95,
    )


def bar_around(n, rounds, threads, bar, **options):
    plain, other = Checked(n, np.float32, threads), Checked(n, np.float32, threads, **options)
    turns = {"plain": plain.step, "other": other.step}
    if "max_norm" in options:  # no norm costs less than this: the gradients read once more, and nothing else
        read = reading_limit(plain.g, threads)
        assert read() == np.bitwise_or.reduce(plain.g[: n // 16 * 16].view(np.uint64))
        turns["limit"] = lambda: (read(), plain.step())
    timings = alternate(turns, rounds)
    plain.check()
    other.check()
    what = ", ".join(f"{k}={v}" for k, v in options.items())
    start = f"1 x {n >> 20} Mi float32, {threads} threads: "
    r = ratio(timings, "other", "plain")
    row(
        f"{start}{what}, against a plain step",
        f"<= {bar}" if bar else "reported",
        show(r),
        bar and round(r[0], 2) <= bar,
    )
    if "limit" in turns:
        text = show(ratio(timings, "limit", "plain"))
        row(f"{start}the gradients read once in C and a plain step, against a plain step", "reported", text, True)


def bar_many_arrays(rounds, threads):
    params = [make(1024, np.float32, i)[0] for i in range(1000)]
    grads = [make(1024, np.float32, i)[1] for i in range(1000)]
    many = fastadam.Adam(params, lr=LR, threads=threads)
    one = Checked(1024 * 1000, np.float32, threads)
    timings = alternate({"many": lambda: many.step(grads), "one": one.step}, rounds, 5)
    one.check()
    p, m, v = make(1024, np.float32, 7)[0], np.zeros(1024, np.float32), np.zeros(1024, np.float32)
    for step in range(1, many.state[7]["step"] + 1):
        reference.adam_update(p, grads[7], m, v, step, lr=LR)
    assert np.array_equal(p, params[7])
    r = ratio(timings, "many", "one")
    row(
        f"1000 x 1 K through Adam.step against 1 x 1 M, {threads} threads",
        "<= 1.6",
        f"{show(r)}, {timings['many'].median * 1e6:.0f} us",
        r[0] <= 1.6,
    )


class Empty:
    def step(self, grads):
        pass


def bar_overhead(rounds):
    ours = Checked(1024, np.float32, None)
    p, g = make(1024, np.float32)
    m, v = np.zeros_like(p), np.zeros_like(p)
    empty = Empty()
    timings = alternate(
        {
            "empty": lambda: empty.step(g),
            "Adam.step": ours.step,
            "adam_update": lambda: fastadam.adam_update(p, g, m, v, 10),
        },
        rounds,
        500,
    )
    ours.check()
    for name, bar in ("Adam.step", 4), ("adam_update", 2):
        above = (timings[name].median - timings["empty"].median) * 1e6
        spread = timings[name].spread
        row(
            f"1 x 1 K through {name}, above an empty method",
            f"<= {bar} us",
            f"{above:.2f} us (spread {spread:.0%})",
            above <= bar,
        )


def bar_isa(rounds, n=16 << 10):
    before, available = _core.isa(), _core.isas_available()
    for dtype in np.float32, np.float64:
        ours = Checked(n, dtype, 1)
        contenders = {isa: (lambda isa=isa: _core.select_isa(isa), ours.step) for isa in available}
        timings = alternate(contenders, rounds, 20)
        ours.check()
        for isa in available[1:]:
            r = ratio(timings, "baseline", isa)
            bar = ">= 1.7" if (isa, dtype) == ("avx2", np.float32) else "reported"
            row(f"{isa} against baseline, 16 Ki {dtype.__name__}", bar, show(r), bar == "reported" or r[0] >= 1.7)
    _core.select_isa(before)


def bar_neighbours(rounds, threads, n=1 << 19):
    """As malloc places arrays of 4 MiB: the gradient 16 bytes behind the parameter, modulo 1 MiB, in huge pages."""
    slot = 4 << 20
    memory = mmap.mmap(-1, 8 * slot, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    base = -np.frombuffer(memory, np.uint8).ctypes.data % slot + 4096

    p = np.frombuffer(memory, np.float32, n, base)
    p[...] = 1

    def make_step(behind):
        g = np.frombuffer(memory, np.float32, n, base + slot - behind)
        m, v = (np.frombuffer(memory, np.float32, n, base + (i + 2) * slot + (i + 1) * 65536) for i in range(2))
        g[...] = 0.5
        return lambda: fastadam.adam_update(p, g, m, v, 10, threads=threads)

    near, apart = make_step(16), make_step(-4096)
    timings = alternate({"near": near, "apart": apart}, rounds, 10)
    twin = np.ones(1000, np.float32)
    m, v = np.zeros_like(twin), np.zeros_like(twin)
    for _ in range(2 * 10 * (rounds + 1)):
        reference.adam_update(twin, np.full_like(twin, 0.5), m, v, 10)
    assert np.array_equal(twin, p[:1000]), "the step and its twin differ"
    r = ratio(timings, "near", "apart")
    row(
        f"gradient 4 MiB - 16 from the parameter, 512 Ki, {threads} threads, against 4 MiB + 4096",
        "reported",
        show(r),
        True,
    )


def bar_subnormals(rounds, n=16 << 10):
    p, g = make(n, np.float32)
    normal, dead = fastadam.Adam(p, threads=1), fastadam.Adam(p.copy(), threads=1)
    zero = np.zeros_like(g)
    for _ in range(3):
        normal.step(g)

    def make_subnormal():
        dead.state[0]["exp_avg"][...] = 1e-40
        dead.state[0]["exp_avg_sq"][...] = 1e-40

    timings = alternate(
        {
            "normal": lambda: normal.step(g),
            "first": (make_subnormal, lambda: dead.step(zero)),
            "steady": lambda: dead.step(zero),
        },
        rounds,
    )
    assert not dead.state[0]["exp_avg"].any() and not dead.state[0]["exp_avg_sq"].any()
    for name, bar in ("first", 2.0), ("steady", 1.1):
        r = ratio(timings, name, "normal")
        row(
            f"subnormal state, zero gradients, 16 Ki: {name} step against a normal one",
            f"<= {bar}",
            show(r),
            r[0] <= bar,
        )


def bar_small_squares(rounds, n=1 << 20):
    """Gradients whose squares are subnormal, one in a hundred and all, against none; v is large."""
    p, g = make(n, np.float32)
    m, v = np.zeros_like(p), np.ones_like(p)
    some, every = g.copy(), g * np.float32(1e-20)
    some[::100] *= np.float32(1e-20)
    q = p.copy()
    turns = {
        name: lambda grad=grad: fastadam.adam_update(p, grad, m, v, 1000, threads=1)
        for name, grad in (("none", g), ("one in 100", some), ("all", every))
    }
    timings = alternate(turns, rounds, 3)
    twin = [a[:1000].copy() for a in (q, np.zeros_like(p), np.ones_like(p))]
    for _ in range(rounds + 1):
        for grad in g, some, every:
            for _ in range(3):
                reference.adam_update(twin[0], grad[:1000], twin[1], twin[2], 1000)
    assert all(np.array_equal(a, b[:1000]) for a, b in zip(twin, (p, m, v), strict=True)), (
        "the step and its twin differ"
    )
    for name in "one in 100", "all":
        row(
            f"squares of {name} float32 gradients subnormal, 1 Mi: against none",
            "reported",
            show(ratio(timings, name, "none")),
            True,
        )


def bar_memory(n, arrays):
    params = [np.zeros(n, np.float32) for _ in range(arrays)]
    grads = [np.ones(n, np.float32) for _ in range(arrays)]
    tracemalloc.start()
    opt = fastadam.Adam(params, threads=2)
    built = tracemalloc.get_traced_memory()[0] - 2 * arrays * n * 4
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    opt.step(grads)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    row(
        f"memory above {arrays} arrays of {n} and their state: optimizer; peak of a step",
        "O(arrays)",
        f"{built / arrays:.0f} B an array; {peak / arrays:.0f} B an array",
        built / arrays < 4096 and peak / arrays < 1024,
    )


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m bench bars", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: a smoke test")
    quick = parser.parse_args(arguments).quick
    threads = fastadam.get_num_threads()
    rounds = 5 if quick else 41
    print(describe_machine())
    print("Ratios are medians over rounds, with quartiles.\n\n| what | bar | measured | |\n|---|---|---|---|")
    for dtype in np.float32, np.float64:
        bar_memory_speed((1 if quick else 64) << 20, rounds, dtype, threads)
    for name, options, arrays in FAMILY:
        bar_memory_speed((1 if quick else 64) << 20, rounds // 2, np.float32, threads, name, options, arrays)
    bar_around((1 if quick else 64) << 20, rounds, threads, 1.2, max_norm=1.0)
    bar_around((1 if quick else 64) << 20, rounds, threads, None, max_value=0.5)
    bar_many_arrays(rounds, threads)
    bar_overhead(rounds)
    bar_isa(rounds)
    bar_neighbours(rounds, threads)
    bar_subnormals(max(rounds, 20))
    bar_small_squares(rounds)
    bar_memory(1024, 1000)
    bar_memory(1 << 20, 4)
