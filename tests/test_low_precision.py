"""State and parameters in fewer bits: the twin's bits on every path, and all that is around a step."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import test_wraps
from allpairspy import AllPairs
from helpers import ISAS, assert_same_bits, tame, unchanged

import fastadam
from fastadam import Rows, _core, reference

pytestmark = [pytest.mark.usefixtures("restore_isa"), pytest.mark.filterwarnings("error::fastadam.PerformanceWarning")]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
RULES = [
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adam", {"eps_hat": True, "betas": (0.5, 0.9)}),
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    ("RMSprop", {}),
    ("RMSprop", {"momentum": 0.9}),
    ("Adagrad", {"initial_accumulator_value": 0.3}),
    ("NAdam", {}),
    ("RAdam", {}),
    ("Adamax", {}),
    ("RowAdagrad", {"weight_decay": 0.1}),
]
STATE_DTYPES = ["float32", "bfloat16", "8bit"]
KINDS = [(np.dtype(np.float32), None), (BFLOAT16, None), (BFLOAT16, 24)]
SHAPES = [(1,), (31,), (33,), (512,), (40, 77), (513,), (9001,), (3, 20_011)]
GRADS = [np.float32, np.float16, ml_dtypes.bfloat16]


def raw(opt, key=0):
    """State as it is stored, without the counters."""
    return {name: value for name, value in opt.state[key].raw.items() if isinstance(value, np.ndarray)}


class Twin:
    """The same optimizer of one array, on a copy, by the reference. `ordinal` is the array's running number."""

    def __init__(self, opt, param, master_bits=None, key=0, ordinal=0, state_dtype=None, **options):
        self.update = getattr(reference, f"{type(opt).__name__.lower()}_update")
        self.param, self.options, self.product, self.key = param.copy("K"), options, {}, key
        self.state, self.steps = {name: array.copy() for name, array in raw(opt, key).items() if name != "ema"}, 0
        self.formats = {"state_dtype": state_dtype or opt.state_dtype, "master_bits": master_bits}
        self.formats["seed"] = opt.seed + ordinal
        if type(opt).__name__ == "NAdam":
            self.product = {"mu_product": 1.0}

    def step(self, grad, **options):
        options = self.formats | self.product | self.options | options
        self.steps += 1
        result = reference.stored_update(self.update, self.param, grad, self.steps, self.state, **options)
        if self.product:
            self.product["mu_product"] = result

    def step_rows(self, rows, grads, **options):
        """Each row as an array of its own, whose random bits are those of its place."""
        self.steps += 1
        width = self.param[0].size
        for row, grad in zip(*reference.sum_rows(rows, grads, np.float32), strict=True):
            part = {name: array[self.places(name, row, width)] for name, array in self.state.items()}
            reference.stored_update(
                self.update, self.param[row : row + 1], grad[None], self.steps, part, first=row * width,
                **self.formats, **self.options, **options,
            )  # fmt: skip

    @staticmethod
    def places(name, row, width):
        if "::" not in name:  # of all rows
            return slice(row, row + 1)
        each = width // 32 if name.endswith("::scale") else width
        return slice(row * each, (row + 1) * each)

    def master(self):
        if self.param.dtype != BFLOAT16:
            return self.param
        join = reference.join_24 if self.formats["master_bits"] == 24 else reference.join_32
        order = "C" if self.param.flags.c_contiguous else "F"
        upper = self.param.view(np.uint16).ravel(order)
        return join(upper, self.state["master::low"]).reshape(self.param.shape, order=order)

    def assert_equals(self, opt, param, what=""):
        assert_same_bits(as_numbers(param), as_numbers(self.param), what)
        ours = {name: array for name, array in raw(opt, self.key).items() if name not in ("ema", "grad_sum")}
        assert ours.keys() == self.state.keys()
        for name, array in ours.items():
            assert_same_bits(array, self.state[name], f"{name} {what}")


class Oracle(test_wraps.Oracle):
    """With all that is around the rule, for arrays of one group."""

    def __init__(self, opt, params, master_bits, **options):
        super().__init__(params, **options)
        self.twins = [Twin(opt, p, master_bits, i, i, **self.hyper) for i, p in enumerate(params)]
        self.ema = [p.astype(np.float32) for p in params]
        for twin in self.twins:
            twin.state.pop("grad_sum", None)

    def dtype_of(self, i):
        return np.float32

    def update(self, i, grad, scale):
        self.twins[i].step(grad, grad_scale=scale)
        return self.twins[i].master()

    def assert_equals(self, opt, params, what=""):
        for i, twin in enumerate(self.twins):
            twin.assert_equals(opt, params[i], what)
            assert opt.state[i]["step"] == self.steps[i] == twin.steps
            assert opt.state[i].get("grad_count", 0) == len(self.pending[i])
            if self.ema_decay is not None:
                assert_same_bits(opt.ema[i], self.ema[i], what)
        assert self.max_norm == self.max_norm_each or opt.grad_norm == self.norm, what


def as_numbers(array):
    return array.view(np.uint16) if array.dtype == BFLOAT16 else array


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule_has_the_twins_bits_in_every_format(rule):
    name, options = rule
    for state_dtype, (dtype, bits), isa, threads, shape, half, order in AllPairs(
        [STATE_DTYPES, KINDS, ISAS, [1, 2, 3, 8], SHAPES, GRADS, ["C", "F"]]
    ):
        _core.select_isa(isa)
        rng = np.random.default_rng(len(shape))
        param = np.asarray(tame(rng, shape, np.float32).astype(dtype), order="C" if name == "RowAdagrad" else order)
        formats = {"state_dtype": state_dtype, "master_bits": bits, "seed": 2**63 - 1}
        opt = getattr(fastadam, name)(param, lr=0.01, threads=threads, **formats, **options)
        twin = Twin(opt, param, bits, lr=0.01, **options)
        for _ in range(7 if name == "RAdam" else 3):
            grad = np.asarray(tame(rng, shape, np.float32).astype(half), order=order)
            if name == "RowAdagrad":
                grad = np.ascontiguousarray(grad)
            opt.step(grad, grad_scale=0.7)
            twin.step(grad, grad_scale=0.7)
        twin.assert_equals(opt, param, f"{state_dtype} {dtype} {bits} {isa} {threads} {shape} {half} {order}")


@pytest.mark.parametrize("name", ["Adam", "SGD", "RowAdagrad", "Adamax"])
def test_rows_have_the_bits_of_their_places_in_the_table(name):
    """Repeated rows, too. 8-bit state takes whole groups."""
    options = {"momentum": 0.9} if name == "SGD" else {}
    for state_dtype, (dtype, bits), isa, threads, width, half in AllPairs(
        [STATE_DTYPES, KINDS, ISAS, [1, 2, 3], [1, 3, 32, 64, 513, 1000, 1024], GRADS]
    ):
        if state_dtype == "8bit" and width % 32:
            state_dtype = "bfloat16"
        _core.select_isa(isa)
        rng = np.random.default_rng(width)
        table = tame(rng, (20, width), np.float32).astype(dtype)
        formats = {"state_dtype": state_dtype, "master_bits": bits, "seed": 7}
        opt = getattr(fastadam, name)([np.ones(3, np.float32), table], lr=0.01, threads=threads, **formats, **options)
        twin = Twin(opt, table, bits, key=1, ordinal=1, lr=0.01, **options)
        for count in 30, 0, 2:
            rows, grads = rng.integers(0, 20, count), tame(rng, (count, width), np.float32).astype(half)
            opt.step([None, Rows(rows, grads)], grad_scale=0.7)
            twin.step_rows(rows, grads, grad_scale=0.7)
        rows = np.array([19, 0], np.int32)
        opt.step_rows(1, rows, grads[:2])
        twin.step_rows(rows, grads[:2])
        twin.assert_equals(opt, table, f"{state_dtype} {dtype} {bits} {isa} {threads} {width} {half}")


@pytest.mark.parametrize("clip", [{"max_norm": 0.5}, {"max_norm_each": 0.5}, {"max_value": 0.3}], ids=str)
def test_rows_are_clipped(clip):
    for state_dtype, (dtype, bits), half, width in AllPairs([STATE_DTYPES, KINDS, GRADS, [32, 1056]]):
        rng = np.random.default_rng(width)
        table = tame(rng, (9, width), np.float32).astype(dtype)
        opt = fastadam.Adam(table, state_dtype=state_dtype, master_bits=bits, **clip)
        twin = Twin(opt, table, bits)
        for _ in range(3):
            rows, grads = rng.integers(0, 9, 6), tame(rng, (6, width), np.float32).astype(half)
            opt.step(Rows(rows, grads))
            distinct, sums = reference.sum_rows(rows, grads, np.float32)
            if "max_value" in clip:
                twin.step_rows(distinct, reference.gradient([sums], [1.0], np.float32, 0.3))
            else:
                assert opt.grad_norm == reference.grad_norm(list(sums))
                twin.step_rows(distinct, sums, grad_scale=0.5 / (opt.grad_norm + 1e-6))
        twin.assert_equals(opt, table, f"{state_dtype} {dtype} {half} {width}")


def test_rows_that_cut_groups_of_8_bit_state_are_refused_and_the_advice_works():
    table, bias = np.ones((6, 33), np.float32), np.ones(33, np.float32)
    opt = fastadam.Adam({"table": table, "bias": bias}, state_dtype="8bit")
    rows, grads = np.array([1]), np.ones((1, 33), np.float32)
    message = "parameter 'table' has 8bit state, rows of 33 elements, .* give it state_dtype='float32' in overrides"
    for call in (
        lambda: opt.step({"table": Rows(rows, grads), "bias": bias}),
        lambda: opt.step_rows("table", rows, grads),
        lambda: opt.step_one("table", Rows(rows[:0], grads[:0])),
    ):
        with unchanged(opt), pytest.raises(ValueError, match=message):
            call()
    opt.step({"table": np.ones((6, 33), np.float32), "bias": None})
    overrides = {"table": {"state_dtype": "bfloat16"}}
    opt = fastadam.Adam({"table": table, "bias": bias}, state_dtype="8bit", overrides=overrides)
    opt.step({"table": Rows(rows, grads), "bias": np.ones(33, np.float32)})
    assert (table[0] == table[2]).all() and (table[0] != table[1]).all()


@pytest.mark.parametrize("make", [lambda p: fastadam.SGD(p, state_dtype="8bit"),
                                  lambda p: fastadam.RowAdagrad(p, state_dtype="8bit")])  # fmt: skip
def test_tables_without_8_bit_state_take_rows_of_any_width(make):
    a, b = np.ones((6, 5), BFLOAT16), np.ones((6, 5), BFLOAT16)
    make(a).step_rows(0, np.array([1]), np.ones((1, 5), np.float32))
    opt = make(b)
    opt.step(np.eye(6, 1, -1, np.float32) * np.ones(5, np.float32))
    assert_same_bits(as_numbers(a), as_numbers(b))


SIZES = [0, 1, 17, 513, 4099, 9001]


def test_all_that_is_around_the_rule_equals_the_oracle():
    """And each array has the optimizer's seed plus its running number."""
    clips = [{}, {"max_norm": 2.0}, {"max_norm_each": 2.0}, {"max_value": 0.25}]
    for state_dtype, bits, isa, threads, clip, accumulate, ema_decay, half, nonfinite in AllPairs(
        [STATE_DTYPES, [None, 24], ISAS, [1, 2, 3, 8], clips, [1, 3], [None, 0.9], GRADS, ["propagate", "raise"]]
    ):
        _core.select_isa(isa)
        rng = np.random.default_rng(0)
        params = [tame(rng, n, np.float32).astype(dtype) for n in SIZES for dtype in (np.float32, BFLOAT16)]
        params += [np.asfortranarray(tame(rng, (90, 7), np.float32).astype(dtype)) for dtype in (np.float32, BFLOAT16)]
        options = {
            "accumulate": accumulate,
            "ema_decay": ema_decay,
            "decoupled_weight_decay": True,
            **clip,
            "weight_decay": 0.1,
        }
        formats = {"state_dtype": state_dtype, "master_bits": bits, "seed": 2**63 - 1}
        opt = fastadam.Adam(params, threads=threads, nonfinite=nonfinite, **formats, **options)
        oracle = Oracle(opt, params, bits, **options)
        for _ in range(2 * accumulate + 1):
            grads = [tame(rng, p.shape, np.float32).astype(half) for p in params]
            grads = [None if rng.random() < 0.2 else np.asarray(g, order="F") for g in grads]
            opt.step(grads, grad_scale=0.7)
            oracle.step(grads, grad_scale=0.7)
        what = f"{state_dtype} {bits} {isa} {threads} {options} {half} {nonfinite}"
        oracle.assert_equals(opt, params, what)


def test_groups_of_several_formats_count_their_seeds_on():
    """In one step, with float64 beside them; arrays alone; schedules; groups that come later."""
    rng = np.random.default_rng(0)
    kinds = {"a": np.float32, "b": np.float64, "c": BFLOAT16, "d": np.float32, "new": BFLOAT16}
    params = {key: tame(rng, 700, np.float32).astype(kind) for key, kind in kinds.items()}
    new = params.pop("new")
    half = {"state_dtype": "bfloat16", "master_bits": 24}
    opt = fastadam.Adam(
        params, state_dtype="8bit", seed=2**63 - 2, lr=lambda count: 0.01 / (count + 1),
        overrides={"b": {"state_dtype": "float32"}, "c": half},
    )  # fmt: skip
    twins = {
        "a": Twin(opt, params["a"], key="a", ordinal=0, state_dtype="8bit"),
        "d": Twin(opt, params["d"], key="d", ordinal=1, state_dtype="8bit"),
        "b": Twin(opt, params["b"], key="b", ordinal=2, state_dtype="float32"),
        "c": Twin(opt, params["c"], 24, key="c", ordinal=3, state_dtype="bfloat16"),
    }
    assert [opt.state[key].get("seed") for key in twins] == [2**63 - 2, 2**63 - 1, None, 2**63 + 1]

    for left_out in [], ["a", "c"], []:
        grads = {key: tame(rng, 700, np.float64 if key == "b" else np.float32) for key in twins}
        grads |= dict.fromkeys(left_out)
        for key, lr in {key: 0.01 / (twins["d" if key == "a" else key].steps + 1) for key in twins}.items():
            if grads[key] is not None:  # the schedule goes by its group's largest counter
                twins[key].step(grads[key], lr=lr)
        opt.step(grads)
    opt.add_param_group({"params": {"new": new}, "state_dtype": "8bit"})
    twins["new"] = Twin(opt, new, key="new", ordinal=4, state_dtype="8bit")
    assert opt.state["new"]["seed"] == 2**63 + 2
    grads = {key: tame(rng, 700, np.float64 if key == "b" else np.float32) for key in twins}
    for key, twin in twins.items():  # each with its own counter
        opt.step_one(key, grads[key])
        twin.step(grads[key], lr=0.01 / (twin.steps + 1))
    for key, twin in twins.items():
        twin.assert_equals(opt, {**params, "new": new}[key], key)


@pytest.mark.parametrize("bits", [None, 24])
def test_float64_gradients_of_bfloat16_parameters_are_rounded_once_and_cost_a_warning(bits):
    rng = np.random.default_rng(0)
    param = tame(rng, (9, 64), np.float32).astype(BFLOAT16)
    opt = fastadam.Adam(param, lr=0.01, state_dtype="8bit", master_bits=bits)
    twin = Twin(opt, param, bits, lr=0.01)
    grad = tame(rng, (9, 64), np.float64)
    with pytest.warns(fastadam.PerformanceWarning, match="is copied at every step"):
        opt.step(grad)
    opt.step(grad)  # once is enough
    for _ in range(2):
        twin.step(grad.astype(np.float32))
    twin.assert_equals(opt, param)
    opt = fastadam.Adam(param, lr=0.01, state_dtype="8bit", master_bits=bits)
    twin = Twin(opt, param, bits, lr=0.01)
    with pytest.warns(fastadam.PerformanceWarning, match="is copied at every step"):
        opt.step(Rows(np.array([3, 5, 3]), grad[:3]))
    twin.step_rows(np.array([3, 5, 3]), grad[:3].astype(np.float32))
    twin.assert_equals(opt, param)


def test_gradients_of_other_kinds_are_refused_with_advice_that_works():
    opt = fastadam.SGD(np.ones(3, BFLOAT16))
    with unchanged(opt), pytest.raises(TypeError, match=r"got int64; use .astype\(np.float32\)$"):
        opt.step(np.ones(3, int))
    with unchanged(opt), pytest.raises(TypeError, match=r"or .view\(np.float32\) if"):
        opt.step(np.ones(3, complex))


@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_what_is_not_finite_is_found_and_nothing_has_changed(state_dtype, dtype):
    params = [np.ones(700, dtype), np.ones(40, dtype)]
    opt = fastadam.Adam(params, state_dtype=state_dtype, nonfinite="raise")
    opt.step([np.ones(700, np.float32), np.ones(40, np.float32)])
    bad = np.ones(700, np.float16)
    bad[600] = np.inf
    with unchanged(opt), pytest.raises(FloatingPointError, match="gradient of parameter 0 has NaN or infinity"):
        opt.step([bad, np.ones(40, np.float32)])
    opt.nonfinite = "skip"
    with unchanged(opt):
        opt.step([bad, np.ones(40, np.float32)])
    assert opt.skipped_steps == 1


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_makes_its_group_of_8_bit_state_nan_from_the_next_step_on(bad):
    rng = np.random.default_rng(0)
    param = tame(rng, 100, np.float32)
    other = param.copy()
    opt, fine = (fastadam.Adam(p, lr=0.01, state_dtype="8bit") for p in (param, other))
    grad = tame(rng, 100, np.float32)
    opt.step(grad)
    fine.step(grad)
    worse = grad.copy()
    worse[40] = bad
    opt.step(worse)
    fine.step(grad)
    rest = np.arange(100) != 40
    assert np.isnan(param[40])
    assert_same_bits(param[rest], other[rest])
    for _ in range(2):
        opt.step(grad)
        fine.step(grad)
        group = np.arange(100) // 32 == 1
        assert np.isnan(param[group]).all()
        assert_same_bits(param[~group], other[~group])


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
@pytest.mark.parametrize("state_dtype", STATE_DTYPES)
def test_momentum_that_is_switched_off_leaves_its_state(state_dtype, dtype):
    rng = np.random.default_rng(0)
    param = tame(rng, 700, np.float32).astype(dtype)
    opt = fastadam.SGD(param, lr=0.1, momentum=0.9, state_dtype=state_dtype)
    twin = Twin(opt, param, lr=0.1)
    for momentum in 0.9, 0.9, 0.0, 0.0, 0.9:
        opt.param_groups[0]["momentum"] = momentum
        before = {name: array.copy() for name, array in raw(opt).items() if name.startswith("momentum")}
        grad = tame(rng, 700, np.float32)
        opt.step(grad)
        if momentum:
            twin.step(grad, momentum=momentum)
        else:
            twin.state = {name: array for name, array in twin.state.items() if name not in before}
            twin.step(grad)
            twin.state = {**before, **twin.state}
        twin.assert_equals(opt, param)


@pytest.mark.parametrize("name", ["SGD", "RowAdagrad", "Adagrad"])
def test_rules_with_little_state_take_every_format(name):
    params = [np.ones((4, 5), np.float32), np.ones((4, 5), BFLOAT16)]
    opt = getattr(fastadam, name)(params, state_dtype="8bit")
    names = {"SGD": set(), "RowAdagrad": {"sum"}, "Adagrad": {"sum::codes", "sum::scale"}}[name]
    assert raw(opt, 0).keys() == names and raw(opt, 1).keys() == names | {"master::low"}


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_averages_are_swapped_exactly(state_dtype):
    rng = np.random.default_rng(0)
    params = [tame(rng, 5000, np.float32).astype(BFLOAT16), tame(rng, 70, np.float32)]
    opt = fastadam.Adam(params, lr=0.1, ema_decay=0.9, state_dtype=state_dtype)
    for _ in range(3):
        opt.step([tame(rng, p.size, np.float32) for p in params])
    with unchanged(opt):
        masters, averages = [
            [array.copy() for array in arrays] for arrays in (map(opt.master, (0, 1)), opt.ema.values())
        ]
        with opt.swap_ema():
            for i in 0, 1:
                assert_same_bits(opt.master(i), averages[i])
                assert_same_bits(opt.ema[i], masters[i])
            assert_same_bits(as_numbers(params[0]), reference.split_32(averages[0])[0])
            with pytest.raises(RuntimeError, match="leave `with opt.swap_ema"):
                opt.reset_master()


def test_averages_of_24_bits_cannot_be_swapped_in():
    opt = fastadam.Adam([np.ones(5, np.float32), np.ones(5, BFLOAT16)], ema_decay=0.9, master_bits=24)
    opt.step([np.ones(5, np.float32)] * 2)
    message = "parameter 1 has master_bits=24, too few to hold its average and give it back; use opt.ema"
    with unchanged(opt), pytest.raises(ValueError, match=message), opt.swap_ema():
        pass
    opt.step([np.ones(5, np.float32)] * 2)
    opt = fastadam.Adam(np.ones(5, np.float32), ema_decay=0.9, master_bits=24)  # which has none of them
    with opt.swap_ema():
        pass


def test_no_copy_of_an_arrays_size_is_made():
    shape = 1 << 10, 1 << 10
    params = [np.ones(shape, BFLOAT16), np.ones(shape, np.float32)]
    grads = [np.ones(shape, np.float16), np.ones(shape, np.float32)]
    rows = [Rows(np.arange(0, 1 << 10, 2), grad[::2].copy()) for grad in grads]
    for state_dtype in "bfloat16", "8bit":
        opt = fastadam.Adam(params, state_dtype=state_dtype, max_norm=1.0)
        opt.step(grads)
        tracemalloc.start()
        opt.step(grads)
        opt.step(rows)
        opt.reset_master()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 18
