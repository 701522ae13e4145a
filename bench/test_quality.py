"""The models of the quality bench and the large one, what is rounded to nearest, and how many seeds there are."""

import numpy as np
import pytest

from bench import large, quality, quality_formats, quality_tasks, transformer


def slope(loss, array, direction, h=1e-6):
    start, ends = array.copy(), []
    for step in h, -h:
        array[...] = start + step * direction
        ends.append(loss())
    array[...] = start
    return (ends[0] - ends[1]) / (2 * h)


def check_gradients(params, grads, loss):
    """Along random directions. 1e-8: losses near 5, rounded at 1e-15, over 2e-6, and the third derivative."""
    rng = np.random.default_rng(1)
    assert grads.keys() == params.keys()
    for name, array in params.items():
        for _ in range(3):
            direction = rng.standard_normal(array.shape)
            assert slope(loss, array, direction) == pytest.approx((grads[name] * direction).sum(), rel=1e-5, abs=1e-8)


def test_gradients_of_the_transformer_are_those_of_finite_differences():
    rng = np.random.default_rng(0)
    model = transformer.Transformer(rng, 8, heads=2, blocks=2, context=5, characters=7, dtype=np.float64)
    for array in model.params.values():
        array += 0.3 * rng.standard_normal(array.shape)
    batch = rng.integers(7, size=(3, 5)), rng.integers(7, size=(3, 5))
    check_gradients(model.params, model.loss_and_gradients(*batch)[1], lambda: model.loss(*batch))


def test_the_transformer_does_not_look_ahead():
    rng = np.random.default_rng(0)
    model = transformer.Transformer(rng, 8, heads=2, blocks=2, context=6, characters=7)
    tokens = rng.integers(7, size=(2, 6))
    before = model.layers(tokens)[0].reshape(2, 6, 7)
    tokens[:, 4] = (tokens[:, 4] + 1) % 7
    after = model.layers(tokens)[0].reshape(2, 6, 7)
    assert np.array_equal(before[:, :4], after[:, :4]) and not np.array_equal(before[:, 4:], after[:, 4:])


def wide(rng, dtype=np.float32):
    """A small one. Its last layer is not zero, so that gradients go through it."""
    model = large.Wide(rng, 32, 2, dtype)
    model.params["out"] += 0.2 * rng.standard_normal(model.params["out"].shape, dtype)
    return model


def test_gradients_of_the_large_model_are_those_of_finite_differences():
    rng, grads = np.random.default_rng(0), {}
    model = wide(rng, np.float64)
    contexts, following = rng.integers(97, size=(6, large.CONTEXT)), rng.integers(97, size=6)
    model.train(contexts, following, lambda name, grad: grads.__setitem__(name, grad.copy()))
    check_gradients(model.params, grads, lambda: large.cross_entropy(model.scores(contexts)[0], following)[0])


def test_the_large_model_steps_only_what_it_has_used():
    """Its gradients are the same if each parameter is overwritten at once."""
    contexts, following = np.arange(64).reshape(4, 16), np.arange(4)
    found = []
    for spoil in False, True:
        model, grads = wide(np.random.default_rng(3)), {}

        def step(name, grad, model=model, grads=grads, spoil=spoil):
            grads[name] = grad.copy()
            if spoil:
                model.params[name][...] = np.nan

        found.append((model.train(contexts, following, step), grads))
    (loss, grads), (again, spoilt) = found
    assert loss == again and all(np.array_equal(grads[name], spoilt[name]) for name in grads)


def test_text_is_of_all_symbols_and_long():
    text = transformer.library_text(300_000)
    assert text.max() < transformer.SYMBOLS and len(text) >= 300_000
    assert transformer.symbols(b"a b\n\xff\t").tolist() == [65, 0, 66, 95, 96, 96]


@pytest.mark.parametrize("rounded", ["state", "parameters"])
def test_what_is_rounded_is_bfloat16(rounded):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    params = {"w": np.ones(128, np.float32)}
    optimizer = quality_formats.RoundedToNearest(params, (0.9, 0.999), rounded)
    for seed in range(3):
        optimizer.step({"w": np.random.default_rng(seed).standard_normal(128).astype(np.float32)}, 1e-3)
    state = optimizer.optimizer.state["w"]
    for array, is_rounded in ((params["w"], rounded == "parameters"), (state["exp_avg_sq"], rounded == "state")):
        assert np.array_equal(array, array.astype(bfloat16).astype(np.float32)) == is_rounded
    assert optimizer.nbytes() == {"state": 1024, "parameters": 1280}[rounded]


@pytest.mark.parametrize("task", [name for name in quality_tasks.TASKS if name != "full batch beta1 0.99"])
def test_it_learns(task):
    pytest.importorskip("sklearn")
    trainer = quality.Trainer(quick=True)
    first, again = (trainer.train(task, quality.FLOAT32, 3) for _ in range(2))
    assert first == again and 12 <= first["bytes"] < 12.1  # arrays are rounded up to cache lines
    assert first["final"] < 0.9 * first["first"] and first["curve"][-1] < first["curve"][0]
    assert trainer.train(task, quality.FLOAT32, 4)["final"] != first["final"]


class Invented:
    """A worker whose losses are off by 1 +- spread."""

    def __init__(self, spread):
        self.spread, self.rng = spread, np.random.default_rng(1)

    def __call__(self, method, task, name, seed):
        off = 0.0 if name == quality.FLOAT32 else self.rng.normal(0.01, self.spread)
        return {"final": 1.0 + off, "first": 3.0, "curve": [2.0, 1.0], "bytes": 12.0}


@pytest.mark.parametrize(("spread", "least", "most"), [(0.0, 5, 5), (0.02, 6, 9), (1.0, 10, 10)])
def test_seeds_are_added_until_the_error_is_a_third_of_the_bar(spread, least, most):
    comparison = quality.Comparison("digits", {"fastadam": Invented(spread)}, quick=False)
    row = comparison.row("state bfloat16")
    assert least <= row["seeds"] <= most
    promise = comparison.promise(row)
    assert (row["error, %"] <= 2 / 3) == (row["seeds"] < 10) == (promise["verdict"] != "too few seeds")
    if not spread:
        assert (row["difference"], row["difference, %"]) == pytest.approx((0.01, 1.0)) and promise["verdict"] == "met"
    assert comparison.promise(comparison.row("float32 nudged")) is None
