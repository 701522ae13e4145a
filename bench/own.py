"""What fastadam promises of its own steps: each beside another step of fastadam, in turns in one process."""

import functools
import mmap
import statistics
import tracemalloc
from types import SimpleNamespace

import numpy as np

import fastadam
from fastadam import _core, reference

from .limits import alternate, reading_limit
from .peers import Fastadam, check
from .results import promise, ratio
from .workloads import Workload


class Own:
    """Steps of one optimizer, which are checked in the end."""

    def __init__(self, *shape, count=1, threads=None, rule="Adam", dtype=np.float32):
        self.params, self.grads = Workload("", (shape,) * count, dtype).make()
        self.contender = Fastadam(self.params, self.grads, threads, rule)
        self.optimizer = self.contender.optimizer

    def step(self):
        self.optimizer.step(self.grads)

    def check(self):
        check(self.contender, self.params, self.grads, self.optimizer.steps)


def compare(what, owners, turns, pairs, rounds, calls=1):
    """{over: (name, base, bar)} as rows, once the results of all owners are right."""
    found = alternate(turns, rounds, calls)
    for own in owners:
        own.check()
    for over, (name, base, bar) in pairs.items():
        yield promise({"what": f"{what}: {over}"}, bar, ratio(found[name], found[base]))


def clipping(n, rounds, threads):
    own = {rule: Own(n, threads=threads, rule=rule) for rule in ("Adam", "clipped", "clipped by value")}
    grad, step = own["Adam"].grads[0], own["Adam"].step
    read = reading_limit(grad, threads)
    assert read() == np.bitwise_or.reduce(grad[: n // 16 * 16].view(np.uint64))
    turns = {rule: each.step for rule, each in own.items()} | {"read": lambda: (read(), step())}
    pairs = {
        "max_norm=1 over a plain step": ("clipped", "Adam", "<= 1.2"),
        "gradients read once in C and a plain step over a plain step": ("read", "Adam", ""),
        "max_value over a plain step": ("clipped by value", "Adam", ""),
    }
    return compare(f"1 x {n >> 20} Mi", own.values(), turns, pairs, rounds)


def many_arrays(rounds, threads):
    many, one = Own(1024, count=1000, threads=threads), Own(1024 * 1000, threads=threads)
    pairs = {"over 1 x 1 M": ("many", "one", "<= 1.6")}
    return compare("1000 x 1 K", (many, one), {"many": many.step, "one": one.step}, pairs, rounds, 5)


def overhead(rounds):
    """A method that does nothing takes 0.05 us of these."""
    own, p = Own(1024, threads=1), np.ones(1024, np.float32)
    g, bare, m, v = own.grads[0], own.params[0].copy(), np.zeros_like(p), np.zeros_like(p)
    opt = fastadam.Adam(bare)
    turns = {"Adam.step": lambda: opt.step(g), "adam_update": lambda: fastadam.adam_update(p, g, m, v, 10)}
    found = alternate(turns, rounds, 500)
    for _ in range(opt.steps):
        own.step()
    assert np.array_equal(bare, own.contender.arrays[0])
    own.check()
    for name, most in ("Adam.step", 4), ("adam_update", 2):
        what = f"1 x 1 K, 500 calls in a row: {name}, us"
        yield promise({"what": what}, f"<= {most}", statistics.median(found[name]) * 1e6)


def instruction_sets(rounds, n=16 << 10):
    before, (baseline, *others) = _core.isa(), _core.isas_available()
    for dtype in np.float32, np.float64:
        own = Own(n, threads=1, dtype=dtype)
        turns = {isa: (lambda isa=isa: _core.select_isa(isa), own.step) for isa in (baseline, *others)}
        bars = {"avx2": ">= 1.7"} if dtype == np.float32 else {}
        pairs = {f"baseline over {isa}": (baseline, isa, bars.get(isa, "")) for isa in others}
        yield from compare(f"16 Ki {dtype.__name__}", [own], turns, pairs, rounds, 20)
    _core.select_isa(before)


def updates(what, p, grads, m, v, step, threads, pairs, rounds, calls):
    """Calls of adam_update with one of several gradients, in turns; checked against the twin."""
    start, taken = [array[:1000].copy() for array in (p, m, v)], []

    def call(name):
        fastadam.adam_update(p, grads[name], m, v, step, threads=threads)
        taken.append(name)

    def check():
        for name in taken:
            reference.adam_update(start[0], grads[name][:1000], *start[1:], step)
        assert all(np.array_equal(a, b[:1000]) for a, b in zip(start, (p, m, v), strict=True)), "twin differs"

    turns = {name: functools.partial(call, name) for name in grads}
    return compare(what, [SimpleNamespace(check=check)], turns, pairs, rounds, calls)


def neighbours(rounds, threads, n=1 << 19):
    """As malloc places arrays of 4 MiB: the gradient 16 bytes behind the parameter, modulo 1 MiB, in huge pages."""
    slot = 4 << 20
    memory = mmap.mmap(-1, 8 * slot, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    base = -np.frombuffer(memory, np.uint8).ctypes.data % slot + 4096
    places = 0, slot - 16, slot + 4096, 2 * slot + 65536, 3 * slot + 2 * 65536
    p, near, apart, m, v = (np.frombuffer(memory, np.float32, n, base + place) for place in places)
    p[...], near[...], apart[...] = 1, 0.5, 0.5
    pairs = {"gradient at 4 MiB - 16 over 4 MiB + 4096": ("near", "apart", "")}
    return updates("512 Ki", p, {"near": near, "apart": apart}, m, v, 10, threads, pairs, rounds, 10)


def small_squares(rounds, n=1 << 20):
    """Gradients whose squares are subnormal; v is large."""
    (p,), (g,) = Workload("", ((n,),)).make()
    some, tiny = g.copy(), g * np.float32(1e-20)
    some[::100] = tiny[::100]
    grads = {"none": g, "one in 100": some, "all": tiny}
    pairs = {f"{k} of the gradients' squares subnormal, over none": (k, "none", "") for k in ("one in 100", "all")}
    return updates("1 x 1 M", p, grads, np.zeros_like(p), np.ones_like(p), 1000, 1, pairs, rounds, 3)


def subnormal_state(rounds, n=16 << 10):
    normal, dead = Own(n, threads=1), Own(n, threads=1)
    state, zero = dead.optimizer.state[0], [np.zeros_like(g) for g in dead.grads]

    def make_subnormal():
        state["exp_avg"][...] = state["exp_avg_sq"][...] = 1e-40

    step = functools.partial(dead.optimizer.step, zero)
    turns = {"normal": normal.step, "first": (make_subnormal, step), "steady": step}
    pairs = {f"{n} step over a normal one": (n, "normal", bar) for n, bar in (("first", "<= 2"), ("steady", "<= 1.1"))}
    yield from compare("16 Ki, subnormal state, zero gradients", [normal], turns, pairs, rounds)
    assert not state["exp_avg"].any() and not state["exp_avg_sq"].any()


def memory(n, arrays):
    params, grads = ([np.ones(n, np.float32) for _ in range(arrays)] for _ in range(2))
    tracemalloc.start()
    opt = fastadam.Adam(params, threads=2)
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    opt.step(grads)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    for what, most, came in ("optimizer", 4096, before - 2 * arrays * n * 4), ("peak of a step", 1024, peak):
        said = f"{arrays} x {n}: {what}, bytes an array above the arrays"
        yield promise({"what": said}, f"< {most}", round(came / arrays))


def measure(chosen):
    yield "own promises", promises(chosen.quick)


def promises(quick):
    threads, rounds = fastadam.get_num_threads(), 5 if quick else 41
    yield from clipping((1 if quick else 64) << 20, rounds, threads)
    yield from many_arrays(rounds, threads)
    yield from overhead(rounds)
    yield from instruction_sets(rounds)
    yield from neighbours(rounds, threads)
    yield from subnormal_state(max(rounds, 20))
    yield from small_squares(rounds)
    yield from memory(1024, 1000)
    yield from memory(1 << 20, 4)
