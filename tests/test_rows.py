"""Rows of tables: the bits of a dense step, and of the twin; what is refused; what hostile callers can do."""

import collections
import copy
import inspect
import itertools
import math
import pickle
import threading
import tracemalloc

import numpy as np
import pytest
from allpairspy import AllPairs
from helpers import DTYPES, ISAS, assert_same_bits, run_python, snapshot, tame, unchanged, wild
from test_family import OPTIONS, Twin

import fastadam
from fastadam import Rows, _core, reference

pytestmark = pytest.mark.usefixtures("restore_isa")

FAMILY = {  # every optimizer, with what makes other loops
    **OPTIONS,
    "Adam": [{}, {"amsgrad": True}, {"weight_decay": 0.1}],
    "AdamW": [{}, {"amsgrad": True}],
}
CASES = [(name, options) for name, several in FAMILY.items() for options in several]
SHAPES = [(40,), (40, 1), (40, 2), (40, 3), (33, 2, 5), (21, 64), (9, 100), (3, 5000), (5, 0), (0, 4), (0,), (1, 7)]
INTEGERS = [np.int32, np.int64, np.longlong]


def numbers(rng, make, shape, dtype):
    return make(rng, math.prod(shape), dtype).reshape(shape)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_all_rows_once_are_the_dense_step(name, options):
    rng = np.random.default_rng(0)
    for shape, dtype, isa, integer, threads, clip in AllPairs(
        [SHAPES, DTYPES, ISAS, INTEGERS, [1, 2, 3, 8], [None, 0.5]]
    ):
        _core.select_isa(isa)
        dense = numbers(rng, tame, shape, dtype)
        by_rows = dense.copy()
        hyper = {"lr": 0.01, "weight_decay": 0.1, "max_value": clip, **options}
        opt = getattr(fastadam, name)(dense, **hyper)
        new = getattr(fastadam, name)(by_rows, threads=threads, **hyper)
        for _ in range(3):
            grad = numbers(rng, wild, shape, dtype)
            rows = rng.permutation(len(grad)).astype(integer)
            opt.step(grad, grad_scale=0.7)
            new.step(Rows(rows, grad[rows]), grad_scale=0.7)
        what = f"{name} {options} {shape} {dtype} {isa} {threads}"
        assert_same_bits(by_rows, dense, what)
        for (key, ours), theirs in zip(new.state[0].items(), opt.state[0].values(), strict=True):
            assert_same_bits(np.asarray(ours), np.asarray(theirs), f"{key} {what}")


class TableTwin(Twin):
    """A twin that steps on rows: the reference on copies of these."""

    def __init__(self, opt, param):
        super().__init__(
            opt if type(opt) is not fastadam.AdamW else fastadam.Adam(param.copy(), amsgrad=opt.amsgrad), param
        )

    def step_rows(self, rows, grads, hyper, grad_scale, max_value=None):
        distinct, total = reference.sum_rows(rows, grads, self.param.dtype)
        if max_value is not None:
            total = reference.gradient([total], [grad_scale], self.param.dtype, max_value)
            grad_scale = 1.0
        arrays = {name: value for name, value in self.state.items() if isinstance(value, np.ndarray)}
        whole, self.param, self.state = self.param, self.param[distinct], {**self.state}
        self.state |= {name: value[distinct] for name, value in arrays.items()}
        self.step(total, hyper, grad_scale)
        whole[distinct] = self.param
        for name, array in arrays.items():
            array[distinct] = self.state[name]
        self.param, self.state = whole, {**self.state, **arrays}


@pytest.mark.parametrize(("name", "options"), CASES)
def test_some_rows_are_those_of_the_twin(name, options):
    """Repeated, none, some; between dense steps; numbers of every size."""
    for shape, dtype, isa, make, threads, clip in AllPairs(
        [[s for s in SHAPES if s[0]], DTYPES, ISAS, [tame, wild], [None, 1, 2, 8], [None, 0.5]]
    ):
        _core.select_isa(isa)
        rng = np.random.default_rng(len(shape) + shape[0])
        param = numbers(rng, make, shape, dtype)
        hyper = {"lr": 0.01, "maximize": True, **options}
        opt = getattr(fastadam, name)(param, threads=threads, max_value=clip, **hyper)
        twin = TableTwin(opt, param)
        if name == "AdamW":
            hyper = {"weight_decay": 0.01, "decoupled_weight_decay": True, **hyper}
        for given in (7, 0, 3 * shape[0], 1):
            rows = rng.integers(0, shape[0], given)
            grads = numbers(rng, make, (given, *shape[1:]), dtype)
            opt.step_rows(0, rows, grads, grad_scale=0.7)
            twin.step_rows(rows, grads, hyper, 0.7, clip)
        twin.assert_equals(opt, param, f"{name} {options} {shape} {dtype} {isa} {make.__name__} {threads} {clip}")


def test_order_of_distinct_rows_and_the_kind_of_integer_do_not_matter():
    rng = np.random.default_rng(0)
    results = []
    for integer, order in itertools.product(INTEGERS, range(3)):
        table = np.random.default_rng(1).standard_normal((5000, 17), np.float32)
        opt = fastadam.Adam(table)
        for step in range(3):
            rows = np.random.default_rng(step).choice(5000, 3000, replace=False)
            grads = np.random.default_rng(step).standard_normal((3000, 17), np.float32)
            permuted = [np.arange(3000), np.argsort(rows), rng.permutation(3000)][order]
            opt.step_rows(0, rows[permuted].astype(integer), grads[permuted])
        results.append((table.tobytes(), opt.state[0]["exp_avg_sq"].tobytes()))
    assert len(set(results)) == 1


def test_rows_that_do_not_appear_keep_every_bit():
    table = np.random.default_rng(0).standard_normal((1000, 9))
    opt = fastadam.AdamW(table, lr=0.1, weight_decay=0.5)
    opt.step(table * 1.5)
    before = copy.deepcopy([table, *(opt.state[0][name] for name in ("exp_avg", "exp_avg_sq"))])
    rows = np.array([999, 3, 3, 500])
    opt.step_rows(0, rows, np.ones((4, 9)))
    after = [table, *(opt.state[0][name] for name in ("exp_avg", "exp_avg_sq"))]
    others = np.setdiff1d(np.arange(1000), rows)
    for old, new in zip(before, after, strict=True):
        assert_same_bits(old[others], new[others])
        assert (old[rows] != new[rows]).all()
    assert opt.state[0]["step"] == 2


def test_negative_zeros_sum_to_negative_zero():
    rows, grads, table = np.array([0, 0]), np.full((2, 3), -0.0), np.full((1, 3), -0.0)
    assert np.signbit(reference.sum_rows(rows, grads, float)[1]).all()
    fastadam.SGD(table, lr=1.0).step(Rows(rows, grads))  # -0 - 0 would stay as it is
    assert not np.signbit(table).any()


@pytest.mark.parametrize("name", ["NAdam", "Adam"])
def test_empty_rows_only_count(name):
    table = np.ones((4, 2))
    opt = getattr(fastadam, name)(table)
    opt.step_rows(0, np.array([1]), np.ones((1, 2)))
    before, product = snapshot(opt), opt.state[0].get("mu_product")
    opt.step_rows(0, np.zeros(0, np.int64), np.ones((0, 2)))
    assert opt.state[0]["step"] == 2 and (name == "Adam" or opt.state[0]["mu_product"] < product)
    assert snapshot(opt)[1:] == before[1:]


def test_tables_and_arrays_go_together_in_one_call():
    rng = np.random.default_rng(0)
    shapes = {"user": (300, 16), "bias": (16,), "item": (500, 3), "still": (7,), "W": (16, 16)}
    params = {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}
    alone = copy.deepcopy(params)
    for threads in 1, 2, 5:
        opt = fastadam.NAdam(params, lr=0.1, threads=threads)
        twins = fastadam.NAdam(alone, lr=0.1)
        for _ in range(3):
            user, item = rng.integers(0, 300, 40), rng.integers(0, 500, 700).astype(np.int32)
            grads = {"bias": rng.standard_normal(16, np.float32), "W": rng.standard_normal((16, 16), np.float32)}
            grads |= {"user": Rows(user, rng.standard_normal((40, 16), np.float32)), "still": None}
            grads |= {"item": Rows(item, rng.standard_normal((700, 3), np.float32))}
            opt.step(grads)
            for key in "user", "item":
                twins.step_rows(key, grads[key].rows, grads[key].grads)
            for key in "bias", "W":
                twins.step_one(key, grads[key])
        assert snapshot(opt) == snapshot(twins)


# ---- clipping, and what is not finite


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("width", [1, 3, 64, 5000])
def test_the_norm_is_that_of_the_summed_rows(dtype, threads, width):
    rng = np.random.default_rng(0)
    table, dense = numbers(rng, tame, (50, width), dtype), numbers(rng, tame, (5000,), dtype)
    alone = [table.copy(), dense.copy()]
    opt = fastadam.Adam([table, dense], max_norm=0.5, threads=threads)
    plain = fastadam.Adam(alone)
    for given in 30, 0, 100:
        rows = rng.integers(0, 50, given)
        grads, grad = numbers(rng, tame, (given, width), dtype), numbers(rng, tame, (5000,), dtype)
        opt.step([Rows(rows, grads), grad], grad_scale=0.7)
        _, total = reference.sum_rows(rows, grads, dtype)
        norm = reference.grad_norm([*total, grad], 0.7)
        assert opt.grad_norm == norm
        plain.step([Rows(rows, grads), grad], grad_scale=0.7 * min(1.0, 0.5 / (norm + 1e-6)))
        assert_same_bits(table, alone[0])
        assert_same_bits(dense, alone[1])
    with unchanged(opt), pytest.raises(ValueError, match="max_norm needs the gradients of all parameters at once"):
        opt.step_rows(0, np.array([1]), np.ones((1, width), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 3, 64, 5000])
def test_each_table_is_clipped_by_the_norm_of_its_summed_rows(dtype, width):
    rng = np.random.default_rng(0)
    table, dense = numbers(rng, tame, (50, width), dtype), numbers(rng, tame, (5000,), dtype)
    alone = [table.copy(), dense.copy()]
    opt, plain = fastadam.Adam([table, dense], max_norm_each=0.5, threads=2), fastadam.Adam(alone)
    for given in 30, 0, 100:
        rows = rng.integers(0, 50, given)
        grads, grad = numbers(rng, tame, (given, width), dtype), numbers(rng, tame, (5000,), dtype)
        totals = list(reference.sum_rows(rows, grads, dtype)[1])
        opt.step([Rows(rows, grads), grad], grad_scale=0.7)
        assert opt.grad_norm == reference.grad_norm([*totals, grad], 0.7)
        opt.step_rows(0, rows, grads, grad_scale=-0.7)
        assert opt.grad_norm == reference.grad_norm(totals, 0.7)
        plain.step_rows(0, rows, grads, grad_scale=reference.clip_scale(totals, 0.5, 0.7))
        plain.step_rows(0, rows, grads, grad_scale=reference.clip_scale(totals, 0.5, -0.7))
        plain.step_one(1, grad, grad_scale=reference.clip_scale([grad], 0.5, 0.7))
        assert_same_bits(table, alone[0])
        assert_same_bits(dense, alone[1])


@pytest.mark.parametrize("options", [{}, {"max_value": 0.5}, {"max_norm": 0.5}, {"max_norm_each": 0.5}])
@pytest.mark.parametrize("width", [1, 7, 9000])
@pytest.mark.parametrize("bad", ["nan", "sum"])
def test_the_sum_that_is_not_finite_is_found(options, width, bad):
    table = np.ones((20, width), np.float32)
    opt = fastadam.Adam([np.ones(3), table], nonfinite="raise", **options)
    rows, grads = np.array([3, 7, 3, 5]), np.ones((4, width), np.float32)
    if bad == "nan":
        grads[2, -1] = np.nan
    else:
        grads[[0, 2], -1] = 3e38
    with unchanged(opt), pytest.raises(FloatingPointError, match=r"the gradient of parameter 1 .*nothing has changed"):
        opt.step([np.ones(3), Rows(rows, grads)])
    opt.nonfinite = "skip"
    with unchanged(opt):
        opt.step([np.ones(3), Rows(rows, grads)])
    assert opt.skipped_steps == 1
    grads[...] = 1
    opt.step([np.ones(3), Rows(rows, grads)])
    assert opt.state[1]["step"] == 1


# ---- around it


def test_schedules_take_the_largest_counter_in_step_and_the_tables_own_in_step_rows():
    seen = []
    opt = fastadam.SGD([np.ones((4, 2)), np.ones(2)], lr=lambda count: seen.append(count) or 0.1)
    some = Rows(np.array([0, 2]), np.ones((2, 2)))
    opt.step([None, np.ones(2)])
    opt.step([some, np.ones(2)])
    opt.step_rows(0, some.rows, some.grads)
    opt.step_one(0, some)
    opt.step([some, None])
    assert seen == [0, 1, 1, 2, 3]
    assert [opt.state[i]["step"] for i in (0, 1)] == [4, 2]


def test_groups_and_overrides_apply_to_tables():
    params = {"a.table": np.ones((4, 2)), "b.table": np.ones((4, 2))}
    opt = fastadam.SGD(params, lr=0.5, overrides={"b.*": {"lr": 0.25}})
    rows = Rows(np.array([1]), np.ones((1, 2)))
    opt.step({"a.table": rows, "b.table": rows})
    assert params["a.table"][1, 0] == 0.5 and params["b.table"][1, 0] == 0.75


@pytest.mark.parametrize("name", ["Adam", "RowAdagrad"])
def test_every_way_to_keep_the_state_goes_on_with_the_same_bits(name, tmp_path):
    def batch(step):
        rng = np.random.default_rng(step)
        return rng.integers(0, 700, 90), rng.standard_normal((90, 40), np.float32)

    def make(**options):
        table = np.random.default_rng(0).standard_normal((700, 40), np.float32)
        return fastadam.__dict__[name]({"table": table}, lr=0.1, **options)

    opt = make()
    for step in range(3):
        opt.step_rows("table", *batch(step))
    opt.save(tmp_path / "checkpoint.safetensors")
    opt.save(tmp_path / "checkpoint.npz")
    state, pickled, copied = copy.deepcopy(opt.state_dict()), pickle.dumps(opt), copy.deepcopy(opt)
    (start,) = copied.param_groups[0]["params"]
    others = [copied, pickle.loads(pickled)]
    for how in "state_dict", "safetensors", "npz", "state_file":
        new = make(state_file=tmp_path / "state" if how == "state_file" else None)
        if how == "state_file":
            for step in range(3):
                new.step_rows("table", *batch(step))
            (table,) = new.param_groups[0]["params"]
            del new
            new = fastadam.__dict__[name]({"table": table}, lr=0.1, state_file=tmp_path / "state")
        elif how == "state_dict":
            new.load_state_dict(state)
        else:
            new.load(tmp_path / f"checkpoint.{how}")
        new.param_groups[0]["params"][0][...] = start
        others.append(new)
    for step in range(3, 6):
        for each in [opt, *others]:
            each.step_rows("table", *batch(step))
    for each in others:
        assert snapshot(each) == snapshot(opt)
    with pytest.raises(ValueError, match="shape"):
        broken = copy.deepcopy(state)
        entry = broken["state"][0]
        last = list(entry)[-1]
        entry[last] = entry[last][:-1]
        make().load_state_dict(broken)


def test_a_loaded_row_optimizer_starts_fresh_where_nothing_was_saved():
    opt = fastadam.RowAdagrad(np.ones((5, 3)), initial_accumulator_value=0.25)
    opt.step(np.ones((5, 3)))
    opt.load_state_dict({"state": {}, "param_groups": opt.state_dict()["param_groups"]})
    assert opt.state[0]["sum"].tolist() == [0.25] * 5 and opt.state[0]["step"] == 0


@pytest.mark.parametrize("dtype", [np.float64, np.longdouble, ">f4", ">f2"])
def test_gradients_of_other_types_are_rounded_and_then_summed(dtype):
    rng = np.random.default_rng(0)
    table = np.ones((30, 4), np.float32)
    twin = table.copy()
    opt, other = fastadam.SGD(table, lr=0.1), fastadam.SGD(twin, lr=0.1)
    rows, grads = rng.integers(0, 30, 50), rng.standard_normal((50, 4)).astype(dtype)
    with pytest.warns(fastadam.PerformanceWarning, match="gradient of parameter 0 is copied"):
        opt.step_rows(0, rows, grads)
    other.step_rows(0, rows, grads.astype(np.float32))
    opt.step_rows(0, rows, grads)  # it warns once
    other.step_rows(0, rows, grads.astype(np.float32))
    assert_same_bits(table, twin)


@pytest.mark.filterwarnings("ignore::fastadam.PerformanceWarning")
def test_rows_and_gradients_may_lie_in_any_way():
    rng = np.random.default_rng(0)
    rows, grads = rng.integers(0, 30, 50), rng.standard_normal((50, 4, 3))
    table = np.ones((30, 4, 3))
    fastadam.SGD(table).step(Rows(rows, grads))
    misaligned = np.zeros(50 * 8 + 1, np.uint8)[1:].view(np.int64)
    misaligned[...] = rows
    lists = [np.repeat(rows, 2)[::2], misaligned, rows[::-1][::-1], rows.view(type("Sub", (np.ndarray,), {}))]
    for which, given in itertools.product(lists, [grads, np.asfortranarray(grads), np.repeat(grads, 2, axis=0)[::2]]):
        twin = np.ones((30, 4, 3))
        fastadam.SGD(twin).step(Rows(which, given))
        assert_same_bits(table, twin)


def test_what_is_given_is_only_read():
    rows, grads = np.array([3, 0, 3]), np.ones((3, 2))
    rows.flags.writeable = grads.flags.writeable = False
    pair = Rows(rows, grads)
    assert pair.rows is rows and pair.grads is grads and repr(pair).startswith("Rows(array([3, 0, 3])")
    fastadam.Adam(np.ones((5, 2))).step(pair)
    with pytest.raises(AttributeError):
        pair.rows = grads


# ---- what is refused

ONES = np.ones((2, 3))
BAD = [  # rows, gradients, error
    ([0, 1], ONES, TypeError, "rows of the gradient of parameter 'E' must be a numpy.ndarray, got a list"),
    (np.array([0, 1]), [[1.0] * 3] * 2, TypeError, "gradient of parameter 'E' must be a numpy.ndarray, got a list"),
    ([], ONES[:0], TypeError, r"got a list; use np.asarray\(x, np.int64\)"),
    (
        np.ma.array([0, 1], mask=[0, 1]),
        ONES,
        TypeError,
        r"got a masked array; use rows.compressed\(\) and grads\[~rows.mask\]",
    ),
    (np.array([0.0, 1.0]), ONES, TypeError, r"in native byte order, got float64; use .astype\(np.int64\)"),
    (ONES, np.array([0, 1]), TypeError, "got float64; give rows first, then gradients"),
    (np.array([True, False]), ONES, TypeError, "got bool; use np.flatnonzero"),
    (np.array([0, 1], np.uint64), ONES, TypeError, r"use .astype\(np.int64\)"),
    (np.array([0, 1], np.int16), ONES, TypeError, r"use .astype\(np.int64\)"),
    (np.array([0, 1], ">i8"), ONES, TypeError, "native byte order"),
    (np.array([[0, 1]]), ONES, ValueError, r"must have one axis, got the shape \(1, 2\); use .reshape\(-1\)"),
    (np.array(1), ONES[0], ValueError, "must have one axis"),
    (np.array([0]), ONES, ValueError, r"must have the shape \(1, 3\), for 1 rows, got \(2, 3\)"),
    (np.array([0, 1]), np.ones((2, 4)), ValueError, r"\(2, 3\), for 2 rows, got \(2, 4\)"),
    (np.array([0, 1]), np.ones(2), ValueError, r"\(2, 3\), for 2 rows, got \(2,\)"),
    (np.array([0, 1]), np.ones((2, 3), int), TypeError, "float32, float64 or longdouble, got int64"),
    (np.array([0, 5]), ONES, IndexError, r"rows\[1\] of the gradient of parameter 'E' is 5; its rows are 0 to 4$"),
    (np.array([4, -1]), ONES, IndexError, r"rows\[1\] .* is -1; .*negative ones do not count from the end"),
    (np.array([2**40, 9]), ONES, IndexError, rf"rows\[0\] .* is {2**40}"),
    (np.array([-(2**63), 9]), ONES, IndexError, rf"rows\[0\] .* is {-(2**63)}"),
    (np.array([0, 2**31 - 1], np.int32), ONES, IndexError, rf"rows\[1\] .* is {2**31 - 1}"),
]


@pytest.mark.parametrize(("rows", "grads", "error", "words"), BAD)
def test_bad_rows_are_refused_and_nothing_changes(rows, grads, error, words):
    opt = fastadam.NAdam({"b": np.ones(2), "E": np.ones((5, 3))})
    opt.step({"b": np.ones(2), "E": Rows(np.array([3]), ONES[:1])})
    with unchanged(opt), pytest.raises(error, match=words):
        opt.step({"b": np.ones(2), "E": Rows(rows, grads)})
    with unchanged(opt), pytest.raises(error, match=words):
        opt.step_rows("E", rows, grads)


def test_who_forgets_rows_is_told_of_them():
    opt, some = fastadam.Adam(np.ones((5, 3))), Rows(np.array([0]), ONES[:1])
    assert list(inspect.signature(Rows).parameters) == ["rows", "grads"]
    with (
        unchanged(opt),
        pytest.raises(ValueError, match=r"got \(2, 3\); if it is that of some rows, give fastadam.Rows\(rows"),
    ):
        opt.step(ONES)
    with pytest.raises(TypeError, match="got a Rows; give it to step of an optimizer"):
        fastadam.adam_update(np.ones((5, 3)), some, np.ones((5, 3)), np.ones((5, 3)), 1)


def test_parameters_without_rows_are_refused():
    one, columns = np.array(1.0), np.asfortranarray(np.ones((3, 4)))
    opt = fastadam.Adam([one, columns])
    for i, words in enumerate([r"parameter 0 has no rows .*use .reshape\(1\)", "parameter 1 must be C-contiguous"]):
        with unchanged(opt), pytest.raises(ValueError, match=words):
            opt.step_rows(i, np.array([0]), np.ones((1, 4)))
        with pytest.raises(ValueError, match=words):
            fastadam.RowAdagrad([np.ones(2)] * (i - 1) + [np.ones(1)] * i + [[one, columns][i]])
    with pytest.raises(KeyError, match="no parameter 'E'"):
        opt.step_rows("E", np.array([0]), np.ones((1, 4)))
    with pytest.raises(TypeError, match="must be a sequence"):
        opt.step(Rows(np.array([0]), np.ones((1, 4))))


@pytest.mark.parametrize(("options", "word"), [({"accumulate": 2}, "accumulate"), ({"ema_decay": 0.9}, "ema_decay")])
def test_options_that_need_whole_arrays_are_refused_and_the_way_out_works(options, word):
    opt = fastadam.Adam([np.ones((5, 3)), np.ones(2)], **options)
    with unchanged(opt), pytest.raises(ValueError, match=rf"^{word} .*got Rows"):
        opt.step([Rows(np.array([0]), ONES[:1]), np.ones(2)])
    with unchanged(opt), pytest.raises(ValueError, match=rf"^{word} .*got Rows"):
        opt.step_rows(0, np.array([0]), ONES[:1])
    setattr(opt, word, 1 if word == "accumulate" else None)
    opt.step_rows(0, np.array([0]), ONES[:1])
    assert opt.state[0]["step"] == 1


def test_rows_do_not_step_over_pending_gradients_and_the_way_out_works():
    table = np.zeros((5, 3))
    opt = fastadam.SGD(table, lr=1.0, accumulate=2)
    opt.step(np.ones((5, 3)))
    opt.accumulate = 1
    with unchanged(opt), pytest.raises(ValueError, match="parameter 0 has pending gradients, .*zeros will do"):
        opt.step_rows(0, np.array([1]), ONES[:1])
    opt.step(np.zeros((5, 3)))
    assert (table == -0.5).all()
    opt.step_rows(0, np.array([1]), ONES[:1])
    assert table[:, 0].tolist() == [-0.5, -1.5, -0.5, -0.5, -0.5]


def test_a_table_without_rows_says_so():
    with pytest.raises(IndexError, match=r"rows\[0\] .* is 0; it has no rows$"):
        fastadam.SGD(np.zeros((0, 3))).step_rows(0, np.array([0]), ONES[:1])


def test_memory_that_is_written_is_refused():
    table = np.zeros((8, 4))
    opt = fastadam.Adam(table)
    inside = opt.state[0]["exp_avg"]
    for grads in table[:2], inside[2:4], table[::4]:
        with unchanged(opt), pytest.raises(ValueError, match="overlap in memory"):
            opt.step_rows(0, np.array([0, 1]), grads)
    for rows in table[0].view(np.int64), table.view(np.int32)[1, ::2]:
        with (
            unchanged(opt),
            pytest.raises(ValueError, match="rows of the gradient of parameter 0 and parameter 0 over"),
        ):
            opt.step_rows(0, rows, np.ones((4, 4)))


def test_a_dense_gradient_where_rows_lay_before_is_looked_at_again():
    memory = np.zeros(100)
    table = memory[20:60].reshape(10, 4)
    opt = fastadam.SGD(table)
    opt.step_rows(0, np.array([0]), memory[:4].reshape(1, 4))
    with pytest.raises(ValueError, match="overlap in memory"):
        opt.step(memory[:40].reshape(10, 4))


# ---- threads, memory, hostile callers


@pytest.mark.parametrize("width", [1, 64, 3000])
def test_threads_used_follow_the_rows_that_are_touched(width):
    table = np.ones((4000, width), np.float32)
    opt = fastadam.SGD(table, threads=3)
    opt.step_rows(0, np.array([5, 5]), np.ones((2, width), np.float32))
    assert opt.threads_used == (min(3, math.ceil(width / 16)) if fastadam.config()["openmp"] else 1)
    opt.threads = None
    opt.step_rows(0, np.array([5, 5]), np.ones((2, width), np.float32))
    assert opt.threads_used == 1


@pytest.mark.parametrize(
    "rows", [np.arange(100_000)[::-1].copy(), np.zeros(100_000, np.int32)], ids=["distinct", "one"]
)
@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}])
def test_a_step_needs_at_most_32_bytes_for_each_row(rows, options):
    table, grads = np.ones((100_000, 2), np.float32), np.ones((100_000, 2), np.float32)
    opt = fastadam.Adam(table, **options)
    opt.step(np.ones_like(table))
    tracemalloc.start()
    try:
        opt.step(Rows(rows, grads))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 16 <= peak / len(rows) <= 32


def test_more_rows_than_at_any_step_before():
    table = np.zeros(1_000_000)
    opt = fastadam.SGD(table, lr=1.0)
    for given in 1, 1000, 1_000_000:
        opt.step_rows(0, np.arange(given)[::-1].copy(), np.ones(given))
    assert table[0] == -3 and (table[1:1000] == -2).all() and (table[1000:] == -1).all()


def test_rows_that_another_thread_changes_are_read_once():
    """What was checked is what is used, so no other memory is touched: canaries lie on both sides.

    What each step meets depends on the scheduler, so nothing is asserted of it."""
    given = 1 << 20
    memory = np.zeros(3 << 20, np.float32)
    opt = fastadam.SGD(memory[1 << 20 : 2 << 20], lr=1.0)
    good, bad = np.arange(given)[::-1].copy(), np.arange(given) + (3 << 18)
    rows, grads, done = good.copy(), np.ones(given, np.float32), threading.Event()

    def change():
        for values in itertools.cycle([bad, good, good, good]):  # good for longer, so that steps begin with them
            np.copyto(rows, values)  # without the GIL
            if done.is_set():
                return

    thread = threading.Thread(target=change)
    thread.start()
    outcomes = collections.Counter()
    try:
        for _ in range(1000):
            try:
                opt.step_rows(0, rows, grads)
                outcomes["stepped"] += 1
            except IndexError:
                outcomes["refused"] += 1
            if outcomes["stepped"] >= 25 and outcomes["refused"] >= 10:
                break
    finally:
        done.set()
        thread.join()
    assert not memory[: 1 << 20].any() and not memory[2 << 20 :].any()


def test_rows_cannot_be_changed_while_a_step_reads_them():
    rows, grads = np.array([3]), np.ones((1, 2))
    pair = Rows(rows, grads)
    pair.__init__(np.array([4]), grads)
    assert pair.rows is rows and not hasattr(pair, "__setstate_cython__")
    copied = pickle.loads(pickle.dumps(pair))
    assert copied.rows == rows and (copied.grads == grads).all()


def test_tables_of_shapes_that_wrap_are_fine():
    for shape in (2**40, 0), (0, 2**40), (3, 0, 2**40), (2**40, 3, 0):
        table = np.zeros(shape, np.float32)
        for name in ("Adam", "RowAdagrad")[: 2 if shape[0] < 2**40 else 1]:  # which would keep 2**40 numbers
            opt = getattr(fastadam, name)(table, max_norm=1.0, nonfinite="raise")
            last = max(shape[0] - 1, 0)
            rows = np.array([last, 0, last][: 3 if shape[0] else 0], np.int64)
            opt.step(Rows(rows, np.zeros((len(rows), *shape[1:]), np.float32)))
            if math.prod(shape[1:]) == 0:  # else one row is too large
                with unchanged(opt), pytest.raises(IndexError):
                    opt.step(Rows(np.array([shape[0]]), np.zeros((1, *shape[1:]), np.float32)))
            assert opt.state[0]["step"] == 1


HUGE = """
import ctypes, numpy as np, fastadam
from fastadam import Rows
libc = ctypes.CDLL(None)
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 4)

def mapped(count, dtype):  # memory that is there once it is touched
    start = libc.mmap(None, count * np.dtype(dtype).itemsize, 3, 0x2 | 0x20 | 0x4000, -1, 0)
    return np.frombuffer((ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(start), dtype)

height = 2**36 + 5
table = mapped(height, np.float32)
opt = fastadam.SGD(table, lr=1.0)
rows = np.array([height - 1, 2**32, 0, 2**35 + 1, height - 1, 2**32 + 1, 2**31, 1])
opt.step_rows(0, rows, np.ones(8, np.float32))
assert table[rows].tolist() == [-2, -1, -1, -1, -2, -1, -1, -1], table[rows]
assert table[2**32 - 1] == table[2**35] == 0
for bad in height, 2**36 + 2**32, -1:
    try:
        opt.step_rows(0, np.array([0, bad]), np.ones(2, np.float32))
    except IndexError as error:
        assert str(bad) in str(error)
    else:
        raise AssertionError(bad)
many = mapped(2**28, np.int32)  # zeros: 36 + 1 + 28 bits
try:
    opt.step_rows(0, many, mapped(2**28, np.float32))
except ValueError as error:
    assert "takes at most 2**26 in a step" in str(error), error
else:
    raise AssertionError
"""


def test_tables_of_more_rows_than_fit_into_32_bits():
    run_python(HUGE)
