"""fastadam.thinc does what thinc's own Adam does: pytest -m thinc. Needs thinc.

Tolerance: both compute in float32, but round in other places (thinc keeps 1 - beta2 in float32, and subtracts the decay
by itself). Seen: 1.3e-6 of the largest number after 30 steps; allowed: 1e-5.
"""

import copy
import doctest
import inspect
import itertools
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

import fastadam
from fastadam import reference

pytestmark = pytest.mark.thinc
KEY = (3, "W")
SHAPES = {KEY: (40, 7), (3, "b"): (7,), (4, "E"): (5, 3, 2)}


def thincs(**options):
    from thinc.api import Adam

    return Adam(**options)


def arrays(scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return {key: (scale * rng.standard_normal(shape)).astype("f") for key, shape in SHAPES.items()}


def train(optimizer, steps=30, lr_scale=1.0, scale=1.0):
    """The weights after so many steps; checks what a call leaves and returns."""
    weights = arrays()
    for step in range(steps):
        for key, gradient in arrays(scale, seed=step).items():
            found = optimizer(key, weights[key], gradient, lr_scale=lr_scale)
            assert np.shares_memory(found[0], weights[key]) and np.shares_memory(found[1], gradient)
            assert found[0].shape == found[1].shape == SHAPES[key] and not gradient.any()
        optimizer.step_schedules()
    return weights


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        assert ours[key].dtype == np.float32 and ours[key].shape == expected.shape
        np.testing.assert_allclose(ours[key], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("use_averages", [True, False])
@pytest.mark.parametrize("grad_clip", [0.0, 0.5, np.inf])
@pytest.mark.parametrize("decay", [{}, {"L2": 0.1}, {"L2": 0.1, "L2_is_weight_decay": False}])
def test_weights_moments_and_averages_are_thincs(ours, decay, grad_clip, use_averages):
    options = {"learn_rate": 0.01, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "grad_clip": grad_clip}
    options |= {"use_averages": use_averages, **decay}
    fast, stock = ours.Adam(**options), thincs(**options)
    assert_close(train(fast, lr_scale=0.5), train(stock, lr_scale=0.5))
    assert_close(fast.mom1, stock.mom1)
    assert_close(fast.mom2, stock.mom2)
    assert fast.nr_update == stock.nr_update == dict.fromkeys(SHAPES, 30)
    if use_averages:
        assert_close(fast.averages, stock.averages)
    else:
        assert fast.averages is stock.averages is None


def test_defaults_are_thincs(ours):
    fast, stock = ours.Adam(), thincs()
    assert_close(train(fast), train(stock))
    assert_close(fast.averages, stock.averages)


def test_schedules_are_thincs(ours):
    def options():
        return {"learn_rate": [0.1, 0.05, 0.001], "beta1": iter_of(0.5, 0.9), "L2": [0.0, 0.1], "grad_clip": [1.0, 0.1]}

    def iter_of(*values):
        yield from values

    assert_close(train(ours.Adam(**options()), steps=5), train(thincs(**options()), steps=5))


@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_a_step_has_the_bits_of_the_specification(ours, scale):
    """With gradients that are clipped and that are not. The decay after the step is that of AdamW before it."""
    lr, decay, clip = 0.01, 0.1, 1.0
    p, m, v = arrays()[KEY], np.zeros(SHAPES[KEY], "f"), np.zeros(SHAPES[KEY], "f")
    kept = 1 - lr * decay
    for step in range(20):
        g = arrays(scale, seed=step)[KEY]
        norm = float(g.ravel() @ g.ravel()) ** 0.5
        assert (norm > clip) == (scale == 1)
        hyper = {"lr": lr * kept, "weight_decay": decay / kept, "grad_scale": clip / norm if norm > clip else 1.0}
        reference.adam_update(p, g, m, v, step + 1, eps_hat=True, decoupled_weight_decay=True, **hyper)
    fast = ours.Adam(lr, L2=decay, grad_clip=clip)
    weights = train(fast, steps=20, scale=scale)[KEY]
    assert np.array_equal(weights, p)
    assert np.array_equal(fast.mom1[KEY], m.ravel()) and np.array_equal(fast.mom2[KEY], v.ravel())


@pytest.mark.parametrize("options", [{"beta1": 0.0, "beta2": 0.0}, {"learn_rate": 1.0, "L2": 2.0}])
def test_what_is_left_to_thinc_has_its_bits(ours, options):
    options = {"learn_rate": 0.1} | options
    fast, stock = ours.Adam(**options), thincs(**options)
    one, two = train(fast), train(stock)
    assert all(np.array_equal(one[key], two[key]) for key in SHAPES)
    assert fast.nr_update == stock.nr_update


def test_arrays_that_are_not_contiguous_are_left_to_thinc(ours):
    fast, stock = ours.Adam(0.1), thincs(learn_rate=0.1)
    weights = [optimizer(KEY, np.asfortranarray(arrays()[KEY]), arrays()[KEY])[0] for optimizer in (fast, stock)]
    assert np.array_equal(*weights) and not np.array_equal(weights[0], arrays()[KEY])


def test_another_array_under_the_same_key_goes_on_with_its_state(ours):
    """thinc's wrappers of other libraries make an array anew for each call."""
    same, copied = ours.Adam(0.1), ours.Adam(0.1)
    weights = arrays()[KEY]
    other = weights.copy()
    for seed in range(5):
        same(KEY, weights, arrays(seed=seed)[KEY])
        other, _ = copied(KEY, other.copy(), arrays(seed=seed)[KEY])
    assert np.array_equal(weights, other) and copied.nr_update[KEY] == 5


@pytest.mark.parametrize("by", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copy_goes_on_to_the_same_bits(ours, by):
    fast = ours.Adam(0.1, L2=0.01)
    train(fast)
    one, two = train(by(fast)), train(fast)
    assert all(np.array_equal(one[key], two[key]) for key in SHAPES)


def test_what_is_refused_changes_nothing(ours):
    fast = ours.Adam(0.1, L2=0.1, L2_is_weight_decay=False)
    weights, gradient = arrays()[KEY], arrays(seed=1)[KEY]
    weights.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        fast(KEY, weights, gradient)
    assert np.array_equal(gradient, arrays(seed=1)[KEY]) and fast.nr_update[KEY] == 0 and not fast.averages


def test_a_gradient_that_cannot_be_emptied_is_refused_before_the_step(ours):
    fast = ours.Adam(0.1)
    weights, gradient = arrays()[KEY], arrays(seed=1)[KEY]
    gradient.flags.writeable = False
    with pytest.raises(ValueError, match=r"gradient of \(3, 'W'\) is read-only"):
        fast(KEY, weights, gradient)
    assert np.array_equal(weights, arrays()[KEY]) and fast.nr_update[KEY] == 0 and not fast.averages


def test_another_shape_under_the_same_key_is_refused(ours):
    fast = ours.Adam(0.1)
    fast(KEY, np.ones(3, "f"), np.ones(3, "f"))
    for shape in (4,), (1, 3):
        weights = np.ones(shape, "f")
        with pytest.raises(ValueError, match="and had another before; give each array a key of its own"):
            fast(KEY, weights, np.ones(shape, "f"))
        assert (weights == 1).all() and fast.nr_update[KEY] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learn_rate": -0.1}, "learn_rate must be finite and >= 0, got -0.1"),
        ({"learn_rate": np.inf}, "learn_rate must be finite and >= 0, got inf"),
        ({"learn_rate": [np.nan]}, "learn_rate must be finite and >= 0, got nan"),
        ({"L2": -1.0}, "L2 must be finite and >= 0, got -1.0"),
        ({"eps": -1e-8}, "eps must be"),
        ({"grad_clip": -1.0}, "grad_clip must be >= 0, got -1.0"),
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1.0"),
        ({"beta2": -0.1}, r"beta2 must be in \[0, 1\), got -0.1"),
        ({"beta2": 0.0}, "beta1=0.9 and beta2=0.0: thinc has no such rule"),
        ({"beta1": 0.0}, "beta1=0.0 and beta2=0.999: thinc has no such rule"),
    ],
)
def test_a_number_out_of_its_range_is_refused_by_its_name(ours, options, message):
    weights = np.ones(3, "f")
    with pytest.raises(ValueError, match=message):
        ours.Adam(**options)(KEY, weights, np.zeros(3, "f"))
    with pytest.raises(ValueError, match="lr_scale must be"):
        ours.Adam()(KEY, weights, np.zeros(3, "f"), lr_scale=-1.0)
    assert (weights == 1).all()


def test_it_takes_the_arguments_of_thincs_adam(ours):
    """A config that spaCy has filled in works with either."""
    from thinc.api import Adam

    assert inspect.signature(ours.Adam).parameters.keys() == inspect.signature(Adam).parameters.keys()


def test_fastadams_schedules_as_a_generator(ours):
    lr = fastadam.schedules.exponential(0.1, 0.5)
    fast = ours.Adam(lr(t) for t in itertools.count())
    assert_close(train(fast, steps=3), train(thincs(learn_rate=[0.1, 0.05, 0.025]), steps=3))


def test_an_empty_gradient_is_given_back(ours):
    weights, gradient = np.zeros((0, 2), "f"), np.zeros((0, 2), "f")
    found = ours.Adam(0.1)(KEY, weights, gradient)
    assert found[0] is weights and found[1] is gradient


def test_unknown_attributes_are_refused_as_by_thinc(ours):
    with pytest.raises(AttributeError):
        ours.Adam(0.1).learning_rate = 1.0


def test_a_model_of_thinc_learns_and_predicts_with_its_averages(ours):
    from thinc.api import Linear, Relu, chain, fix_random_seed

    x = np.random.default_rng(0).standard_normal((256, 8)).astype("f")
    y = np.sin(x[:, :2])
    losses, predicted = [], []
    for optimizer in thincs(learn_rate=0.01), ours.Adam(0.01):
        fix_random_seed(0)
        model = chain(Relu(32), Linear(2)).initialize(x, y)
        for _ in range(200):
            guess, backprop = model.begin_update(x)
            backprop((guess - y) / len(x))
            model.finish_update(optimizer)
        losses.append(float(np.square(guess - y).mean()))
        with model.use_params(optimizer.averages):
            predicted.append(model.predict(x))
    assert losses[0] < 0.05 and losses[1] == pytest.approx(losses[0], rel=1e-3)
    np.testing.assert_allclose(*predicted, rtol=0, atol=1e-3)


def test_a_config_finds_it_without_an_import():
    code = """
import sys
from thinc.api import registry

config = {"@optimizers": "fastadam.Adam.v1", "learn_rate": {"@schedules": "constant.v1", "rate": 0.5}, "L2": 0.1}
assert "fastadam" not in sys.modules
optimizer = registry.resolve({"training": {"optimizer": config}})["training"]["optimizer"]
from fastadam.thinc import Adam
assert type(optimizer) is Adam
import numpy as np
weights = np.ones(3, "f")
optimizer((0, "W"), weights, np.ones(3, "f"))
assert np.allclose(weights, 0.5 * 0.95)
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


# In the place of thinc's class, in a process of its own; and how often it is called.
IN_PLACE = """
import atexit
import thinc.api, thinc.optimizers
import fastadam.thinc

class Optimizer(fastadam.thinc.Adam):
    __slots__ = ()
    calls = 0
    def __init__(self, learn_rate=0.001, *, use_radam=False, **options):
        super().__init__(learn_rate, **options)
        self.use_radam = use_radam      # left to thinc
    def __call__(self, *args, **options):
        Optimizer.calls += 1
        return super().__call__(*args, **options)

thinc.api.Optimizer = thinc.optimizers.Optimizer = Optimizer
atexit.register(lambda: print("calls:", Optimizer.calls))
"""


def test_thincs_own_tests_pass(tmp_path):
    (tmp_path / "in_place.py").write_text(IN_PLACE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "in_place", "-p", "no:cacheprovider", "-W", "ignore"]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command += ["--pyargs", "thinc.tests.test_optimizers"]
    run = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= 20 and "skipped" not in run.stdout
    assert int(re.search(r"calls: (\d+)", run.stdout)[1]) >= 3


def test_the_examples_in_the_docstrings_run(ours):
    result = doctest.testmod(ours)
    assert result.failed == 0 and result.attempted > 4
