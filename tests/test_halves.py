"""Gradients in float16 and bfloat16: decoded block by block, exactly, without a copy or a warning."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from allpairspy import AllPairs
from helpers import ISAS, assert_same_bits, run_python, snapshot, unchanged

import fastadam
from fastadam import Rows, _core, reference

pytestmark = [pytest.mark.usefixtures("restore_isa"), pytest.mark.filterwarnings("error::fastadam.PerformanceWarning")]

HALVES = [np.float16, ml_dtypes.bfloat16]
OPTIONS = [
    {},
    {"max_norm": 0.5},
    {"max_norm_each": 0.5},
    {"max_value": 0.2},
    {"accumulate": 2},
    {"ema_decay": 0.9},
    {"nonfinite": "raise"},
]


def numbers(seed, shape, half):
    return np.random.default_rng(seed).standard_normal(shape).astype(half)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("isa", ISAS)
def test_every_code_is_decoded_exactly(half, isa):
    _core.select_isa(isa)
    grad = np.arange(2**16, dtype=np.uint16).view(half)
    for part in np.split(grad, [0, 1, 50, 1000, 60_007]):
        param, twin = np.zeros((2, part.size), np.float32)
        fastadam.SGD(param, lr=1.0).step(part)
        reference.sgd_update(twin, part, 1, lr=1.0)
        assert_same_bits(param, twin)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_are_those_of_the_decoded_gradient(options):
    for half, isa, threads, size, name in AllPairs(
        [HALVES, ISAS, [1, 2, 3, 8], [1, 7, 1000, 9001, 300_000], ["Adam", "NAdam", "SGD", "RowAdagrad"]]
    ):
        _core.select_isa(isa)
        start = [numbers(9, size, np.float32), numbers(8, (11, 70), np.float32)]
        opt = getattr(fastadam, name)([a.copy() for a in start], lr=0.01, threads=threads, **options)
        twin = getattr(fastadam, name)([a.copy() for a in start], lr=0.01, **options)
        for step in range(4):
            grads = [numbers(step, size, half), numbers(step + 5, (11, 70), half)]
            opt.step(grads if step else [grads[0].astype(np.float32), grads[1]], grad_scale=0.7)
            twin.step([grad.astype(np.float32) for grad in grads], grad_scale=0.7)
        assert snapshot(opt) == snapshot(twin), (half, isa, threads, size, name)
        assert opt.grad_norm == twin.grad_norm


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5}, {"max_value": 0.2}, {"nonfinite": "raise"}], ids=str)
@pytest.mark.parametrize("half", HALVES)
def test_rows_are_decoded_and_then_summed(half, options):
    for width, threads, name in AllPairs([[1, 2, 3, 64, 3000], [1, 3], ["Adam", "SGD", "RowAdagrad"]]):
        start = numbers(9, (50, width), np.float32)
        opt = getattr(fastadam, name)(start.copy(), threads=threads, **options)
        twin = getattr(fastadam, name)(start.copy(), **options)
        for step in range(3):
            rows = np.random.default_rng(step).integers(0, 50, 70)
            grads = numbers(step, (70, width), half)
            opt.step(Rows(rows, grads), grad_scale=0.7)
            twin.step(Rows(rows, grads.astype(np.float32)), grad_scale=0.7)
        assert snapshot(opt) == snapshot(twin), (width, threads, name)
        assert opt.grad_norm == twin.grad_norm


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_adam_update_takes_them(half, threads):
    p, m, v = (numbers(i, (30, 70), np.float32) ** 2 for i in range(3))
    twins = [a.copy() for a in (p, m, v)]
    grad = numbers(5, (30, 70), half)
    fastadam.adam_update(p, grad, m, v, 1, threads=threads)
    reference.adam_update(twins[0], grad, *twins[1:], 1)
    for ours, theirs in zip((p, m, v), twins, strict=True):
        assert_same_bits(ours, theirs)
    one = [np.ones((), np.float32) for _ in range(3)]
    fastadam.adam_update(one[0], np.float16(1), *one[1:], 1)


@pytest.mark.parametrize("half", HALVES)
def test_other_orders_and_types_of_parameters_cost_a_copy_and_a_warning(half):
    param, wide = np.ones((6, 5), np.float32), np.ones((6, 5))
    for p, grad in (param, np.asfortranarray(numbers(0, (6, 5), half))), (wide, numbers(0, (6, 5), half)):
        twin = p.copy()
        with pytest.warns(fastadam.PerformanceWarning, match="is copied at every step"):
            fastadam.SGD(p, lr=0.1).step(grad)
        fastadam.SGD(twin, lr=0.1).step(np.ascontiguousarray(grad.astype(p.dtype)))
        assert_same_bits(p, twin)
    columns = np.asfortranarray(np.ones((6, 5), np.float32))
    fastadam.SGD(columns).step(np.asfortranarray(numbers(0, (6, 5), half)))


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}])
def test_what_is_not_finite_is_found(half, options):
    opt = fastadam.Adam([np.ones(3, np.float32), np.ones(9000, np.float32)], nonfinite="raise", **options)
    grad = numbers(0, 9000, half)
    grad[8000] = np.inf
    with unchanged(opt), pytest.raises(FloatingPointError, match="gradient of parameter 1 has NaN or infinity"):
        opt.step([np.ones(3, half), grad])
    grad[8000] = 1
    opt.step([np.ones(3, half), grad])


@pytest.mark.parametrize("half", HALVES)
def test_no_copy_of_the_gradients_size_is_made(half):
    param, grad = np.ones(1 << 20, np.float32), np.ones(1 << 20, half)
    opt = fastadam.Adam(param, max_norm=1.0)
    opt.step(grad)
    tracemalloc.start()
    try:
        opt.step(grad)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_a_larger_gradient_where_a_half_lay_is_looked_at_again():
    memory = np.zeros(64, np.float32)
    param = memory[32:]
    opt = fastadam.SGD(param)
    opt.step(memory[16:32].view(np.float16))  # 64 bytes, up to the parameter
    with unchanged(opt), pytest.raises(ValueError, match="overlap in memory"):
        opt.step(memory[16:48])


def test_bfloat16_is_recognised_without_importing_ml_dtypes():
    run_python("""
import sys, numpy as np, fastadam
opt = fastadam.SGD(np.ones(3, np.float32), lr=0.5)
opt.step(np.ones(3, np.float16))
assert "ml_dtypes" not in sys.modules
import ml_dtypes
opt.step(np.ones(3, ml_dtypes.bfloat16))
assert (opt.param_groups[0]["params"][0] == 0).all()
""")


def test_types_of_numpys_newest_kind_are_no_bfloat16():
    """All of them have the number -1. StringDType is one, of 16 bytes."""
    run_python("""
import numpy as np, fastadam
opt = fastadam.SGD(np.zeros(3, np.float32))
try:
    opt.step(np.array(["1", "2", "3"], np.dtypes.StringDType()))
except TypeError as error:
    assert "must be float16, bfloat16" in str(error)
else:
    raise AssertionError
""")


def test_a_second_type_of_that_name_is_copied(tmp_path):
    """Two libraries may bring one each: a second copy of ml_dtypes' registers another."""
    run_python(f"""
import importlib.util, pathlib, shutil, warnings, numpy as np, fastadam, ml_dtypes
from ml_dtypes import _ml_dtypes_ext as first
copy = pathlib.Path({str(tmp_path)!r}) / pathlib.Path(first.__file__).name
shutil.copy(first.__file__, copy)
spec = importlib.util.spec_from_file_location("_ml_dtypes_ext", copy)
second = importlib.util.module_from_spec(spec)
spec.loader.exec_module(second)
types = [np.dtype(first.bfloat16), np.dtype(second.bfloat16)]
assert types[0].num != types[1].num
params = [np.zeros(3, np.float32) for _ in types]
opt = fastadam.SGD(params, lr=1.0)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    opt.step([np.ones(3, np.float32).astype(dtype) for dtype in types])
assert [warning.category for warning in caught] == [fastadam.PerformanceWarning]
assert all((param == -1).all() for param in params)
""")


@pytest.mark.parametrize("wrong", [ml_dtypes.float8_e4m3fn, np.uint16, ml_dtypes.int4])
def test_other_types_are_refused(wrong):
    opt = fastadam.SGD(np.ones(3, np.float32))
    with (
        unchanged(opt),
        pytest.raises(TypeError, match="must be float16, bfloat16, float32, float64 or longdouble, got"),
    ):
        opt.step(np.ones(3, wrong))
