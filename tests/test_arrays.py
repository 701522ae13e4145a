"""Promise 4: refuse, never corrupt. What arrays may be, and proof that a refusal changes nothing."""

import re
import warnings

import numpy as np
import pytest
from helpers import (
    BAD_LAYOUTS,
    NOT_ARRAYS,
    WRONG_DTYPES,
    N,
    assert_same_bits,
    ones,
    run_python,
    snapshot,
    strided,
    unchanged,
)

import fastadam
from fastadam import reference

# ---- parameters at construction


@pytest.mark.parametrize(("bad", "match"), [*NOT_ARRAYS, (None, "got a NoneType")])
def test_parameter_of_the_wrong_kind_is_a_type_error(bad, match):
    with pytest.raises(TypeError, match=rf"parameter 'w' {match}|parameter 'w' .*{match}"):
        fastadam.Adam({"v": ones(), "w": bad})


@pytest.mark.parametrize("dtype", [*WRONG_DTYPES, np.float16, np.longdouble])
def test_parameter_of_the_wrong_dtype_is_a_type_error(dtype):
    with pytest.raises(TypeError, match=r"parameter 0 must be float32, float64 or bfloat16, got .*; (use|give)"):
        fastadam.Adam([np.zeros(N, dtype)])


@pytest.mark.parametrize(("make", "match"), BAD_LAYOUTS)
def test_parameter_that_cannot_be_updated_in_place_is_a_value_error(make, match):
    with pytest.raises(ValueError, match=rf"parameter 0 must .*{match}.*(use|set)"):
        fastadam.Adam(make())


def test_parameters_that_overlap_are_refused():
    memory = ones(20)
    for other in memory[5:15], memory[9:10], memory.view(np.float64)[:1]:
        match = r"parameter 0 and parameter 1 overlap|parameter 1 and parameter 0 overlap"
        with pytest.raises(ValueError, match=match):
            fastadam.Adam([memory[:10], other])
    fastadam.Adam([memory[:10], memory[10:]])


def test_overlap_by_one_byte_is_refused():
    memory = np.zeros(64, np.uint8)
    a, b = memory[:16].view(np.float64), memory[12:20].view(np.float32)
    with pytest.raises(ValueError, match="overlap"):
        fastadam.Adam([a, b])


def test_empty_and_zero_dimensional_arrays_are_fine():
    params = [ones(0), np.zeros((3, 0), np.float32), np.array(1.0), np.ones((1, 1), np.float32)]
    opt = fastadam.Adam(params, lr=0.1)
    opt.step([ones(0), np.zeros((3, 0), np.float32), np.float64(2.0), np.ones((1, 1), np.float32)])
    assert params[2] == pytest.approx(0.9)
    assert [entry["step"] for entry in opt.state.values()] == [1, 1, 1, 1]


def test_subclasses_other_than_masked_arrays_are_fine(tmp_path):
    param = np.memmap(tmp_path / "p", np.float32, "w+", shape=(N,))
    opt = fastadam.Adam(param, lr=0.1)
    opt.step(ones().view(np.recarray))
    assert np.allclose(param, -0.1)
    assert type(opt.state[0]["exp_avg"]) is np.ndarray


# ---- parameters are looked at again in every step


def change_after_construction(change, match, error=ValueError):
    params = {"v": ones(), "w": np.ones((2, 3), np.float32)}
    opt = fastadam.Adam(params)
    opt.step({"v": ones(), "w": np.ones((2, 3), np.float32)})
    change(params["w"])
    with unchanged(opt), pytest.raises(error, match=match):
        opt.step({"v": ones(), "w": np.ones((2, 3), np.float32)})
    return opt


def test_parameter_frozen_between_steps_is_refused():
    def freeze(param):
        param.flags.writeable = False

    change_after_construction(freeze, "must be writeable")


@pytest.mark.parametrize("shape", [(9, 9), (1, 3), (3, 2), (6,), (2, 3, 1)])
def test_parameter_resized_between_steps_is_refused(shape):
    change_after_construction(
        lambda param: param.resize(shape, refcheck=False),
        rf"float32 of shape \(2, 3\) in its memory order, got float32 of shape {re.escape(str(shape))}",
    )


def test_state_cannot_be_resized():
    opt = fastadam.Adam([ones(0), ones(), np.asfortranarray(np.ones((3, 4)))], amsgrad=True)
    for arrays in opt._engine.arrays:
        for array in arrays[1:]:
            with pytest.raises(ValueError, match="does not own its data"):
                array.resize((9, 9), refcheck=False)


def test_state_is_aligned_to_cache_lines():
    """Structure that the speed in cache rests on."""
    params = [ones(n, dtype) for n in (1, 3, 17, 1000) for dtype in (np.float32, np.float64)]
    opt = fastadam.Adam(params, amsgrad=True)
    for param, entry in zip(params, opt.state.values(), strict=True):
        for array in list(entry.values())[1:]:
            assert array.ctypes.data % 64 == 0
            assert (array.dtype, array.shape) == (param.dtype, param.shape)


@pytest.mark.parametrize("in_file", [False, True])
def test_kinds_of_state_lie_apart_in_a_page(tmp_path, in_file):
    """Structure, too: a load waits for recent stores to its place in another page. Parameters begin at 16 or 64."""
    params = [ones(5), np.ones((200, 100)), ones(2048), ones(40_001)]
    options = {"state_file": tmp_path / "state"} if in_file else {}
    opt = fastadam.Adam(params, amsgrad=True, ema_decay=0.9, accumulate=2, **options)
    for large in (1, 3):
        places = [array.ctypes.data % 4096 for array in opt._engine.arrays[large][1:]]
        assert places == [768, 1472, 2176, 2880, 3584]
    small = sorted(array.ctypes.data for arrays in opt._engine.arrays[::2] for array in arrays[1:2])
    assert small[1] - small[0] == 64  # side by side


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("dtype", np.int32, TypeError)]
    + [(name, value, ValueError) for name, value in (("dtype", ">f4"), ("shape", (3, 2)), ("strides", (4, 8)))],
)
def test_parameter_whose_metadata_changed_is_refused(name, value, error):
    change_after_construction(lambda param: setattr(param, name, value), "parameter 'w' must", error)


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_parameter_of_another_real_type_than_when_it_was_added_is_refused():
    param = np.ones((4, 2), np.float32)
    opt = fastadam.SGD(param)
    param.dtype = np.float64
    with pytest.raises(ValueError, match=r"float32 of shape \(4, 2\) in .*, got float64 of shape \(4, 1\)"):
        opt.step(np.ones((4, 1)))
    with pytest.raises(ValueError, match="must stay"):
        opt.step(np.ones((4, 2), np.float32))


def test_parameter_that_moved_in_memory_is_followed():
    a, b = ones(4), ones(4)
    opt = fastadam.Adam([a, b], lr=0.1)
    opt.step([ones(4), ones(4)])
    a.resize(1 << 20, refcheck=False)
    a.resize(4, refcheck=False)
    opt.step([ones(4), ones(4)])
    assert np.array_equal(a, b)


def test_array_put_in_a_parameters_place_is_not_its_parameter():
    weights = {"w": ones()}
    old, opt = weights["w"], fastadam.SGD(weights, lr=1.0)
    weights["w"] = ones()
    opt.step({"w": ones()})
    assert not old.any() and weights["w"].all()


def test_frozen_parameter_may_be_left_alone():
    a, b = ones(), ones()
    opt = fastadam.Adam([a, b])
    b.flags.writeable = False
    opt.step([ones(), None])
    assert opt.state[0]["step"] == 1 and opt.state[1]["step"] == 0


# ---- gradients


def gradient_refused(grad, error, match, param=None):
    first, last = ones(), ones()
    params = [first, ones() if param is None else param, last]
    opt = fastadam.Adam(params)
    opt.step([ones(), ones(), ones()] if param is None else [ones(), None, ones()])
    with unchanged(opt), pytest.raises(error, match=match):
        opt.step([ones(), grad, ones()])


@pytest.mark.parametrize(("bad", "match"), [*NOT_ARRAYS, ([1.0] * N, "got a list"), ({}, "got a dict")])
def test_gradient_of_the_wrong_kind_is_a_type_error(bad, match):
    gradient_refused(bad, TypeError, f"gradient of parameter 1 must be a numpy.ndarray, .*{match}|{match}")


@pytest.mark.parametrize("dtype", WRONG_DTYPES)
def test_gradient_that_is_not_real_is_a_type_error(dtype):
    gradient_refused(
        np.zeros(N, dtype), TypeError, "gradient of parameter 1 must be float16, bfloat16, float32, float64 or"
    )


@pytest.mark.parametrize("shape", [(N + 1,), (N, 1), (1, N), (), (0,)])
def test_gradient_of_another_shape_is_a_value_error(shape):
    gradient_refused(np.zeros(shape, np.float32), ValueError, r"gradient of parameter 1 must have the shape .*\(6,\)")


def test_only_zero_dimensional_parameters_take_scalars():
    gradient_refused(np.float32(1), TypeError, "gradient of parameter 1 must be a numpy.ndarray")
    gradient_refused(1.0, TypeError, "gradient of parameter 1", param=np.array(1.0))
    gradient_refused(np.int64(1), TypeError, "gradient of parameter 1", param=np.array(1.0))


def test_gradient_in_memory_that_is_written_is_refused():
    memory = ones(3 * N)
    params = [memory[N : 2 * N], ones()]
    opt = fastadam.Adam(params)
    moments = opt.state[1]["exp_avg"]
    places = [memory[start : start + N] for start in (1, N, N + 1, 2 * N - 1)]
    for grad in [*places, moments, *[place[::-1] for place in (*places, moments)]]:
        before = snapshot(opt)
        match = r"gradient of parameter 1 and (parameter 0|exp_avg of parameter 1) overlap"
        with pytest.raises(ValueError, match=match):
            opt.step([None, grad])
        assert snapshot(opt) == before
    opt.step([None, memory[:N]])
    opt.step([None, memory[2 * N :]])


def bytes_of(array, start, size):
    """`size` bytes that begin `start` bytes after an array, which is cut from a larger block."""
    block = array
    while block.base is not None:
        block = block.base
    start += array.ctypes.data - block.ctypes.data
    assert 0 <= start <= block.nbytes - size
    return block.view(np.uint8)[start : start + size]


@pytest.mark.filterwarnings("ignore::fastadam.PerformanceWarning")
@pytest.mark.parametrize("what", ["param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "ema", "grad_sum"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_gradient_that_shares_one_byte_with_what_is_written_is_refused(what, side):
    """It is misaligned, so it would be copied, and that copy is not to read what is written."""
    params = [ones(), np.zeros(192, np.uint8)[64:88].view(np.float32)]
    opt = fastadam.Adam(params, amsgrad=True, ema_decay=0.9, accumulate=2)
    written = (
        params[1] if what == "param" else opt.state[1][what]
    )  # between padding: the next line begins 64 bytes later
    for shared in 1, 0:
        grad = bytes_of(written, shared - 24 if side == "before" else 24 - shared, 24).view(np.float32)
        before = snapshot(opt)
        if shared:
            with pytest.raises(ValueError, match="gradient of parameter 0 and .*parameter 1 overlap"):
                opt.step([grad, None])
            assert snapshot(opt) == before
        else:
            opt.step([grad, None])


def test_gradient_that_became_a_parameter_is_refused():
    """What was found to be apart in an earlier step is looked up again after groups were added."""
    opt, grad = fastadam.Adam([ones()]), ones()
    opt.step([grad])
    opt.add_param_group({"params": [grad]})
    with pytest.raises(ValueError, match="gradient of parameter 0 and parameter 1 overlap"):
        opt.step([[grad], [None]])


def test_gradient_between_the_written_elements_is_fine():
    memory = np.ones((2, N), np.float64)
    opt = fastadam.Adam(memory[0])
    with pytest.warns(fastadam.PerformanceWarning):
        opt.step(np.ones((N, 3))[:, 1])


def test_gradients_may_share_memory_with_one_another():
    params, grad = [ones(), ones()], ones()
    fastadam.Adam(params, lr=0.5).step([grad, grad])
    assert np.array_equal(*params) and np.array_equal(grad, ones())


GRADIENTS = {
    "strided": lambda g: np.repeat(g, 2, axis=0)[::2],
    "reversed": lambda g: g[::-1].copy()[::-1],
    "other order": np.asfortranarray,
    "other precision": lambda g: g.astype(np.float32 if g.dtype == np.float64 else np.float64),
    "long double": lambda g: g.astype(np.longdouble),
    "swapped": lambda g: g.astype(g.dtype.newbyteorder()),
    "misaligned": lambda g: np.frombuffer(b"\0" + g.tobytes(), np.uint8)[1:].view(g.dtype).reshape(g.shape),
    "broadcast": lambda g: np.broadcast_to(g[0], g.shape),
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_real_gradient_is_correct_and_warned_about_once(kind, dtype):
    rng = np.random.default_rng(0)
    p = rng.standard_normal((6, 5)).astype(dtype)
    twin, m, v = p.copy(), np.zeros_like(p), np.zeros_like(p)
    opt = fastadam.Adam({"w": p}, lr=0.1)
    for step in 1, 2, 3:
        grad = GRADIENTS[kind](rng.standard_normal((6, 5)).astype(dtype))
        before = grad.tobytes()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            opt.step({"w": grad})
        assert [w.category for w in caught] == [fastadam.PerformanceWarning] * (step == 1)
        if caught:
            assert "gradient of parameter 'w'" in str(caught[0].message) and caught[0].filename == __file__
        assert grad.tobytes() == before
        reference.adam_update(twin, grad, m, v, step, lr=0.1)
    assert_same_bits(p, twin)


@pytest.mark.filterwarnings("ignore::fastadam.PerformanceWarning")
@pytest.mark.parametrize("order", "<>=|")
@pytest.mark.parametrize("kind", "efdg")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_of_every_type_and_byte_order_give_the_same_bits(kind, order, dtype):
    p, twin = ones(dtype=dtype), ones(dtype=dtype)
    values = np.random.default_rng(0).standard_normal(N).astype(np.float16)  # which all types can hold
    fastadam.Adam(p).step(values.astype(np.dtype(kind).newbyteorder(order)))
    fastadam.Adam(twin).step(values.astype(dtype))
    assert_same_bits(p, twin)


@pytest.mark.filterwarnings("ignore::fastadam.PerformanceWarning")
def test_converted_gradients_do_not_mix_up_groups():
    """Tasks are made again after a conversion; each group must keep its own coefficients."""
    rng = np.random.default_rng(0)
    params = [rng.standard_normal(N) for _ in range(4)]
    twins = [(p.copy(), np.zeros(N), np.zeros(N)) for p in params]
    rates = [0.1, 0.2, 0.3, 0.4]
    opt = fastadam.Adam([{"params": p, "lr": lr} for p, lr in zip(params, rates, strict=True)])
    for step in range(1, 4):
        grads = [rng.standard_normal(2 * N)[::2] if (i + step) % 2 else rng.standard_normal(N) for i in range(4)]
        opt.step(grads)
        for twin, grad, lr in zip(twins, grads, rates, strict=True):
            reference.adam_update(twin[0], grad, *twin[1:], step, lr=lr)
    for p, twin in zip(params, twins, strict=True):
        assert_same_bits(p, twin[0])


@pytest.mark.filterwarnings("ignore::fastadam.PerformanceWarning")
@pytest.mark.parametrize("names", [{}, {"__name__": None}])
def test_a_warning_needs_no_module_that_it_can_point_at(names):
    p, grad, m, v = ones(3), np.ones(3), np.zeros(3, np.float32), np.zeros(3, np.float32)
    exec("update(p, grad, m, v, 1)", {"update": fastadam.adam_update, "p": p, "grad": grad, "m": m, "v": v} | names)
    assert (p < 1).all()


def test_a_warning_needs_no_python_code_that_called():
    code = """
import atexit, numpy as np, fastadam
p, m, v = np.ones(2, np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32)
atexit.register(lambda: print(p))
atexit.register(fastadam.adam_update, p, np.ones(2), m, v, 1)
"""
    done = run_python(code)
    assert done.stdout == "[0.999 0.999]\n", done.stderr
    assert "PerformanceWarning: grad is copied" in done.stderr


def test_gradient_too_large_for_the_type_becomes_infinite():
    p, q = ones(1), ones(1)
    grad, m, v = np.array([1e300]), np.zeros(1, np.float32), np.zeros(1, np.float32)
    with pytest.warns(fastadam.PerformanceWarning) as caught:
        fastadam.Adam(p).step(grad)
    assert [each.filename for each in caught] == [__file__]
    reference.adam_update(q, grad, m, v, 1)
    assert_same_bits(p, q)


def test_warning_turned_into_an_error_changes_nothing_and_is_repeated():
    params = [ones(), ones()]
    opt = fastadam.Adam(params)
    before = snapshot(opt)
    for _ in range(2):
        with pytest.raises(fastadam.PerformanceWarning):  # the suite runs with -W error
            opt.step([ones(), strided()])
        assert snapshot(opt) == before


def test_array_changed_by_a_warning_filter_is_noticed(monkeypatch):
    params = [ones(), ones()]
    opt = fastadam.Adam(params)

    def showwarning(*args, **kwargs):
        params[0].flags.writeable = False

    before = snapshot(opt)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", showwarning)
        with pytest.raises(ValueError, match="parameter 0 must be writeable"):
            opt.step([ones(), strided()])
    assert snapshot(opt) == before


@pytest.mark.filterwarnings("ignore::fastadam.PerformanceWarning")
def test_the_list_of_gradients_stays_as_it_was():
    given = [np.ones(3), None, np.ones(4)]  # of another type than the parameters
    grads = list(given)
    fastadam.Adam([np.ones(3, np.float32), np.ones(2, np.float32), np.ones(4, np.float32)]).step(grads)
    assert all(grad is first for grad, first in zip(grads, given, strict=True))
