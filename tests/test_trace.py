"""fastadam.trace records what the optimizers do, and changes nothing about it."""

from functools import partial

import numpy as np
import pytest

import fastadam


def bowl(x):
    steep = np.linspace(1, 30, x.size).reshape(x.shape).astype(x.dtype)
    return (steep * x**2).sum() / 2, steep * x


def start(shape=(2, 3), dtype=np.float64):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


OPTIMIZERS = [
    partial(fastadam.Adam, lr=0.1, amsgrad=True),
    partial(fastadam.AdamW, lr=0.1),
    partial(fastadam.NAdam, lr=0.1),
    partial(fastadam.RAdam, lr=0.1),
    partial(fastadam.Adamax, lr=0.1),
    partial(fastadam.SGD, lr=0.01),
    partial(fastadam.SGD, lr=0.01, momentum=0.9),
    partial(fastadam.RMSprop, lr=0.01, centered=True),
    partial(fastadam.Adagrad, lr=0.1),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda make: make.func.__name__)
def test_the_record_is_what_the_optimizer_did(make, shape, dtype):
    x0 = start(shape, dtype)
    kept = x0.copy()
    record = fastadam.trace(make, bowl, x0, 20)
    assert np.array_equal(x0, kept)

    x = x0.copy()
    opt = make(x)
    for t in range(20):
        loss, gradient = bowl(x)
        assert record.x[t].tobytes() == x.tobytes() and record.x.dtype == dtype
        assert record.loss[t] == loss and record.gradient[t].tobytes() == gradient.tobytes()
        opt.step(gradient)
        assert record.state.keys() == opt.state[0].keys()
        for name, value in opt.state[0].items():
            assert np.array_equal(record.state[name][t], value), name
    assert record.x[20].tobytes() == x.tobytes() and record.loss[20] == bowl(x)[0]
    assert len(record.x) == len(record.gradient) == len(record.loss) == 21
    assert np.array_equal(record.update[7], record.x[8] - record.x[7])
    assert bool(record.correction) == isinstance(opt, fastadam.Adam)


@pytest.mark.parametrize("options", [{}, {"bias_correction": False}, {"eps_root": 1e-3}])
def test_corrected_averages_explain_the_updates(options):
    record = fastadam.trace(partial(fastadam.Adam, lr=0.1, betas=(0.8, 0.95), **options), bowl, start(), 50)
    m, v = record.corrected["exp_avg"], record.corrected["exp_avg_sq"]
    expected = -0.1 * m / (np.sqrt(v + options.get("eps_root", 0)) + 1e-8)
    np.testing.assert_allclose(record.update, expected, rtol=1e-9, atol=1e-15)  # x - (x - step) cancels digits


def test_corrections_fade():
    record = fastadam.trace(partial(fastadam.Adam, betas=(0.9, 0.99)), bowl, start(), 300)
    t = np.arange(1, 301)
    np.testing.assert_allclose(record.correction["exp_avg"], 1 - 0.9**t, rtol=1e-12)
    np.testing.assert_allclose(record.correction["exp_avg_sq"], 1 - 0.99**t, rtol=1e-12)


def test_scheduled_betas_are_those_of_the_step():
    seen = []

    def beta1(taken):
        seen.append(taken)
        return 0.5 + 0.1 * taken

    record = fastadam.trace(partial(fastadam.Adam, betas=(beta1, 0.99)), bowl, start(), 3)
    assert record.correction["exp_avg"] == pytest.approx([1 - 0.5, 1 - 0.6**2, 1 - 0.7**3])
    assert seen == [0, 1, 2, 0, 1, 2]


def test_a_step_that_is_left_out_is_recorded_as_such():
    def broken(x):
        return np.nan, np.full_like(x, np.nan)

    record = fastadam.trace(partial(fastadam.Adam, nonfinite="skip"), broken, start(), 3)
    assert record.state["step"].tolist() == [0, 0, 0]
    assert (record.corrected["exp_avg"] == 0).all()
    assert np.isnan(record.loss).all() and (record.update == 0).all()


def test_corrections_stay_while_steps_are_left_out():
    calls = iter([1.0, np.nan, np.nan, 1.0, 1.0])
    make = partial(fastadam.Adam, nonfinite="skip", betas=(0.9, 0.99))
    record = fastadam.trace(make, lambda x: (0.0, np.full_like(x, next(calls))), [0.0], 4)
    assert record.state["step"].tolist() == [1, 1, 1, 2]
    np.testing.assert_allclose(record.corrected["exp_avg"], 1, rtol=1e-12)
    np.testing.assert_allclose(record.corrected["exp_avg_sq"], 1, rtol=1e-12)


def test_integers_and_lists_start_too():
    record = fastadam.trace(fastadam.Adam, lambda x: (x @ x, list(2 * x)), [1, 2], 1)
    assert record.x.dtype == np.float64 and record.x[0].tolist() == [1, 2]


def test_f_cannot_change_the_record():
    def rude(x):
        x += 1
        return 0.0, x

    with pytest.raises(ValueError, match="read-only"):
        fastadam.trace(fastadam.Adam, rude, [1.0], 1)


OTHER = np.ones(2)
BAD = [
    ({"optimizer": fastadam.Adam(np.ones(2))}, TypeError, "optimizer must be callable, got a Adam; give what makes"),
    ({"optimizer": lambda x: 3}, TypeError, "optimizer must return one of fastadam's optimizers, got a int"),
    ({"optimizer": lambda x: fastadam.Adam(OTHER)}, ValueError, "over the one array that it is given"),
    ({"optimizer": lambda x: fastadam.Adam([x, OTHER])}, ValueError, "over the one array that it is given"),
    ({"f": 3}, TypeError, "f must be callable, got a int"),
    ({"f": lambda x: 1.0}, TypeError, "f must return a pair"),
    ({"f": lambda x: (1.0, 1.0)}, ValueError, r"gradient of the shape of x0, \(2,\), got \(\)"),
    ({"f": lambda x: (1.0, x * 1j)}, TypeError, "gradient of real numbers, got complex128"),
    ({"f": lambda x: (x, x)}, TypeError, "the value that f returns must be a number"),
    ({"x0": ["a", "b"]}, TypeError, "x0 must be an array of float32, float64 or integers, got <U1"),
    ({"x0": np.ones(2, np.float16)}, TypeError, "got float16"),
    ({"steps": 1.5}, TypeError, "steps must be an int, got 1.5"),
    ({"steps": 0}, ValueError, "steps must be >= 1, got 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input_is_named(change, error, message):
    good = {"optimizer": fastadam.Adam, "f": bowl, "x0": np.ones(2), "steps": 1}
    with pytest.raises(error, match=message):
        fastadam.trace(**{**good, **change})
