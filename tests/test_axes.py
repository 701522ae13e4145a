"""Dense arrays whose axes lie in any order (channels_last, for one): the same bits, without a copy."""

import copy
import itertools
import pickle
import warnings

import ml_dtypes
import numpy as np
import pytest
from helpers import DTYPES, assert_same_bits, tame, unchanged

import fastadam
from fastadam import reference

SHAPES = [(4, 3, 2), (3, 1, 5, 2), (2, 3, 4, 5), (1, 7, 1, 3, 2)]
RULES = ["Adam", "NAdam", "RAdam", "Adamax", "SGD", "RMSprop", "Adagrad"]


def lying(array, axes):
    """A copy whose axes lie in memory in this order, the slowest first."""
    return np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))


def orders(shape):
    return list(itertools.permutations(range(len(shape))))


def some_orders(shape):
    return orders(shape)[1::7] or orders(shape)


def arrays(seed, shape=(4, 3, 2), dtype=np.float32):
    return tame(np.random.default_rng(seed), shape, dtype)


def pair_of(cls, shape, axes, dtype, **options):
    p = arrays(0, shape, dtype)
    ours, twins = lying(p, axes), p.copy()
    return ours, twins, getattr(fastadam, cls)(ours, **options), getattr(fastadam, cls)(twins, **options)


def assert_same_state(opt, other):
    for name, ours in opt.state[0].items():
        theirs = other.state[0][name]
        if isinstance(ours, np.ndarray):
            assert_same_bits(ours, theirs, name)
        else:
            assert ours == theirs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_order_of_axes_does_not_change_bits_and_nothing_is_copied(shape, dtype):
    for i, axes in enumerate(orders(shape)):
        options = {"ema_decay": 0.9, "accumulate": 2} if i % 3 == 0 else {"max_value": 0.5} if i % 3 == 1 else {}
        ours, twins, opt, other = pair_of(RULES[i % len(RULES)], shape, axes, dtype, **options)
        for step in range(3):  # PerformanceWarnings are errors
            opt.step(lying(arrays(step + 1, shape, dtype), axes))
            other.step(arrays(step + 1, shape, dtype))
        assert_same_bits(ours, twins, axes)
        assert_same_state(opt, other)
        for state in opt._engine.arrays[0][1:]:
            assert [s for s, n in zip(state.strides, shape, strict=True) if n > 1] == [
                s for s, n in zip(ours.strides, shape, strict=True) if n > 1
            ]


@pytest.mark.parametrize("axes", some_orders((2, 3, 4, 5)))
def test_gradients_in_another_order_are_correct_and_cost_a_copy(axes):
    ours, twins, opt, other = pair_of("Adam", (2, 3, 4, 5), axes, np.float32)
    for step, given in enumerate([(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2)]):
        grad = arrays(step + 1, (2, 3, 4, 5))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            opt.step(lying(grad, given))
        assert len(caught) == (step == 0)  # said once
        other.step(grad)
    assert_same_bits(ours, twins)


def test_other_types_of_gradients_in_the_same_order_are_decoded_in_place():
    ours, twins, opt, other = pair_of("SGD", (4, 3, 2), (1, 0, 2), np.float32, lr=0.5)
    half = arrays(1).astype(np.float16)
    opt.step(lying(half, (1, 0, 2)))
    other.step(half)
    assert_same_bits(ours, twins)


def with_strides(array, axis, stride):
    """Any stride of an axis of length 1."""
    strides = list(array.strides)
    strides[axis] = stride
    return np.lib.stride_tricks.as_strided(array, array.shape, strides)


@pytest.mark.parametrize("stride", [0, 4, -4, 1 << 40, -12345])
def test_axes_of_length_1_have_any_stride(stride):
    p, twin = arrays(0, (3, 1, 5, 2)), arrays(0, (3, 1, 5, 2))
    ours = with_strides(lying(p, (2, 1, 0, 3)), 1, stride)
    opt, other = fastadam.Adam(ours), fastadam.Adam(twin)
    for step in range(3):
        grad = arrays(step + 1, (3, 1, 5, 2))
        opt.step(with_strides(lying(grad, (2, 1, 0, 3)), 1, [stride, 0, 8][step]))
        other.step(grad)
    assert_same_bits(ours, twin)
    new = fastadam.Adam(lying(p, (2, 0, 3, 1)))  # the same order
    new.load_state_dict(opt.state_dict(raw=True))
    assert new._engine.memory_order(0) == opt._engine.memory_order(0) == (2, 0, 3, 1)


def test_arrays_without_elements_have_any_strides():
    p = np.lib.stride_tricks.as_strided(np.ones(0, np.float32), (3, 0, 2, 2), (4, -8, 128, 12))
    opt = fastadam.Adam([p, np.ones(2)], ema_decay=0.5, max_norm=1.0)
    opt.step([np.zeros((3, 0, 2, 2), np.float32), np.ones(2)])
    assert opt.steps == 1


GAPS = {
    "a gap": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: x[:, ::-1],
    "broadcast": lambda x: np.lib.stride_tricks.as_strided(x, x.shape, (0, 8, 4)),
    "overlapping": lambda x: np.lib.stride_tricks.as_strided(x, x.shape, (4, 8, 4)),
    "a row left out": lambda x: lying(x, (1, 2, 0))[:, :, 1:],
}


@pytest.mark.parametrize("kind", GAPS)
def test_arrays_with_gaps_or_reversed_axes_are_refused(kind):
    bad = GAPS[kind](arrays(0))
    with pytest.raises(ValueError, match=r"parameter 0 must be dense in memory \(no gaps, axes in any order, none rev"):
        fastadam.Adam(bad)
    state = [lying(np.zeros(bad.shape, np.float32), (1, 2, 0)) for _ in range(3)]
    with pytest.raises(ValueError, match=r"param must be dense in memory .*use np.ascontiguousarray, and keep"):
        fastadam.adam_update(bad, *state, 1)
    p = lying(np.zeros(bad.shape, np.float32), (1, 2, 0))
    with pytest.warns(fastadam.PerformanceWarning):  # gradients are copied
        fastadam.SGD(p, lr=1.0).step(bad)
    assert_same_bits(-p, np.ascontiguousarray(bad))


@pytest.mark.filterwarnings("ignore:Setting the strides:DeprecationWarning")
def test_a_parameter_whose_strides_have_changed_is_refused():
    p = lying(arrays(0, (3, 3, 2)), (1, 0, 2))
    opt = fastadam.Adam(p)
    opt.step(lying(arrays(1, (3, 3, 2)), (1, 0, 2)))
    p.strides = [p.strides[axis] for axis in (1, 0, 2)]
    with unchanged(opt), pytest.raises(ValueError, match="must stay what it was .* in its memory order"):
        opt.step(arrays(1, (3, 3, 2)))


def test_adam_update_takes_them_and_wants_state_that_lies_as_they_do():
    axes = (2, 0, 1)
    p, m, v = (lying(arrays(0) * (i == 0), axes) for i in range(3))
    twin, its_m, its_v = (np.ascontiguousarray(x) for x in (p, m, v))
    for step in 1, 2:
        fastadam.adam_update(p, lying(arrays(step), axes), m, v, step, lr=0.1)
        reference.adam_update(twin, arrays(step), its_m, its_v, step, lr=0.1)
    for ours, theirs in (p, twin), (m, its_m), (v, its_v):
        assert_same_bits(ours, theirs)
    for bad in lying(m, (0, 2, 1)), np.ascontiguousarray(m):
        with pytest.raises(ValueError, match=r"exp_avg must have the memory order of param; use np.copy"):
            fastadam.adam_update(p, arrays(1), bad, v, 3)


def test_the_norm_sums_in_memory_order_as_the_twin_does():
    shape = (30, 20, 40)
    rng = np.random.default_rng(0)
    for axes in orders(shape):
        p, grad = lying(np.ones(shape), axes), lying(rng.standard_normal(shape), axes)
        opt = fastadam.SGD(p, lr=1.0, max_norm=1.0)
        opt.step(grad)
        assert opt.grad_norm == reference.grad_norm([grad])
        assert_same_bits(p, 1.0 - np.float64(1.0 / (opt.grad_norm + 1e-6)) * grad)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
@pytest.mark.parametrize("bits", [None, 32, 24])
def test_low_precision_is_that_of_the_twin(state_dtype, bits):
    shape, axes, dtype = (6, 5, 9), (1, 2, 0), np.float32 if bits is None else ml_dtypes.bfloat16
    p = lying(arrays(0, shape).astype(dtype), axes)
    twin = copy.deepcopy(p)
    opt = fastadam.Adam(p, lr=0.1, state_dtype=state_dtype, master_bits=bits, seed=5)
    state = reference.fresh_state(["exp_avg", "exp_avg_sq"], shape, state_dtype=state_dtype, master_bits=bits)
    for step in 1, 2, 3:
        grad = lying(arrays(step, shape), axes)
        opt.step(grad)
        options = {"state_dtype": state_dtype, "master_bits": bits, "seed": 5, "lr": 0.1}
        reference.stored_update(reference.adam_update, twin, grad, step, state, **options)
    assert p.tobytes() == twin.tobytes()
    for name, values in state.items():
        assert np.array_equal(opt.state[0][name], values), name
    assert opt.state[0]["exp_avg"].strides == opt.master(0).strides == tuple(4 * s // p.itemsize for s in p.strides)


FORMATS = [("float32", None), ("8bit", None), ("float32", 32), ("bfloat16", 24)]
OWN = (1, 2, 0)


def made(axes, state_dtype, bits, steps):
    dtype = np.float32 if bits is None else ml_dtypes.bfloat16
    param = lying(arrays(0).astype(dtype), axes)
    opt = fastadam.Adam({"w": param}, lr=0.1, state_dtype=state_dtype, master_bits=bits, ema_decay=0.9)
    for step in range(steps):
        opt.step({"w": lying(arrays(step), axes)})
    return opt, param


def assert_the_same(opt, param, other, others, what=""):
    """Elements of parameters and state, as they are read."""
    assert_same_bits(param.astype(np.float32), others.astype(np.float32), what)
    for name, ours in opt.state["w"].items():
        if "::" not in name:
            assert np.array_equal(ours, other.state["w"][name]), (name, what)
    assert_same_bits(opt.master("w"), other.master("w"), what)


def assert_same_bytes(opt, param, other, others):
    """Now, and when both go on."""
    for step in 8, 9:
        assert param.tobytes() == others.tobytes() and param.strides == others.strides
        for ours, theirs in zip(opt._engine.arrays[0][1:], other._engine.arrays[0][1:], strict=True):
            assert ours.tobytes() == theirs.tobytes() and ours.strides == theirs.strides
        for each in opt, other:
            each.step({"w": lying(arrays(step), OWN)})


@pytest.mark.parametrize(("state_dtype", "bits"), FORMATS)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_checkpoints_bring_them_back_in_the_same_order_and_in_others(tmp_path, suffix, state_dtype, bits):
    path = tmp_path / f"model{suffix}"
    opt, param = made(OWN, state_dtype, bits, 3)
    fastadam.save(path, params={"w": param}, optimizer=opt)
    for axes in (0, 1, 2), (2, 1, 0), (2, 0, 1):
        new, others = made(axes, state_dtype, bits, 1)
        fastadam.load(path, params={"w": others}, optimizer=new)
        if state_dtype == "float32":
            assert_the_same(opt, param, new, others, axes)
        twin, twins = made(axes, state_dtype, bits, 1)
        twins[...] = param
        twin.load_state_dict(opt.state_dict())
        assert_the_same(twin, twins, new, others, axes)
    new, others = made(OWN, state_dtype, bits, 1)
    fastadam.load(path, params={"w": others}, optimizer=new)
    assert_same_bytes(opt, param, new, others)


@pytest.mark.parametrize(("state_dtype", "bits"), FORMATS)
def test_copies_and_pickles_of_every_protocol_go_on(state_dtype, bits):
    """An array that a protocol, or a program, brings back in C order is another one: state that has fewer bits is then
    rounded to nearest once more."""
    opt, param = made(OWN, state_dtype, bits, 3)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        new = pickle.loads(pickle.dumps(opt, protocol))
        others = new.param_groups[0]["params"][0]
        kept = others.strides == param.strides
        if state_dtype == "float32" or kept:
            assert_the_same(opt, param, new, others, protocol)
        assert kept or others.flags.c_contiguous
        twin, twins = made(OWN if kept else (0, 1, 2), state_dtype, bits, 0)
        twins[...] = param
        twin.load_state_dict(opt.state_dict(raw=True))
        assert_the_same(twin, twins, new, others, protocol)
    new = copy.deepcopy(opt)
    assert_same_bytes(opt, param, new, new.param_groups[0]["params"][0])


def test_raw_state_says_how_it_lies():
    opt, _ = made(OWN, "8bit", None, 3)
    saved = opt.state_dict(raw=True)
    assert saved["state"][0]["axes"] == [1, 2, 0] and "axes" not in opt.state_dict()["state"][0]
    for bad in [0, 1], [0, 1, 1], [0, 1, 3], (1, 2, 0), "120", [1.0, 2.0, 0.0], [True, 2, 0], 5, [[1], [2], [0]]:
        entry = {**saved["state"][0], "axes": bad}
        with unchanged(opt), pytest.raises(ValueError, match=r"\['axes'\] must be a list of the axes 0 to 2 in memory"):
            opt.load_state_dict({**saved, "state": {0: entry}})
    plain = made((0, 1, 2), "8bit", None, 0)[0].state_dict(raw=True)
    assert "axes" not in plain["state"][0] and "fortran_order" not in plain["state"][0]


def test_a_state_file_goes_on_only_for_the_same_order(tmp_path):
    def opened(axes, start=None):
        param = lying(arrays(0) if start is None else start, axes)
        return fastadam.Adam(param, state_file=tmp_path / "state"), param

    twin = arrays(0)
    opt, param = opened(OWN)
    other = fastadam.Adam(twin)
    opt.step(lying(arrays(1), OWN))
    del opt
    for axes in (0, 1, 2), (2, 1, 0), (2, 0, 1):
        with pytest.raises(ValueError, match=r"array \['0', '<f4', \[4, 3, 2\], \[1, 2, 0\]\] there, \['0', .* here"):
            opened(axes)
    opt, param = opened(OWN, param)
    opt.step(lying(arrays(2), OWN))
    for step in 1, 2:
        other.step(arrays(step))
    assert_same_bits(param, twin)


def test_averages_are_swapped_and_rows_are_refused():
    ours, twins, opt, other = pair_of("SGD", (4, 3, 2), OWN, np.float32, lr=0.5, ema_decay=0.5)
    opt.step(lying(arrays(1), OWN))
    other.step(arrays(1))
    with opt.swap_ema(), other.swap_ema():
        assert_same_bits(ours, twins)
    assert_same_bits(ours, twins)
    opt.ema_decay = None
    rows = fastadam.Rows(np.array([0]), np.ones((1, 3, 2), np.float32))
    with unchanged(opt), pytest.raises(ValueError, match="must be C-contiguous"):
        opt.step(rows)
    with pytest.raises(ValueError, match="must be C-contiguous"):
        fastadam.RowAdagrad(ours)


def test_rebinding_takes_the_same_order_only():
    p = lying(arrays(0), OWN)
    opt = fastadam.SGD(p, lr=1.0)
    for bad in arrays(0), lying(arrays(0), (2, 1, 0)), lying(arrays(0), (2, 0, 1)):
        with pytest.raises(
            ValueError, match=r"with axes \(1, 2, 0\), from the slowest .* into np.empty_like of that one"
        ):
            opt.rebind(0, bad)
    new = np.empty_like(p)
    new[...] = 3.0
    opt.rebind(0, new)
    opt.step(lying(np.ones((4, 3, 2), np.float32), OWN))
    assert (new == 2.0).all()
