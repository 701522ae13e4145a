"""What runs before and after a rule: clipping by value, sums of gradients, averages. And steps of single arrays.

An oracle made of the reference's functions gives the same bits for every combination."""

import copy
import ctypes
import math
import pickle
from functools import partial

import numpy as np
import pytest
from allpairspy import AllPairs
from helpers import DTYPES, ISAS, assert_same_bits, run_python, snapshot, tame, unchanged, wild

import fastadam
from fastadam import _core, reference

pytestmark = pytest.mark.usefixtures("restore_isa")

SIZES = [0, 1, 17, 513, 4099, 9001]


class Oracle:
    """An Adam with every wrap, array by array, as the reference has it."""

    def __init__(
        self, params, *, max_norm=None, max_norm_each=None, max_value=None, accumulate=1, ema_decay=None, **hyper
    ):
        self.params = [p.copy() for p in params]
        self.m, self.v = ([np.zeros_like(p) for p in params] for _ in range(2))
        self.ema = [p.copy() for p in params]
        self.steps = [0] * len(params)
        self.pending = [[] for _ in params]
        self.max_norm, self.max_norm_each, self.max_value = max_norm, max_norm_each, max_value
        self.accumulate, self.ema_decay, self.hyper = accumulate, ema_decay, hyper
        self.norm = None

    def step(self, grads, grad_scale=1.0):
        ready = {}
        for i, grad in enumerate(grads):
            if grad is not None:
                self.pending[i].append((grad, grad_scale))
                if len(self.pending[i]) >= self.accumulate:
                    ready[i] = tuple(zip(*self.pending[i], strict=True))
                    self.pending[i] = []
        taken = {i: given[0] for i, (given, _) in ready.items()}
        if self.accumulate > 1 or self.max_value is not None:
            taken = {i: reference.gradient(*waited, self.dtype_of(i), self.max_value) for i, waited in ready.items()}
            grad_scale = 1.0
        if ready and (self.max_norm or self.max_norm_each):
            self.norm = reference.grad_norm(list(taken.values()), grad_scale)
        for i, grad in taken.items():
            scale = grad_scale
            if self.max_norm is not None:
                scale = reference.clip_scale(list(taken.values()), self.max_norm, grad_scale)
            if self.max_norm_each is not None:
                scale = reference.clip_scale([grad], self.max_norm_each, grad_scale)
            self.steps[i] += 1
            after = self.update(i, grad, scale)
            if self.ema_decay is not None:
                reference.ema_update(self.ema[i], after, self.ema_decay)

    def dtype_of(self, i):
        return self.params[i].dtype

    def update(self, i, grad, scale):
        p = self.params[i]
        reference.adam_update(p, grad, self.m[i], self.v[i], self.steps[i], grad_scale=scale, **self.hyper)
        return p

    def assert_equals(self, opt, params, what=""):
        for i, (ours, twin) in enumerate(zip(params, self.params, strict=True)):
            entry = opt.state[i]
            assert entry["step"] == self.steps[i]
            assert entry.get("grad_count", 0) == len(self.pending[i])
            assert_same_bits(ours, twin, what)
            assert_same_bits(entry["exp_avg"], self.m[i], what)
            assert_same_bits(entry["exp_avg_sq"], self.v[i], what)
            if self.ema_decay is not None:
                assert_same_bits(opt.ema[i], self.ema[i], what)
        if self.max_norm or self.max_norm_each:
            assert opt.grad_norm == self.norm


def arrays(rng, make, dtype):
    return [make(rng, n, dtype) for n in SIZES] + [make(rng, 90 * 70, dtype).reshape(90, 70)]


AXES = {
    "isa": ISAS,
    "dtype": DTYPES,
    "make": [tame, wild],
    "threads": [1, 2, 3, 8],
    "clip": [{}, {"max_norm": 2.0}, {"max_norm_each": 2.0}, {"max_value": 0.25}],
    "accumulate": [1, 2, 5],
    "ema_decay": [None, 0.0, 0.9, 1.0],
    "rest": [{}, {"weight_decay": 0.1, "maximize": True}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
}


def test_every_pair_of_settings_equals_the_oracle():
    for isa, dtype, make, threads, clip, accumulate, ema_decay, rest in AllPairs(list(AXES.values())):
        if make is wild and clip:
            make = tame  # NaN in one array would make the norm NaN, and all of them with it
        _core.select_isa(isa)
        rng = np.random.default_rng(0)
        params = arrays(rng, tame, dtype)
        options = {"accumulate": accumulate, "ema_decay": ema_decay, **clip, **rest}
        oracle = Oracle(params, **options)
        opt = fastadam.Adam(params, threads=threads, **options)
        for _ in range(2 * accumulate + 1):
            grads = [None if rng.random() < 0.2 else g for g in arrays(rng, make, dtype)]
            before = [None if g is None else g.tobytes() for g in grads]
            opt.step(grads, grad_scale=0.7)
            oracle.step(grads, grad_scale=0.7)
            assert before == [None if g is None else g.tobytes() for g in grads], "gradients are only read"
        oracle.assert_equals(opt, params, f"{isa} {dtype} {make} {threads} {options}")


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "AdamW", "RowAdagrad"])
def test_wraps_do_not_depend_on_the_rule(name):
    """With the mean gradient given by hand, clipped, any optimizer takes the same step."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(1000)
    a, b = start.copy(), start.copy()
    opt = getattr(fastadam, name)(a, accumulate=3, max_value=0.5, ema_decay=0.9)
    plain = getattr(fastadam, name)(b)
    ema = start.copy()
    for _ in range(4):
        grads = rng.standard_normal((3, 1000))
        for grad in grads:
            opt.step(grad)
        plain.step(reference.gradient(grads, [1.0] * 3, np.float64, 0.5))
        reference.ema_update(ema, b, 0.9)
    assert_same_bits(a, b)
    assert_same_bits(opt.ema[0], ema)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax", "AdamW", "RowAdagrad"])
def test_clipping_by_the_norm_does_not_depend_on_the_rule(name):
    """With the clip factor given by hand, any optimizer takes the same step."""
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(5000), rng.standard_normal(3)]
    a, b = copy.deepcopy(start), copy.deepcopy(start)
    opt, plain = getattr(fastadam, name)(a, max_norm=0.5), getattr(fastadam, name)(b)
    for size in 1.0, 1e-6, 1e6:
        grads = [size * rng.standard_normal(p.shape) for p in start]
        opt.step(grads, grad_scale=0.7)
        norm = reference.grad_norm(grads, 0.7)
        plain.step(grads, grad_scale=0.7 * min(1.0, 0.5 / (norm + 1e-6)))
        assert opt.grad_norm == norm
    for ours, theirs in zip(a, b, strict=True):
        assert_same_bits(ours, theirs)


# ---- clipping by value


def test_nan_stays_and_infinity_is_clipped_by_value():
    param = np.zeros(3)
    opt = fastadam.SGD(param, lr=1.0, max_value=2.0)
    opt.step(np.array([math.inf, -math.inf, math.nan]))
    assert param[0] == -2 and param[1] == 2 and math.isnan(param[2])


def test_max_value_clips_what_grad_scale_has_scaled():
    param = np.zeros(2)
    fastadam.SGD(param, lr=1.0, max_value=2.0, maximize=True).step(np.array([3.0, 0.5]), grad_scale=2.0)
    assert param.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("each", ["max_norm", "max_value"])
def test_clipping_each_array_by_its_norm_excludes_other_clipping(each):
    for one, other in (each, "max_norm_each"), ("max_norm_each", each):
        with pytest.raises(ValueError, match=r"(\w+) and (\w+) cannot both be set; make one of them None") as error:
            fastadam.Adam(np.ones(2), **{one: 1.0, other: 2.0})
        assert {each, "max_norm_each"} <= set(str(error.value).split())
        opt = fastadam.Adam(np.ones(2), **{one: 1.0})
        with pytest.raises(ValueError, match=f"{each} and max_norm_each|max_norm_each and {each}"):
            setattr(opt, other, 2.0)
        assert (getattr(opt, one), getattr(opt, other)) == (1.0, None)
        setattr(opt, one, None)
        setattr(opt, other, 2.0)


def test_max_norm_and_max_value_exclude_each_other():
    with pytest.raises(ValueError, match="max_norm and max_value cannot both be set"):
        fastadam.Adam(np.ones(2), max_norm=1.0, max_value=1.0)
    opt = fastadam.Adam(np.ones(2), max_norm=1.0)
    with pytest.raises(ValueError, match="max_norm and max_value cannot both be set"):
        opt.max_value = 1.0
    assert (opt.max_norm, opt.max_value) == (1.0, None)
    opt.max_norm = None
    opt.max_value = 1.0
    opt.step(np.ones(2))


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *[("max_value", v, ValueError) for v in (0.0, -1.0, math.nan)],
        ("max_value", "1", TypeError),
        *[("accumulate", v, ValueError) for v in (0, -1, 2**31)],
        *[("accumulate", v, TypeError) for v in (1.5, "2", None, True)],
        *[("ema_decay", v, ValueError) for v in (-0.1, 1.1, math.nan)],
        ("ema_decay", "0.9", TypeError),
    ],
)
def test_settings_out_of_range_are_refused_when_made_and_when_set(name, value, error):
    with pytest.raises(error, match=f"^{name} must"):
        fastadam.Adam(np.ones(2), **{name: value})
    opt = fastadam.Adam(np.ones(2), accumulate=2, ema_decay=0.5)
    before = vars(opt).copy()
    with pytest.raises(error, match=f"^{name} must"):
        setattr(opt, name, value)
    assert vars(opt) == before
    opt.step(np.ones(2))


def test_what_needs_memory_must_be_on_from_the_start():
    opt = fastadam.Adam(np.ones(2))
    with pytest.raises(ValueError, match="ema_decay was None when the optimizer was made"):
        opt.ema_decay = 0.9
    with pytest.raises(ValueError, match="accumulate was 1 when the optimizer was made"):
        opt.accumulate = 2
    assert opt.ema_decay is None and opt.accumulate == 1
    opt.step(np.ones(2))
    with pytest.raises(ValueError, match="ema_decay was None when the optimizer was made"):
        _ = opt.ema
    with pytest.raises(ValueError, match="ema_decay was None"), opt.swap_ema():
        pass


# ---- sums of gradients


def test_accumulation_may_be_shortened_in_the_middle():
    """The mean is that of as many gradients as there were."""
    a = np.zeros(2)
    opt = fastadam.SGD(a, lr=1.0, accumulate=4)
    opt.step(np.full(2, 1.0))
    opt.step(np.full(2, 2.0))
    opt.accumulate = 1
    opt.step(np.full(2, 6.0))
    assert a.tolist() == [-3.0, -3.0]
    opt.step(np.full(2, 1.0))
    assert a.tolist() == [-4.0, -4.0]


def test_schedules_are_not_called_for_pending_gradients():
    calls = []
    opt = fastadam.Adam(np.ones(2), lr=lambda count: calls.append(count) or 0.1, accumulate=3)
    for _ in range(6):
        opt.step(np.ones(2))
    assert calls == [0, 1]


def test_the_norm_is_known_only_after_a_step_and_is_the_means():
    opt = fastadam.Adam(np.ones(2), max_norm=1.0, accumulate=2)
    opt.step(np.array([3.0, 0.0]))
    assert opt.grad_norm is None
    opt.step(np.array([3.0, 8.0]))
    assert opt.grad_norm == 5.0
    opt.step(np.array([1.0, 1.0]))
    assert opt.grad_norm == 5.0


@pytest.mark.parametrize("mode", ["raise", "skip"])
@pytest.mark.parametrize("when", [0, 1])
def test_a_gradient_with_nan_does_not_join_a_sum(mode, when):
    a, b = np.zeros(3), np.zeros(3)
    opt = fastadam.SGD(a, lr=1.0, accumulate=2, nonfinite=mode)
    plain = fastadam.SGD(b, lr=1.0, accumulate=2)
    bad = np.array([1.0, math.nan, 1.0])
    for number in range(2):
        if number == when:
            before = snapshot(opt)
            if mode == "raise":
                with pytest.raises(FloatingPointError, match="gradient of parameter 0 has NaN"):
                    opt.step(bad)
            else:
                opt.step(bad)
            assert snapshot(opt) == before and opt.skipped_steps == (mode == "skip")
        grad = np.full(3, 2.0 + number)
        opt.step(grad)
        plain.step(grad)
    assert_same_bits(a, b)
    assert a[0] == -2.5


def test_a_sum_that_overflows_is_found():
    a = np.zeros(3, np.float32)
    opt = fastadam.SGD(a, accumulate=2, nonfinite="raise")
    large = np.full(3, 3e38, np.float32)
    opt.step(large)
    with unchanged(opt), pytest.raises(FloatingPointError):
        opt.step(large)


@pytest.mark.parametrize("mode", ["raise", "skip"])
@pytest.mark.parametrize(("dtype", "large", "scale"), [(np.float32, 3e38, 1.0), (np.float32, 1e38, 100.0)])
def test_a_pending_sum_that_would_overflow_stays_as_it_is(mode, dtype, large, scale):
    """Else no later step could be taken."""
    a = np.zeros(3, dtype)
    opt = fastadam.SGD(a, lr=1.0, accumulate=3, nonfinite=mode)
    opt.step(np.full(3, 3e38, dtype))
    before = snapshot(opt)
    if mode == "raise":
        with pytest.raises(FloatingPointError):
            opt.step(np.full(3, large, dtype), grad_scale=scale)
    else:
        opt.step(np.full(3, large, dtype), grad_scale=scale)
    assert snapshot(opt) == before
    for _ in range(2):
        opt.step(np.ones(3, dtype))
    assert opt.state[0]["step"] == 1 and np.isfinite(a).all()


def test_squares_that_overflow_in_a_sum_do_not_count():
    a = np.zeros(3)
    opt = fastadam.SGD(a, lr=1.0, accumulate=2, nonfinite="raise")
    for _ in range(2):
        opt.step(np.full(3, 1e160))
    assert a[0] == -1e160


def test_accumulate_set_back_to_one_is_as_if_it_had_never_been():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(5000).astype(np.float32)
    b = a.copy()
    opt, plain = fastadam.Adam(a, accumulate=2, max_norm=1.0), fastadam.Adam(b, max_norm=1.0)
    opt.accumulate = 1
    for _ in range(3):
        grad = rng.standard_normal(5000).astype(np.float32)
        opt.step(grad, grad_scale=0.7)
        plain.step(grad, grad_scale=0.7)
        assert opt.grad_norm == plain.grad_norm
    assert_same_bits(a, b)


def test_small_stacks_of_workers_are_enough():
    code = """
import numpy as np, fastadam
p, g = np.ones(100_000), np.ones(100_000)
opt = fastadam.Adam(p, threads=2, accumulate=2, max_norm=1.0, ema_decay=0.9)
for _ in range(4): opt.step(g)
"""
    run_python(code, OMP_STACKSIZE="64k")


@pytest.mark.parametrize("count", [2**31, 2**63 - 1])
def test_a_count_that_cannot_be_is_refused(count):
    opt = fastadam.Adam(np.ones(2), accumulate=2)
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0]["grad_count"] = count
    with pytest.raises(ValueError, match="grad_count.*less than 2"):
        opt.load_state_dict(saved)


def test_a_gradient_may_not_overlap_the_sum_or_the_average():
    opt = fastadam.Adam(np.ones(4), accumulate=2, ema_decay=0.9)
    for name in "grad_sum", "ema":
        with pytest.raises(ValueError, match=f"{name} of parameter 0 overlap"):
            opt.step(opt.state[0][name])


# ---- saved and loaded


@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_training_goes_on_in_the_middle_of_a_sum(how):
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((12, 40))
    param = rng.standard_normal(40)
    options = {"accumulate": 3, "ema_decay": 0.9}
    opt = fastadam.Adam(param, **options)
    for grad in grads[:5]:
        opt.step(grad)
    if how == "state_dict":
        saved = copy.deepcopy(opt.state_dict())
        assert saved["state"][0].keys() == {"step", "grad_count", "exp_avg", "exp_avg_sq", "ema", "grad_sum"}
        other = param.copy()
        new = fastadam.Adam(other, **options)
        new.load_state_dict(saved)
    else:
        new = pickle.loads(pickle.dumps(opt)) if how == "pickle" else copy.deepcopy(opt)
        other = new.param_groups[0]["params"][0]
    for grad in grads[5:]:
        opt.step(grad)
        new.step(grad)
    assert opt.state[0]["step"] == new.state[0]["step"] == 4
    assert_same_bits(param, other)
    assert_same_bits(opt.ema[0], new.ema[0])


# ---- one array


@pytest.mark.parametrize(
    "options", [{}, {"max_value": 0.3, "ema_decay": 0.9}, {"accumulate": 2}, {"nonfinite": "raise"}]
)
@pytest.mark.parametrize("name", ["Adam", "SGD", "NAdam"])
def test_arrays_one_by_one_end_where_one_step_does(name, options):
    rng = np.random.default_rng(0)
    a = {k: rng.standard_normal(n) for k, n in (("x", 5), ("y", 5000), ("z", 300_000))}
    b = copy.deepcopy(a)
    schedule = lambda count: 0.1 / (count + 1)  # noqa: E731
    together = getattr(fastadam, name)(a, lr=schedule, **options)
    apart = getattr(fastadam, name)(b, lr=schedule, **options)
    for _ in range(4):
        grads = {k: rng.standard_normal(v.shape) for k, v in a.items()}
        together.step(grads, grad_scale=0.5)
        for key in "z", "x", "y":
            apart.step_one(key, grads[key], grad_scale=0.5)
    for key in a:
        assert_same_bits(a[key], b[key])
        assert together.state[key]["step"] == apart.state[key]["step"]


def test_one_array_has_its_own_counter_and_touches_no_other():
    a, b = np.ones(3), np.ones(3)
    opt = fastadam.Adam([a, b])
    opt.step_one(1, np.ones(3))
    assert opt.state[0]["step"] == 0 and opt.state[1]["step"] == 1
    assert a.tolist() == [1, 1, 1] and not opt.state[0]["exp_avg"].any()


@pytest.mark.parametrize("mode", ["raise", "skip"])
def test_nonfinite_decides_about_one_array_alone(mode):
    a, b = np.ones(3), np.ones(3)
    opt = fastadam.SGD({"a": a, "b": b}, lr=1.0, nonfinite=mode)
    opt.step_one("b", np.ones(3))
    before = snapshot(opt)
    if mode == "raise":
        with pytest.raises(FloatingPointError, match="gradient of parameter 'a' has NaN"):
            opt.step_one("a", np.array([1.0, math.nan, 1.0]))
    else:
        opt.step_one("a", np.array([1.0, math.nan, 1.0]))
    assert snapshot(opt) == before and opt.skipped_steps == (mode == "skip")
    opt.step_one("a", np.array([3.0, 0.0, 4.0]))
    assert opt.grad_norm == 5.0 and opt.state["a"]["step"] == opt.state["b"]["step"] == 1
    assert a.tolist() == [-2.0, 1.0, -3.0] and b.tolist() == [0.0] * 3


def test_one_array_is_refused_as_a_step_is():
    opt = fastadam.Adam({"a": np.ones(3), "b": np.ones(3)})
    before = snapshot(opt)
    with pytest.raises(KeyError, match="no parameter 'c'; there are"):
        opt.step_one("c", np.ones(3))
    with pytest.raises(TypeError, match="grad must not be None"):
        opt.step_one("a", None)
    with pytest.raises(ValueError, match="gradient of parameter 'b' must have the shape"):
        opt.step_one("b", np.ones(4))
    with pytest.raises(ValueError, match="overlap"):
        opt.step_one("b", opt.state["a"]["exp_avg"])
    opt.max_norm = 1.0
    with pytest.raises(ValueError, match="max_norm needs the gradients of all parameters"):
        opt.step_one("a", np.ones(3))
    assert snapshot(opt) == before


def test_one_array_in_another_type_is_converted():
    a = np.zeros(3, np.float32)
    opt = fastadam.SGD([np.zeros(2), a], lr=1.0)
    with pytest.warns(fastadam.PerformanceWarning, match="gradient of parameter 1"):
        opt.step_one(1, np.full(3, 0.1))
    assert a.tolist() == [-np.float32(0.1)] * 3


def test_arrays_that_have_moved_are_found():
    """A parameter that grew out of its place is refused; the others go on without it."""
    a, b = np.ones(3), np.ones(1000)
    opt = fastadam.SGD([a, b], lr=1.0)
    opt.step([np.ones(3), np.ones(1000)])
    b.resize(2_000_000, refcheck=False)
    with pytest.raises(ValueError, match="parameter 1"):
        opt.step([np.ones(3), np.ones(1000)])
    opt.step([np.ones(3), None])
    assert a.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"max_norm": 1e9}], ids=str)
def test_a_gradient_may_lie_where_a_parameter_no_longer_is(options):
    """Found out in the middle of a step, when there are tasks of others already."""
    memory = np.zeros(4000)
    a, b, moved = np.ones(1000), np.ones(1000), memory[:1000]
    twins = np.ones(1000), np.ones(1000)
    opt, twin = fastadam.SGD([a, b, moved], lr=1.0, **options), fastadam.SGD(twins, lr=1.0, **options)
    opt.step([np.ones(1000), np.ones(1000), np.ones(1000)])
    twin.step([np.ones(1000), np.ones(1000)])
    grads = np.arange(1000.0), memory[:1000]
    memory[:1000] = np.arange(1000.0)
    ctypes.c_void_p.from_address(id(moved) + 16).value += 2000 * 8  # PyArrayObject.data, as ndarray.data cannot be set
    opt.step([*grads, None])
    twin.step([grads[0], grads[1].copy()])
    assert_same_bits(a, twins[0])
    assert_same_bits(b, twins[1])


@pytest.mark.parametrize("make", [fastadam.Adam, partial(fastadam.SGD, momentum=0.9), fastadam.SGD])
@pytest.mark.parametrize("shape", [100_000, 2, (2, 2)])
def test_a_parameter_that_changes_while_it_is_added_is_refused(make, shape):
    def add(at):
        """As often as the key is hashed; `at` one of these times the parameter changes."""
        param, opt = np.ones(4), make([np.ones(3)])

        class Key:
            calls = 0

            def __hash__(self):
                self.calls += 1
                if self.calls == at:
                    param.resize(shape, refcheck=False)
                return 1

        params = {Key(): param}
        try:
            opt.add_param_group({"params": params})
        except ValueError as error:
            assert len(opt.param_groups) == 1 and len(opt.state) == 1
            opt.step([np.ones(3)])
            return str(error)
        key = next(iter(params))
        calls = key.calls
        for array in list(opt.state[key].values())[1:]:
            assert array.shape == param.shape or calls < at
        return calls

    refusals = {result for result in map(add, range(1, add(0) + 1)) if isinstance(result, str)}
    assert len(refusals) == 1 and "changed while it was being added" in refusals.pop()


@pytest.mark.filterwarnings("ignore:Setting the dtype:DeprecationWarning")  # NumPy 2.5
def test_a_parameter_whose_type_changes_while_it_is_added_is_refused():
    memory, other = np.zeros(16, np.float32), np.ones(4, np.float32)
    param, opt = memory[:4], fastadam.SGD([np.ones(3)], lr=1.0)

    class Key(str):
        def __repr__(self):  # called for each parameter, after the first one was looked at
            param.dtype = np.int8
            return "other"

    with pytest.raises(ValueError, match="changed while it was being added"):
        opt.add_param_group({"params": {"param": param, Key("other"): other}})
    assert len(opt.param_groups) == 1
    opt.step([np.ones(3)])
    assert not memory.any()


def test_a_huge_number_of_blocks_has_the_bits_of_a_small_one():
    """Blocks meet at their edges whatever the number of threads."""
    code = """
import numpy as np, fastadam
rng = np.random.default_rng(0)
start, grads = rng.standard_normal(300_007).astype(np.float32), rng.standard_normal((4, 300_007)).astype(np.float32)
results = []
for threads in 1, 2, 3, 7:
    p = start.copy()
    opt = fastadam.Adam(p, threads=threads, accumulate=2, max_norm=1.0, ema_decay=0.9)
    for g in grads:
        opt.step(g)
    results.append((p.tobytes(), opt.ema[0].tobytes(), opt.grad_norm))
assert all(r == results[0] for r in results)
"""
    run_python(code)
