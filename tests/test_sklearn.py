"""fastadam.sklearn trains the network that scikit-learn trains: pytest -m sklearn. Needs scikit-learn.

Tolerances: in float32 NumPy computes scikit-learn's update in float64 (its learning rate is a float64 scalar) and
rounds once, where fastadam rounds every operation to float32, so each step differs by units in the last place of the
update, and training carries that on. Seen: at most 1e-6 of the loss and of the largest weight; allowed: 1e-4. In
float64 both do the same operations in the same order: the same bits were seen; allowed: 1e-9, should either reorder.
The activation is smooth: where a ReLU's input is next to 0, the last place of a weight decides whether it is on, and
one seed in twelve then ended with weights 4 % apart.
"""

import copy
import doctest
import io
import os
import pickle
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.sklearn, pytest.mark.filterwarnings("ignore:Stochastic Optimizer. Maximum iterations")]
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
DTYPES = sorted(TOLERANCE)
KINDS = ["classifier", "regressor"]


def data(kind, dtype="float32", rows=600):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(dtype)[:rows]
    return (x, y[:rows]) if kind == "classifier" else (x, (x @ np.linspace(-1, 1, 64)).astype(dtype))


def both(ours, kind, **options):
    """scikit-learn's model and ours, unfitted."""
    from sklearn import neural_network

    small = {"hidden_layer_sizes": (32, 16), "activation": "tanh", "batch_size": 32, "max_iter": 8, "random_state": 0}
    options = {**small, **options}
    if kind == "classifier":
        return neural_network.MLPClassifier(**options), ours.FastMLPClassifier(**options)
    return neural_network.MLPRegressor(**options), ours.FastMLPRegressor(**options)


def weights(model):
    return model.coefs_ + model.intercepts_


def assert_same_network(stock, fast, x):
    """And that fastadam has taken as many steps as scikit-learn's Adam."""
    assert type(fast._optimizer) is sys.modules["fastadam.sklearn"].AdamOptimizer
    assert fast._optimizer.t == stock._optimizer.t > 0
    assert fast._optimizer.learning_rate == stock._optimizer.learning_rate
    tolerance = TOLERANCE[x.dtype.name]
    assert fast.n_iter_ == stock.n_iter_
    assert fast.loss_curve_ == pytest.approx(stock.loss_curve_, rel=tolerance)
    for ours, theirs in zip(weights(fast), weights(stock), strict=True):
        assert ours.dtype == theirs.dtype == x.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())
    if hasattr(stock, "classes_"):
        assert np.array_equal(fast.predict(x), stock.predict(x))
    else:
        expected = stock.predict(x)
        np.testing.assert_allclose(fast.predict(x), expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hyper", [{}, {"learning_rate_init": 0.01, "beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3}])
def test_fit(ours, kind, dtype, hyper):
    x, y = data(kind, dtype)
    stock, fast = (model.fit(x, y) for model in both(ours, kind, **hyper))
    assert_same_network(stock, fast, x)
    assert fast.loss_curve_[-1] < 0.7 * fast.loss_curve_[0]


@pytest.mark.parametrize("labels", ["binary", "several"])
def test_fit_with_other_labels_on_sparse_rows(ours, labels):
    from scipy.sparse import csr_matrix

    x, y = data("classifier")
    y = y % 2 if labels == "binary" else np.stack([y % 2, y % 3 == 0], axis=1)
    stock, fast = (model.fit(csr_matrix(x), y) for model in both(ours, "classifier"))
    assert_same_network(stock, fast, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_partial_fit_goes_on(ours, kind, dtype):
    x, y = data(kind, dtype)
    stock, fast = both(ours, kind)
    for model in stock, fast:
        more = {"classes": np.unique(y)} if kind == "classifier" else {}
        for rows in (slice(0, 200), slice(200, 400), slice(400, 600)) * 2:
            model.partial_fit(x[rows], y[rows], **more)
    assert fast._optimizer.t == 6 * 7
    assert_same_network(stock, fast, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_early_stopping_puts_the_best_weights_back(ours, kind, dtype):
    x, y = data(kind, dtype)
    options = {"early_stopping": True, "max_iter": 80, "n_iter_no_change": 2, "learning_rate_init": 0.01}
    stock, fast = (model.fit(x, y) for model in both(ours, kind, **options))
    assert fast.n_iter_ < 80
    assert fast.validation_scores_ == pytest.approx(stock.validation_scores_, rel=TOLERANCE[dtype])
    assert_same_network(stock, fast, x)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_put_in_place_of_others_are_stepped_with_the_state_so_far(ours, kind):
    x, y = data(kind)
    stock, fast = (model.fit(x, y) for model in both(ours, kind))
    for model in stock, fast:
        model.coefs_ = [weight / 2 for weight in model.coefs_]
        model.intercepts_[0] = np.zeros_like(model.intercepts_[0])
        model.partial_fit(x, y)
    assert_same_network(stock, fast, x)


@pytest.mark.parametrize("kind", KINDS)
def test_warm_start_keeps_the_weights_and_starts_adam_afresh(ours, kind):
    x, y = data(kind)
    stock, fast = (model.fit(x, y).fit(x, y) for model in both(ours, kind, warm_start=True))
    assert fast._optimizer.t == 8 * 19
    assert fast.loss_curve_[8] < fast.loss_curve_[0]
    assert_same_network(stock, fast, x)


def test_fit_again_forgets(ours):
    x, y = data("classifier")
    _, fast = both(ours, "classifier")
    first = [w.copy() for w in weights(fast.fit(x, y))]
    assert all(map(np.array_equal, first, weights(fast.fit(x, y))))


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_joblib(model):
    import joblib

    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


@pytest.mark.parametrize("by", [by_pickle, by_joblib, copy.deepcopy])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_goes_on_to_the_same_bits(ours, kind, dtype, by):
    x, y = data(kind, dtype)
    stock, fast = (model.fit(x, y) for model in both(ours, kind))
    loaded = by(by(fast))
    for model in stock, fast, loaded:
        model.partial_fit(x, y).partial_fit(x, y)
    assert all(map(np.array_equal, weights(fast), weights(loaded)))
    assert_same_network(stock, loaded, x)


def test_a_model_loaded_read_only_predicts(ours, tmp_path):
    import joblib

    x, y = data("classifier")
    _, fast = both(ours, "classifier")
    joblib.dump(fast.fit(x, y), tmp_path / "model")
    assert np.array_equal(joblib.load(tmp_path / "model", mmap_mode="r").predict(x), fast.predict(x))


def test_clones_and_cross_validation(ours):
    from sklearn.base import clone
    from sklearn.model_selection import cross_val_score

    x, y = data("classifier")
    stock, fast = both(ours, "classifier", alpha=0.01)
    copied = clone(fast.fit(x, y))
    assert type(copied) is type(fast) and copied.get_params() == fast.get_params()
    assert not hasattr(copied, "_optimizer") and not hasattr(copied, "coefs_")
    assert cross_val_score(fast, x, y, cv=3) == pytest.approx(cross_val_score(stock, x, y, cv=3))


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge", "ignore:scipy.optimize")  # 1.5 with a newer SciPy
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_other_solvers_are_scikit_learns_to_the_last_bit(ours, kind, solver):
    from sklearn.neural_network._stochastic_optimizers import SGDOptimizer

    x, y = data(kind)
    stock, fast = (model.fit(x, y) for model in both(ours, kind, solver=solver, learning_rate_init=0.01))
    assert all(map(np.array_equal, weights(fast), weights(stock)))
    assert type(fast.__dict__.get("_optimizer")) is (SGDOptimizer if solver == "sgd" else type(None))
    assert hasattr(fast, "partial_fit") == hasattr(stock, "partial_fit")


def test_scikit_learns_own_classes_are_left_alone(ours):
    x, y = data("classifier")
    stock, _ = both(ours, "classifier")
    assert type(stock.fit(x, y)._optimizer) is ours.AdamOptimizer.__base__


def test_an_adam_that_is_not_recognised_is_an_error(ours, monkeypatch):
    """What a change inside scikit-learn might look like: its fit makes another class."""
    from sklearn.neural_network import _multilayer_perceptron

    class Moved:
        def __init__(self, *args):
            self.adam = ours.AdamOptimizer.__base__(*args)

        def __getattr__(self, name):
            return getattr(self.adam, name)

    monkeypatch.setattr(_multilayer_perceptron, "AdamOptimizer", Moved)
    x, y = data("classifier")
    stock, fast = both(ours, "classifier")
    assert type(stock.fit(x, y)._optimizer) is Moved
    with pytest.raises(RuntimeError, match="did not step with fastadam"):
        fast.fit(x, y)
    with pytest.raises(RuntimeError, match="did not step with fastadam"):
        both(ours, "classifier")[1].partial_fit(x, y, classes=np.unique(y))


def test_an_epoch_without_a_step_of_a_loaded_model_is_an_error(ours):
    """Its optimizer is there, but a scikit-learn that keeps another one would not call it."""
    x, y = data("classifier")
    loaded = by_pickle(both(ours, "classifier")[1].fit(x, y))
    with pytest.raises(RuntimeError, match="did not step with fastadam"):
        loaded.n_iter_ = 1
    assert loaded.partial_fit(x, y)._optimizer.t == 9 * 19


@pytest.mark.parametrize("kind", KINDS)
def test_another_optimizer_can_be_plugged_in(ours, kind):
    class Nothing(ours.AdamOptimizer):
        def update_params(self, params, grads):
            assert [g.shape for g in grads] == [p.shape for p in params] == [m.shape for m in self.ms]
            self.t += 1

    x, y = data(kind)
    _, fast = both(ours, kind, learning_rate_init=0.5, beta_1=0.25, max_iter=3)
    idle = type("Idle", (type(fast),), {"optimizer_class": Nothing})(**fast.get_params()).fit(x, y)
    assert type(idle._optimizer) is Nothing and idle._optimizer.t == 3 * 19
    hyper = [getattr(idle._optimizer, name) for name in ("learning_rate_init", "beta_1", "beta_2", "epsilon")]
    assert hyper == [0.5, 0.25, 0.999, 1e-8]


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_is_given_the_arrays_that_it_will_update(ours, kind):
    class Watching(ours.AdamOptimizer):
        def __init__(self, params, *args):
            super().__init__(params, *args)
            self.given = params

        def update_params(self, params, grads):
            assert all(a is b for a, b in zip(params, self.given, strict=True))
            super().update_params(params, grads)

    x, y = data(kind)
    _, fast = both(ours, kind, max_iter=2)
    watched = type("Watched", (type(fast),), {"optimizer_class": Watching})(**fast.get_params()).fit(x, y)
    assert watched._optimizer.t == 2 * 19


def test_the_pages_optimizer_of_ones_own_trains(ours):
    """Other arrays in place of those that it began with, too."""
    page = (Path(__file__).parent.parent / "docs/adapters.md").read_text()
    first, own = (block.split("```")[0] for block in page.split("```python\n")[1:3])
    x, y = data("classifier", "float64")
    names = {"x": x, "y": y}
    exec(first.split("model =")[0] + own, names)
    options = {"random_state": 0, "max_iter": 8, "hidden_layer_sizes": 16, "learning_rate_init": 0.02}
    model = names["MyClassifier"](**options).fit(x, y)
    optimizer, before = model._optimizer, model.score(x, y)
    assert optimizer.opt.steps == optimizer.t > 0 and optimizer.opt.grad_norm > 0
    model.coefs_, kept = [w.copy() for w in model.coefs_], copy.deepcopy(model.coefs_)
    for _ in range(8):
        model.partial_fit(x, y)
    assert model.score(x, y) > before > 0.5
    assert not any(np.array_equal(w, old) for w, old in zip(model.coefs_, kept, strict=True))
    stock = both(ours, "classifier")[0].fit(x, y)
    model.__setstate__(copy.deepcopy(stock).__getstate__())  # an optimizer of one's own begins afresh
    assert model.partial_fit(x, y)._optimizer.opt.steps == 19 and model._optimizer.t == 9 * 19


@pytest.mark.parametrize("wrong", [lambda *args: None, "adam"])
def test_an_optimizer_class_of_another_kind_is_named(ours, wrong):
    x, y = data("classifier")
    model = type(
        "Wrong", (ours.FastMLPClassifier,), {"optimizer_class": staticmethod(wrong) if callable(wrong) else wrong}
    )
    with pytest.raises(TypeError, match="derived from fastadam.sklearn.AdamOptimizer, got "):
        model().fit(x, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_scikit_learn_has_trained_goes_on(ours, kind, dtype):
    x, y = data(kind, dtype)
    stock, fast = both(ours, kind)
    fast.__setstate__(copy.deepcopy(stock.fit(x, y)).__getstate__())
    assert fast._optimizer.t == stock._optimizer.t == 8 * 19
    for model in stock, fast:
        model.set_params(random_state=1).partial_fit(x, y)
    assert_same_network(stock, fast, x)


def test_float64_labels_of_float32_rows_are_named_once(ours):
    x, y = data("regressor")
    with pytest.warns(ours.fastadam.PerformanceWarning, match="give y and sample_weight as float32") as found:
        wide = both(ours, "regressor")[1].fit(x, y.astype("float64"))
    assert [each.category for each in found].count(ours.fastadam.PerformanceWarning) == 1
    assert wide.coefs_[0].dtype == "float32"


def test_fit_of_one_epoch_twice_is_no_error(ours):
    """Both optimizers have taken as many steps when they are looked at."""
    x, y = data("classifier")
    _, fast = both(ours, "classifier", max_iter=1)
    assert fast.fit(x, y).fit(x, y)._optimizer.t == 19


@pytest.mark.parametrize("beta_2", [0.999, 1.0])
def test_the_optimizer_has_the_bits_of_scikit_learns_in_float64(ours, beta_2):
    rng = np.random.default_rng(0)
    shapes = [(4, 6), (700,), (2, 3, 5)]
    one, two = ([np.ones(shape) for shape in shapes] for _ in range(2))
    options = {"learning_rate_init": 0.01, "beta_1": 0.8, "beta_2": beta_2, "epsilon": 1e-6}
    adam, stock = ours.AdamOptimizer(one, **options), ours.AdamOptimizer.__base__(two, **options)
    assert adam.threads is None
    for _ in range(20):
        grads = [rng.standard_normal(shape) for shape in shapes]
        adam.update_params(one, grads)
        stock.update_params(two, grads)
        assert all(map(np.array_equal, [*one, *adam.ms, *adam.vs], [*two, *stock.ms, *stock.vs]))
        assert (adam.t, adam.learning_rate) == (stock.t, stock.learning_rate)


def test_threads_of_a_subclass_do_not_change_bits(ours):
    x, y = data("classifier")
    _, fast = both(ours, "classifier")
    two = type("Two", (ours.AdamOptimizer,), {"threads": 2})
    other = type("Other", (type(fast),), {"optimizer_class": two})(**fast.get_params()).fit(x, y)
    assert all(map(np.array_equal, weights(fast.fit(x, y)), weights(other)))


# In the place of scikit-learn's classes, in a process of its own; and how often they step.
IN_PLACE = """
import atexit, sys
import sklearn.neural_network as public
from sklearn.neural_network import _stochastic_optimizers as private
import fastadam.sklearn as ours

step, taken = ours.AdamOptimizer.update_params, 0
def counted(self, params, grads):
    global taken
    taken += 1
    step(self, params, grads)

ours.AdamOptimizer.update_params = counted
private.AdamOptimizer = ours.AdamOptimizer
public.MLPClassifier, public.MLPRegressor = ours.FastMLPClassifier, ours.FastMLPRegressor
atexit.register(lambda: print("steps:", taken))
"""


@pytest.mark.parametrize(("module", "passed", "steps"), [("test_mlp", 52, 2500), ("test_stochastic_optimizers", 6, 12)])
def test_scikit_learns_own_tests_pass(tmp_path, module, passed, steps):
    (tmp_path / "in_place.py").write_text(IN_PLACE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "in_place", "-p", "no:cacheprovider", "-W", "ignore"]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command += ["--pyargs", f"sklearn.neural_network.tests.{module}", "-k", "not feature_names"]  # they need pandas
    run = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) >= passed and "skipped" not in run.stdout
    assert int(re.search(r"steps: (\d+)", run.stdout)[1]) >= steps


def test_what_is_refused_changes_nothing(ours):
    """Whichever array is at fault."""
    weights = [np.ones((2, 2)), np.zeros(2)]
    adam = ours.AdamOptimizer(weights, learning_rate_init=0.1)
    for grads in [np.ones((2, 2))], [np.ones((2, 2)), np.ones(3)], [np.ones((2, 2)), None]:
        with pytest.raises((TypeError, ValueError)):
            adam.update_params(weights, grads)
    assert (weights[0] == 1.0).all() and not adam.ms[0].any() and adam.t == 0


@pytest.mark.filterwarnings("ignore:gradients are float64")  # float32 X, float64 y
@pytest.mark.parametrize("name", ["FastMLPClassifier", "FastMLPRegressor"])
def test_scikit_learns_checks_of_estimators_pass(ours, name):
    from sklearn.exceptions import SkipTestWarning
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)  # of pandas, other kinds of arrays, methods that MLPs lack
        check_estimator(getattr(ours, name)(max_iter=50))


def test_the_examples_in_the_docstrings_run(ours):
    result = doctest.testmod(ours)
    assert result.failed == 0 and result.attempted > 10


def test_the_example_prints_models_that_agree(capsys):
    models = runpy.run_path(str(Path(__file__).parent.parent / "examples/sklearn_mlp.py"))["main"](epochs=3)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in printed[1:]] == [
        [name, batch] for batch in ("200", "32") for name in ("MLPClassifier", "FastMLPClassifier")
    ]
    for (stock, fast), (stock_line, fast_line) in zip(
        (models[:2], models[2:]), (printed[1:3], printed[3:5]), strict=True
    ):
        assert f"{stock.loss_:.2e}" in stock_line and f"{fast.loss_:.2e}" in fast_line
        assert stock_line.split()[2] == fast_line.split()[2]
        assert fast.loss_curve_ == pytest.approx(stock.loss_curve_, rel=TOLERANCE["float32"])
        assert fast._optimizer.t == stock._optimizer.t
