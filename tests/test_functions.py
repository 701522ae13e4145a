"""The functions: the bits of the twins and of the classes, for one array and for lists, whole and by rows; refusals.

tests/test_adam_update.py has what adam_update refuses of one array."""

import inspect
import itertools
import pydoc
import re
import threading
import warnings

import ml_dtypes
import numpy as np
import pytest
from allpairspy import AllPairs
from helpers import DTYPES, ISAS, assert_same_bits, ones, run_python, tame, wild
from test_family import DECOUPLED, OPTIONS

import fastadam
from fastadam import Rows, _core, reference

pytestmark = pytest.mark.usefixtures("restore_isa")

NAMES = ["Adam", "NAdam", "RAdam", "Adamax", "SGD", "RMSprop", "Adagrad", "RowAdagrad"]
MORE = {**OPTIONS, "Adam": [{}, {"amsgrad": True}, {"eps_hat": True, "eps_root": 1e-12}, {"bias_correction": False}]}
CASES = [(name, each) for name in NAMES for each in MORE[name] if not any(map(callable, each.values()))]
SHAPES = [(7,), (0,), (3, 5), (130,), (2, 3, 4), (17, 1), (1,)]


def function_of(name, module=fastadam):
    return getattr(module, f"{name.lower()}_update")


class Arrays:
    """Arrays with their state, as lists, and copies of them."""

    def __init__(self, name, options, shapes=SHAPES, dtype=np.float32, make=tame):
        rng = np.random.default_rng(len(shapes))
        shapes = [shape for shape in shapes if shape or name != "RowAdagrad"]
        self.name, self.options, self.dtype, self.rng, self.make = name, dict(options), dtype, rng, make
        self.params = [np.asarray(tame(rng, int(np.prod(shape)), dtype).reshape(shape)) for shape in shapes]
        entries = [getattr(fastadam, name)(param, **options).state[0] for param in self.params]
        self.state = {key: [entry[key] for entry in entries] for key in entries[0] if key != "step"}
        self.copies = [param.copy() for param in self.params]
        self.state_copies = {
            key: [np.copy(x) if isinstance(x, np.ndarray) else x for x in column] for key, column in self.state.items()
        }

    def grads(self):
        return [np.asarray(self.make(self.rng, p.size, self.dtype).reshape(p.shape)) for p in self.params]

    def step(self, grads, step, as_kind=list, **more):
        """By one call."""
        state = {key: as_kind(column) for key, column in self.state.items()}
        update, lists = function_of(self.name), (as_kind(self.params), as_kind(grads))
        product = update(*lists, step=step, **state, **self.options, **more)
        assert (product is not None) == (self.name == "NAdam")
        if product is not None:
            self.state["mu_product"] = product

    def step_copies(self, module, grads, steps, **more):
        """One by one, by the twin, or by the function."""
        for i, (grad, step) in enumerate(zip(grads, steps, strict=True)):
            state = {key: column[i] for key, column in self.state_copies.items()}
            rows = {} if "rows" not in more else {"rows": more["rows"][i]}
            update = function_of(self.name, module)
            product = update(self.copies[i], grad, step=step, **state, **self.options, **{**more, **rows})
            if product is not None:
                assert type(product) is float
                self.state_copies["mu_product"][i] = product

    def check(self, what=""):
        for i, (param, copy) in enumerate(zip(self.params, self.copies, strict=True)):
            assert_same_bits(param, copy, f"param[{i}] {what}")
            for key, column in self.state.items():
                assert_same_bits(np.asarray(column[i]), np.asarray(self.state_copies[key][i]), f"{key}[{i}] {what}")


def check_case(name, options, isa, dtype, decay, maximize, make, threads, kind, one_step):
    options = {"lr": 0.01, "maximize": maximize, "weight_decay": 0.0 if decay == "none" else 0.1, **options}
    if name in DECOUPLED | {"Adam"}:
        options["decoupled_weight_decay"] = decay == "decoupled"
    many = Arrays(name, options, [(), *SHAPES], dtype, make)
    _core.select_isa(isa)
    for number in 1, 2, 9:
        steps = [number if one_step else number + i for i in range(len(many.params))]
        grads = many.grads()
        many.step(grads, number if one_step else kind(steps), kind, grad_scale=0.7, threads=threads)
        many.step_copies(reference, grads, steps, grad_scale=0.7)
    many.check(f"{name} {options} {isa} {dtype}")


AXES = [ISAS, DTYPES, ["none", "l2", "decoupled"], [False, True], [tame, wild], [None, 1, 2, 3], [list, tuple]]
AXES += [[True, False]]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_lists_are_a_loop_over_the_twin(name, options):
    for axes in list(AllPairs(AXES))[::2]:
        check_case(name, options, *axes)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), CASES)
def test_lists_are_a_loop_over_the_twin_whatever_the_options(name, options):
    for axes in itertools.product(*AXES):
        check_case(name, options, *axes)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_lists_are_a_loop_over_the_function_and_the_class(name, options):
    for dtype in DTYPES:
        many = Arrays(name, options, dtype=dtype)
        arrays = [param.copy() for param in many.params]
        opt = getattr(fastadam, name)(arrays, **options)
        for step in 1, 2, 3:
            grads = many.grads()
            many.step(grads, step)
            many.step_copies(fastadam, grads, [step] * len(grads))
            opt.step(grads)
        many.check(name)
        for i, param in enumerate(many.params):
            assert_same_bits(param, arrays[i])
            for key, column in many.state.items():
                assert_same_bits(np.asarray(column[i]), np.asarray(opt.state[i][key]), key)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_rows_are_those_of_the_class(name, options):
    """Tables whose rows were given beside whole arrays; each table by itself; rows that repeat, and none at all."""
    shapes = [(9, 4), (5,), (6, 3), (8,), (4, 1), (3, 2)]
    for dtype, integer, threads in [(np.float32, np.int64, 1), (np.float64, np.int32, 3)]:
        many = Arrays(name, options, shapes, dtype)
        arrays = [param.copy() for param in many.params]
        opt = getattr(fastadam, name)(arrays, **options)
        for step in 1, 2:
            rows = [np.array(x, integer) for x in ([7, 0, 7], [], [5, 4, 3, 2, 1, 0], [6, 6, 2])] + [None, None]
            grads = many.grads()
            parts = [g if r is None else g[r] for g, r in zip(grads, rows, strict=True)]
            many.step(parts, step, rows=rows, threads=threads)
            many.step_copies(fastadam, parts, [step] * 6, rows=rows)
            opt.step([g if r is None else Rows(r, g) for g, r in zip(parts, rows, strict=True)])
        many.check(name)
        for i, param in enumerate(many.params):
            assert_same_bits(param, arrays[i], f"param[{i}]")
            for key, column in many.state.items():
                assert_same_bits(np.asarray(column[i]), np.asarray(opt.state[i][key]), f"{key}[{i}]")


def test_nothing_of_a_call_is_left_for_the_next():
    """Rules, lengths, rows, formats and failures by turns, in room that is used again."""
    kinds = [
        Arrays(name, options, [(4, 3)] * n)
        for (name, options), n in zip(CASES, itertools.cycle([5, 1, 3]), strict=False)
    ]
    for step in 1, 2:
        for many in [*kinds, *kinds[::-3]]:
            grads, whole = many.grads(), [None] * len(many.params)
            some = [np.array([2, 2, 0]), *whole[1:]]
            for rows in some, whole:
                given = [g if r is None else g[r] for g, r in zip(grads, rows, strict=True)]
                many.step(given, step, rows=rows)
                many.step_copies(fastadam, given, [step] * len(given), rows=rows)
            halves = [grad.astype(np.float16) for grad in grads]
            many.step(halves, step)
            many.step_copies(reference, halves, [step] * len(grads))
            with pytest.raises(ValueError, match="must have the shape of param"):
                many.step([*grads[:-1], ones()], step)
            many.check(many.name)


def test_gradients_of_16_bits_and_those_that_are_converted_may_stand_side_by_side():
    many = Arrays("Adam", {}, [(6,), (6,), (2, 3), (), (6,)])
    grads = many.grads()
    grads[0], grads[1] = grads[0].astype(np.float16), grads[1].astype(ml_dtypes.bfloat16)
    many.step([*grads[:3], np.float32(grads[3]), grads[4]], 1)
    many.step_copies(reference, grads, [1] * 5)
    mixed = [
        grads[0],
        grads[1].astype(np.longdouble),
        np.asfortranarray(grads[2]),
        np.float64(grads[3]),
        grads[4][::-1],
    ]
    with pytest.warns(fastadam.PerformanceWarning) as caught:
        many.step(mixed, 2)
    assert [str(each.message).split(" is ")[0] for each in caught] == [f"grad[{i}]" for i in (1, 2, 3, 4)]
    assert {each.filename for each in caught} == {__file__}
    many.step_copies(reference, mixed, [2] * 5)
    many.check()


def test_state_in_a_subclass_is_updated_where_it_is(tmp_path):
    for many in False, True:
        p, m = ones(), np.memmap(tmp_path / "m", np.float32, "w+", shape=6)
        v, grad = np.zeros(6, np.float32), ones()
        one_or_list = (lambda x: [x]) if many else (lambda x: x)
        fastadam.adam_update(*map(one_or_list, (p, grad, m, v)), 1, lr=0.5)
        assert np.allclose(p, 0.5) and np.allclose(m, 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_is_that_of_the_twin(name):
    ours, twin = (inspect.signature(function_of(name, module)).parameters for module in (fastadam, reference))
    facts = lambda each: [(p.name, p.kind, p.default) for p in each.values() if p.name not in ("rows", "threads")]  # noqa: E731
    assert facts(ours) == facts(twin)
    assert [(p.name, p.default) for p in list(ours.values())[-2:]] == [("rows", None), ("threads", None)]
    text = pydoc.plain(pydoc.render_doc(function_of(name)))
    signature = re.search(rf"{name.lower()}_update\((.*?)\)\n", text, re.DOTALL)[1]  # CPython 3.13 gives each a line
    assert signature.split()[:2] == ["param,", "grad,"] and "**" not in signature


@pytest.mark.parametrize("name", NAMES)
def test_defaults_and_ranges_are_those_of_the_class(name):
    ours = inspect.signature(function_of(name)).parameters
    hypers = getattr(fastadam, name)(ones())._defaults.keys() - {"state_dtype", "master_bits"}
    theirs = inspect.signature(getattr(fastadam, name)).parameters
    assert hypers <= ours.keys()
    needed = [p.name for p in ours.values() if p.default is p.empty]
    arrays = {each: 1 if each in ("step", "mu_product") else ones() for each in needed}
    for key in hypers:
        assert ours[key].default == theirs[key].default
        for bad in "x", None, -1.0, np.nan, lambda count: 0.1:
            refused((TypeError, ValueError), f"^{key}", function_of(name), **arrays, **{key: bad})


class Number(float):
    pass


def test_numbers_may_be_of_any_kind_that_is_a_number():
    ours, theirs = ([ones(), ones(), ones()] for _ in range(2))
    fastadam.nadam_update(
        ours[0], ones(), *ours[1:], np.int8(3), np.float32(0.5), lr=Number(0.5), betas=[0, np.array(0.5)]
    )
    reference.nadam_update(theirs[0], ones(), *theirs[1:], 3, 0.5, lr=0.5, betas=(0, 0.5))
    assert all(map(np.array_equal, ours, theirs))


def lists(**changes):
    """Arguments of nadam_update for two arrays."""
    return {**{name: [ones(), ones()] for name in ("param", "grad", "exp_avg", "exp_avg_sq")}, **changes}


def arrays_in(x):
    if isinstance(x, np.ndarray):
        return [x]
    return [array for each in x for array in arrays_in(each)] if isinstance(x, list | tuple) else []


def refused(error, match, update=fastadam.nadam_update, **arguments):
    """Nothing has changed."""
    if update is fastadam.nadam_update:
        arguments = {"step": 1, "mu_product": 1.0, **arguments}
    arrays = arrays_in(list(arguments.values()))
    before = [array.tobytes() for array in arrays]
    with pytest.raises(error, match=match):
        update(**arguments)
    assert [array.tobytes() for array in arrays] == before


MIXTURES = [
    ({"grad": ones()}, TypeError, "^grad must be a list or a tuple, as param is, got an array of float32, shape"),
    ({"exp_avg": "ab"}, TypeError, "^exp_avg must be a list or a tuple, as param is, got a str"),
    ({"exp_avg_sq": None}, TypeError, "^exp_avg_sq must be a list or a tuple, as param is, got a NoneType"),
    ({"rows": np.array([0])}, TypeError, "^rows must be a list or a tuple, as param is"),
    ({"grad": [ones()]}, ValueError, "^grad must have 2 items, one for each of param, got 1"),
    ({"exp_avg": (ones(),) * 3}, ValueError, "^exp_avg must have 2 items, one for each of param, got 3"),
    ({"rows": [None]}, ValueError, "^rows must have 2 items"),
    ({"step": [1]}, ValueError, "^step must have 2 items"),
    ({"mu_product": [1.0] * 3}, ValueError, "^mu_product must have 2 items"),
    ({"step": [1, 0]}, ValueError, r"^step\[1\] counts from 1"),
    ({"step": [1, 2.0]}, TypeError, r"^step\[1\] must be an integer, got 2.0"),
    ({"step": np.array([1, 2])}, TypeError, "^step must be an integer, got array"),
    ({"step": 2**63}, ValueError, "^step counts from 1 and is less than"),
    ({"mu_product": [0.5, 1.5]}, ValueError, r"^mu_product\[1\] must be from 0 to 1, got 1.5"),
    ({"mu_product": "1"}, TypeError, "^mu_product must be a number, got '1'"),
    ({"mu_product": None}, TypeError, "^mu_product must be a number, got None"),
    ({"param": [[ones()], ones()]}, TypeError, r"^param\[0\] must be .*got a list; give all arrays in one list"),
    ({"exp_avg": [ones(), (ones(),)]}, TypeError, r"^exp_avg\[1\] must be .*got a tuple; give all arrays in one list"),
    ({"grad": [[ones()], ones()]}, TypeError, r"^grad\[0\] must be .*got a list; give all arrays in one list"),
    ({"param": [ones(), 1.5]}, TypeError, r"^param\[1\] must be a numpy.ndarray, got a float"),
    ({"grad": [ones(), None]}, TypeError, r"^grad\[1\] must be a numpy.ndarray, got a NoneType"),
    ({"grad": [ones(), ones(5)]}, ValueError, r"^grad\[1\] must have the shape of param\[1\]"),
    ({"exp_avg": [ones(), ones(5)]}, ValueError, r"^exp_avg\[1\] must have the shape of param\[1\]"),
    ({"exp_avg": [ones(), ones(6, np.float64)]}, TypeError, r"^exp_avg\[1\] must have the dtype of param\[1\]"),
    ({"threads": 0}, ValueError, "^threads must be from 1"),
    ({"grad_scale": np.inf}, ValueError, "^grad_scale must be finite"),
    ({"param": []}, ValueError, "^param is an empty list; leave the call out"),
    ({"param": {"a": ones()}}, TypeError, r"^param must be a numpy.ndarray, got a dict; use list\(x.values\(\)\)"),
    ({"param": iter([ones()])}, TypeError, r"^param must be a numpy.ndarray, got a list_iterator; use list\(x\)"),
    ({"param": "ab"}, TypeError, "^param must be a numpy.ndarray, got a str"),
    (
        {"grad": [Rows(np.array([0]), ones(1)), ones()]},
        TypeError,
        r"^grad\[0\] .*got a Rows; .*rows=x.rows, grad=x.grads",
    ),
]


@pytest.mark.parametrize(("changes", "error", "match"), MIXTURES)
def test_what_does_not_fit_together_is_refused(changes, error, match):
    refused(error, match, **lists(**changes))


def test_repeated_and_overlapping_arrays_are_refused_wherever_they_are():
    names = ["param", "exp_avg", "exp_avg_sq"]
    for a, b in itertools.combinations_with_replacement(names, 2):
        memory = ones(11)
        for parts in (memory[:6], memory[:6]), (memory[:6], memory[5:]), (memory[5:], memory[:6]):
            arguments = lists()
            arguments[a][0], arguments[b][1] = parts
            first, second = sorted([rf"{a}\[0\]", rf"{b}\[1\]"], key=lambda name: parts[1] is memory[5:])
            refused(ValueError, rf"({first} and {second}|{second} and {first}) overlap in memory", **arguments)
    for name in names:
        shared, reverse = lists(), lists()
        shared["grad"][1] = shared[name][0]
        refused(ValueError, rf"^grad\[1\] and {name}\[0\] overlap", **shared)
        reverse["grad"][1] = reverse[name][0][::-1]
        refused(ValueError, rf"^grad\[1\] and {name}\[0\] overlap", **reverse)
        rows = np.zeros(3, np.int64)
        table = {**lists(), "rows": [rows, None]}
        table[name][0] = rows.view(np.float32)
        table["grad"][0] = ones(3)
        refused(ValueError, rf"^rows\[0\] and {name}\[0\] overlap", **table)


def test_gradients_may_repeat_and_lie_between_what_is_written():
    memory = ones(60)
    parts = [memory[i : i + 6] for i in range(0, 60, 6)]
    grad = parts[4]
    before = grad.copy()
    fastadam.adam_update([parts[0], parts[9]], [grad, grad], [parts[5], parts[3]], [parts[2], parts[7]], 1)
    assert np.array_equal(grad, before) and np.array_equal(parts[1], before) and not np.array_equal(parts[0], before)
    assert np.array_equal(parts[0], parts[9])


NEEDS = [
    ("sgd_update", {"momentum": 0.9}, {}, "^momentum > 0 needs momentum_buffer, which was not given"),
    ("sgd_update", {}, {"momentum_buffer"}, "^momentum_buffer was given, and is used only with momentum > 0; leave it"),
    ("rmsprop_update", {"momentum": 0.9}, {}, "^momentum > 0 needs momentum_buffer"),
    ("rmsprop_update", {"centered": True}, {"momentum_buffer"}, "^centered=True needs grad_avg"),
    ("rmsprop_update", {}, {"grad_avg"}, "^grad_avg was given, and is used only with centered=True"),
    ("adam_update", {"amsgrad": True}, {}, "^amsgrad=True needs max_exp_avg_sq"),
    ("adam_update", {}, {"max_exp_avg_sq"}, "^max_exp_avg_sq was given, and is used only with amsgrad=True"),
    ("sgd_update", {"nesterov": True}, {}, "^nesterov=True needs momentum > 0 and dampening 0, got 0.0 and 0.0"),
]


@pytest.mark.parametrize(("name", "options", "given", "match"), NEEDS)
def test_state_and_hyper_parameters_come_together(name, options, given, match):
    required = {"adam_update": ["exp_avg", "exp_avg_sq"], "rmsprop_update": ["square_avg"], "sgd_update": []}[name]
    for make in ones, lambda: [ones()]:
        arguments = {each: make() for each in ["param", "grad", *required, *given]}
        refused(ValueError, match, getattr(fastadam, name), step=1, **arguments, **options)


def test_functions_are_told_what_is_missing_or_unknown_as_the_classes_are():
    with pytest.raises(
        TypeError, match=r"^rmsprop_update\(\) missing 2 required positional arguments: 'square_avg', 'st"
    ):
        fastadam.rmsprop_update(ones(), ones())
    with pytest.raises(TypeError, match=r"^nadam_update\(\) missing 1 required positional argument: 'mu_product'$"):
        fastadam.nadam_update(ones(), ones(), ones(), ones(), 1)
    with pytest.raises(
        TypeError, match=r"^sgd_update has no nestrov \(did you mean nesterov\?\); it has param, grad, step"
    ):
        fastadam.sgd_update(ones(), ones(), 1, nestrov=True)


ROWS_REFUSED = [
    ([0], np.ones((1, 3)), TypeError, r"^rows(\[0\])? must be a numpy.ndarray, got a list; use np.asarray"),
    (np.array([0.0]), np.ones((1, 3)), TypeError, r"^rows(\[0\])? must be int32 or int64"),
    (np.array([[0]]), np.ones((1, 3)), ValueError, r"^rows(\[0\])? must have one axis"),
    (np.array([0, 1]), np.ones((1, 3)), ValueError, r"^grad(\[0\])? must have the shape \(2, 3\), for 2 rows"),
    (np.array([0, 4]), np.ones((2, 3)), IndexError, r"^rows(\[0\])?\[1\] is 4; its rows are 0 to 3$"),
    (np.array([-1]), np.ones((1, 3)), IndexError, r"^rows(\[0\])?\[0\] is -1; .*negative ones do not count"),
]


@pytest.mark.parametrize(("rows", "grad", "error", "match"), ROWS_REFUSED)
def test_rows_that_cannot_be_are_refused(rows, grad, error, match):
    table, plain = np.ones((4, 3)), np.ones((4, 3))
    refused(error, match, fastadam.sgd_update, param=table, grad=grad, step=1, rows=rows)
    both = {"param": [table, plain], "grad": [grad, np.ones((4, 3))], "rows": [rows, None]}
    refused(error, match, fastadam.sgd_update, step=1, **both)


def test_tables_must_have_rows_in_one_piece():
    rows = np.array([0])
    for param, match in (np.array(1.0), "^param has no rows"), (np.ones((3, 4), order="F"), "^param must be C-contig"):
        refused(ValueError, match, fastadam.sgd_update, param=param, grad=np.ones((1, 4)), step=1, rows=rows)
        refused(ValueError, match, fastadam.rowadagrad_update, param=param, grad=np.ones(()), sum=np.ones(3), step=1)
    arguments = {"param": np.ones((3, 4)), "grad": np.ones((3, 4)), "step": 1}
    for total in np.ones(4), np.ones((3, 4)), np.ones((3, 1)):
        match = r"^sum must have a number for each row of param, the shape \(3,\), got"
        refused(ValueError, match, fastadam.rowadagrad_update, sum=total, **arguments)
    refused(TypeError, "^sum must have the dtype", fastadam.rowadagrad_update, sum=np.ones(3, np.float32), **arguments)


@pytest.mark.filterwarnings("ignore::fastadam.PerformanceWarning")
def test_arrays_and_lists_that_change_in_the_middle_are_seen(monkeypatch):
    """A warning filter runs while gradients are converted."""
    arguments = lists()
    arguments["grad"][0] = ones(12)[::2]
    lose = lambda *_, **__: [column.clear() for column in arguments.values()]  # noqa: E731
    kept = [*arguments["param"]]
    monkeypatch.setattr(warnings, "showwarning", lose)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert len(fastadam.nadam_update(**arguments, step=1, mu_product=1.0)) == 2
        assert not arguments["param"] and all(param[0] < 1 for param in kept)
        arguments = lists()
        arguments["grad"][0], kept = ones(12)[::2], [*arguments["param"]]
        resized = arguments["exp_avg"][1]
        monkeypatch.setattr(warnings, "showwarning", lambda *_, **__: resized.resize(1, refcheck=False))
        with pytest.raises(ValueError, match=r"^exp_avg\[1\] must have the shape of param\[1\]"):
            fastadam.nadam_update(**arguments, step=1, mu_product=1.0)
    assert all(np.array_equal(param, ones()) for param in kept)


def test_a_call_from_inside_a_call_is_a_call_like_any_other(monkeypatch):
    inner, outer = (Arrays("RMSprop", {"momentum": 0.9}, [(6,)] * n) for n in (3, 2))
    inner_grads, grads = inner.grads(), outer.grads()
    monkeypatch.setattr(warnings, "showwarning", lambda *_, **__: inner.step(inner_grads, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        outer.step([grads[0], grads[1].astype(np.float64)], 1)
    inner.step_copies(reference, inner_grads, [1] * 3)
    outer.step_copies(reference, grads, [1] * 2)
    inner.check()
    outer.check()


def test_threads_may_call_at_the_same_time():
    kinds = [Arrays(name, {}, [(300,)] * (20 + i)) for i, name in enumerate(NAMES[:4])]
    grads = [many.grads() for many in kinds]
    start = threading.Barrier(len(kinds))

    def train(many, given):
        start.wait()
        for step in range(1, 30):
            many.step(given, step)

    workers = [threading.Thread(target=train, args=each) for each in zip(kinds, grads, strict=True)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    for many, given in zip(kinds, grads, strict=True):
        for step in range(1, 30):
            many.step_copies(fastadam, given, [step] * len(given))
        many.check(many.name)


def test_an_order_that_the_system_cannot_fill_is_told_before_a_step_of_lists():
    code = """
import resource, warnings, numpy as np, fastadam
p, g = [np.ones(100_000, np.float32)] , [np.ones(100_000, np.float32)]
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    fastadam.sgd_update(p, g, 1, lr=0.5, threads=1000)
assert p[0][0] == 0.5 and p[0][-1] == 0.5
assert len(caught) == 1 and "threads=1000 asks for 1000 threads" in str(caught[0].message), caught
"""
    run_python(code)
