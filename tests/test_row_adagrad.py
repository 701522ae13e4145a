"""RowAdagrad, which keeps one number for each row of a table. test_family.py and test_rows.py have it, too."""

import numpy as np
import pytest
from helpers import DTYPES, ISAS, assert_same_bits, tame, wild
from test_rows import numbers

import fastadam
from fastadam import _core, reference

pytestmark = pytest.mark.usefixtures("restore_isa")


def test_row_adagrad_keeps_one_number_for_each_row():
    table = np.ones((1000, 64), np.float32)
    opt = fastadam.RowAdagrad({"E": table, "b": np.ones(3)}, initial_accumulator_value=0.5)
    assert opt.state["E"]["sum"].shape == (1000,) and opt.state["b"]["sum"].shape == (3,)
    assert (opt.state["E"]["sum"] == 0.5).all()
    with pytest.raises(ValueError, match="has no rows"):
        fastadam.RowAdagrad(np.array(1.0))
    with pytest.raises(ValueError, match="must be C-contiguous"):
        fastadam.RowAdagrad(np.asfortranarray(np.ones((3, 4))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 2}, {"max_value": 0.5}, {"ema_decay": 0.9}, {"max_norm": 0.1}, {"max_norm_each": 0.1}],
)
@pytest.mark.parametrize("width", [1, 15, 16, 100, 4096, 4111, 9000])
def test_row_adagrad_is_its_twin_with_everything_around_it(dtype, isa, options, width):
    _core.select_isa(isa)
    rng = np.random.default_rng(width)
    param = numbers(rng, wild, (5, width), dtype)
    opt = fastadam.RowAdagrad(param, lr=0.1, weight_decay=0.1, threads=2, **options)
    twin, ema, total = param.copy(), param.copy(), np.zeros(5, dtype)
    for step in 1, 2:
        grads = [numbers(rng, wild if step == 1 else tame, (5, width), dtype) for _ in range(opt.accumulate)]
        for grad in grads:
            opt.step(grad, grad_scale=0.7)
        grad, scale = grads[0], 0.7
        if "max_norm" in options or "max_norm_each" in options:
            scale = reference.clip_scale([grad], 0.1, 0.7)
        elif "ema_decay" not in options and options:
            grad, scale = reference.gradient(grads, [0.7] * len(grads), dtype, options.get("max_value")), 1.0
        reference.rowadagrad_update(twin, grad, total, step, lr=0.1, weight_decay=0.1, grad_scale=scale)
        reference.ema_update(ema, twin, 0.9)
    assert_same_bits(param, twin)
    assert_same_bits(opt.state[0]["sum"], total)
    if "ema_decay" in options:
        assert_same_bits(opt.ema[0], ema)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_a_row_never_becomes_subnormal(dtype):
    root = np.sqrt(np.finfo(dtype).tiny)
    opt = fastadam.RowAdagrad(np.ones((2, 16), dtype))
    opt.step(np.repeat(np.array([[root / 2], [root * 2]], dtype), 16, axis=1))
    first, second = opt.state[0]["sum"]
    assert first == 0 < second


@pytest.mark.parametrize("width", [1, 15, 16, 31])
@pytest.mark.parametrize("hyper", [{"weight_decay": 1e39}, {"grad_scale": 1e300}, {"grad_scale": -1e300, "lr": 0.0}])
def test_coefficients_that_overflow_give_the_twins_bits(width, hyper):
    scale = hyper.pop("grad_scale", 1.0) if "grad_scale" in (hyper := dict(hyper)) else 1.0
    param = np.full((3, width), 2.0, np.float32)
    twin, total = param.copy(), np.zeros(3, np.float32)
    opt = fastadam.RowAdagrad(param, **hyper)
    opt.step(np.ones((3, width), np.float32), grad_scale=scale)
    reference.rowadagrad_update(twin, np.ones((3, width), np.float32), total, 1, grad_scale=scale, **hyper)
    assert_same_bits(param, twin)
    assert_same_bits(opt.state[0]["sum"], total)


def test_torch_has_no_row_adagrad():
    with pytest.raises(ValueError, match="torch has no RowAdagrad"):
        fastadam.RowAdagrad(np.ones((2, 2))).torch_state_dict()


def test_a_record_of_row_adagrad_has_a_number_for_each_row():
    record = fastadam.trace(fastadam.RowAdagrad, lambda x: (float((x**2).sum()), 2 * x), np.ones((3, 2)), 4)
    assert record.state["sum"].shape == (4, 3) and record.x.shape == (5, 3, 2)
    np.testing.assert_allclose(record.state["sum"][0], 4.0)
