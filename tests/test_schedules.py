"""Schedules of optax and thinc work unchanged: pytest -m schedules (needs optax==0.2.8 and thinc==9.1.1).

Both count as fastadam does: a schedule's value at 0 is for the first step. Each step is compared to the bits with
`fastadam.reference` given that value; the libraries' own Adam, given the same schedule, says that the count is theirs.
"""

import copy

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits, unchanged

import fastadam

pytestmark = pytest.mark.schedules
STEPS = 30  # past the end of every schedule below


@pytest.fixture(scope="module")
def libraries():
    import jax
    import optax
    import thinc.schedules

    assert (optax.__version__, thinc.__version__) == ("0.2.8", "9.1.1")
    return {"jax": jax, "optax": optax, "thinc": thinc.schedules}


OPTAX = {
    "linear": lambda o: o.linear_schedule(0.1, 0.01, 20),
    "polynomial": lambda o: o.polynomial_schedule(0.1, 0.01, 2, 20),
    "exponential": lambda o: o.exponential_decay(0.1, 5, 0.5),
    "exponential, stairs": lambda o: o.exponential_decay(0.1, 5, 0.5, 3, staircase=True, end_value=0.01),
    "cosine": lambda o: o.cosine_decay_schedule(0.1, 20, alpha=0.1),
    "warm-up, constant": lambda o: o.warmup_constant_schedule(0.0, 0.1, 5),
    "warm-up, cosine": lambda o: o.warmup_cosine_decay_schedule(0.0, 0.1, 5, 20, 0.001),
    "warm-up, exponential": lambda o: o.warmup_exponential_decay_schedule(0.0, 0.1, 5, 5, 0.5),
    "warm restarts": lambda o: o.sgdr_schedule(
        [{"init_value": 0.0, "peak_value": 0.1, "warmup_steps": 3, "decay_steps": 8}] * 2
    ),
    "one cycle, linear": lambda o: o.linear_onecycle_schedule(20, 0.1),
    "one cycle, cosine": lambda o: o.cosine_onecycle_schedule(20, 0.1),
    "piecewise constant": lambda o: o.piecewise_constant_schedule(0.1, {5: 0.5, 9: 0.1}),
    "piecewise cosine": lambda o: o.piecewise_interpolate_schedule("cosine", 0.1, {5: 0.5, 9: 0.1}),
    "joined": lambda o: o.join_schedules([o.constant_schedule(0.1), o.cosine_decay_schedule(0.05, 10)], [7]),
}
THINC = {
    "constant, then decaying": lambda t: t.constant_then(0.1, 5, t.decaying(0.1, 0.1)),
    "decaying": lambda t: t.decaying(0.1, 0.1),
    "compounding": lambda t: t.compounding(0.01, 0.1, 1.2),
    "compounding downwards": lambda t: t.compounding(0.1, 0.01, 0.8),
    "warm-up, linear": lambda t: t.warmup_linear(0.1, 5, 20),
    "cyclic triangular": lambda t: t.cyclic_triangular(0.01, 0.1, 4),
    "slanted triangular": lambda t: t.slanted_triangular(0.1, STEPS),
}
SCHEDULES = [("optax", name) for name in OPTAX] + [("thinc", name) for name in THINC]
MAKERS = {"optax": OPTAX, "thinc": THINC}


def assert_steps_of_the_specification(options, at_count, dtype):
    """Adam with `options` for STEPS steps; `at_count(n)` is what the specification is given after n steps."""
    rng = np.random.default_rng(0)
    param = rng.standard_normal(37).astype(dtype)
    expected, m, v = param.copy(), np.zeros_like(param), np.zeros_like(param)
    opt = fastadam.Adam(param, **options)
    for count in range(STEPS):
        grad = rng.standard_normal(param.shape).astype(dtype)
        opt.step(grad)
        fastadam.reference.adam_update(expected, grad, m, v, count + 1, **at_count(count))
        for ours, theirs in (param, expected), (opt.state[0]["exp_avg"], m), (opt.state[0]["exp_avg_sq"], v):
            assert_same_bits(ours, theirs, f"after step {count + 1}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("library", "name"), SCHEDULES)
def test_learning_rate(libraries, library, name, dtype):
    make = MAKERS[library][name]
    schedule, again = make(libraries[library]), make(libraries[library])  # thinc's keep notes in themselves
    values = [float(again(count)) for count in range(STEPS)]
    assert len(set(values)) > 2  # a schedule that is called with another count gives other bits
    assert_steps_of_the_specification({"lr": schedule}, lambda count: {"lr": values[count]}, dtype)


@pytest.mark.parametrize("library", ["optax", "thinc"])
def test_constant(libraries, library):
    make = {"optax": "constant_schedule", "thinc": "constant"}[library]
    schedule = getattr(libraries[library], make)(0.03)
    assert_steps_of_the_specification({"lr": schedule}, lambda count: {"lr": 0.03}, np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_by_jax(libraries, dtype):
    """What to do where calling a schedule, a millisecond or so uncompiled, takes longer than the step."""
    schedule = libraries["jax"].jit(libraries["optax"].warmup_cosine_decay_schedule(0.0, 0.1, 5, 20))
    values = [float(schedule(count)) for count in range(STEPS)]
    assert_steps_of_the_specification({"lr": schedule}, lambda count: {"lr": values[count]}, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decoupled", [False, True])
def test_all_numbers_at_once_from_both_libraries(libraries, dtype, decoupled):
    optax, thinc = libraries["optax"], libraries["thinc"]
    lr = optax.cosine_decay_schedule(0.1, 20)
    beta1 = thinc.cyclic_triangular(0.85, 0.95, 5)
    beta2 = optax.linear_schedule(0.9, 0.999, 20)
    decay = thinc.decaying(0.1, 0.2)
    eps = optax.exponential_decay(1e-3, 5, 0.1)

    def at_count(count):
        return {
            "lr": float(lr(count)),
            "betas": (float(beta1(count)), float(beta2(count))),
            "weight_decay": decay(count),
            "eps": float(eps(count)),
            "decoupled_weight_decay": decoupled,
        }

    options = {"lr": lr, "betas": (beta1, beta2), "weight_decay": decay, "eps": eps}
    assert_steps_of_the_specification({**options, "decoupled_weight_decay": decoupled}, at_count, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_rules_take_them_the_same_way(libraries, dtype):
    lr = libraries["optax"].warmup_cosine_decay_schedule(0.0, 0.1, 5, 20)
    momentum = libraries["thinc"].compounding(0.5, 0.95, 1.1)
    rng = np.random.default_rng(0)
    param = rng.standard_normal(37).astype(dtype)
    expected, buffer = param.copy(), np.zeros_like(param)
    opt = fastadam.SGD(param, lr=lr, momentum=momentum, nesterov=True)
    for count in range(STEPS):
        grad = rng.standard_normal(param.shape).astype(dtype)
        opt.step(grad)
        now = {"lr": float(lr(count)), "momentum": momentum(count), "nesterov": True}
        fastadam.reference.sgd_update(expected, grad, count + 1, momentum_buffer=buffer, **now)
        assert_same_bits(param, expected, f"after step {count + 1}")


def test_each_group_counts_for_itself(libraries):
    schedule = libraries["thinc"].decaying(1.0, 1.0)
    first, second = np.zeros(1), np.zeros(1)
    opt = fastadam.Adam(first, lr=schedule, betas=(0.0, 0.0), eps=0.0)  # a step of lr, whatever the gradient
    opt.step(np.ones(1))
    opt.step(np.ones(1))
    opt.add_param_group({"params": second})
    opt.step([np.ones(1), np.ones(1)])
    assert first[0] == pytest.approx(-(1 + 1 / 2 + 1 / 3))
    assert second[0] == -1


def test_plateau_is_given_its_score_by_a_function_around_it(libraries):
    """thinc's own optimizer passes the score by keyword; we know no score. Without one the rate stays."""
    thinc = libraries["thinc"]
    halving = thinc.plateau(1, 0.5, thinc.constant(1.0))
    scores = iter([0.1, 0.2, 0.2, 0.2])
    param, path = np.zeros(1), []
    opt = fastadam.Adam(
        param, lr=lambda count: halving(count, last_score=(count, next(scores))), betas=(0.0, 0.0), eps=0.0
    )
    for _ in range(4):
        opt.step(np.ones(1))
        path.append(float(param[0]))
    assert np.diff(path, prepend=0).tolist() == [-1, -1, -0.5, -0.25]

    plain = fastadam.Adam(np.zeros(1), lr=thinc.plateau(1, 0.5, thinc.constant(1.0)), betas=(0.0, 0.0), eps=0.0)
    for _ in range(4):
        plain.step(np.ones(1))
    assert plain.param_groups[0]["params"][0][0] == -4


def test_schedule_that_ends_below_zero_is_refused_there(libraries):
    """thinc's slanted triangle goes on downwards after its last step: a step uphill is not what anybody wants."""
    schedule = libraries["thinc"].slanted_triangular(0.1, 20)
    opt = fastadam.Adam(np.ones(3), lr=schedule)
    last = next(count for count in range(100) if schedule(count) < 0)
    for _ in range(last):
        opt.step(np.ones(3))
    with unchanged(opt), pytest.raises(ValueError, match="^lr must be finite and >= 0, got -0.0"):
        opt.step(np.ones(3))


def test_generators_are_refused(libraries):
    """They cannot be asked for a count again, so a step that fails after asking would lose a value."""
    with pytest.raises(TypeError, match="^lr must be a number, got <generator"):
        fastadam.Adam(np.ones(3), lr=libraries["thinc"].decaying(0.1, 0.1).to_generator())


def test_copies_go_on_and_state_dicts_leave_schedules_out(libraries):
    for schedule in libraries["optax"].cosine_decay_schedule(0.1, 20), libraries["thinc"].decaying(0.1, 0.1):
        opt = fastadam.Adam(np.ones(3), lr=schedule)
        opt.step(np.ones(3))
        copied = copy.deepcopy(opt)
        assert "lr" not in opt.state_dict()["param_groups"][0]
        for each in opt, copied:
            each.step(np.ones(3))
        assert_same_bits(opt.param_groups[0]["params"][0], copied.param_groups[0]["params"][0])


def gradients():
    rng = np.random.default_rng(1)
    return [rng.standard_normal(7).astype(np.float32) for _ in range(STEPS)]


@pytest.mark.parametrize("name", ["warm-up, cosine", "piecewise constant"])
def test_optax_itself_takes_the_same_steps(libraries, name):
    """The tolerance is for another order of rounding; called with a count that is one off, steps differ by percents."""
    optax = libraries["optax"]
    schedule = OPTAX[name](optax)
    ours, theirs = np.ones(7, np.float32), libraries["jax"].numpy.ones(7)
    opt = fastadam.AdamW(ours, lr=schedule, weight_decay=0.1)
    rule = optax.adamw(schedule, weight_decay=0.1)
    state = rule.init(theirs)
    for grad in gradients():
        opt.step(grad)
        updates, state = rule.update(grad, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["warm-up, linear", "cyclic triangular"])
def test_thinc_itself_takes_the_same_steps(libraries, name):
    """thinc computes 1 - beta2 in float32, 1.3e-5 off for 0.999, which is what the tolerance is for."""
    from thinc.api import Adam

    schedule = THINC[name](libraries["thinc"])
    ours, theirs = np.ones(7, np.float32), np.ones(7, np.float32)
    opt = fastadam.Adam(ours, lr=schedule, eps_hat=True)
    rule = Adam(schedule, L2=0.0, grad_clip=0.0, use_averages=False)
    for grad in gradients():
        opt.step(grad)
        theirs, _ = rule((0, "W"), theirs, grad.copy())
        rule.step_schedules()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
