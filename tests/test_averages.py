"""Moving averages of parameters: how they begin, and how they are swapped in.

Their values are compared with the oracle of tests/test_wraps.py."""

import copy
import pickle
import warnings

import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits

import fastadam


def test_averages_begin_with_the_parameters():
    param = np.arange(6.0).reshape(2, 3, order="F")
    opt = fastadam.Adam({"w": param}, ema_decay=0.5)
    assert_same_bits(opt.ema["w"], param)
    assert opt.ema["w"].flags.f_contiguous and not np.shares_memory(opt.ema["w"], param)
    opt.add_param_group({"params": {"b": np.full(2, 7.0)}})
    assert opt.ema["b"].tolist() == [7.0, 7.0]


def test_swapping_in_and_out_again():
    a, b = np.zeros(5000), np.ones(3, np.float32)
    opt = fastadam.SGD([a, b], lr=1.0, ema_decay=0.75)
    opt.step([np.full(5000, -4.0), None])
    with opt.swap_ema():
        assert (a == 1.0).all() and (b == 1.0).all() and (opt.ema[0] == 4.0).all()
        for forbidden in (
            lambda: opt.step([a, b]),
            lambda: opt.step_one(0, a),
            opt.state_dict,
            lambda: opt.load_state_dict({}),
            lambda: pickle.dumps(opt),
            lambda: copy.deepcopy(opt),
            lambda: opt.add_param_group({"params": {"x": np.ones(1)}}),
        ):
            with pytest.raises(RuntimeError, match="leave `with opt.swap_ema"):
                forbidden()
        with pytest.raises(RuntimeError, match="swap_ema"), opt.swap_ema():
            pass
        assert (a == 1.0).all()
    assert (a == 4.0).all() and (opt.ema[0] == 1.0).all()
    with pytest.raises(KeyError, match="mine"), opt.swap_ema():
        raise KeyError("mine")
    assert (a == 4.0).all()
    opt.step([np.ones(5000), np.ones(3, np.float32)])


def test_a_parameter_frozen_while_it_is_swapped_comes_back():
    a = np.zeros(3)
    opt = fastadam.SGD(a, lr=1.0, ema_decay=0.5)
    opt.step(np.full(3, -4.0))
    with opt.swap_ema():
        a.flags.writeable = False
    assert (a == 4.0).all() and (opt.ema[0] == 2.0).all()


@pytest.mark.parametrize("size", [2_000_000, 2])
def test_a_parameter_resized_inside_swap_ema_is_named_and_nothing_is_written_behind_it(size):
    a, b = np.zeros(3), np.zeros(3)
    opt = fastadam.SGD([a, b], lr=1.0, ema_decay=0.5)
    opt.step([np.full(3, -4.0), np.full(3, -4.0)])
    message = "parameter 0 was resized inside swap_ema; what it held before is in opt.ema"
    with pytest.raises(ValueError, match=message), opt.swap_ema():
        place = a.ctypes.data
        a.resize(size, refcheck=False)
        assert size > 2 or a.ctypes.data == place, "it has moved, so this tests nothing"
    assert (b == 4.0).all() and (opt.ema[0] == 4.0).all() and (size > 2 or (a == 2.0).all())
    opt.step([None, np.ones(3)])


def test_a_parameter_that_changed_its_type_is_not_swapped():
    p = np.zeros(1000, np.float32)
    opt = fastadam.SGD(p, lr=1.0, ema_decay=0.5)
    p.resize(2000, refcheck=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated since NumPy 2.5
        p.dtype = np.float64
    with pytest.raises((TypeError, ValueError)), opt.swap_ema():
        pass


def test_a_parameter_that_cannot_be_written_is_not_swapped():
    a = np.zeros(3)
    opt = fastadam.SGD([np.zeros(2), a], lr=1.0, ema_decay=0.5)
    a.flags.writeable = False
    with pytest.raises(ValueError, match="parameter 1 must be writeable"), opt.swap_ema():
        pass
    a.flags.writeable = True
    with opt.swap_ema():
        pass


@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_never_become_subnormal(dtype):
    a = np.full(3, np.finfo(dtype).tiny * dtype(1.5))
    opt = fastadam.SGD(a, lr=0.0, ema_decay=0.5)
    a[:] = [0.0, -0.0, 1.0]
    opt.step(np.zeros(3, dtype))
    assert_same_bits(opt.ema[0], np.array([0.0, 0.0, 0.5], dtype))


def test_the_average_may_rest():
    a = np.zeros(2)
    opt = fastadam.SGD(a, lr=1.0, ema_decay=0.5)
    opt.ema_decay = None
    opt.step(np.ones(2))
    assert opt.ema[0].tolist() == [0.0, 0.0]
    opt.ema_decay = 0.0
    opt.step(np.ones(2))
    assert opt.ema[0].tolist() == a.tolist() == [-2.0, -2.0]


def test_a_state_without_averages_begins_them_anew():
    param = np.arange(4.0)
    plain = fastadam.Adam(param)
    plain.step(np.ones(4))
    saved = copy.deepcopy(plain.state_dict())
    opt = fastadam.Adam(param, ema_decay=0.9, accumulate=2)
    param += 1
    opt.load_state_dict(saved)
    assert opt.state[0]["step"] == 1 and opt.state[0]["grad_count"] == 0
    assert_same_bits(opt.ema[0], param)
    saved = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=r"an average of the parameter \(ema\), and this optimizer keeps none"):
        plain.load_state_dict(saved)
    del saved["state"][0]["grad_count"]
    with pytest.raises(ValueError, match="has the keys"):
        opt.load_state_dict(saved)


def test_the_average_of_a_frozen_array_stays_until_it_is_set():
    a, b = np.ones(3), np.ones(3)
    opt = fastadam.SGD([a, b], lr=1.0, ema_decay=0.5)
    opt.step([np.ones(3), np.ones(3)])
    for _ in range(60):
        opt.step([np.zeros(3), None])
    assert opt.ema[0].tolist() == pytest.approx(a.tolist()) and opt.ema[1].tolist() == [0.5] * 3
    opt.ema[1][...] = 7
    with opt.swap_ema():
        assert b.tolist() == [7.0] * 3
    assert b.tolist() == [0.0] * 3
