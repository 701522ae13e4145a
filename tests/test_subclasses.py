"""Array subclasses run Python code whenever they are looked at. None of it may come between a check and the C call."""

import numpy as np
import pytest
from helpers import N, ones
from test_adam_update import adam_update_arguments

import fastadam


class Meddler(np.ndarray):
    """Runs `Meddler.meddle` whenever Python code of a subclass gets a chance."""

    meddle = staticmethod(lambda: None)

    def __getattribute__(self, name):
        Meddler.meddle()
        return super().__getattribute__(name)

    def __array_function__(self, *args):
        Meddler.meddle()
        return super().__array_function__(*args)

    @property
    def __class__(self):
        Meddler.meddle()
        return np.ndarray


@pytest.fixture
def meddler():
    yield Meddler
    Meddler.meddle = staticmethod(lambda: None)


@pytest.mark.filterwarnings("ignore::fastadam.PerformanceWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_array_subclasses_cannot_move_memory_under_a_step(meddler, dtype):
    """Arrays grow whenever the gradient's code runs: the step is right, or refused, but never in freed memory."""
    params = [ones(), ones()]
    opt = fastadam.Adam(params, lr=0.5)
    grad = ones(N, dtype).view(Meddler)
    meddler.meddle = staticmethod(lambda: params[0].resize(100_000, refcheck=False))
    try:
        opt.step([ones(), grad])
    except ValueError:
        assert params[0].size == 100_000
        assert [e["step"] for e in opt.state.values()] == [0, 0]
        assert np.array_equal(params[1], ones())
    else:
        assert np.allclose(params, 0.5)


@pytest.mark.filterwarnings("ignore::fastadam.PerformanceWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_array_subclasses_cannot_move_memory_under_adam_update(meddler, dtype):
    arguments = adam_update_arguments()
    arguments["grad"] = ones(N, dtype).view(Meddler)

    def grow():
        for name in "param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq":
            arguments[name].resize(100_000, refcheck=False)

    meddler.meddle = staticmethod(grow)
    try:
        fastadam.adam_update(**arguments, step=1, amsgrad=True)
    except ValueError:
        assert np.array_equal(arguments["param"][:N], ones())
    else:
        assert arguments["param"].shape == (N,)


def test_parameter_subclasses_cannot_change_the_optimizer_that_takes_them(meddler):
    opt = fastadam.Adam([ones()])
    meddler.meddle = staticmethod(lambda: opt.add_param_group({"params": [ones() for _ in range(1000)]}))
    meddling = ones().view(Meddler)
    try:
        opt.add_param_group({"params": [meddling]})
    except RuntimeError:
        assert len(opt.state) == 1
    meddler.meddle = staticmethod(lambda: None)
    assert len(opt.state_dict()["state"]) == len(opt.state) == sum(len(g["params"]) for g in opt.param_groups)
