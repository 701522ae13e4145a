"""State and parameters in fewer bits: read, copied, loaded into each other, saved, refused."""

import copy
import itertools
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits, run_python, tame, unchanged

import fastadam
from fastadam import reference

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
STATE_DTYPES = ["float32", "bfloat16", "8bit"]
KINDS = [(np.dtype(np.float32), None), (BFLOAT16, None), (BFLOAT16, 24)]
FORMATS = list(itertools.product(STATE_DTYPES, KINDS))
SHAPES = {"w": (7, 95), "b": (33,), "s": (), "none": (0, 3)}
MOMENTS = ["exp_avg", "exp_avg_sq"]


def numbers(seed, dtype=np.float32, order="C"):
    rng = np.random.default_rng(seed)
    return {key: np.asarray(tame(rng, shape, np.float32) if shape else np.float32(seed), dtype, order=order)
            for key, shape in SHAPES.items()}  # fmt: skip


def made(state_dtype, kind, order="C", steps=3, cls=fastadam.Adam, **options):
    """An optimizer that has taken some steps, and its parameters."""
    params = {key: np.array(value, kind[0], order=order) for key, value in numbers(0).items()}
    opt = cls(params, lr=0.05, state_dtype=state_dtype, master_bits=kind[1], **options)
    for step in range(steps):
        opt.step(numbers(step + 1, order=order))
    return opt, params


def bytes_of(opt):
    """All that is stored."""
    return [[p.tobytes("A") for group in opt.param_groups for p in group["params"]],
            [{k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in opt.state[key].raw.items()}
             for key in opt.state]]  # fmt: skip


def in_memory(array, order):
    return np.ravel(array, order=order)


def bits(array):
    return np.asarray(array).view(f"u{array.dtype.itemsize}")


# ---- reading


@pytest.mark.parametrize(("state_dtype", "kind"), FORMATS, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_state_is_decoded_when_it_is_read(state_dtype, kind, order):
    opt, params = made(state_dtype, kind, order, seed=5)
    for ordinal, key in enumerate(SHAPES):
        entry, param = opt.state[key], params[key]
        own = "C" if param.flags.c_contiguous else "F"
        names = {"step", *MOMENTS}
        if state_dtype != "float32":
            names |= {"seed"} | {f"{name}::codes" for name in MOMENTS}
            assert entry["seed"] == 5 + ordinal
        if state_dtype == "8bit":
            names |= {f"{name}::scale" for name in MOMENTS}
        if kind[0] == BFLOAT16:
            names |= {"master::low"}
        assert set(entry) == names and len(entry) == len(names) and all(name in entry for name in names)
        assert "master" not in entry and entry.get("exp_avg::other") is None
        for name in MOMENTS:
            assert entry[name].dtype == np.float32 and entry[name].shape == param.shape
            if state_dtype == "float32":
                assert entry[name].flags.writeable and np.shares_memory(entry[name], opt.state[key][name]) == (
                    param.size > 0
                )
                continue
            decoded = reference.decode_state(name, dict(entry.raw), state_dtype)
            assert_same_bits(entry[name], decoded.reshape(param.shape, order=own))
            assert not entry[name].flags.writeable and not np.shares_memory(entry[name], entry[name])
            assert entry[name].flags.c_contiguous == param.flags.c_contiguous
            assert entry[f"{name}::codes"].shape == (param.size,) and entry[f"{name}::codes"].flags.writeable
        if kind[0] == BFLOAT16:
            assert entry["master::low"].dtype == (np.int8 if kind[1] == 24 else np.int16)
            join = reference.join_24 if kind[1] == 24 else reference.join_32
            master = join(in_memory(bits(param), own), entry["master::low"]).reshape(param.shape, order=own)
            assert_same_bits(opt.master(key), master)
        else:
            assert_same_bits(opt.master(key), param)
        assert not np.shares_memory(opt.master(key), param)


def test_codes_are_live_and_what_is_decoded_is_not():
    opt, _ = made("8bit", KINDS[0])
    entry = opt.state["b"]
    before = entry["exp_avg"]
    entry["exp_avg::codes"][:] = 0
    assert not entry["exp_avg"].any() and not opt.state["b"]["exp_avg"].any() and before.any()
    with pytest.raises(TypeError, match="opt.state is read-only"):
        entry["exp_avg"] = before
    with pytest.raises(ValueError, match="read-only"):
        entry["exp_avg"][0] = 1
    with pytest.raises(KeyError):
        entry["exp_avg_"]
    for kept in copy.deepcopy(entry), copy.copy(entry), pickle.loads(pickle.dumps(entry)):
        assert type(kept) is dict and kept.keys() == entry.keys() and kept["exp_avg"].shape == (33,)


def test_frozen_bfloat16_parameters_can_be_read_and_resized_ones_cannot():
    opt, params = made("8bit", KINDS[1])
    before = opt.master("b")
    params["b"].flags.writeable = False
    assert_same_bits(opt.master("b"), before)
    assert_same_bits(opt.state_dict()["state"][1]["master"], before)
    params["b"].flags.writeable = True
    good = copy.deepcopy(opt.state_dict())
    params["b"].resize(3, refcheck=False)
    for call in lambda: opt.master("b"), opt.state_dict:
        with pytest.raises(ValueError, match="parameter 'b' must stay what it was when it was added, bfloat16"):
            call()
    small = copy.deepcopy(good)
    small["state"][1] = {name: x[:3] if isinstance(x, np.ndarray) else x for name, x in small["state"][1].items()}
    raw = copy.deepcopy(opt.state_dict(raw=True))
    for state in good, small, {**good, "state": {}}:
        with pytest.raises(ValueError, match="parameter 'b'"):
            opt.load_state_dict(state)
        assert str(opt.state_dict(raw=True)) == str(raw)


def test_reading_while_another_thread_steps_sees_codes_and_scales_of_one_step():
    n = 1 << 20
    opt = fastadam.SGD(np.zeros(n, np.float32), lr=0.0, momentum=1e-6, state_dtype="8bit", threads=1)
    grads = [np.full(n, value, np.float32) for value in (1e30, 1.0)]  # so all elements are near 1e30, or near 1e24
    stop = threading.Event()

    def step():
        while not stop.is_set():
            for grad in grads:
                opt.step(grad)

    opt.step(grads[0])
    thread = threading.Thread(target=step)
    thread.start()
    try:
        for _ in range(20):
            found = opt.state[0]["momentum_buffer"]
            assert found.max() < 8 * found.min()
    finally:
        stop.set()
        thread.join()


def test_what_is_said_and_what_cannot_be_set():
    opt, _ = made("8bit", (BFLOAT16, 24), seed=3)
    assert (opt.state_dtype, opt.master_bits, opt.seed) == ("8bit", 24, 3)
    assert "state_dtype  master_bits" in repr(opt) and " 8bit " in repr(opt) and " 24 " in repr(opt)
    assert "exp_avg_sq::scale" in repr(opt.state) and "master::low" in repr(opt.state["b"])
    plain = fastadam.Adam(np.ones(3))
    assert (plain.state_dtype, plain.master_bits, plain.seed) == ("float32", None, 0) and "dtype" not in repr(plain)
    for name in "state_dtype", "master_bits":
        with pytest.raises(AttributeError, match=f"{name} is chosen when a group is made, .*: make a new optimizer"):
            setattr(opt, name, getattr(opt, name))
    with pytest.raises(AttributeError, match="seed cannot be set: it is chosen when an optimizer is made"):
        opt.seed = 4
    with pytest.raises(AttributeError, match="nbytes"):
        opt.nbytes = 4
    opt.add_param_group({"params": {"x": np.ones(3)}, "state_dtype": "float32"})
    with pytest.raises(ValueError, match="the groups differ in state_dtype; read opt.param_groups"):
        _ = opt.state_dtype


@pytest.mark.parametrize(
    ("name", "value"),
    [("state_dtype", "float32"), ("state_dtype", "bfloat16"), ("master_bits", 32), ("master_bits", None)],
)
def test_formats_that_were_changed_in_param_groups_are_refused_and_change_nothing(name, value):
    """What is there is still read as what it is."""
    opt, params = made("8bit", (BFLOAT16, 24))
    before, masters = bytes_of(opt), [opt.master(key).tobytes() for key in params]
    kept, opt.param_groups[0][name] = opt.param_groups[0][name], value
    for call in lambda: opt.step(numbers(1)), lambda: opt.step_one("b", numbers(1)["b"]), opt.state_dict:
        with pytest.raises(ValueError, match="state_dtype was '8bit' and master_bits 24 when the group was added"):
            call()
        assert bytes_of(opt) == before
        assert [opt.master(key).tobytes() for key in params] == masters
    opt.reset_master()
    opt.param_groups[0][name] = kept
    opt.step(numbers(1))


def test_nbytes_counts_what_is_kept():
    n = 1 << 15
    for (state_dtype, kind), expected in zip(
        FORMATS, [8, 10, 9, 4, 6, 5, 2 + 2 / 32, 4 + 2 / 32, 3 + 2 / 32], strict=True
    ):
        opt = fastadam.Adam(np.ones(n, kind[0]), state_dtype=state_dtype, master_bits=kind[1])
        assert opt.nbytes == expected * n
        held = sum(array.nbytes for array in opt.state[0].raw.values() if isinstance(array, np.ndarray))
        assert held == opt.nbytes


REFUSED = [
    (fastadam.Adam, {"state_dtype": "bfloat16"}, np.float64, ValueError, "is float64, .* group of its own .* state_dt"),
    (fastadam.Adam, {"state_dtype": "8bit", "amsgrad": True}, np.float32, ValueError, "amsgrad=True goes with st"),
    (fastadam.RMSprop, {"state_dtype": "8bit", "centered": True}, np.float32, ValueError, "centered=True goes with st"),
    (fastadam.Adam, {}, np.float16, TypeError, "must be float32, float64 or bfloat16, got float16"),
    (fastadam.Adam, {}, np.uint16, TypeError, r"got uint16; if it holds .*use .view\(ml_dtypes.bf"),
    (fastadam.Adam, {"state_dtype": "4bit"}, np.float32, ValueError, "one of 'float32', .*, got '4bit'"),
    (fastadam.Adam, {"state_dtype": np.float32}, np.float32, TypeError, "must be one of 'float32', .*, got <class"),
    (fastadam.Adam, {"state_dtype": None}, np.float32, TypeError, "must be one of 'float32', .*, got None"),
    (fastadam.Adam, {"master_bits": 16}, np.float32, ValueError, "master_bits must be None, 32 or 24, got 16"),
    (fastadam.Adam, {"master_bits": True}, np.float32, ValueError, "master_bits must be None, 32 or 24, got True"),
    (fastadam.Adam, {"seed": -1}, np.float32, ValueError, "seed must be >= 0 and less than 2..63, got -1"),
    (fastadam.Adam, {"seed": 2**63}, np.float32, ValueError, "seed must be >= 0 and less than 2..63"),
    (fastadam.Adam, {"seed": 0.5}, np.float32, TypeError, "seed must be an int, got 0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "options", "dtype", "error", "message"), REFUSED)
def test_what_has_no_such_format_is_refused(cls, options, dtype, error, message):
    with pytest.raises(error, match=message):
        cls({"w": np.ones(3, np.float32 if dtype is np.float64 else dtype), "x": np.ones(3, dtype)}, **options)


def test_float64_arrays_go_into_a_group_of_their_own():
    params = {"w": np.ones(3, np.float32), "x": np.ones(3)}
    opt = fastadam.Adam(params, state_dtype="8bit", overrides={"x": {"state_dtype": "float32"}})
    opt.step({"w": np.ones(3, np.float32), "x": np.ones(3)})
    assert opt.state["x"]["exp_avg"].dtype == np.float64 and "exp_avg::codes" in opt.state["w"]


# ---- copies


@pytest.mark.parametrize(("state_dtype", "kind"), FORMATS, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_copies_go_on_with_the_same_bits(state_dtype, kind, order):
    opt, params = made(state_dtype, kind, order, ema_decay=0.9, seed=2**63 - 1)
    copies = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    with pytest.raises(TypeError, match="use copy.deepcopy"):
        copy.copy(opt)
    assert [bytes_of(each) for each in copies] == [bytes_of(opt)] * 2
    grads = numbers(9, order=order)
    for each in opt, *copies:
        each.step(grads)
        each.add_param_group({"params": {"late": np.ones(3, kind[0])}})
    assert [bytes_of(each) for each in copies] == [bytes_of(opt)] * 2
    assert not np.shares_memory(copies[0].param_groups[0]["params"][0], params["w"])


def test_a_forked_child_goes_on_with_the_same_bits():
    run_python("""
import os, ml_dtypes, numpy as np, fastadam
opt = fastadam.Adam([np.ones(9000, ml_dtypes.bfloat16), np.ones(9000, np.float32)], state_dtype="8bit", threads=2)
grads = [np.sin(np.arange(9000, dtype=np.float32)), np.cos(np.arange(9000, dtype=np.float32))]
stored = lambda: [x.tobytes() for i in (0, 1) for x in opt.state[i].raw.values() if isinstance(x, np.ndarray)]
opt.step(grads)
reader, writer = os.pipe()
child = os.fork()
opt.step(grads)
opt.reset_master()
if child == 0:
    import hashlib
    os.write(writer, hashlib.sha256(b"".join(stored())).digest())
    os._exit(0)
import hashlib
assert os.waitpid(child, 0)[1] == 0
assert os.read(reader, 32) == hashlib.sha256(b"".join(stored())).digest()
""")


# ---- state dicts


CASES = list(itertools.product(STATE_DTYPES, ["C", "F"], [False, True], STATE_DTYPES, ["C", "F"]))


@pytest.mark.parametrize("source", STATE_DTYPES)
def test_state_of_one_format_is_loaded_into_another_as_the_twin_rounds(source):
    for source, order, raw, target, new_order in (case for case in CASES if case[0] == source):
        what = f"{source} {order} {raw} {target} {new_order}"
        opt, _ = made(source, KINDS[0], order, seed=5)
        new, params = made(target, KINDS[0], new_order, steps=1)
        kept = copy.deepcopy(opt.state_dict(raw=raw))
        new.load_state_dict(kept)
        assert new.state_dtype == target
        for key, param in params.items():
            own = "C" if param.flags.c_contiguous else "F"
            ours, theirs = new.state[key], opt.state[key]
            assert ours["step"] == 3 and ours.get("seed", theirs.get("seed")) == theirs.get("seed", ours.get("seed"))
            for name in MOMENTS:
                if target == "float32" or (source == target and order == new_order):
                    assert_same_bits(ours[name], theirs[name], what)
                if source == target and order == new_order and raw:
                    for part in (name for name in theirs.raw if "::" in name):
                        assert_same_bits(ours[part], theirs[part], what)
                elif target != "float32":
                    nearest = reference.encode_state(name, in_memory(theirs[name], own), target)
                    for part, array in nearest.items():
                        assert_same_bits(ours[part], array, what)
        new.step(numbers(9, order=new_order))


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_was_decoded_and_loaded_trains_on_alike(state_dtype, kind):
    opt, params = made(state_dtype, kind, seed=5)
    new, others = made(state_dtype, kind, steps=0)
    for key, param in params.items():
        others[key][...] = param
    new.load_state_dict(copy.deepcopy(opt.state_dict()))
    for step in range(3):
        for key in SHAPES:
            assert_same_bits(new.master(key), opt.master(key))
            for name in MOMENTS:
                assert_same_bits(new.state[key][name], opt.state[key][name])
        assert step == 0 or bytes_of(new) == bytes_of(opt)
        for each in opt, new:
            each.step(numbers(step + 9))


def expected_low(master, upper, nbits):
    """To nearest; of a tie that bfloat16 has rounded down, the largest that there is."""
    rest = bits(master).astype(np.int64) - (upper.astype(np.int64) << 16)
    if nbits == 24:
        return np.minimum((rest + 0x7F + (rest >> 8 & 1)) >> 8, 0x7F).astype(np.int8)
    return np.minimum(rest, 0x7FFF).astype(np.int16)


@pytest.mark.parametrize("raw", [False, True])
def test_masters_are_loaded_into_others(raw):
    for (dtype, given), (_, wanted), order, new_order in itertools.product(KINDS[1:], KINDS[1:], "CF", "CF"):
        opt, params = made("8bit", (dtype, given), order)
        new, others = made("bfloat16", (dtype, wanted), new_order, steps=0)
        for key, param in params.items():
            others[key][...] = param
        new.load_state_dict(copy.deepcopy(opt.state_dict(raw=raw)))
        for key, param in others.items():
            own = "C" if param.flags.c_contiguous else "F"
            master = in_memory(opt.master(key), own)
            assert_same_bits(
                new.state[key]["master::low"], expected_low(master, in_memory(bits(param), own), wanted or 32)
            )
            if given == 24 or wanted is None:
                assert_same_bits(new.master(key), opt.master(key))


TIE = 0x3F808000  # between two numbers of bfloat16


@pytest.mark.parametrize(
    ("master", "upper", "low"),
    [(TIE, 0x3F81, -0x8000), (TIE, 0x3F80, 0x7FFF), (TIE + 1, 0x3F81, -0x7FFF), (TIE - 1, 0x3F80, 0x7FFF),
     (0xBF808000, 0xBF81, -0x8000), (0xBF808000, 0xBF80, 0x7FFF), (0x7F7FFFFF, 0x7F80, -1), (0x80000000, 0x8000, 0),
     (0x7F800001, 0x7FC0, 0), (0xFFC00000, 0xFFC0, 0), (0x7FC00000, 0x7F81, 0), (1, 0, 1),
     (TIE + 1, 0x3F80, None), (TIE - 1, 0x3F81, None), (0, 0x8000, None), (0x80000000, 0, None),
     (0x7FC00000, 0x7F80, None), (0x7F800000, 0x7FC0, None), (0xFF800000, 0x7F80, None)],
)  # fmt: skip
def test_a_master_belongs_to_the_nearest_parameter_ties_either_way(master, upper, low):
    param = np.array([upper, 0], np.uint16).view(BFLOAT16)
    opt = fastadam.SGD(param)
    state = {**opt.state_dict(), "state": {0: {"step": 7, "master": np.array([master, 0], np.uint32).view(np.float32)}}}
    if low is None:
        message = (
            r"state_dict\['state'\]\[0\] \(parameter 0\)\['master'\] does not belong to the parameter: .* load both"
        )
        with unchanged(opt), pytest.raises(ValueError, match=message):
            opt.load_state_dict(state)
    else:
        opt.load_state_dict(state)
        assert opt.state[0]["master::low"].tolist() == [low, 0] and opt.state[0]["step"] == 7


def test_every_stored_parameter_takes_its_own_master_back():
    """NaN of either sign, infinity, and what the last step left."""
    every = np.arange(2**16, dtype=np.uint16).view(BFLOAT16)
    for nbits in None, 24:
        opt = fastadam.SGD(every.copy(), master_bits=nbits)
        opt.state[0]["master::low"][:] = np.where(np.isinf(every.astype(np.float32)), 0, 5)
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))
        fine = np.isfinite(every.astype(np.float32))
        assert (opt.state[0]["master::low"][fine] == 5).all()
        assert_same_bits(opt.master(0)[~fine], every[~fine].astype(np.float32))


@pytest.mark.parametrize("nbits", [None, 24])
def test_a_zero_that_is_written_into_a_parameter_stays_one(nbits):
    """Whatever is left of the number that was there; anything else is wrong by half of the last bit at most."""
    param = np.ones(6, BFLOAT16)
    opt = fastadam.SGD(param, lr=0.001, master_bits=nbits)
    grad = np.array([1, -1, 1, -1, 1, -1], np.float32)
    opt.step(grad)
    assert (np.sign(opt.state[0]["master::low"]) == -grad).all()
    param[:] = [0, 0, -0.0, -0.0, 3, 3]
    master = opt.master(0)
    assert np.array_equal(np.signbit(master), [False, False, True, True, False, False])
    assert (np.abs(master[:4]) < 2.0**-126).all() and (np.abs(master[4:] - 3) <= 2.0**-7).all()
    join = reference.join_24 if nbits == 24 else reference.join_32
    assert_same_bits(master, join(bits(param), opt.state[0]["master::low"]))
    new = fastadam.SGD(param.copy(), lr=0.001, master_bits=None if nbits else 24)
    new.load_state_dict(copy.deepcopy(opt.state_dict(raw=True)))
    assert np.isfinite(new.master(0)).all()
    opt.step(grad)
    assert (np.abs(opt.master(0)[:4]) <= 0.0011).all()


def test_without_a_master_parameters_stand_for_what_they_say():
    opt, params = made("8bit", KINDS[1])
    state = copy.deepcopy(opt.state_dict())
    for entry in state["state"].values():
        del entry["master"]
    assert opt.state["w"]["master::low"].any()
    opt.load_state_dict(state)
    assert_same_bits(opt.master("w"), params["w"].astype(np.float32))
    opt.step(numbers(1))
    kept = opt.state["b"]["master::low"].copy()
    opt.reset_master("w")
    assert not opt.state["w"]["master::low"].any() and (opt.state["b"]["master::low"] == kept).all() and kept.any()
    with pytest.raises(KeyError, match="no parameter 'x'"):
        opt.reset_master("x")
    with pytest.raises(KeyError, match="no parameter 'x'"):
        opt.master("x")


def test_averages_that_are_not_saved_begin_with_the_master():
    opt, params = made("8bit", KINDS[1])
    for raw in False, True:
        new = fastadam.Adam({key: p.copy() for key, p in params.items()}, state_dtype="8bit", ema_decay=0.9)
        new.load_state_dict(copy.deepcopy(opt.state_dict(raw=raw)))
        for key in SHAPES:
            assert_same_bits(new.ema[key], opt.master(key))
        assert (new.ema["w"] != params["w"].astype(np.float32)).any()


@pytest.mark.parametrize("raw", [False, True])
def test_parameters_without_an_entry_start_fresh(raw):
    for state_dtype, kind in FORMATS:
        opt, _ = made(state_dtype, kind, cls=fastadam.Adagrad, initial_accumulator_value=0.3)
        state = copy.deepcopy(opt.state_dict(raw=raw))
        del state["state"][0]
        before = opt.state["b"]["sum"].copy()
        opt.load_state_dict(state)
        entry = opt.state["w"]
        start = np.full(7 * 95, 0.3, np.float32)
        stored = reference.encode_state("sum", start, state_dtype) if state_dtype != "float32" else {}
        assert entry["step"] == 0 and all((entry[name] == array).all() for name, array in stored.items())
        assert np.allclose(entry["sum"], 0.3, rtol=0.07) and not entry.get("master::low", np.zeros(1)).any()
        assert_same_bits(opt.state["b"]["sum"], before)


def test_seeds_are_carried_and_replaced():
    opt, _ = made("8bit", KINDS[0], seed=5)
    new, _ = made("bfloat16", KINDS[0], seed=77)
    state = copy.deepcopy(opt.state_dict())
    del state["state"][1]["seed"]  # saved before there was one
    new.load_state_dict(state)
    assert [new.state[key]["seed"] for key in SHAPES] == [5, 78, 7, 8] and new.seed == 77
    new.add_param_group({"params": {"late": np.ones(3, np.float32)}})
    assert new.state["late"]["seed"] == 81
    for seed, error in (-1, ValueError), (2**64, ValueError), (1.5, TypeError), ("1", TypeError), (True, TypeError):
        state["state"][0]["seed"] = seed
        with unchanged(new), pytest.raises((error, ValueError), match=r"\['seed'\] must be|groups"):
            new.load_state_dict({**state, "param_groups": new.state_dict()["param_groups"]})
    state["state"][0]["seed"] = np.uint64(2**64 - 1)
    opt.load_state_dict(state)
    assert opt.state["w"]["seed"] == 2**64 - 1


def test_own_state_given_back():
    for state_dtype, kind in FORMATS:
        opt, _ = made(state_dtype, kind)
        before = bytes_of(opt)
        opt.load_state_dict(opt.state_dict(raw=True))
        assert bytes_of(opt) == before
        state = opt.state_dict(raw=True)
        opt.step(numbers(1))
        with unchanged(opt), pytest.raises(ValueError, match="says step 3, but its arrays are this optimizer's own"):
            opt.load_state_dict(state)
        live = opt.state_dict(raw=True)
        if state_dtype != "float32":  # what is written is also what is read
            live["state"][1] = {**live["state"][1], "exp_avg::codes": live["state"][1]["exp_avg::codes"][::-1]}
            reversed_ = live["state"][1]["exp_avg::codes"].copy()
            opt.load_state_dict(live)
            assert (opt.state["b"]["exp_avg::codes"] == reversed_).all()


def test_every_rules_state_is_converted_there_and_back():
    for name, options in [("RMSprop", {"momentum": 0.9}), ("NAdam", {}), ("Adamax", {}), ("SGD", {"momentum": 0.9}),
                          ("RAdam", {}), ("Adagrad", {}), ("RowAdagrad", {}), ("SGD", {})]:  # fmt: skip
        shapes, params = {"w": (6, 64)}, {"w": np.ones((6, 64), np.float32)}
        opt = getattr(fastadam, name)(params, state_dtype="8bit", **options)
        plain = getattr(fastadam, name)({"w": np.ones((6, 64), np.float32)}, **options)
        for step in range(3):
            opt.step({"w": tame(np.random.default_rng(step), shapes["w"], np.float32)})
        plain.load_state_dict(copy.deepcopy(opt.state_dict(raw=True)))
        again = copy.deepcopy(opt)
        again.load_state_dict(copy.deepcopy(plain.state_dict()))
        for array in (x for x in opt.state["w"] if "::" not in x):
            assert np.array_equal(opt.state["w"][array], plain.state["w"].get(array, opt.state["w"][array])), array
            assert np.array_equal(opt.state["w"][array], again.state["w"][array]), array
