"""Promise 3: one result. The kernel and its NumPy twin agree to the last bit, whatever runs it."""

import itertools
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
from allpairspy import AllPairs
from helpers import DECAYS, DTYPES, ISAS, assert_same_bits, at_offset, run_python, tame, wild
from hypothesis import given, settings
from hypothesis import strategies as st

import fastadam
from fastadam import _core, reference

pytestmark = pytest.mark.usefixtures("restore_isa")

SIZES = [*range(10), 15, 16, 17, 23, 24, 25, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129, 255, 1000, 4099]
THREADS = range(1, 9)
FLAGS = ["amsgrad", "maximize", "bias_correction", "eps_hat"]
NAMES = ["param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
AXES = {
    "isa": ISAS,
    "dtype": DTYPES,
    "decay": DECAYS,
    "amsgrad": [False, True],
    "maximize": [False, True],
    "bias_correction": [True, False],
    "eps_hat": [False, True],
    "n": SIZES,
    "offset": range(4),
    "gradients": [tame, wild],
    "threads": THREADS,
}


def options_of(decay, *flags):
    decays = {"weight_decay": 0.0 if decay == "none" else 0.1, "decoupled_weight_decay": decay == "decoupled"}
    return {"lr": 0.01, "eps_root": 1e-12, "grad_scale": 0.7, **decays, **dict(zip(FLAGS, flags, strict=True))}


def make_arrays(rng, n, dtype, offset, amsgrad, make):
    """(param, exp_avg, exp_avg_sq[, max_exp_avg_sq]), as they might be in the middle of training."""
    arrays = [tame(rng, n, dtype), make(rng, n, dtype), np.abs(make(rng, n, dtype))]
    if amsgrad:
        arrays.append(np.abs(make(rng, n, dtype)))
    return [at_offset(a, offset + i) for i, a in enumerate(arrays)]


def update(module, arrays, grad, step, options, **more):
    third = {"max_exp_avg_sq": arrays[3]} if options["amsgrad"] else {}
    module.adam_update(arrays[0], grad, arrays[1], arrays[2], step, **third, **options, **more)


def check_case(isa, dtype, options, n, offset, gradients, threads):
    """Several steps of the kernel, for each number of threads, against as many of the twin."""
    rng = np.random.default_rng(n * 10 + offset)
    start = make_arrays(rng, n, dtype, offset, options["amsgrad"], gradients)
    grads = [at_offset(gradients(rng, n, dtype), offset) for _ in range(3)]
    steps = [1, 2, 1000]
    theirs = [a.copy() for a in start]
    for step, grad in zip(steps, grads, strict=True):
        update(reference, theirs, grad, step, options)
    _core.select_isa(isa)
    for t in threads:
        ours = [at_offset(a, offset + i) for i, a in enumerate(start)]
        for step, grad in zip(steps, grads, strict=True):
            before = grad.tobytes()
            update(fastadam, ours, grad, step, options, threads=t)
            assert grad.tobytes() == before, "the gradient is only read"
        for name, a, b in zip(NAMES, ours, theirs, strict=False):
            assert_same_bits(a, b, f"in {name}: {isa=} {dtype=} {options=} {n=} {offset=} {t=}")


def test_every_path_that_this_cpu_has_is_tested():
    expected = ["baseline"]
    if platform.machine() == "x86_64":
        flags = set(Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split())
        expected += ["avx2"] * ("avx2" in flags) + ["avx512"] * (
            {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags
        )
    assert expected == ISAS


def test_kernel_equals_twin_for_every_pair_of_settings():
    cases = list(AllPairs(list(AXES.values())))
    assert len(cases) >= len(SIZES) * len(THREADS)
    for isa, dtype, *flags, n, offset, gradients, threads in cases:
        check_case(isa, dtype, options_of(*flags), n, offset, gradients, [threads])


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_kernel_equals_twin_for_all_settings(isa, dtype, decay, amsgrad):
    names = ["maximize", "bias_correction", "eps_hat", "n", "offset", "gradients"]
    for *flags, n, offset, gradients in itertools.product(*(AXES[name] for name in names)):
        check_case(isa, dtype, options_of(decay, amsgrad, *flags), n, offset, gradients, THREADS)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [*THREADS, None])
def test_many_arrays_of_any_kind_in_one_step_equal_the_twin_one_by_one(isa, threads):
    """Mixed dtypes, sizes, groups, options and step counters in one call."""
    _core.select_isa(isa)
    rng = np.random.default_rng(1)
    sizes = rng.permutation([*SIZES, 20_000, 100_003])
    groups = []
    for i, options in enumerate([{"lr": 0.1}, {"weight_decay": 0.3}, {"amsgrad": True, "eps_hat": True}]):
        params = [tame(rng, n, DTYPES[(i + j) % 2]) for j, n in enumerate(sizes)]
        groups.append({"params": params, **options})
    twins = [[[p.copy(), np.zeros_like(p), np.zeros_like(p), np.zeros_like(p), 0] for p in g["params"]] for g in groups]
    opt = fastadam.Adam(groups, threads=threads)
    for _ in range(3):
        grads = [[None if rng.random() < 0.2 else wild(rng, p.size, p.dtype) for p in g["params"]] for g in groups]
        opt.step(grads, grad_scale=0.5)
        for group, group_twins, group_grads in zip(groups, twins, grads, strict=True):
            options = {k: v for k, v in group.items() if k != "params"}
            for twin, grad in zip(group_twins, group_grads, strict=True):
                if grad is None:
                    continue
                twin[4] += 1
                third = {"max_exp_avg_sq": twin[3]} if options.get("amsgrad") else {}
                reference.adam_update(*twin[:1], grad, *twin[1:3], twin[4], grad_scale=0.5, **third, **options)
    entries = iter(opt.state.values())
    for group, group_twins in zip(groups, twins, strict=True):
        for param, twin in zip(group["params"], group_twins, strict=True):
            entry = next(entries)
            assert entry["step"] == twin[4]
            for a, b in zip([param, *list(entry.values())[1:]], twin, strict=False):
                assert_same_bits(a, b)


large, positive, beta = st.floats(0, 1e300), st.floats(0, 1e4, allow_nan=False), st.floats(0, 1, exclude_max=True)
HYPER = {"lr": large, "weight_decay": st.one_of(st.just(0.0), large), "eps": positive, "eps_root": positive}
HYPER |= {"betas": st.tuples(beta, beta), "grad_scale": st.floats(allow_nan=False, allow_infinity=False)}
HYPER |= dict.fromkeys(["decoupled_weight_decay", *FLAGS], st.booleans())


@settings(max_examples=300, deadline=None)
@given(
    options=st.fixed_dictionaries(HYPER),
    step=st.one_of(st.integers(1, 10_000), st.integers(1, 2**63 - 1)),
    dtype=st.sampled_from(DTYPES),
    isa=st.sampled_from(ISAS),
)
def test_any_hyper_parameters_give_the_twins_bits(options, step, dtype, isa):
    rng = np.random.default_rng(0)
    ours = make_arrays(rng, 37, dtype, 0, options["amsgrad"], wild)
    theirs = [a.copy() for a in ours]
    grad = wild(rng, 37, dtype)
    _core.select_isa(isa)
    update(fastadam, ours, grad, step, options)
    update(reference, theirs, grad, step, options)
    for a, b in zip(ours, theirs, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dead_weights_do_not_keep_subnormal_moments(dtype):
    p, m, v = np.ones(9, dtype), np.full(9, 1e-3, dtype), np.full(9, 1e-3, dtype)
    grad = np.zeros(9, dtype)
    for step in range(1, 40_000):
        fastadam.adam_update(p, grad, m, v, step, betas=(0.9, 0.98))
    assert not m.any() and not v.any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_state_is_flushed_in_one_step(isa, dtype):
    _core.select_isa(isa)
    subnormal = np.finfo(dtype).tiny / 2
    p, m, v, vmax = (np.full(9, x, dtype) for x in (1.0, -subnormal, subnormal, subnormal))
    fastadam.adam_update(p, np.zeros(9, dtype), m, v, 1, amsgrad=True, max_exp_avg_sq=vmax)
    for state in m, v, vmax:
        assert_same_bits(state, np.zeros(9, dtype))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("beta2", [0.999, 0.5, 0.0])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_squares_that_underflow_are_left_out_only_where_the_bits_allow_it(isa, beta2, decay, amsgrad):
    """Stretches longer than a block: v large, zero, so small that each square counts, or all of these; every g around
    the smallest whose square is normal."""
    rng = np.random.default_rng(0)
    options = {**options_of(decay, amsgrad, False, True, False), "betas": (0.9, beta2), "grad_scale": 1.0}
    if decay == "l2":
        options["weight_decay"] = 1e-25  # or p would dominate every g
    stretch = 3000
    large, count = np.full(stretch, 1e-3), 10 ** rng.uniform(-38, -29, stretch)
    none, mixed = np.zeros(stretch), rng.choice([0.0, 1e-36, 1e-31, 1e-20, 1.0], stretch)
    one = large.copy()
    one[1500] = 1e-37  # a single element that needs its square
    edge = 10 ** rng.uniform(-31.5, -29, stretch)  # where squares just begin to be rounded away
    v = np.concatenate([large, none, count, one, large, edge, mixed, none]).astype(np.float32)
    n = v.size
    start = [tame(rng, n, np.float32), tame(rng, n, np.float32), v] + [np.abs(tame(rng, n, np.float32))] * amsgrad
    exact = np.sqrt(np.finfo(np.float32).tiny / (1 - beta2))
    for spread in 6, 0.1, 1e-5:  # decades
        g = exact * 10 ** rng.uniform(-spread, spread / 3, n) * rng.choice([-1, 1], n)
        g[rng.random(n) < 0.2] = 0
        grad = g.astype(np.float32)
        theirs = [a.copy() for a in start]
        for step in 1, 2, 3:
            update(reference, theirs, grad, step, options)
        _core.select_isa(isa)
        ours = [a.copy() for a in start]
        for step in 1, 2, 3:
            update(fastadam, ours, grad, step, options, threads=1)
        for name, a, b in zip(NAMES, ours, theirs, strict=False):
            assert_same_bits(a, b, f"in {name}: {spread=}")


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_nearly_a_mebibyte_apart_are_copied_and_keep_the_bits(dtype, amsgrad, decay):
    """An array that is read a few bytes behind one that is written, modulo 1 MiB, is copied to the stack first."""
    mebibyte, size = 1 << 20, np.dtype(dtype).itemsize
    n, options = mebibyte // size + 37, options_of(decay, amsgrad, False, True, False)
    rng = np.random.default_rng(0)
    start, grad = make_arrays(rng, n, dtype, 0, amsgrad, wild), wild(rng, n, dtype)
    theirs = [a.copy() for a in start]
    update(reference, theirs, grad, 3, options)
    memory = np.zeros(12 * mebibyte, np.uint8)
    base = -memory.ctypes.data % mebibyte + 4096

    def place(slot, behind, values):
        at = base + 2 * slot * mebibyte - behind
        view = memory[at : at + values.nbytes].view(dtype)
        view[...] = values
        return view

    # Gradient, first moment, ... so many bytes behind the parameter: all together, and each array copied or not.
    for behind in (
        (0, 0, 0, 0),
        (16, 0, 0, 0),
        (0, 64, 0, 0),
        (0, 0, -64, 0),
        (0, 0, 0, 128),
        (184, 8, -8, 64),
        (192, -192, 0, 0),
        (5000, 5000, 5000, 7000),
        (5000, 5000, 5048, 7000),
        (5000, 5000, 7000, 6960),
    ):
        g = place(4, behind[0], grad)
        ours = [place(i, behind[i], values) for i, values in enumerate(start)]
        ours[0] = place(0, 0, start[0])
        update(fastadam, ours, g, 3, options, threads=2)
        assert_same_bits(g, grad, "in the gradient, which is only read")
        for name, a, b in zip(NAMES, ours, theirs, strict=False):
            assert_same_bits(a, b, f"in {name}: {behind=}")


@pytest.mark.skipif(sys.platform != "linux", reason="needs mmap and mprotect")
def test_gradients_are_never_written():
    """In memory that cannot be written, even one that goes through the stack."""
    run_python("""
import ctypes, mmap
import numpy as np, fastadam
MEBIBYTE, PAGE, libc = 1 << 20, mmap.PAGESIZE, ctypes.CDLL(None)
memory = mmap.mmap(-1, 6 * MEBIBYTE)
start = np.frombuffer(memory, np.uint8).ctypes.data
first = -start % MEBIBYTE + PAGE
param = np.frombuffer(memory, np.float32, MEBIBYTE // 4 + 37, first)
grad = np.frombuffer(memory, np.float32, MEBIBYTE // 4 + 37, first + 2 * MEBIBYTE - 64)
grad[:] = 0.5
begin = first + 2 * MEBIBYTE - PAGE
assert libc.mprotect(ctypes.c_void_p(start + begin), 2 * MEBIBYTE, mmap.PROT_READ) == 0
for wrap in {}, {"max_value": 0.1}, {"accumulate": 2}:
    before, opt = param[0], fastadam.Adam(param, threads=1, **wrap)
    for _ in range(2):
        opt.step(grad)
    assert (param == param[0]).all() and param[0] < before
""")


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_order_is_kept_and_does_not_change_bits(order):
    rng = np.random.default_rng(0)
    p = np.array(rng.standard_normal((5, 7, 3)), order=order)
    twin, m, v = p.copy(), np.zeros((5, 7, 3)), np.zeros((5, 7, 3))
    opt = fastadam.Adam({"w": p})
    for step in range(1, 4):
        grad = np.array(rng.standard_normal((5, 7, 3)), order=order)
        opt.step({"w": grad})
        reference.adam_update(twin, grad, m, v, step)
    assert_same_bits(p, twin)
    assert opt.state["w"]["exp_avg"].flags[f"{order}_CONTIGUOUS"]
    assert_same_bits(np.ascontiguousarray(opt.state["w"]["exp_avg"]), m)
