"""The C interface: its table through ctypes, and the programs of docs/c-interface.md as their users compile them."""

import ctypes
import inspect
import itertools
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from c_table import (
    CLASSES,
    FLAGS,
    NUMBERS,
    PLACES,
    Array,
    Options,
    Table,
    as_array,
    options_of,
    pointer_in,
    state_for,
    table,
    update,
)
from floating_point import FloatingPointState
from helpers import DTYPES, ISAS, ROOT, assert_same_bits, at_offset, run_python, tame, wild

import fastadam
from fastadam import _core, reference

slow = pytest.mark.slow
capi = pytest.mark.capi
pytestmark = pytest.mark.usefixtures("restore_isa")
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no compiler where a wheel is tested")
ERRORS = dict(re.findall(r"(FASTADAM_\w+) = (-\d+)", Path(fastadam.get_include(), "fastadam_api.h").read_text()))
DECAYED = {"weight_decay": 0.1}
VARIANTS = {  # all loops, and all that changes coefficients
    "Adam": [
        {"lr": 0.1, "amsgrad": True, **DECAYED},
        {"eps_root": 1e-6, "maximize": True, "decoupled_weight_decay": True, **DECAYED},
        {"eps_hat": True, "betas": (0.5, 0.75)},
        {"bias_correction": False, "amsgrad": True},
    ],
    "AdamW": [{"lr": 0.1}, {"amsgrad": True, "maximize": True}],
    "NAdam": [{"momentum_decay": 0.1}, {"decoupled_weight_decay": True, **DECAYED}],
    "RAdam": [{"betas": (0.5, 0.6), **DECAYED}, {"decoupled_weight_decay": True, "maximize": True, **DECAYED}],
    "Adamax": [{"eps": 0.0}, DECAYED],
    "SGD": [{}, DECAYED, {"momentum": 0.9, "dampening": 0.3, **DECAYED}, {"momentum": 0.5, "nesterov": True}],
    "RMSprop": [{"momentum": 0.5, "centered": True, **DECAYED}, {"centered": True}, {"momentum": 0.5}, {"alpha": 0.5}],
    "Adagrad": [{"lr_decay": 0.1, **DECAYED}, {"maximize": True}],
}
CASES = [(name, options) for name, several in VARIANTS.items() for options in several]


def error(name):
    return int(ERRORS[f"FASTADAM_{name}"])


# ---- the table of classes


@pytest.mark.parametrize("name", CLASSES)
def test_the_defaults_are_those_of_the_class(name):
    signature = inspect.signature(getattr(fastadam, name)).parameters
    expected = {"decoupled_weight_decay": 1} if name == "AdamW" else {}
    for parameter in signature.values():
        if parameter.name == "betas":
            expected |= {"beta1": parameter.default[0], "beta2": parameter.default[1]}
        elif parameter.name in NUMBERS + FLAGS:
            expected[parameter.name] = parameter.default
    options = options_of(name)
    assert {key: getattr(options, key) for key in NUMBERS + FLAGS} == dict.fromkeys(NUMBERS + FLAGS, 0) | expected
    beside = {"betas", "params", "initial_accumulator_value", *fastadam.options.CommonOptions.__annotations__}
    assert signature.keys() - beside == expected.keys() - {"beta1", "beta2"} - (
        {"decoupled_weight_decay"} - signature.keys()
    )

    array, _ = small_array(options)
    for key in set(NUMBERS + FLAGS) - expected.keys():  # what the class does not have
        other = options_of(name, **{key: 1})
        assert update(other, [array]) == error("BAD_VALUE"), key


def test_every_class_is_there_but_the_one_that_works_by_rows():
    classes = {
        name for name, each in vars(fastadam).items() if isinstance(each, type) and issubclass(each, fastadam.Optimizer)
    }
    assert classes - {"Optimizer", *CLASSES} == {"RowAdagrad"}
    for name in "RowAdagrad", "adam", "Adam ", "":
        options = Options(lr=7.0)
        assert table.options(name.encode(), options, ctypes.sizeof(options)) == error("BAD_CLASS")
        assert options.lr == 7.0
        assert re.search(rf"\b{CLASSES[-1]}\b", table.explain(error("BAD_CLASS")).decode())


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_states_says_which_places_the_class_has(name, changes):
    opt = getattr(fastadam, name)(np.ones(3), **changes)
    needed = table.states(options_of(name, **changes))
    assert {PLACES[name][k] for k in range(3) if needed >> k & 1} == set(opt.state[0]) - {"step", "mu_product"}


# ---- steps


def train_in_c(name, changes, params, grads, scale, threads):
    """What a class does, with the table; [param, state[0], state[1], state[2]] for each parameter."""
    options = options_of(name, **changes)
    params = [at_offset(p, i % 3) for i, p in enumerate(params)]
    states = [state_for(options, p) for p in params]
    arrays = (Array * len(params))(*(as_array(p, p, s, 1) for p, s in zip(params, states, strict=True)))
    for step, now in enumerate(grads, 1):
        for array, grad in zip(arrays, now, strict=True):
            array.grad, array.step = grad.ctypes.data, step
        assert table.update(options, arrays, len(arrays), scale, threads) >= 1, name
    return [(p, *s) for p, s in zip(params, states, strict=True)], [array.product for array in arrays]


def check_bits(name, changes, params, grads, scale, threads):
    found, products = train_in_c(name, changes, params, grads, scale, threads)
    twins = [p.copy() for p in params]
    opt = getattr(fastadam, name)(twins, **changes)
    for now in grads:
        opt.step(now, grad_scale=scale)
    for i, (param, *state) in enumerate(found):
        assert_same_bits(param, twins[i], f"{name} {changes} parameter {i}")
        for place, array in zip(PLACES[name], state, strict=True):
            if array is not None:
                assert_same_bits(array, opt.state[i][place], f"{name} {changes} {place} of {i}")
        assert products[i] == opt.state[i].get("mu_product", 1.0)


def arrays_for(rng, sizes, dtypes, numbers=wild, steps=4):
    def one():
        return [numbers(rng, n, dtype) for n, dtype in zip(sizes, itertools.cycle(dtypes), strict=False)]

    return one(), [one() for _ in range(steps)]


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_steps_have_the_bits_of_the_class(name, changes):
    params, grads = arrays_for(np.random.default_rng(0), [0, 1, 100, 1025], [np.float32, np.float64, np.float32])
    check_bits(name, changes, params, grads, 0.7, 0)


def test_arrays_of_one_call_may_be_at_different_steps():
    """Each as if it stepped alone: other counters, and products of NAdam's that differ at the same counter."""
    rng = np.random.default_rng(2)
    for name in "Adam", "NAdam":
        options, grad = options_of(name), tame(rng, 20, np.float64)
        cases = [(1, 1.0), (2, 0.4), (2, 0.5), (2, 0.5), (3, 0.5), (1, 1.0)]
        if name == "Adam":
            cases = [(step, 1.0) for step, _ in cases]
        kept = [(np.ones(20), [tame(rng, 20, np.float64) ** 2 for _ in range(2)]) for _ in cases]
        twins = [(p.copy(), [x.copy() for x in s]) for p, s in kept]
        arrays = (Array * 6)(*(as_array(p, grad, [*s, None], *c) for (p, s), c in zip(kept, cases, strict=True)))
        assert table.update(options, arrays, 6, 1.0, 0) >= 1
        for (p, s), (q, twin), array, (step, product) in zip(kept, twins, arrays, cases, strict=True):
            one = reference.adam_update if name == "Adam" else reference.nadam_update
            extra = {} if name == "Adam" else {"mu_product": product, "lr": 2e-3}
            expected = one(q, grad, *twin, step=step, **extra)
            for a, b in zip((p, *s), (q, *twin), strict=True):
                assert_same_bits(a, b)
            assert array.product == (1.0 if expected is None else expected)


@slow
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_steps_have_the_bits_of_the_class_everywhere(name, changes, dtype, isa):
    _core.select_isa(isa)
    for numbers, threads, sizes in (
        (wild, 1, [0, 1, 7, 16, 31, 64, 1025, 4099]),
        (tame, 2, [50_003, 3]),
        (wild, 3, [5] * 33),
        (tame, 0, range(100)),
    ):
        check_bits(name, changes, *arrays_for(np.random.default_rng(1), sizes, [dtype], numbers), -1.3, threads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars_and_addresses_are_enough_for_adam(dtype):
    name, real = ("adam_f32", 32) if dtype == np.float32 else ("adam_f64", 64)
    capsule = _core.__pyx_capi__[name]
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    i64, f64, i32 = ctypes.c_int64, ctypes.c_double, ctypes.c_int
    signature = ctypes.CFUNCTYPE(i32, i64, *[ctypes.c_void_p] * 4, i64, *[f64] * 5, i32, i32)
    adam = signature(pointer_in(capsule, get_name(capsule)))
    rng = np.random.default_rng(real)
    for decoupled in False, True:
        p, g = wild(rng, 1003, dtype), wild(rng, 1003, dtype)
        ours, theirs = [p, np.zeros_like(p), np.zeros_like(p)], [p.copy(), np.zeros_like(p), np.zeros_like(p)]
        for step in 1, 2, 3:
            p, m, v = (array.ctypes.data for array in ours)
            assert adam(1003, p, g.ctypes.data, m, v, step, 0.1, 0.8, 0.9, 1e-6, 0.2, decoupled, 2) == 2
            fastadam.adam_update(
                theirs[0],
                g,
                *theirs[1:],
                step,
                lr=0.1,
                betas=(0.8, 0.9),
                eps=1e-6,
                weight_decay=0.2,
                decoupled_weight_decay=decoupled,
            )
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)
    assert adam(1003, None, g.ctypes.data, m, v, 1, 0.1, 0.8, 0.9, 1e-6, 0.2, 0, 0) == error("NULL_ARRAY")
    assert adam(1003, p, g.ctypes.data, m, v, 1, 0.1, 1.0, 0.9, 1e-6, 0.2, 0, 0) == error("BAD_VALUE")


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_sums_of_squares_have_the_bits_of_the_norm(threads):
    rng = np.random.default_rng(3)
    for sizes in [], [0, 0], [5], [4096, 4097, 1, 100_003], [200_000], range(50):
        grads = [tame(rng, n, DTYPES[i % 2]) for i, n in enumerate(sizes)]
        arrays = (Array * len(grads))(*(as_array(g, g, [None] * 3, 0) for g in grads))
        total = ctypes.c_double(-1)
        assert table.sum_squares(arrays, len(grads), threads, total) >= 1
        assert math.sqrt(total.value) == reference.grad_norm(grads)


# ---- what is refused


def small_array(options=None, **changes):
    """One that is taken, with changes; and what must be kept."""
    param, grad = np.ones(6), np.full(6, 0.5)
    state = state_for(options or options_of("Adam", amsgrad=True), param)
    array = as_array(param, grad, state, 1)
    for name, value in changes.items():
        if name.startswith("state"):
            array.state[int(name[-1])] = value
        else:
            setattr(array, name, value)
    return array, (param, grad, state)


MISPLACED = np.ones(8).ctypes.data + 4
ARRAYS = [
    ("BAD_DTYPE", {"dtype": 0}),
    ("BAD_DTYPE", {"dtype": 16}),
    ("BAD_LENGTH", {"n": -1}),
    ("BAD_LENGTH", {"n": 2**60}),
    ("BAD_STEP", {"step": 0}),
    ("BAD_STEP", {"step": -(2**63)}),
    *[("NULL_ARRAY", {name: None}) for name in ("param", "grad", "state0", "state1", "state2")],
    *[("NOT_ALIGNED", {name: MISPLACED}) for name in ("param", "grad", "state0", "state1", "state2")],
]
OPTIONS = [
    *[
        ("BAD_VALUE", {name: value})
        for name in ("lr", "eps", "weight_decay", "eps_root")
        for value in (-1e-9, math.inf, math.nan)
    ],
    *[("BAD_VALUE", {name: value}) for name in ("beta1", "beta2") for value in (-0.1, 1.0, math.nan)],
    *[("BAD_VALUE", {name: value}) for name in ("decoupled_weight_decay", "amsgrad", "maximize") for value in (-1, 2)],
    *[("BAD_OPTIONS", {"size": size}) for size in (0, 120, 136, 2**63)],
    *[("BAD_OPTIONS", {"rule": rule}) for rule in (0, -1, 9, 2**31 - 1)],
]


def check_refused(expected, options, array, kept, *call):
    """The array before it is a good one, and must stay as it was."""
    first, (param, _, state) = small_array()
    before = [each.tobytes() for each in (param, *state, kept[0])]
    assert update(options, [first, array], *call) == error(expected)
    assert [each.tobytes() for each in (param, *state, kept[0])] == before


@pytest.mark.parametrize(("expected", "changes"), ARRAYS)
def test_a_bad_array_leaves_everything_unchanged(expected, changes):
    check_refused(expected, options_of("Adam", amsgrad=True), *small_array(**changes))


@pytest.mark.parametrize(("expected", "changes"), OPTIONS)
def test_bad_options_leave_everything_unchanged(expected, changes):
    options = options_of("Adam", amsgrad=True)
    for name, value in changes.items():
        setattr(options, name, value)
    check_refused(expected, options, *small_array())
    assert table.states(options) == error(expected)


def test_what_is_taken_at_all_is_refused_out_of_range():
    for name, field, bad in (
        ("RMSprop", "alpha", 1.0),
        ("SGD", "dampening", -1.0),
        ("NAdam", "momentum_decay", math.inf),
        ("SGD", "nesterov", 1),
    ):
        assert table.states(options_of(name, **{field: bad})) == error("BAD_VALUE")
    assert table.states(options_of("SGD", nesterov=1, momentum=0.9, dampening=0.1)) == error("BAD_VALUE")


def test_a_bad_call_leaves_everything_unchanged():
    options = options_of("Adam", amsgrad=True)
    for expected, *call in (
        ("BAD_SCALE", math.nan),
        ("BAD_SCALE", math.inf),
        ("BAD_THREADS", 1.0, -1),
        ("BAD_THREADS", 1.0, 1025),
    ):
        check_refused(expected, options, *small_array(), *call)
    arrays = (Array * 1)(small_array()[0])
    assert table.update(options, arrays, -1, 1.0, 0) == table.update(options, None, 1, 1.0, 0) == error("BAD_COUNT")
    assert table.update(None, arrays, 1, 1.0, 0) == error("BAD_OPTIONS")
    assert table.update(options, None, 0, 1.0, 0) >= 0
    total = ctypes.c_double(-1)
    assert table.sum_squares(arrays, 1, 0, None) == error("NULL_ARRAY")
    assert table.sum_squares(arrays, 1, 1025, total) == error("BAD_THREADS")
    for expected, changes in [*ARRAYS[:4], ("NULL_ARRAY", {"grad": None}), ("NOT_ALIGNED", {"grad": MISPLACED})]:
        array, _kept = small_array(**changes)
        assert table.sum_squares((Array * 1)(array), 1, 0, total) == error(expected)
    assert total.value == -1


def test_state_that_would_not_be_used_is_refused():
    """As max_exp_avg_sq without amsgrad is in Python."""
    check_refused("UNUSED_STATE", options_of("Adam"), *small_array())


def test_nadams_product_is_kept_by_the_caller():
    options = options_of("NAdam")
    for step, product in (1, 0.0), (1, 0.5), (2, 1.0), (2, -0.1), (2, math.nan):
        array, _ = small_array(options, step=step, product=product)
        assert update(options, [array]) == error("BAD_PRODUCT")
    array, _ = small_array(options_of("Adam"), product=0.0)
    assert update(options_of("Adam"), [array]) == 1


def test_options_of_another_size_are_refused_unwritten():
    for size in 0, 8, ctypes.sizeof(Options) - 8, ctypes.sizeof(Options) + 8:
        options = Options(lr=7.0)
        assert table.options(b"Adam", options, size) == error("BAD_OPTIONS")
        assert bytes(options) == bytes(Options(lr=7.0))
    assert table.options(b"Adam", None, ctypes.sizeof(Options)) == error("BAD_OPTIONS")
    assert table.options(None, Options(), ctypes.sizeof(Options)) == error("BAD_CLASS")


def test_every_error_is_explained():
    texts = {name: table.explain(int(number)).decode() for name, number in ERRORS.items()}
    assert len(set(texts.values())) == len(ERRORS) == 14
    assert table.explain(-99) and table.explain(1) == b"no error"
    assert not set(texts.values()) & {table.explain(-99).decode(), "no error"}


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory, and reads /proc")
def test_no_memory_for_many_arrays_is_an_error():
    import resource

    count, total = 500_000, ctypes.c_double(-1)
    options, param = options_of("SGD"), np.ones(1)
    arrays = (Array * count)()
    empty = np.zeros(0)
    record = np.frombuffer(arrays, np.dtype((np.void, ctypes.sizeof(Array))))
    record[:] = np.frombuffer(bytes(as_array(empty, empty, [None] * 3, 1)), record.dtype)
    arrays[0] = as_array(param, np.ones(1), [None] * 3, 1)
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (size + (32 << 20), before[1]))
        results = table.update(options, arrays, count, 1.0, 1), table.sum_squares(arrays, count, 1, total)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert results == (error("NO_MEMORY"), error("NO_MEMORY"))
    assert (param[0], total.value) == (1.0, -1)
    assert table.update(options, arrays, count, 1.0, 1) == 1


# ---- threads, and what surrounds a call


def test_the_bound_of_threads_counts_in_c():
    n = 1 << 22  # 16 MiB: enough for two threads
    param, grad = np.ones(n, np.float32), np.ones(n, np.float32)
    array, options = as_array(param, grad, [None] * 3, 1), options_of("SGD")
    total = ctypes.c_double()
    try:
        fastadam.set_num_threads(1)
        assert update(options, [array]) == 1
        assert table.sum_squares(array, 1, 0, total) == 1
        fastadam.set_num_threads(None)
        expected = min(2, fastadam.get_num_threads())
        assert update(options, [array]) == table.sum_squares(array, 1, 0, total) == expected
        fastadam.set_num_threads(1)
        assert update(options, [array], threads=2) == (2 if fastadam.config()["openmp"] else 1)  # an order
    finally:
        fastadam.set_num_threads(None)


def test_four_threads_at_once_have_the_bits_of_one():
    """ctypes releases the GIL."""

    def train(name):
        rng = np.random.default_rng(CLASSES.index(name))
        params, grads = arrays_for(rng, [20_000, 3, *range(31)], [np.float32], tame)
        return [
            array for arrays in train_in_c(name, {}, params, grads, 1.0, 2)[0] for array in arrays if array is not None
        ]

    alone = [train(name) for name in CLASSES]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(train, CLASSES))
    for ours, theirs in zip(together, alone, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)


@pytest.mark.skipif(
    sys.platform != "linux" or sysconfig.get_platform() != "linux-x86_64", reason="reads glibc's fenv_t"
)
def test_the_callers_control_register_neither_matters_nor_changes():
    params, grads = arrays_for(np.random.default_rng(5), [1003], [np.float32], tame)
    expected, _ = train_in_c("NAdam", {}, params, grads, 1.0, 0)
    bad, _ = small_array(step=0)
    norm = reference.grad_norm(grads[0])
    array, total, fp = as_array(grads[0][0], grads[0][0], [None] * 3, 0), ctypes.c_double(), FloatingPointState()
    refused = options_of("Adam", lr=math.nan)
    before = fp.get()
    odd = 0x1F80 & ~0x80 | 0x6000 | 0x8040  # invalid operations trap; towards zero; subnormals flushed
    try:
        fp.set(odd)
        code = table.update(refused, bad, 1, 1.0, 0), table.states(refused)
        after = fp.get()
        table.sum_squares(array, 1, 0, total)
        found, _ = train_in_c("NAdam", {}, params, grads, 1.0, 0)
    finally:
        fp.set(before)
    assert (code, after) == ((error("BAD_VALUE"),) * 2, odd)
    assert math.sqrt(total.value) == norm
    for a, b in zip(found[0], expected[0], strict=True):
        if a is not None:
            assert_same_bits(a, b)


# ---- the structs, and the programs of the page


def compile_c(source, target, *flags, include=None):
    folders = f"-I{include or fastadam.get_include()}", f"-I{sysconfig.get_paths()['include']}"
    warnings = "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"
    subprocess.run(["cc", *warnings, *folders, *flags, str(source), "-o", str(target)], check=True)


@needs_compiler
def test_the_structs_are_laid_out_as_they_were(tmp_path):
    """tests/capi/layout.c asserts sizes and offsets, without Python.h; those of ctypes are the same."""
    compile_c(ROOT / "tests/capi/layout.c", tmp_path / "layout.o", "-std=c11", "-c")
    expected = dict(re.findall(r"AT\((\w+, \w+), (\d+)\)", (ROOT / "tests/capi/layout.c").read_text()))
    found = {}
    for name, struct in ("options", Options), ("array", Array), ("api", Table):
        found |= {f"fastadam_{name}, {field}": str(getattr(struct, field).offset) for field, _ in struct._fields_}
    assert found == expected
    assert table.size == ctypes.sizeof(Table) and table.abi == 1 and table.version.decode() == fastadam.__version__


def test_cython_declares_all_that_the_header_has():
    header = Path(fastadam.get_include(), "fastadam_api.h").read_text()
    declared = Path(fastadam.__file__).with_name("__init__.pxd").read_text()
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    names = set(re.findall(r"\b(?:FASTADAM_[A-Z0-9_]+|fastadam_[a-z]+)\b", header))
    names |= {field for struct in (Options, Array, Table) for field, _ in struct._fields_}
    names -= {"FASTADAM_API_H", "FASTADAM_CAPSULE"}
    assert {name for name in names if not re.search(rf"\b{name}\b", declared)} == set()


def program_of(language):
    (code,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/c-interface.md").read_text(), re.DOTALL)
    return code


def check_fit(fit, n=5003, steps=30):
    target = tame(np.random.default_rng(0), n, np.float32)
    ours, theirs = np.zeros_like(target), np.zeros_like(target)
    fit(ours, target, steps)
    opt = fastadam.AdamW(theirs, lr=0.1)
    for _ in range(steps):
        opt.step(theirs - target)
    assert_same_bits(ours, theirs)
    assert np.abs(ours - target).mean() < 0.5 * np.abs(target).mean()


def imported(folder, name, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__(name)


@needs_compiler
def test_the_pages_c_program_compiles_under_the_limited_api_and_has_the_bits(tmp_path, monkeypatch):
    (tmp_path / "fit.c").write_text(program_of("c"))
    compile_c(tmp_path / "fit.c", tmp_path / "fit.abi3.so", "-O1", "-shared", "-fPIC")
    fit = imported(tmp_path, "fit", monkeypatch).fit
    check_fit(fit)
    w = np.zeros(3, np.float32)
    for target in np.ones(4, np.float32), np.ones(3):
        with pytest.raises(ValueError, match="^fit: w and target must be float32, of one length"):
            fit(w, target, 1)
        assert not w.any()
    fit(np.zeros(0, np.float32), np.ones(0, np.float32), 1)
    broken = tmp_path / "broken" / "fastadam"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('fastadam needs a newer NumPy')")
    path = os.pathsep.join(map(str, (broken.parent, tmp_path)))
    result = run_python("import fit", check=False, PYTHONPATH=path)
    assert result.stderr.splitlines()[-1] == "ImportError: fastadam needs a newer NumPy"


@needs_compiler
def test_an_older_fastadam_is_refused_at_import(tmp_path, monkeypatch):
    """A module that was compiled for a longer table, and one for another ABI."""
    headers = tmp_path / "include"
    shutil.copytree(fastadam.get_include(), headers)
    header = (headers / "fastadam_api.h").read_text()
    longer = header.replace("*(*explain)(int error);", "*(*explain)(int error);\n    int (*added)(void);")
    for name, text in ("longer", longer), ("other", header.replace("define FASTADAM_ABI 1", "define FASTADAM_ABI 2")):
        assert text != header
        (headers / "fastadam_api.h").write_text(text)
        (tmp_path / f"{name}.c").write_text(program_of("c").replace("PyInit_fit", f"PyInit_{name}"))
        compile_c(tmp_path / f"{name}.c", tmp_path / f"{name}.abi3.so", "-shared", "-fPIC", include=headers)
        with pytest.raises(ImportError, match="install a newer fastadam"):
            imported(tmp_path, name, monkeypatch)


@capi
def test_the_pages_cython_program_has_the_bits(tmp_path, monkeypatch):
    (tmp_path / "cyfit.pyx").write_text(program_of("cython"))
    beside = str(Path(fastadam.__file__).parent.parent)  # where an installed fastadam is found without it
    subprocess.run([sys.executable, "-m", "cython", "-3", "-I", beside, "cyfit.pyx"], cwd=tmp_path, check=True)
    python = sysconfig.get_paths()["include"]
    flags = ["-O1", "-shared", "-fPIC", f"-I{fastadam.get_include()}", f"-I{python}"]
    target = tmp_path / f"cyfit{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["cc", *flags, tmp_path / "cyfit.c", "-o", target], check=True)
    fit = imported(tmp_path, "cyfit", monkeypatch).fit
    check_fit(fit)
    with pytest.raises(ValueError, match="one length"):
        fit(np.zeros(3, np.float32), np.ones(4, np.float32), 1)


@capi
def test_the_pages_numba_program_has_the_bits():
    names = {}
    exec(program_of("python"), names)
    check_fit(names["fit"])
    with ThreadPoolExecutor(4) as pool:  # it releases the GIL
        list(pool.map(lambda more: check_fit(names["fit"], 5003 + more), range(4)))
