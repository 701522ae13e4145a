"""Clipping by the global norm, and NaN and infinity in gradients."""

import copy
import math
import pickle
import sys

import numpy as np
import pytest
from helpers import DTYPES, ISAS, assert_same_bits, run_python, snapshot, unchanged, wild

import fastadam
from fastadam import _core, reference

SIZES = [0, 1, 15, 16, 17, 4095, 4096, 4097, 3 * 4096 + 5, 9 * 4096 + 7]  # four whole blocks on: four places at once


def gradients(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n).astype(dtype) for n in SIZES] + [rng.standard_normal((70, 90)).astype(dtype)]


@pytest.fixture(params=ISAS)
def isa(request, restore_isa):
    _core.select_isa(request.param)
    return request.param


@pytest.mark.parametrize("threads", [None, 1, 2, 3, 7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_norm_has_the_bits_of_the_twin(isa, dtype, threads):
    grads = gradients(dtype)
    grads.append(np.asfortranarray(np.arange(35, dtype=dtype).reshape(5, 7)))
    params = [np.ones_like(g) for g in grads]
    opt = fastadam.Adam(params, max_norm=3.0, threads=threads)
    assert opt.grad_norm is None
    opt.step(grads, grad_scale=-0.7)
    assert opt.grad_norm == reference.grad_norm(grads, -0.7)
    exact = 0.7 * math.sqrt(math.fsum(float(x) * float(x) for g in grads for x in g.ravel()))
    assert opt.grad_norm == pytest.approx(exact, rel=1e-14)


def test_the_order_of_the_norms_additions_is_that_of_the_twin(isa):
    """A hundred norms, because the root hides half of the last bits in which sums in another order differ."""
    rng = np.random.default_rng(0)
    for n in range(16, 1616, 16):
        grads = [rng.standard_normal(n), rng.standard_normal(5)]
        opt = fastadam.SGD([np.zeros(n), np.zeros(5)], max_norm=1.0, threads=1)
        opt.step(grads)
        assert opt.grad_norm == reference.grad_norm(grads, 1.0), n


@pytest.mark.parametrize("max_norm", [1e-3, 3.0, 1e9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_clipping_multiplies_the_gradients_by_torchs_factor(max_norm, decay):
    grads = gradients(np.float32)
    untouched = copy.deepcopy(grads)
    params, twins = ([np.full_like(g, 0.5) for g in grads] for _ in range(2))
    opt = fastadam.Adam(params, lr=0.1, max_norm=max_norm, weight_decay=decay, maximize=True)
    state = [(np.zeros_like(g), np.zeros_like(g)) for g in grads]
    for step in range(1, 4):
        opt.step(grads, grad_scale=2.0)
        scale = 2.0 * min(1.0, max_norm / (reference.grad_norm(grads, 2.0) + 1e-6))
        for p, g, (m, v) in zip(twins, grads, state, strict=True):
            reference.adam_update(p, g, m, v, step, lr=0.1, weight_decay=decay, maximize=True, grad_scale=scale)
    for ours, twin, g, before in zip(params, twins, grads, untouched, strict=True):
        assert_same_bits(ours, twin)
        assert_same_bits(g, before)  # never rewritten


def test_each_array_is_clipped_by_its_own_norm(isa):
    """Groups, counters that differ, arrays left out, and the sign of the scale."""
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(n).astype(dtype) for n in (0, 1, 17, 5000) for dtype in DTYPES]
    params, twins = ([np.full_like(g, 0.5) for g in grads] for _ in range(2))
    groups = [[{"params": p[:3], "lr": 0.3, "maximize": True}, {"params": p[3:]}] for p in (params, twins)]
    opt, plain = fastadam.NAdam(groups[0], max_norm_each=1.0, threads=2), fastadam.NAdam(groups[1])
    for step in range(4):
        scale = [2.0, -0.3, 1e-9, 0.0][step]
        given = [None if (i + step) % 4 == 0 else g for i, g in enumerate(grads)]
        opt.step([given[:3], given[3:]], grad_scale=scale)
        assert opt.grad_norm == reference.grad_norm([g for g in given if g is not None], scale)
        for i, grad in enumerate(given):
            if grad is not None:
                plain.step_one(i, grad, grad_scale=reference.clip_scale([grad], 1.0, scale))
    for ours, twin in zip(params, twins, strict=True):
        assert_same_bits(ours, twin)
    opt.step_one(7, grads[7], grad_scale=2.0)
    plain.step_one(7, grads[7], grad_scale=reference.clip_scale([grads[7]], 1.0, 2.0))
    assert_same_bits(params[7], twins[7])
    assert opt.grad_norm == reference.grad_norm([grads[7]], 2.0)


def test_a_norm_that_is_no_number_spoils_its_own_array_alone():
    params = [np.ones(3) for _ in range(4)]
    opt = fastadam.SGD(params, lr=0.5, max_norm_each=1.0)
    bad = [np.array([1.0, math.nan, 0.0]), np.array([1.0, math.inf, 0.0]), np.full(3, 1e200)]
    opt.step([*bad, np.full(3, 0.25)])
    assert math.isnan(opt.grad_norm)
    assert np.isnan(params[0]).all() and np.isnan(params[1]).tolist() == [False, True, False]
    assert (params[1][::2] == 1.0).all() and (params[2] == 1.0).all() and (params[3] == 0.875).all()


@pytest.mark.parametrize(
    ("bad", "scale", "match"),
    [
        (np.array([1.0, math.nan]), 1.0, "parameter 1 has NaN or infinity in it"),
        (np.array([1.0, -math.inf]), 1.0, "parameter 1 has NaN or infinity in it"),
        (np.full(2, 1e200), 1.0, "parameter 1 times 1 .* so large that the norm is infinite"),
        (np.array([1e300, 1.0]), 1e10, "parameter 1 times 1e[+]10 .* infinite"),
    ],
)
def test_nonfinite_looks_at_what_each_array_is_clipped_to(bad, scale, match):
    params = [np.ones(2), np.ones(2), np.ones(2)]
    opt = fastadam.SGD(params, max_norm_each=1.0, nonfinite="raise")
    with unchanged(opt), pytest.raises(FloatingPointError, match=match):
        opt.step([np.ones(2), bad, np.array([math.nan, 1.0])], grad_scale=scale)
    opt.nonfinite = "skip"
    with unchanged(opt):
        opt.step([np.ones(2), bad, np.ones(2)], grad_scale=scale)
        opt.step_one(1, bad, grad_scale=scale)
    assert opt.skipped_steps == 2
    opt.step_one(0, np.ones(2), grad_scale=scale)
    assert opt.skipped_steps == 2


def test_what_would_overflow_may_be_clipped_to_what_does_not():
    """float32 times grad_scale is too large, and its norm in float64 is not; the array beside it is not clipped."""
    grads = [np.full(3, 1e38, np.float32), np.full(3, 1e-3, np.float32)]
    params = [np.ones(3, np.float32) for _ in grads]
    opt = fastadam.SGD(params, lr=1.0, max_norm_each=1.0, nonfinite="raise")
    opt.step(grads, grad_scale=100.0)
    assert np.allclose(params[0], 1 - 3**-0.5) and np.allclose(params[1], 0.9)
    opt.max_norm_each = 1e39  # finite, and not for float32
    with pytest.raises(FloatingPointError, match=r"parameter 0 is finite, but not times 5 \(grad_scale"):
        opt.step(grads, grad_scale=5.0)
    with pytest.raises(FloatingPointError, match=r"parameter 1 is finite, but not times 5.7735e\+41 \(grad_scale"):
        opt.step([None, grads[1]], grad_scale=1e42)


def test_types_mix_and_none_is_left_out():
    grads = [np.full(5, 2.0, np.float32), None, np.full(3, 1.0)]
    opt = fastadam.Adam([np.ones(5, np.float32), np.ones(9), np.ones(3)], max_norm=1.0)
    opt.step(grads)
    assert opt.grad_norm == math.sqrt(5 * 4 + 3)


def test_the_norm_is_that_of_the_gradients_as_they_are_rounded():
    opt = fastadam.Adam(np.ones(4, np.float32), max_norm=1.0)
    with pytest.warns(fastadam.PerformanceWarning):
        opt.step(np.full(4, 0.1))
    assert opt.grad_norm == 2 * float(np.float32(0.1))


def test_all_groups_share_one_norm():
    opt = fastadam.Adam([{"params": np.ones(4)}, {"params": np.ones(4), "lr": 0.5}], max_norm=1.0)
    opt.step([np.full(4, 3.0), np.full(4, 4.0)])
    assert opt.grad_norm == 10.0


def test_the_memory_order_of_the_parameter_counts():
    rng = np.random.default_rng(0)
    param, grad = np.asfortranarray(np.ones((90, 70))), rng.standard_normal((90, 70))
    opt = fastadam.Adam(param, max_norm=1.0)
    with pytest.warns(fastadam.PerformanceWarning):
        opt.step(grad)
    assert opt.grad_norm == reference.grad_norm([np.asfortranarray(grad)])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_norms_pass_keeps_to_the_bound_of_threads():
    """After a bound was set, no other thread may run; and an order of before is none any more."""
    run_python("""
import os, numpy as np, fastadam
p, g = np.ones(1 << 20, np.float32), np.ones(1 << 20, np.float32)
opt = fastadam.Adam(p, max_norm=1.0)
opt.threads = 2
opt.step(g)
opt.threads = None
fastadam.set_num_threads(1)
def spent():    # of other threads than this one
    return sum(int(open(f"/proc/self/task/{t}/schedstat").read().split()[2])
               for t in os.listdir("/proc/self/task") if int(t) != os.getpid())
def asleep():
    return all(open(f"/proc/self/task/{t}/stat").read().rsplit(")")[-1].split()[0] == "S"
               for t in os.listdir("/proc/self/task") if int(t) != os.getpid())
while not asleep(): pass
before = spent()
for _ in range(20): opt.step(g)
assert opt.threads_used == 1 and spent() == before
""")


def test_pickle_and_copy_keep_how_to_clip():
    for name in "max_norm", "max_norm_each":
        opt = fastadam.Adam(np.ones(2), nonfinite="skip", **{name: 2.0})
        for other in pickle.loads(pickle.dumps(opt)), copy.deepcopy(opt):
            assert getattr(other, name) == 2.0 and other.nonfinite == "skip"


@pytest.mark.parametrize("max_norm", [1e-3, 1e9])
def test_a_norm_of_nan_clips_everything_to_nan(max_norm):
    """As in torch, and in the reference with such a scale: no array goes on as if nothing had happened."""
    params, grads = [np.ones(3), np.ones(2)], [np.ones(3), np.array([1.0, math.nan])]
    opt = fastadam.SGD(params, max_norm=max_norm)
    opt.step(grads)
    assert math.isnan(opt.grad_norm) and all(np.isnan(p).all() for p in params)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", [0, 4095, 4096, -1])
def test_raise_and_skip_decide_before_anything_changes(bad, dtype, place):
    params = {"a": np.ones(3, dtype), "left alone": np.ones(9, dtype), "empty": np.ones(0, dtype)}
    params["b"] = np.ones(9001, dtype)
    good = {name: np.full_like(p, 0.5) for name, p in params.items()} | {"left alone": None}
    poisoned = good | {"b": good["b"].copy()}
    poisoned["b"][place] = bad
    opt = fastadam.Adam(params, nonfinite="raise")
    opt.step(good)
    before = snapshot(opt)
    with pytest.raises(FloatingPointError, match="gradient of parameter 'b' has NaN or infinity"):
        opt.step(poisoned)
    assert snapshot(opt) == before and opt.skipped_steps == 0

    opt.nonfinite = "skip"
    opt.step(poisoned)
    opt.step(poisoned)
    assert snapshot(opt) == before and opt.skipped_steps == 2 and not math.isfinite(opt.grad_norm)
    assert pickle.loads(pickle.dumps(opt)).skipped_steps == 2 and copy.deepcopy(opt).skipped_steps == 2
    opt.step(good)
    assert opt.state["b"]["step"] == 2 and opt.skipped_steps == 2

    opt.nonfinite = "propagate"
    opt.step(poisoned)
    assert opt.grad_norm is None
    assert not np.isfinite(params["b"][place]) and np.isfinite(params["a"]).all()


@pytest.mark.parametrize(("dtype", "large"), [(np.float32, 1e38), (np.float64, 1e307)])
@pytest.mark.parametrize("options", [{}, {"max_value": 1.0}, {"max_norm": 1.0}])
@pytest.mark.parametrize("place", [0, 4096, -1])
def test_gradients_that_grad_scale_makes_infinite_are_found(dtype, large, options, place):
    """With max_norm they are not: what they are clipped to is finite, unless float64 squares overflow."""
    p, g = np.ones(9000, dtype), np.ones(9000, dtype)
    g[place] = large
    opt = fastadam.SGD(p, lr=1.0, nonfinite="raise", **options)
    if options != {"max_norm": 1.0} or dtype == np.float64:
        before = snapshot(opt)
        why = "times -100 .* so large that the norm" if "max_norm" in options else "is finite, but not times -100 "
        with pytest.raises(FloatingPointError, match=f"parameter 0 {why}"):
            opt.step(g, grad_scale=-100.0)
        assert snapshot(opt) == before
        opt.nonfinite = "skip"
        opt.step(g, grad_scale=100.0)
        assert snapshot(opt) == before and opt.skipped_steps == 1
        opt.nonfinite = "raise"
    else:
        opt.step(g, grad_scale=100.0)
        assert abs(p[place]) < 1e-5
    opt.max_norm = None
    opt.step(g, grad_scale=2.0)  # large, but finite
    assert opt.state[0]["step"] > 0 and np.isfinite(p).all()


@pytest.mark.parametrize(
    ("dtype", "sizes", "scale"),
    [(np.float64, (1.2e154, 1.3e154), 1.0), (np.float64, (1.0, 1e100), 1e300), (np.float32, (1.0, 1e38), 1e300)],
)
def test_a_norm_that_only_the_whole_makes_infinite_is_found(dtype, sizes, scale):
    params = [np.ones(1, dtype) for _ in sizes]
    opt = fastadam.SGD(params, max_norm=1.0, nonfinite="raise")
    match = "parameter 1 times .* so large that the norm is infinite"
    with unchanged(opt), pytest.raises(FloatingPointError, match=match):
        opt.step([np.full(1, size, dtype) for size in sizes], grad_scale=scale)
    opt.step([np.ones(1, dtype)] * 2, grad_scale=2.0)


@pytest.mark.parametrize(
    ("size", "scale", "max_norm"), [(0.0, 1e39, None), (1e-40, 1e39, 1.0), (1e38, 5.0, 1e39), (1e38, 100.0, 3e38)]
)
def test_what_a_float32_rule_would_take_decides_not_its_float64_norm(size, scale, max_norm):
    """A scale that float32 does not have makes NaN of zeros; max_norm may let what overflows pass, or prevent it."""
    p, grad = np.ones(3, np.float32), np.full(3, size, np.float32)
    free = p.copy()
    fastadam.SGD(free, max_norm=max_norm).step(grad, grad_scale=scale)
    opt = fastadam.SGD(p, max_norm=max_norm, nonfinite="skip")
    opt.step(grad, grad_scale=scale)
    assert opt.skipped_steps == (not np.isfinite(free).all()) == (max_norm != 3e38)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"max_value": 1.0}])
def test_the_last_bit_decides_what_overflows(dtype, options):
    """On both sides of the largest number, whatever the rounded norm says."""
    largest = np.finfo(dtype).max
    for scale, overflows in (1.0, False), (np.nextafter(1.0, 2.0, dtype=dtype), True), (1.2, True), (1.4, True):
        opt = fastadam.SGD(np.ones(5000, dtype), lr=0.0, nonfinite="skip", **options)
        grad = np.zeros(5000, dtype)
        grad[4500] = largest
        opt.step(grad, grad_scale=float(scale))
        assert opt.skipped_steps == overflows, scale


def test_squares_that_overflow_are_not_gradients_that_do():
    p = np.ones(2)
    opt = fastadam.Adam(p, nonfinite="raise")
    opt.step(np.array([1e200, 1.0]))
    assert opt.grad_norm == math.inf and opt.state[0]["step"] == 1 and np.isfinite(p).all()
    opt.max_norm = 1.0  # but nothing can be clipped by such a norm
    with pytest.raises(FloatingPointError, match="parameter 0 times 1 .* so large that the norm is infinite"):
        opt.step(np.array([1e200, 1.0]))
    assert opt.state[0]["step"] == 1


def test_wild_gradients_have_the_norm_of_the_twin(isa):
    rng = np.random.default_rng(1)
    for dtype in np.float32, np.float64:
        anything = wild(rng, 5000, dtype)
        finite = np.where(np.isfinite(anything), anything, dtype(0))
        infinite = finite.copy()
        infinite[77] = np.inf
        for grad, norm in (anything, math.nan), (infinite, math.inf), (finite, None):
            grads = [grad, rng.standard_normal(100).astype(dtype)]
            opt = fastadam.Adam([np.ones_like(g) for g in grads], max_norm=1.0)
            opt.step(grads)
            assert np.array_equal([opt.grad_norm], [reference.grad_norm(grads)], equal_nan=True)
            assert norm is None or np.array_equal([opt.grad_norm], [norm], equal_nan=True)
            assert math.isfinite(opt.grad_norm) == (norm is None)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("max_norm", 0, ValueError), ("max_norm", -1.0, ValueError), ("max_norm", math.nan, ValueError),
        ("max_norm", "1", TypeError), ("max_norm_each", 0.0, ValueError), ("max_norm_each", "1", TypeError),
        ("nonfinite", "ignore", ValueError), ("nonfinite", None, TypeError),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_constructor_and_attribute(name, value, error):
    with pytest.raises(error, match=name):
        fastadam.Adam(np.ones(2), **{name: value})
    with pytest.raises(error, match=name):
        fastadam.AdamW(np.ones(2), **{name: value})
    opt = fastadam.Adam(np.ones(2))
    with unchanged(opt), pytest.raises(error, match=name):
        setattr(opt, name, value)
