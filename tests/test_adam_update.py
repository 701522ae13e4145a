"""The stateless form: what it refuses, with proof that nothing changed, and what it converts."""

import warnings

import numpy as np
import pytest
from helpers import BAD_LAYOUTS, NOT_ARRAYS, WRONG_DTYPES, N, assert_same_bits, misaligned, ones, strided

import fastadam
from fastadam import reference


def adam_update_arguments():
    return {"param": ones(), "grad": ones(), "exp_avg": ones(), "exp_avg_sq": ones(), "max_exp_avg_sq": ones()}


def assert_update_refused(arguments, error, match, **options):
    arrays = [a for a in arguments.values() if isinstance(a, np.ndarray)]
    before = [a.tobytes() for a in arrays]
    with pytest.raises(error, match=match):
        fastadam.adam_update(**{"step": 1, "amsgrad": True, **arguments, **options})
    assert [a.tobytes() for a in arrays] == before


def test_adam_update_refuses_bad_arrays_in_every_place():
    for name in adam_update_arguments():
        for bad, _ in [*NOT_ARRAYS, (None, "")]:
            if name == "max_exp_avg_sq" and bad is None:
                continue
            assert_update_refused({**adam_update_arguments(), name: bad}, TypeError, f"^{name} must be a numpy.ndarray")
        for dtype in WRONG_DTYPES:
            assert_update_refused({**adam_update_arguments(), name: np.zeros(N, dtype)}, TypeError, f"^{name} must be")
        assert_update_refused(
            {**adam_update_arguments(), name: ones(N + 1)}, ValueError, "must have the shape of param"
        )
        if name == "grad":
            continue
        for make, match in BAD_LAYOUTS:
            assert_update_refused({**adam_update_arguments(), name: make()}, ValueError, f"^{name} must .*{match}")
        if name != "param":
            wrong = {**adam_update_arguments(), name: ones(N, np.float64)}
            assert_update_refused(wrong, TypeError, f"^{name} must have the dtype of param")


def test_adam_update_refuses_state_in_another_memory_order():
    arguments = {name: np.ones((2, 3), np.float32) for name in adam_update_arguments()}
    arguments["exp_avg_sq"] = np.asfortranarray(arguments["exp_avg_sq"])
    assert_update_refused(arguments, ValueError, "^exp_avg_sq must have the memory order of param")


def test_adam_update_refuses_arrays_that_overlap():
    names = list(adam_update_arguments())
    for i, first in enumerate(names):
        for second in names[:i]:
            memory = ones(2 * N)
            arguments = {**adam_update_arguments(), first: memory[:N], second: memory[N - 1 : 2 * N - 1]}
            assert_update_refused(arguments, ValueError, "overlap in memory")
            if "grad" in (first, second):
                arguments["grad"] = arguments["grad"][::-1]
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    assert_update_refused(arguments, ValueError, "overlap in memory")


def test_adam_update_takes_arrays_side_by_side_in_one_buffer():
    names = list(adam_update_arguments())
    for order in names, names[::-1]:
        memory, arguments = ones(len(names) * N), adam_update_arguments()
        for i, name in enumerate(order):
            memory[i * N :][:N] = arguments[name]
            arguments[name] = memory[i * N :][:N]
        apart = {name: array.copy() for name, array in arguments.items()}
        for each in arguments, apart:
            fastadam.adam_update(**each, step=1, amsgrad=True)
        assert all(np.array_equal(arguments[name], apart[name]) for name in names)


def test_adam_update_converts_gradients_too():
    p, q = ones(), ones()
    state, twin_state = [ones(), ones()], [ones(), ones()]
    grad = np.linspace(0, 1, N).astype(np.float64)[::-1]
    with pytest.warns(fastadam.PerformanceWarning) as caught:
        fastadam.adam_update(p, grad, *state, 1)
    assert caught[0].filename == __file__
    reference.adam_update(q, grad, *twin_state, 1)
    assert_same_bits(p, q)


@pytest.mark.parametrize(
    ("step", "error"),
    [(0, ValueError), (-1, ValueError), (2**63, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError)],
)
def test_adam_update_refuses_bad_steps(step, error):
    assert_update_refused({**adam_update_arguments(), "step": step}, error, "^step ")


def test_adam_update_takes_numpy_integers_as_steps():
    arguments = adam_update_arguments()
    fastadam.adam_update(**arguments, step=np.int8(3), amsgrad=True)


def test_adam_update_copies_a_misaligned_gradient_and_says_so():
    arguments, apart = adam_update_arguments(), adam_update_arguments()
    arguments["grad"], apart["grad"] = misaligned(), np.zeros(N, np.float32)
    with pytest.warns(fastadam.PerformanceWarning, match="grad is copied"):
        fastadam.adam_update(**arguments, step=1, amsgrad=True)
    fastadam.adam_update(**apart, step=1, amsgrad=True)
    assert all(np.array_equal(arguments[name], apart[name]) for name in apart)


def test_adam_update_refuses_an_iterator_of_betas_as_the_optimizers_do():
    assert_update_refused({**adam_update_arguments(), "betas": iter((0.9, 0.99))}, TypeError, "^betas must be a pair")


def test_amsgrad_and_its_state_come_together():
    arguments = adam_update_arguments()
    assert_update_refused(
        arguments,
        ValueError,
        "^max_exp_avg_sq was given, and is used only with amsgrad=True; leave it out",
        amsgrad=False,
    )
    del arguments["max_exp_avg_sq"]
    assert_update_refused(
        arguments, ValueError, "^amsgrad=True needs max_exp_avg_sq, which was not given", amsgrad=True
    )


def test_adam_update_looks_again_after_a_warning_filter(monkeypatch):
    arguments = adam_update_arguments()
    arguments["grad"] = strided()
    monkeypatch.setattr(warnings, "showwarning", lambda *_, **__: arguments["exp_avg"].resize(1, refcheck=False))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="^exp_avg must have the shape of param"):
            fastadam.adam_update(**arguments, step=1, amsgrad=True)
    assert np.array_equal(arguments["param"], ones())
