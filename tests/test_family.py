"""Promise 3 for the whole family: every optimizer and its NumPy twin agree to the last bit, in parameters and state.

Adam has more switches, and tests of its own in test_bits.py."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from allpairspy import AllPairs
from helpers import DTYPES, ISAS, assert_same_bits, at_offset, snapshot, tame, unchanged, wild
from hypothesis import given, settings
from hypothesis import strategies as st

import fastadam
from fastadam import _core, reference

pytestmark = pytest.mark.usefixtures("restore_isa")

OPTIONS = {  # what makes other loops or other coefficients; decay and direction come on top
    "SGD": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": lambda count: 0.0 if count < 2 else 0.5},
    ],
    "RMSprop": [{"momentum": m, "centered": c} for m in (0.0, 0.8) for c in (False, True)],
    "Adagrad": [{}, {"lr_decay": 0.1}, {"initial_accumulator_value": 0.1}],
    "NAdam": [{}, {"momentum_decay": 1.0}, {"betas": lambda count: (0.5 + 0.05 * count, 0.9)}],
    "RAdam": [{}, {"betas": (0.5, 0.6)}, {"betas": (0.9, 0.8)}],
    "Adamax": [{}, {"eps": 0.0}],
    "RowAdagrad": [{}, {"lr_decay": 0.1}, {"initial_accumulator_value": 0.1}],
}
DECOUPLED = {"NAdam", "RAdam"}
STATE = {
    "SGD": {"momentum_buffer"},
    "RMSprop": {"square_avg", "momentum_buffer", "grad_avg"},
    "Adagrad": {"sum"},
    "NAdam": {"exp_avg", "exp_avg_sq", "mu_product"},
    "RAdam": {"exp_avg", "exp_avg_sq"},
    "Adamax": {"exp_avg", "exp_inf"},
    "RowAdagrad": {"sum"},
}
CASES = [(name, options) for name, several in OPTIONS.items() for options in several]
SIZES = [0, 1, 7, 16, 31, 64, 100, 1025, 4099]
STEPS = 7  # RAdam changes its formula on the way


class Twin:
    """The same optimizer on a copy, by the reference."""

    def __init__(self, opt, param):
        self.update = getattr(reference, f"{type(opt).__name__.lower()}_update")
        self.param = param.copy()
        self.state = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in opt.state[0].items()}

    def step(self, grad, hyper, grad_scale):
        count = self.state["step"]
        now = {name: value(count) if callable(value) else value for name, value in hyper.items()}
        self.state["step"] += 1
        product = self.update(self.param, grad, **self.state, **now, grad_scale=grad_scale)
        if product is not None:
            self.state["mu_product"] = product

    def assert_equals(self, opt, param, what):
        assert_same_bits(param, self.param, what)
        assert opt.state[0].keys() == self.state.keys()
        for name, value in opt.state[0].items():
            if isinstance(value, np.ndarray):
                assert_same_bits(value, self.state[name], f"{name} {what}")
            else:
                assert value == self.state[name], name


def check(name, options, isa, dtype, decay, maximize, n, offset, make, threads):
    hyper = {"lr": 0.01, "weight_decay": 0.0 if decay == "none" else 0.1, "maximize": maximize, **options}
    if name in DECOUPLED:
        hyper["decoupled_weight_decay"] = decay == "decoupled"
    _core.select_isa(isa)
    rng = np.random.default_rng(n + offset)
    param = at_offset(make(rng, n, dtype), offset)
    opt = getattr(fastadam, name)(param, threads=threads, **hyper)
    twin = Twin(opt, param)
    for _ in range(STEPS):
        grad = at_offset(make(rng, n, dtype), offset)
        opt.step(grad, grad_scale=0.7)
        twin.step(grad, hyper, 0.7)
    twin.assert_equals(opt, param, f"{name} {options} {isa} {dtype} {decay} {maximize} {n} {offset} {threads}")


AXES = [ISAS, DTYPES, ["none", "l2", "decoupled"], [False, True], SIZES, range(3), [tame, wild], [1, 2, 3, 8]]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_kernel_equals_twin_for_every_pair_of_settings(name, options):
    cases = list(AllPairs(AXES))
    assert len(cases) >= len(SIZES) * 4
    for case in cases:
        check(name, options, *case)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), CASES)
def test_kernel_equals_twin_for_all_settings(name, options):
    for case in itertools.product(*AXES[:5], [0, 1], [tame, wild], [1, 3]):
        check(name, options, *case)


def test_every_optimizer_is_covered():
    assert {name for name, _ in CASES} | {"Adam", "AdamW"} == {
        name
        for name in fastadam.__all__
        if isinstance(thing := getattr(fastadam, name), type)
        and issubclass(thing, fastadam.Optimizer)
        and thing is not fastadam.Optimizer
    }


hyper_parameters = st.floats(0, 1e4)
fractions = st.floats(0, 1, exclude_max=True)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(OPTIONS)), dtype=st.sampled_from(DTYPES), scale=st.floats(-1e3, 1e3))
def test_any_hyper_parameters_give_the_twins_bits(data, name, dtype, scale):
    plain = {
        "SGD": {"momentum": hyper_parameters, "dampening": hyper_parameters},
        "RMSprop": {"alpha": fractions, "momentum": hyper_parameters, "centered": st.booleans()},
        "Adagrad": {"lr_decay": hyper_parameters, "initial_accumulator_value": hyper_parameters},
        "NAdam": {"betas": st.tuples(fractions, fractions), "momentum_decay": hyper_parameters},
        "RAdam": {"betas": st.tuples(fractions, fractions)},
        "Adamax": {"betas": st.tuples(fractions, fractions)},
        "RowAdagrad": {"lr_decay": hyper_parameters, "initial_accumulator_value": hyper_parameters},
    }[name]
    hyper = {"lr": st.floats(0, 1e300), "weight_decay": hyper_parameters, **plain}
    if hasattr(getattr(fastadam, name), "eps"):
        hyper["eps"] = hyper_parameters
    hyper = {key: data.draw(value) for key, value in hyper.items()}
    rng = np.random.default_rng(0)
    param = wild(rng, 37, dtype)
    opt = getattr(fastadam, name)(param, **hyper)
    twin = Twin(opt, param)
    for _ in range(2):
        grad = wild(rng, 37, dtype)
        opt.step(grad, grad_scale=scale)
        twin.step(grad, hyper, scale)
    twin.assert_equals(opt, param, f"{name} {hyper}")


@pytest.mark.parametrize(("name", "options"), CASES)
def test_state_has_torchs_names_and_no_more_than_is_needed(name, options):
    entry = getattr(fastadam, name)(np.ones(3), **options).state[0]
    expected = set(STATE[name])
    if not options.get("momentum"):
        expected -= {"momentum_buffer"}
    if not options.get("centered"):
        expected -= {"grad_avg"}
    assert entry.keys() == expected | {"step"}
    assert entry["step"] == 0


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if not any(map(callable, case[1].values()))])
@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_training_goes_on_with_the_same_bits_after_a_copy(name, options, how):
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((10, 33))
    param = rng.standard_normal(33)
    opt = getattr(fastadam, name)(param, **options)
    for grad in grads[:4]:
        opt.step(grad)
    if how == "state_dict":
        saved = copy.deepcopy(opt.state_dict())
        other = param.copy()
        new = getattr(fastadam, name)(other, **options)
        new.load_state_dict(saved)
    else:
        new = pickle.loads(pickle.dumps(opt)) if how == "pickle" else copy.deepcopy(opt)
        other = new.param_groups[0]["params"][0]
    for grad in grads[4:]:
        opt.step(grad)
        new.step(grad)
    assert_same_bits(param, other)
    assert opt.state[0].keys() == new.state[0].keys()
    assert opt.state[0].get("mu_product") == new.state[0].get("mu_product")
    assert not np.array_equal(param, np.random.default_rng(0).standard_normal((11, 33))[10])


def test_momentum_may_rest_but_not_begin_late():
    param = np.ones(3)
    opt = fastadam.SGD(param, momentum=0.9)
    opt.step(np.ones(3))
    buffer = opt.state[0]["momentum_buffer"].copy()
    opt.param_groups[0]["momentum"] = 0.0
    opt.step(np.full(3, 5.0))
    assert np.array_equal(opt.state[0]["momentum_buffer"], buffer)
    pickle.loads(pickle.dumps(opt)).step(np.ones(3))
    opt.param_groups[0]["momentum"] = 0.9
    opt.step(np.ones(3))
    np.testing.assert_allclose(opt.state[0]["momentum_buffer"], 0.9 * buffer + 1)

    late = fastadam.SGD(param)
    late.param_groups[0]["momentum"] = 0.9
    with unchanged(late):
        for use in lambda: late.step(np.ones(3)), late.state_dict:
            with pytest.raises(ValueError, match="momentum was 0 when the group was added"):
                use()


def test_a_state_dict_that_needs_more_state_is_refused():
    saved = fastadam.SGD(np.ones(3), momentum=0.9).state_dict()
    saved["state"] = {}
    opt = fastadam.SGD(np.ones(3))
    with pytest.raises(ValueError, match="momentum was 0 when the group was added"):
        opt.load_state_dict(saved)
    opt.step(np.ones(3))
    opt.state_dict()


def test_what_state_dict_gives_loads_again():
    """With nesterov, a schedule may let momentum rest."""
    opt = fastadam.SGD(np.ones(3), momentum=0.9, nesterov=True)
    opt.param_groups[0]["momentum"] = 0.0
    opt.step(np.ones(3))
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))


def test_sums_without_an_entry_begin_where_the_group_says():
    opt = fastadam.Adagrad(np.ones(3), initial_accumulator_value=0.5)
    opt.step(np.ones(3))
    opt.load_state_dict({**opt.state_dict(), "state": {}})
    assert opt.state[0]["sum"].tolist() == [0.5] * 3


def test_centered_may_not_change():
    opt = fastadam.RMSprop(np.ones(3))
    opt.param_groups[0]["centered"] = True
    with pytest.raises(ValueError, match="centered was False when the group was added"):
        opt.step(np.ones(3))
    saved = copy.deepcopy(fastadam.RMSprop(np.ones(3), centered=True).state_dict())
    with pytest.raises(ValueError, match="centered=True, the optimizer False"):
        fastadam.RMSprop(np.ones(3)).load_state_dict(saved)


def test_a_variance_that_rounding_makes_negative_counts_as_zero():
    """torch's centered RMSprop makes NaN of it."""
    param = np.zeros(100, np.float32)
    opt = fastadam.RMSprop(param, centered=True, lr=1e-3)
    grad = np.linspace(0.1, 7, 100, dtype=np.float32)
    negative = 0
    for _ in range(3000):
        opt.step(grad)
        entry = opt.state[0]
        negative += np.sum(entry["square_avg"] < entry["grad_avg"] ** 2)
    assert negative > 0, "this test no longer tests anything"
    assert np.isfinite(param).all()


@pytest.mark.parametrize("hyper", [{}, {"momentum": 0.9, "dampening": 0.1}, {"dampening": lambda count: 0.1}])
def test_nesterov_needs_momentum_and_no_dampening(hyper):
    with pytest.raises(ValueError, match=r"nesterov=True needs momentum > 0 and dampening 0"):
        fastadam.SGD(np.ones(2), nesterov=True, **hyper)
    with pytest.raises(ValueError, match=r"nesterov=True needs momentum > 0 and dampening 0"):
        fastadam.SGD([{"params": np.ones(2), "nesterov": True, **hyper}])


def test_nesterov_with_dampening_is_refused_later_too():
    opt = fastadam.SGD(np.ones(2), momentum=0.9, nesterov=True)
    opt.param_groups[0]["dampening"] = 0.5
    with unchanged(opt), pytest.raises(ValueError, match=r"nesterov=True needs dampening 0, got 0.5"):
        opt.step(np.ones(2))


SCHEDULED = [
    ("SGD", {"momentum": 0.5}, "momentum", lambda count: 0.1 * (count + 1)),
    ("SGD", {"momentum": 0.5}, "dampening", lambda count: 0.1 * count),
    ("RMSprop", {}, "alpha", lambda count: 0.9 - 0.1 * count),
    ("RMSprop", {"centered": True}, "eps", lambda count: 0.1 * (count + 1)),
    ("RMSprop", {"momentum": 0.5}, "momentum", lambda count: 0.1 * (count + 1)),
    ("Adagrad", {}, "lr_decay", lambda count: 0.1 * count),
    ("NAdam", {}, "momentum_decay", lambda count: 0.1 * count),
    ("RAdam", {}, "weight_decay", lambda count: 0.1 * count),
    ("Adamax", {}, "eps", lambda count: 0.1 * (count + 1)),
]


@pytest.mark.parametrize(("name", "hyper", "scheduled", "schedule"), SCHEDULED)
def test_any_number_may_be_a_schedule(name, hyper, scheduled, schedule):
    rng = np.random.default_rng(0)
    param = rng.standard_normal(37)
    hyper = {**hyper, scheduled: schedule}
    opt = getattr(fastadam, name)(param, **hyper)
    twin, constant = Twin(opt, param), Twin(opt, param)
    for _ in range(STEPS):
        grad = rng.standard_normal(37)
        opt.step(grad)
        twin.step(grad, hyper, 1.0)
        constant.step(grad, {**hyper, scheduled: schedule(0)}, 1.0)
    twin.assert_equals(opt, param, scheduled)
    assert not np.array_equal(param, constant.param)


RANGES = [
    *[("SGD", name) for name in ("lr", "momentum", "dampening", "weight_decay")],
    *[("RMSprop", name) for name in ("lr", "alpha", "eps", "weight_decay", "momentum")],
    *[("Adagrad", name) for name in ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")],
    *[(name, h) for name in ("NAdam", "RAdam", "Adamax") for h in ("lr", "betas", "eps", "weight_decay")],
    ("NAdam", "momentum_decay"),
]


@pytest.mark.parametrize(("name", "hyper"), RANGES)
def test_values_out_of_range_are_refused(name, hyper):
    make = getattr(fastadam, name)
    bad = [(value, ValueError) for value in (-1e-9, float("nan"), float("inf"))] + [("1", TypeError), (None, TypeError)]
    if hyper == "alpha":
        bad.append((1.0, ValueError))
    for value, error in bad:
        value = (value, 0.9) if hyper == "betas" else value
        with pytest.raises(error, match=f"^{hyper}"):
            make(np.ones(2), **{hyper: value})
        opt = make(np.ones(2), momentum=0.5) if hyper == "momentum" else make(np.ones(2))
        opt.param_groups[0][hyper] = value
        before = snapshot(opt)
        with pytest.raises(error, match=f"^{hyper}") as caught:
            opt.step(np.ones(2))
        assert caught.value.__notes__ == ["in param_groups[0]"]
        assert snapshot(opt) == before


def test_a_schedule_for_where_a_sum_starts_is_refused():
    with pytest.raises(TypeError, match="^initial_accumulator_value must be a number"):
        fastadam.Adagrad(np.ones(2), initial_accumulator_value=lambda count: 0.1)


def test_hyper_parameters_of_another_rule_are_refused():
    with pytest.raises(TypeError, match="betas"):
        fastadam.SGD(np.ones(2), betas=(0.9, 0.999))
    with pytest.raises(ValueError, match="unknown hyper-parameter 'betas' in a group"):
        fastadam.SGD([{"params": np.ones(2), "betas": (0.9, 0.999)}])
    saved = fastadam.Adam(np.ones(2)).state_dict()
    with pytest.raises(ValueError, match="is of another optimizer: it has betas, eps"):
        fastadam.SGD(np.ones(2)).load_state_dict(saved)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adagrads_sums_begin_at_the_initial_value(dtype):
    p, grad = np.ones(3, dtype), np.array([3.0, 0.5, 0.0], dtype)
    twin, total = p.copy(), np.full(3, 0.25, dtype)
    opt = fastadam.Adagrad(p, lr=0.1, initial_accumulator_value=0.25)
    assert_same_bits(opt.state[0]["sum"], total)
    opt.step(grad)
    reference.adagrad_update(twin, grad, total, 1, lr=0.1)
    assert_same_bits(p, twin)


def test_products_of_momenta_may_differ_at_equal_counters():
    """Of arrays in one group, whose first steps were taken with other betas."""
    rng = np.random.default_rng(0)
    params, grads = rng.standard_normal((3, 40)), rng.standard_normal((3, 40))
    alone = [(p, fastadam.NAdam(p, lr=0.1)) for p in params.copy()]
    opt = fastadam.NAdam(list(params), lr=0.1)
    for i, beta1 in enumerate((0.5, 0.9, 0.5)):
        for each in opt, alone[i][1]:
            each.param_groups[0]["betas"] = (beta1, 0.99)
        opt.step_one(i, grads[i])
        alone[i][1].step(grads[i])
    for each in opt, *(its_opt for _, its_opt in alone):
        each.param_groups[0]["betas"] = (0.8, 0.99)
    opt.step(list(grads))
    for i, (p, its_opt) in enumerate(alone):
        its_opt.step(grads[i])
        assert opt.state[i]["mu_product"] == its_opt.state[0]["mu_product"]
        assert_same_bits(params[i], p)


def test_counters_and_products_belong_to_arrays():
    """A gradient that is None leaves NAdam's product alone, too."""
    a, b = np.ones(3), np.ones(3)
    opt = fastadam.NAdam([a, b], lr=0.1)
    opt.step([np.ones(3), None])
    opt.step([np.ones(3), np.ones(3)])
    alone = np.ones(3)
    other = fastadam.NAdam(alone, lr=0.1)
    other.step(np.ones(3))
    assert opt.state[1]["mu_product"] == other.state[0]["mu_product"] != opt.state[0]["mu_product"]
    assert_same_bits(b, alone)


@pytest.mark.parametrize("product", [-0.1, 1.5, float("nan")])
def test_a_product_that_cannot_be_is_refused(product):
    saved = copy.deepcopy(fastadam.NAdam(np.ones(2)).state_dict())
    saved["state"][0]["mu_product"] = product
    opt = fastadam.NAdam(np.ones(2))
    with pytest.raises(ValueError, match="mu_product.*from 0 to 1"):
        opt.load_state_dict(saved)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("name", "options"),
    [("RMSprop", options) for options in ({}, {"momentum": 0.9}, {"centered": True}, {"weight_decay": 1e-25})]
    + [(name, {}) for name in ("Adagrad", "NAdam", "RAdam")],
)
def test_squares_that_underflow_are_left_out_only_where_the_bits_allow_it(isa, name, options):
    """As in test_bits.py, for every rule that squares: v large, zero, or so small that each square counts."""
    _core.select_isa(isa)
    rng = np.random.default_rng(0)
    stretch = 3000  # longer than a block
    v = np.concatenate([
        np.full(stretch, 1e-3), np.zeros(stretch), 10 ** rng.uniform(-38, -29, stretch),
        rng.choice([0.0, 1e-36, 1e-31, 1e-20, 1.0], stretch), np.zeros(stretch),
    ]).astype(np.float32)  # fmt: skip
    second = {"RMSprop": "square_avg", "Adagrad": "sum"}.get(name, "exp_avg_sq")
    for spread in 6, 0.1, 1e-5:  # decades around the smallest g whose square is normal
        param = tame(rng, v.size, np.float32)
        opt = getattr(fastadam, name)(param, threads=1, **options)
        opt.state[0][second][...] = v
        twin = Twin(opt, param)
        share = 1.0 if name == "Adagrad" else 0.01 if name == "RMSprop" else 0.001
        exact = np.sqrt(np.finfo(np.float32).tiny / share)
        g = exact * 10 ** rng.uniform(-spread, spread / 3, v.size) * rng.choice([-1, 1], v.size)
        g[rng.random(v.size) < 0.2] = 0
        grad = g.astype(np.float32)
        for _ in range(3):
            opt.step(grad)
            twin.step(grad, options, 1.0)
        twin.assert_equals(opt, param, f"{spread=}")


@pytest.mark.parametrize("name", [*OPTIONS, "Adam", "AdamW"])
def test_subnormal_state_is_flushed(name):
    """0.9 * x never reaches zero: dead weights would keep subnormal state, and every step would pay."""
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    if name in ("NAdam", "RAdam", "Adamax", "Adam", "AdamW"):
        options["betas"] = (0.5, 0.5)
    opt = getattr(fastadam, name)(np.ones(4, np.float32), **options)
    opt.step(np.full(4, 1e-18, np.float32))
    for _ in range(300):
        opt.step(np.zeros(4, np.float32))
    for value in opt.state[0].values():
        if isinstance(value, np.ndarray):
            assert not np.any((value != 0) & (np.abs(value) < np.finfo(np.float32).tiny))


def test_the_decay_of_adamw_is_always_decoupled():
    with pytest.raises(TypeError, match=r"^AdamW's decay is always decoupled; for another use Adam"):
        fastadam.AdamW(np.ones(2), decoupled_weight_decay=False)
