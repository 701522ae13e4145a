"""fastadam.schedules: the formulas, values that are compared and copied, and their use in optimizers.

Against optax's (-m schedules) and torch's (-m torch) as well. Other libraries' schedules: tests/test_schedules.py.
"""

import copy
import math
import pickle

import numpy as np
import pytest
from helpers import assert_same_bits

import fastadam
from fastadam import schedules
from fastadam.schedules import constant, exponential, one_cycle, piecewise, warmup_cosine, warmup_linear

# (w, T, start, end): with and without a warm-up, as short and as long as it can be, downwards and upwards
WARMUPS = [(5, 20, 0.0, 0.0), (0, 20, 0.0, 0.01), (1, 2, 0.3, 0.2), (19, 20, 0.05, 0.4), (0, 1, 0.0, 0.0)]
PEAK = 0.1

EXAMPLES = [
    constant(0.1),
    warmup_linear(0.1, 5, 20),
    warmup_linear(0.1, 5, 20, start=0.01, end=0.02),
    warmup_cosine(0.1, 5, 20),
    warmup_cosine(0.1, 0, 20, end=0.001),
    one_cycle(0.1, 20),
    one_cycle(0.1, 20, pct_start=0.5, div_factor=10.0, final_div_factor=100.0),
    exponential(0.1, 0.5),
    exponential(0.1, 0.5, 10),
    piecewise(0.1, {5: 0.01, 10: 0.001}),
    piecewise(0.1, {}),
]
by_example = pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)


def linear_way(start, end, share):
    return start + (end - start) * share


def cosine_way(start, end, share):
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


# ---- values


def test_all_that_is_public_is_an_example_here():
    assert sorted({type(schedule).__name__ for schedule in EXAMPLES}) == schedules.__all__


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize(("make", "way"), [(warmup_linear, linear_way), (warmup_cosine, cosine_way)])
def test_warmup_then_down_to_the_end_value_and_no_further(make, way, warmup):
    w, total, start, end = warmup
    schedule = make(PEAK, w, total, start=start, end=end)
    for t in range(w):
        assert schedule(t) == start + (PEAK - start) * t / w
    for t in range(w, total):
        assert schedule(t) == pytest.approx(way(PEAK, end, (t - w) / (total - w)), rel=1e-14, abs=0)  # another order
    assert schedule(0) == (start if w else PEAK)
    assert schedule(w) == pytest.approx(PEAK, rel=1e-15, abs=0)
    assert schedule(total) == schedule(total + 1) == schedule(10**30) == end


def test_linear_ends_at_the_end_value_itself_where_the_formula_rounds():
    peak, end = next(
        (a / 100, b / 100) for a in range(1, 100) for b in range(1, 100) if a / 100 + (b / 100 - a / 100) != b / 100
    )
    assert warmup_linear(peak, 0, 10, end=end)(10) == end


@pytest.mark.parametrize("total", [1, 2, 7, 10, 20])
@pytest.mark.parametrize("pct_start", [0.0, 0.1, 0.25, 0.3, 1.0])
def test_one_cycle_rises_to_the_peak_and_ends_where_it_says(total, pct_start):
    schedule = one_cycle(PEAK, total, pct_start=pct_start, div_factor=4.0, final_div_factor=8.0)
    values = [schedule(t) for t in range(total + 3)]
    top = pct_start * total - 1
    rising = [t for t in range(total) if t <= top]
    up, down = values[: len(rising)], values[len(rising) :]
    assert up == sorted(up) and down == sorted(down, reverse=True)
    assert max(values) <= PEAK
    if top > 0:
        for t in rising:
            assert values[t] == pytest.approx(cosine_way(PEAK / 4, PEAK, t / top), rel=1e-14, abs=0)
    assert values[-1] == values[total - 1] == schedule(10**30) == (PEAK if pct_start == 1 else PEAK / 4 / 8)


@pytest.mark.parametrize("t", [0, 1, 9, 10, 1000])
def test_constant_and_exponential(t):
    assert constant(0.3)(t) == 0.3
    assert exponential(0.3, 0.9)(t) == 0.3 * 0.9**t
    assert exponential(0.3, 0.9, 10)(t) == 0.3 * 0.9 ** (t / 10)


def test_exponential_of_nothing_or_to_nothing_is_0():
    assert exponential(0.0, 2.0)(5000) == exponential(1.0, 0.5)(10**400) == 0.0


def test_exponential_grows_out_of_range_without_an_error_of_its_own():
    opt = fastadam.Adam(np.ones(3), lr=exponential(0.1, 2.0))
    assert exponential(0.1, 2.0)(10**6) == math.inf
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0]["step"] = 10**6
    opt.load_state_dict(saved)
    with pytest.raises(ValueError, match="^lr must be finite and >= 0, got inf"):
        opt.step(np.ones(3))


def test_piecewise_changes_at_its_boundaries_in_any_order():
    schedule = piecewise(0.1, {10: 0.001, 5: 0.01, 12: 0.5})
    assert [schedule(t) for t in (0, 4, 5, 9, 10, 11, 12, 10**30)] == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.5, 0.5]
    assert piecewise(0.1, {0: 0.2})(0) == 0.2


def test_piecewise_keeps_its_own_boundaries():
    boundaries = {5: 0.01}
    schedule = piecewise(0.1, boundaries)
    boundaries[5] = 0.7
    assert schedule(5) == 0.01


@by_example
def test_values_are_python_floats_for_every_kind_of_integer(schedule):
    for t in 0, 3, 30:
        expected = schedule(t)
        assert type(expected) is float
        for kind in np.int8, np.int64, np.uint64, np.array:
            value = schedule(kind(t))
            assert type(value) is float and value == expected


def test_numbers_of_numpy_become_python_floats():
    schedule = warmup_linear(np.float32(0.1), np.int32(1), np.int64(2), end=np.array(0.5))
    assert schedule == warmup_linear(float(np.float32(0.1)), 1, 2, end=0.5)
    assert [type(x) for x in vars(schedule).values()] == [float, int, int, float, float]
    assert type(piecewise(1, {np.int64(3): np.float32(2)})(3)) is float


# ---- schedules as values


@by_example
@pytest.mark.parametrize(
    "again",
    [
        lambda schedule: eval(repr(schedule), vars(schedules)),
        lambda schedule: pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy,
        copy.copy,
    ],
    ids=["repr", "pickle", "deepcopy", "copy"],
)
def test_each_way_to_make_it_again_gives_an_equal_one(schedule, again):
    other = again(schedule)
    assert type(other) is type(schedule)
    assert other == schedule and hash(other) == hash(schedule) and repr(other) == repr(schedule)
    assert [other(t) for t in range(30)] == [schedule(t) for t in range(30)]


def test_other_arguments_or_another_schedule_are_not_equal():
    for i, one in enumerate(EXAMPLES):
        assert [j for j, other in enumerate(EXAMPLES) if one == other] == [i]
    assert warmup_linear(0.1, 5, 20) != warmup_cosine(0.1, 5, 20)
    assert len({*EXAMPLES, *copy.deepcopy(EXAMPLES)}) == len(EXAMPLES)


@by_example
def test_arguments_cannot_be_set_afterwards(schedule):
    for name in (*vars(schedule), "something_else"):
        with pytest.raises(AttributeError):
            setattr(schedule, name, 1.0)


# ---- what is refused

BAD_NUMBERS = [("0.1", TypeError), (None, TypeError), (True, TypeError), (1j, TypeError), (np.ones(2), TypeError)]
BAD_MAGNITUDES = [*BAD_NUMBERS, (-0.1, ValueError), (math.nan, ValueError), (math.inf, ValueError)]
BAD_POSITIVES = [*BAD_MAGNITUDES, (0.0, ValueError)]
BAD_SHARES = [*BAD_NUMBERS, (-0.1, ValueError), (1.1, ValueError), (30, ValueError), (math.nan, ValueError)]
BAD_COUNTS = [(1.0, TypeError), ("1", TypeError), (None, TypeError), (True, TypeError), (-1, ValueError)]
GOOD = 0.3
VALID = {
    constant: {"value": 0.1},
    warmup_linear: {"peak": 0.1, "warmup_steps": 5, "total_steps": 20},
    warmup_cosine: {"peak": 0.1, "warmup_steps": 5, "total_steps": 20},
    one_cycle: {"peak": 0.1, "total_steps": 20},
    exponential: {"value": 0.1, "rate": 0.5},
    piecewise: {"value": 0.1, "boundaries": {5: 0.01}},
}
REFUSED = {
    "value": BAD_MAGNITUDES,
    "peak": BAD_MAGNITUDES,
    "start": BAD_MAGNITUDES,
    "end": BAD_MAGNITUDES,
    "rate": BAD_MAGNITUDES,
    "div_factor": BAD_POSITIVES,
    "final_div_factor": BAD_POSITIVES,
    "pct_start": BAD_SHARES,
    "warmup_steps": BAD_COUNTS,
    "total_steps": [*BAD_COUNTS, (0, ValueError)],
    "steps": [*BAD_COUNTS, (0, ValueError)],
    "boundaries": [([(5, 0.1)], TypeError), (None, TypeError), (0.1, TypeError)]
    + [({key: GOOD}, error) for key, error in BAD_COUNTS]
    + [({0: value}, error) for value, error in BAD_MAGNITUDES],
}


def culprit(value):
    """What the message must show: of a mapping the key or the value that is bad."""
    if not isinstance(value, dict):
        return value
    ((key, there),) = value.items()
    return key if there is GOOD else there


@pytest.mark.parametrize("make", VALID, ids=lambda make: make.__name__)
def test_a_bad_argument_is_named_with_what_came(make):
    names = {name for name in make.__dataclass_fields__ if name != "_"}
    assert names <= REFUSED.keys()
    for name in names:
        for value, error in REFUSED[name]:
            with pytest.raises((TypeError, ValueError)) as caught:
                make(**{**VALID[make], name: value})
            assert caught.type is error, (name, value)
            message = str(caught.value)
            assert name in message and " must be " in message, message
            assert repr(culprit(value)) in message, message


@pytest.mark.parametrize("make", [warmup_linear, warmup_cosine])
@pytest.mark.parametrize(("w", "total"), [(20, 20), (21, 20), (1, 1)])
def test_a_warmup_as_long_as_everything_is_refused(make, w, total):
    with pytest.raises(ValueError, match=f"^warmup_steps must be less than total_steps.*; got {w} and {total}$"):
        make(0.1, w, total)


@by_example
@pytest.mark.parametrize(
    ("t", "error"),
    [(-1, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError), (np.arange(3), TypeError)],
)
def test_what_is_no_number_of_steps_is_refused(schedule, t, error):
    with pytest.raises(error, match="^t must be "):
        schedule(t)


def test_a_missing_argument_is_reported_with_the_schedule_that_needs_it():
    with pytest.raises(TypeError, match=r"^warmup_cosine.*'total_steps'"):
        warmup_cosine(0.1, 5)


# ---- in an optimizer


def steps(opt, count, seed):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        opt.step(rng.standard_normal(3))


@by_example
def test_an_optimizer_takes_it_as_rate_and_as_a_part_of_betas(schedule):
    """Each step is that of the specification, given the schedule's value at the number of steps taken."""
    rng = np.random.default_rng(0)
    param = rng.standard_normal(3)
    expected, m, v = param.copy(), np.zeros(3), np.zeros(3)
    opt = fastadam.Adam(param, lr=schedule, betas=(schedule, 0.99), weight_decay=schedule)
    for t in range(25):
        grad, now = rng.standard_normal(3), schedule(t)
        opt.step(grad)
        fastadam.reference.adam_update(expected, grad, m, v, t + 1, lr=now, betas=(now, 0.99), weight_decay=now)
        assert_same_bits(param, expected, f"after step {t + 1}")


@by_example
@pytest.mark.parametrize("again", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"])
def test_a_copied_optimizer_goes_on_in_its_schedule(schedule, again):
    opt = fastadam.Adam(np.ones(3), lr=schedule, betas=(schedule, 0.99))
    steps(opt, 7, seed=1)
    other = again(opt)
    assert other.param_groups[0]["lr"] == schedule and other.param_groups[0]["betas"] == (schedule, 0.99)
    for each in opt, other:
        steps(each, 20, seed=2)
    assert_same_bits(other.param_groups[0]["params"][0], opt.param_groups[0]["params"][0])


# ---- oracles


@pytest.mark.schedules
@pytest.mark.parametrize("warmup", WARMUPS)
def test_warmup_cosine_is_optax(warmup):
    """optax computes in float32: 6e-8 of the peak for each operation, and pi has an error of 9e-8 there."""
    import optax

    w, total, start, end = warmup
    theirs = optax.warmup_cosine_decay_schedule(start, PEAK, w, total, end)
    ours = warmup_cosine(PEAK, w, total, start=start, end=end)
    for t in range(total + 5):
        assert ours(t) == pytest.approx(float(theirs(t)), rel=1e-5, abs=1e-7), t


@pytest.mark.schedules
@pytest.mark.parametrize("warmup", WARMUPS[1:3])
def test_exponential_and_constant_are_optax(warmup):
    import optax

    for t in range(30):
        assert exponential(0.1, 0.5, 10)(t) == pytest.approx(float(optax.exponential_decay(0.1, 10, 0.5)(t)), rel=1e-5)
        assert constant(0.1)(t) == optax.constant_schedule(0.1)(t)


@pytest.mark.torch
@pytest.mark.parametrize("total", [2, 3, 10, 33, 100])
@pytest.mark.parametrize("options", [{}, {"pct_start": 0.25, "div_factor": 10.0, "final_div_factor": 50.0}])
def test_one_cycle_is_torch(total, options):
    """The tolerance is for another order of rounding, most at the end, where 1 + cos is a difference."""
    import torch

    theirs = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, PEAK, total_steps=total, **options)
    ours = one_cycle(PEAK, total, **options)
    for t in range(total):
        assert ours(t) == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12, abs=1e-16), t
        theirs.step()
        if t < total - 1:
            scheduler.step()
