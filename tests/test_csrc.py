"""Parts of csrc/ called from here, without the engine in between: ranges of memory, and the norm of a call."""

import ctypes
import math
from ctypes import POINTER, Structure, c_double, c_int, c_int64, c_size_t, c_uint64, c_void_p, pointer

import numpy as np
import pytest

from fastadam import _core, reference

csrc = ctypes.CDLL(_core.__file__)


class Range(Structure):
    _fields_ = [("begin", c_size_t), ("end", c_size_t), ("slot", c_int64), ("array", c_int)]


class Record(Structure):
    _fields_ = [("step", c_int64), ("product", c_double), ("pending", c_int64), ("seed", c_uint64)]


class Settings(Structure):
    _fields_ = [
        ("threads", c_int),
        ("max_norm", c_double),
        ("max_norm_each", c_double),
        ("max_value", c_double),
        ("nonfinite", c_int),
    ]
    _fields_ += [("accumulate", c_int64), ("average", c_int), ("ema_decay", c_double)]


class Slot(Structure):
    _fields_ = [("place", c_void_p), ("n", c_int64), ("height", c_int64), ("width", c_int64), ("rows", c_void_p)]
    _fields_ += [
        ("format", c_int),
        ("coded", c_int),
        ("real", c_int),
        ("group", c_void_p),
        ("record", POINTER(Record)),
        ("active", c_int),
        ("steps", c_int),
    ]


class Task(Structure):
    _fields_ = [("kernel", c_void_p), ("array", c_void_p * 11), ("n", c_int64), ("rows", c_void_p)]
    _fields_ += [
        ("coefficients", c_void_p),
        ("before", c_void_p),
        ("after", c_void_p),
        ("wrap", c_void_p),
        ("decode", c_void_p),
        ("formats", c_void_p),
        ("seed", c_uint64),
        ("origin", c_int64),
        ("first", c_int64),
    ]


class Call(Structure):
    _fields_ = [("family", c_void_p), ("isa", c_int), ("settings", Settings), ("scale", c_double)]
    _fields_ += [
        ("special", c_int),
        ("coded", c_int),
        ("blockwise", c_int),
        ("number", c_int64),
        ("slots", POINTER(Slot)),
        ("tasks", POINTER(Task)),
    ]
    _fields_ += [
        ("rows", c_void_p),
        ("count", c_int64),
        ("wraps", c_void_p),
        ("coefficients", c_void_p),
        ("squares", POINTER(Task)),
    ]
    _fields_ += [("sums", POINTER(c_double)), ("scales", POINTER(c_double))]


for name, result, arguments in (
    ("fa_ranges_sort", POINTER(Range), [POINTER(Range), POINTER(Range), c_int64]),
    ("fa_ranges_find", POINTER(Range), [POINTER(Range), c_int64, c_size_t, c_size_t, POINTER(c_int64)]),
    ("fa_blocks_of_call", c_int64, [POINTER(Call)]),
    ("fa_sum_squares", None, [POINTER(Call), c_int]),
    ("fa_add_squares", c_double, [POINTER(Call)]),
    ("fa_find_anomaly", c_int, [POINTER(Call), c_double, c_double, POINTER(c_int64)]),
):
    function = getattr(csrc, name)
    function.restype, function.argtypes = result, arguments


def as_ranges(pairs):
    return (Range * len(pairs))(*(Range(begin, end, i, 0) for i, (begin, end) in enumerate(pairs)))


def test_ranges_that_overlap_are_found_whatever_their_order():
    rng = np.random.default_rng(0)
    for i in range(300):
        begins = rng.integers(1000, 1060, rng.integers(1, 7)) if i % 2 else rng.permutation(16)[: i % 17] * 12
        pairs = [(int(b), int(b) + int(n)) for b, n in zip(begins, rng.integers(1, 12, len(begins)), strict=True)]
        overlap = any(a < d and c < b for i, (a, b) in enumerate(pairs) for c, d in pairs[:i])
        ranges = as_ranges(pairs)
        found = csrc.fa_ranges_sort(ranges, as_ranges(pairs), len(ranges))
        assert bool(found) == overlap
        if overlap:
            assert found[0].begin <= found[1].begin < found[0].end
            assert (found[0].begin, found[0].end) == pairs[found[0].slot]
        else:
            assert [r.begin for r in ranges] == sorted(begins)


def test_the_first_range_that_is_touched_is_found():
    ranges = as_ranges([(10, 20), (20, 30), (40, 41)])
    assert not csrc.fa_ranges_sort(ranges, as_ranges([(0, 0)] * 3), 3)
    for begin in range(5, 45):
        for end in range(begin, 45):
            touched = [r.slot for r in ranges if r.begin < end and begin < r.end]
            expected = touched[0] if touched and begin < end else None
            for near in map(c_int64, range(4)):  # wherever it looks first
                found = csrc.fa_ranges_find(ranges, 3, begin, end, near)
                assert (found[0].slot if found else None) == expected
                assert near.value == sum(r.end <= begin for r in ranges)
    assert not csrc.fa_ranges_find(ranges, 0, 0, 100, c_int64(0))


def as_call(grads, steps):
    """Of float32 and float64 gradients, of which those that take steps count. The arrays must be kept."""
    count = len(grads)
    slots, tasks, records = (Slot * count)(), (Task * count)(), (Record * count)()
    for i, (grad, takes_step) in enumerate(zip(grads, steps, strict=True)):
        slots[i] = Slot(
            None,
            grad.size,
            1,
            grad.size,
            None,
            0,
            0,
            int(grad.dtype == np.float64),
            None,
            pointer(records[i]),
            1,
            takes_step,
        )
        tasks[i].n = grad.size
        tasks[i].array[1] = grad.ctypes.data
    blocks = sum(-(-grad.size // 4096) for grad in grads)
    call = Call(isa=0, scale=1.0, slots=slots, tasks=tasks, count=count)
    call.squares, call.sums = (Task * count)(), (c_double * (blocks + 1))(*[math.nan] * (blocks + 1))
    assert csrc.fa_blocks_of_call(call) == blocks
    return call


@pytest.fixture
def grads():
    rng = np.random.default_rng(1)
    sizes = [0, 1, 15, 4096, 4097, 40000]
    return [rng.standard_normal(n).astype(dtype) for n in sizes for dtype in (np.float32, np.float64)]


@pytest.mark.parametrize("threads", [1, 3])
def test_norm_is_that_of_the_twin_and_writes_no_sum_too_many(grads, threads):
    call = as_call(grads, [True] * len(grads))
    csrc.fa_sum_squares(call, threads)
    assert math.sqrt(csrc.fa_add_squares(call)) == reference.grad_norm(grads)
    assert math.isnan(call.sums[csrc.fa_blocks_of_call(call)])


def test_gradients_that_only_join_a_sum_do_not_count_in_the_norm():
    grads = [np.full(5000, value) for value in (1.0, 2.0, 3.0, 4.0)]
    call = as_call(grads, [False, True, True, False])
    for i in range(4):  # what such a gradient is multiplied by
        call.tasks[i].wrap = ctypes.addressof(wrap)
    csrc.fa_sum_squares(call, 1)
    assert math.sqrt(csrc.fa_add_squares(call)) == reference.grad_norm(grads[1:3])


wrap = (c_double * 5)(1.0, 1.0, math.inf, 1.0, 0.0)  # fa_wrap: s, mean, limit, decay, rest
FINITE, NONFINITE, OVERFLOWS, NORM_OVERFLOWS = range(4)


@pytest.mark.parametrize(
    ("place", "value", "scale", "expected"),
    [
        (7, math.nan, 1.0, NONFINITE),
        (9, -math.inf, 1.0, NONFINITE),
        (11, 1e300, 1e10, OVERFLOWS),
        (11, 1e300, 1.0, FINITE),
    ],
)
def test_the_gradient_that_is_not_finite_is_named(grads, place, value, scale, expected):
    call = as_call(grads, [True] * len(grads))
    if expected == FINITE:
        grads[place][0] = value
    else:
        grads[place][-1] = value
    csrc.fa_sum_squares(call, 1)
    which = c_int64(-1)
    assert csrc.fa_find_anomaly(call, 0.0, scale, which) == expected
    assert expected == FINITE or which.value == place


def test_the_largest_gradient_is_to_blame_for_an_infinite_norm():
    grads = [np.full(1, x) for x in (1.0, 1.2e154, -1.3e154, 1.1e154)]  # squares that are finite, but not their sum
    call = as_call(grads, [True] * 4)
    csrc.fa_sum_squares(call, 1)
    which = c_int64(-1)
    assert csrc.fa_add_squares(call) == math.inf
    assert csrc.fa_find_anomaly(call, math.inf, 1.0, which) == NORM_OVERFLOWS
    assert which.value == 2
