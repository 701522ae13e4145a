"""State and parameters in fewer bits, from outside: state dicts of any kind, checkpoints, state files."""

import contextlib
import copy
import gc
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
from files import SUFFIXES, change_header, condition, rewritten
from helpers import assert_same_bits, run_python, tame, unchanged
from test_low_precision_state import BFLOAT16, FORMATS, KINDS, MOMENTS, STATE_DTYPES, bytes_of, made, numbers

import fastadam
from fastadam import reference
from fastadam.persist.statefile import FLUSHED, TORN, WRITTEN

# ---- state dicts that are wrong

U8, U16 = np.uint8, np.uint16
HOSTILE = {  # changes of the raw entry of an array of 33 elements: format, changes, error, message
    "codes of another type": ("8bit", {"exp_avg::codes": np.zeros(33, np.int8)}, TypeError, "exp_avg'.* codes of int8"),
    "floats": ("bfloat16", {"exp_avg::codes": np.zeros(33, np.float32)}, TypeError, "exp_avg'.* codes of float32"),
    "big-endian": ("bfloat16", {"exp_avg::codes": np.zeros(33, ">u2")}, TypeError, "exp_avg'.* codes of >u2"),
    "bfloat16": ("bfloat16", {"exp_avg::codes": np.zeros(33, BFLOAT16)}, TypeError, "exp_avg'.* codes of bfloat16"),
    "too few codes": ("8bit", {"exp_avg::codes": np.zeros(32, U8)}, ValueError, r"exp_avg'.* the shape \(32,\)"),
    "too many codes": ("bfloat16", {"exp_avg::codes": np.zeros(34, U16)}, ValueError, r"exp_avg'.* the shape \(34,\)"),
    "codes in 2-D": ("8bit", {"exp_avg::codes": np.zeros((33, 1), U8)}, ValueError, r"exp_avg'.* the shape \(33, 1\)"),
    "no array": ("8bit", {"exp_avg::codes": [0] * 33}, TypeError, "exp_avg::codes'.* must be an array, got a list"),
    "a scalar": ("8bit", {"exp_avg::codes": U8(0)}, TypeError, "exp_avg::codes'.* must be an array, got a uint8"),
    "no scale": ("8bit", {"exp_avg::scale": None}, TypeError, "exp_avg'.* codes of uint8, which need its '::scale'"),
    "no codes": ("8bit", {"exp_avg::codes": None}, ValueError, "has the keys .*'exp_avg::scale'"),
    "one scale too few": ("8bit", {"exp_avg::scale": np.full(1, 99, U8)}, ValueError, "exp_avg'.* codes of the shape"),
    "one too many": ("8bit", {"exp_avg::scale": np.full(3, 99, U8)}, ValueError, "exp_avg'.* codes of the shape"),
    "long scales": ("8bit", {"exp_avg::scale": np.full(2, 99, U16)}, TypeError, "exp_avg'.* has codes of uint8"),
    "a needless scale": ("bfloat16", {"exp_avg::scale": np.full(2, 99, U8)}, TypeError, "exp_avg'.* codes of uint16"),
    "m's scale too low": ("8bit", {"exp_avg::scale": np.array([99, 15], U8)}, ValueError, "avg'.* a scale below 16"),
    "v's scale too low": ("8bit", {"exp_avg_sq::scale": np.array([31, 99], U8)}, ValueError, "sq'.* a scale below 32"),
    "negative v": ("bfloat16", {"exp_avg_sq::codes": np.full(33, 0xBF80, U16)}, ValueError, "sq'.* negative elements"),
    "-0 of v": ("bfloat16", {"exp_avg_sq::codes": np.full(33, 0x8000, U16)}, ValueError, "sq'.* negative elements"),
    "twice": ("8bit", {"exp_avg": np.zeros(33, np.float32)}, ValueError, "has 'exp_avg' twice, .* as 'exp_avg::codes'"),
    "unknown codes": ("8bit", {"exp_avg_::codes": np.zeros(33, U8)}, ValueError, "has the keys .* expected"),
    "unknown scale": ("8bit", {"x::scale": np.zeros(33, U8)}, ValueError, "has the keys .*'x::scale'"),
    "other keys": ("8bit", {3: 4}, ValueError, "has the keys .*3"),
    "no name": ("8bit", {"::codes": np.zeros(33, U8)}, ValueError, "has the keys .*''"),
    "codes of a number": ("8bit", {"step": None, "step::codes": np.zeros(33, U8)}, TypeError, r"\['step'\] must be"),
    "no order": ("8bit", {"fortran_order": np.zeros(2)}, TypeError, "fortran_order'.* must be True or False"),
    "short low": ("low", {"master::low": np.zeros(32, np.int16)}, ValueError, "got int16 of the shape"),
    "unsigned low": ("low", {"master::low": np.zeros(33, U16)}, ValueError, "master'.* got uint16"),
    "low's scale": ("low", {"master::scale": np.zeros(2, U8)}, ValueError, "has the keys .*'master::scale'"),
    "master twice": ("low", {"master": np.zeros(33, np.float32)}, ValueError, "'master' twice, .* as 'master::low'"),
    "float64 master": ("low", {"master": np.zeros(33), "master::low": None}, TypeError, "master'.* must be float32"),
    "short master": ("low", {"master": np.zeros(32, np.float32), "master::low": None}, ValueError, "'master'.* shape"),
    "another one": ("low", {"master": np.full(33, 9, np.float32), "master::low": None}, ValueError, "does not belong"),
}  # fmt: skip


@pytest.mark.parametrize("target", ["float32", "bfloat16", "8bit"])
@pytest.mark.parametrize("case", HOSTILE)
def test_wrong_raw_state_is_refused_and_nothing_has_changed(case, target):
    state_dtype, changes, error, message = HOSTILE[case]
    kind = KINDS[state_dtype == "low"]
    opt, _ = made(state_dtype.replace("low", "8bit"), kind)
    new, _ = made(target, kind, steps=1)
    state = copy.deepcopy(opt.state_dict(raw=True))
    state["state"][1].update(changes)
    with unchanged(new), pytest.raises(error, match=message) as raised:
        new.load_state_dict(state)
    assert "state_dict['state'][1] (parameter 'b')" in str(raised.value)


@pytest.mark.parametrize("target", ["bfloat16", "8bit"])
def test_plain_state_is_rounded_or_refused(target):
    """NaN, -0, infinity, subnormal and huge numbers as the twin rounds them; negative v and other types are refused."""
    opt, _ = made(target, KINDS[0])
    state = copy.deepcopy(opt.state_dict())
    special = np.array([np.nan, -0.0, 0.0, np.inf, 1e-45, 1e-39, 3.4e38, 3e38, 1e-30, 1.0], np.float32)
    special = np.concatenate([special, np.array([0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)])
    for name in MOMENTS:
        for start in range(len(special)):  # some alone in their group, so that they are not rounded to its largest
            array = np.zeros(33, np.float32)
            array[:3], array[32] = np.roll(special, start)[:3], special[start]
            state["state"][1][name] = array if name == "exp_avg_sq" else np.where(np.arange(33) % 2, -array, array)
            opt.load_state_dict(state)
            for part, expected in reference.encode_state(name, state["state"][1][name], target).items():
                assert_same_bits(opt.state["b"][part], expected, f"{name} {start}")
        state["state"][1][name] = np.zeros(33, np.float32)
    bad = np.zeros(33, np.float32)
    bad[32] = -1e-45
    for array, error, message in (
        (bad, ValueError, r"\['exp_avg_sq'\] has negative elements"),
        (-np.ones(33, np.float32), ValueError, r"\['exp_avg_sq'\] has negative elements"),
        (np.zeros(33), TypeError, r"\['exp_avg_sq'\] must be float32, got float64; state is never cast"),
        (np.zeros(33, BFLOAT16), TypeError, r"\['exp_avg_sq'\] must be float32, got bfloat16; state is never cast"),
        (np.zeros(32, np.float32), ValueError, r"\['exp_avg_sq'\] must have the shape \(33,\), got \(32,\)"),
    ):
        state["state"][1]["exp_avg_sq"] = array
        with unchanged(opt), pytest.raises(error, match=message):
            opt.load_state_dict(state)


@pytest.mark.parametrize("target", STATE_DTYPES)
def test_raw_state_that_no_step_makes_is_read_as_what_it_says(target):
    """NaN, subnormal v, codes in a group whose scale says that it is NaN: as the twin decodes them."""
    for source, parts in (
        ("bfloat16", {"exp_avg::codes": np.resize(np.array([0x7F81, 0xFFC0, 0x8000, 1, 0xFF80], U16), 33),
                      "exp_avg_sq::codes": np.resize(np.array([1, 0x7F, 0x7F80, 0x7FC0, 0x3F80], U16), 33)}),
        ("8bit", {"exp_avg::codes": np.arange(111, 144, dtype=U8), "exp_avg::scale": np.array([16, 255], U8),
                  "exp_avg_sq::codes": np.arange(223, 256, dtype=U8), "exp_avg_sq::scale": np.array([254, 32], U8)}),
    ):  # fmt: skip
        opt, _ = made(target, KINDS[0])
        state = copy.deepcopy(opt.state_dict(raw=True))
        state["state"][1] = {"step": 5, **parts}
        opt.load_state_dict(state)
        for name in MOMENTS:
            values = reference.decode_state(name, parts, source)
            if target == "float32":
                assert_same_bits(opt.state["b"][name], values)
            else:
                stored = parts if target == source else reference.encode_state(name, values, target)
                for part in (part for part in stored if part.startswith(f"{name}::")):
                    assert_same_bits(opt.state["b"][part], stored[part], part)
        opt.step(numbers(1))


def test_float64_state_is_never_converted():
    params = {"x": np.ones(33)}
    plain, coded = fastadam.Adam(params), fastadam.Adam({"x": np.ones(33, np.float32)}, state_dtype="8bit")
    for opt, other in (plain, coded), (coded, plain):
        for raw in False, True:
            with unchanged(opt), pytest.raises(TypeError, match="state is never cast"):
                opt.load_state_dict(copy.deepcopy(other.state_dict(raw=raw)))


def test_state_of_another_rule_is_refused():
    opt = fastadam.Adam({"x": np.ones(33, np.float32)}, state_dtype="8bit")
    other = fastadam.RMSprop({"x": np.ones(33, np.float32)}, state_dtype="8bit")
    with unchanged(opt), pytest.raises(ValueError, match="of another optimizer"):
        opt.load_state_dict(other.state_dict(raw=True))
    state = {**opt.state_dict(), "state": other.state_dict(raw=True)["state"]}
    with unchanged(opt), pytest.raises(ValueError, match="has the keys .*'square_avg'"):
        opt.load_state_dict(state)


# ---- checkpoints


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_checkpoints_bring_every_format_back_byte_for_byte(tmp_path, suffix, order):
    for i, (state_dtype, kind) in enumerate(FORMATS):
        path = tmp_path / f"model{i}{suffix}"
        opt, params = made(state_dtype, kind, order, ema_decay=0.9, seed=2**63 - 2)
        fastadam.save(path, params=params, optimizer=opt)
        for mmap in True, False:
            new, others = made(state_dtype, kind, order, steps=1, ema_decay=0.9, seed=1)
            fastadam.load(path, params=others, optimizer=new, mmap=mmap)
            assert bytes_of(new) == bytes_of(opt)
        opt.step(numbers(9, order=order))
        new.step(numbers(9, order=order))
        assert bytes_of(new) == bytes_of(opt)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_checkpoints_of_one_format_are_loaded_into_every_other(tmp_path, suffix):
    for i, (state_dtype, kind) in enumerate(FORMATS):
        path = tmp_path / f"model{i}{suffix}"
        opt, params = made(state_dtype, kind, order="CF"[i % 2])
        fastadam.save(path, params=params, optimizer=opt)
        raw = opt.state_dict(raw=True)
        for j, (other_dtype, other_kind) in enumerate(f for f in FORMATS if f[1][0] == kind[0]):
            new, others = made(other_dtype, other_kind, steps=1, order="CF"[j % 2])
            twin, theirs = made(other_dtype, other_kind, steps=1, order="CF"[j % 2])
            for key, param in params.items():
                others[key][...] = -1
                theirs[key][...] = param
            fastadam.load(path, params=others, optimizer=new, mmap=bool(j % 2))
            twin.load_state_dict(copy.deepcopy(raw))
            assert bytes_of(new) == bytes_of(twin)
            assert all(np.array_equal(others[key], params[key]) for key in params)


def test_checkpoints_say_what_is_in_them(tmp_path):
    for suffix in SUFFIXES:
        opt, params = made("8bit", (BFLOAT16, 24))
        fastadam.save(tmp_path / f"model{suffix}", params=params, optimizer=opt)
        found = fastadam.inspect(tmp_path / f"model{suffix}")
        assert found["params"]["w"] == {"dtype": "bfloat16", "shape": (7, 95)}
        assert found["state"]["w"] == {
            "exp_avg::codes": {"dtype": "uint8", "shape": (665,)},
            "exp_avg_sq::codes": {"dtype": "uint8", "shape": (665,)},
            "master::low": {"dtype": "int8", "shape": (665,)},
            "exp_avg::scale": {"dtype": "uint8", "shape": (21,)},
            "exp_avg_sq::scale": {"dtype": "uint8", "shape": (21,)},
        }
        group = found["param_groups"][0]
        assert (group["state_dtype"], group["master_bits"], found["steps"]["w"]) == ("8bit", 24, 3)


def test_other_tools_read_the_files(tmp_path):
    opt, params = made("bfloat16", KINDS[1], order="F")
    fastadam.save(tmp_path / "model.npz", params=params, optimizer=opt)
    with np.load(tmp_path / "model.npz") as members:
        assert_same_bits(members["params/w"], params["w"].view(U16))
        assert_same_bits(members["optimizer/w/exp_avg::codes"], opt.state["w"]["exp_avg::codes"])
    path = tmp_path / "model.safetensors"
    fastadam.save(path, params=params, optimizer=opt)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header["params/w"]["dtype"] == "BF16" and header["params/w"]["shape"] == [7, 95]
    begin, end = header["params/w"]["data_offsets"]
    found = np.frombuffer(data[8 + length :][begin:end], BFLOAT16).reshape(7, 95)
    assert_same_bits(found.view(U16), np.ascontiguousarray(params["w"]).view(U16))
    with safetensors.safe_open(path, "np") as file:
        assert sorted(file.keys()) == sorted(header.keys() - {"__metadata__"})
        for name in "exp_avg::codes", "exp_avg_sq::codes", "master::low":
            assert_same_bits(file.get_tensor(f"optimizer/w/{name}"), opt.state["w"][name])
        assert file.get_slice("params/w").get_dtype() == "BF16"
    opt, params = made("8bit", KINDS[0])
    fastadam.save(path, optimizer=opt)
    with safetensors.safe_open(path, "np") as file:
        for name in "exp_avg::codes", "exp_avg::scale":
            assert_same_bits(file.get_tensor(f"optimizer/w/{name}"), opt.state["w"][name])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_parameters_of_other_types_are_refused(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    fastadam.save(path, params={"x": np.ones(4, BFLOAT16)})
    for dtype in np.float32, np.uint16, np.float16:
        array = np.full(4, 7, dtype)
        with pytest.raises(TypeError, match="in the checkpoint bfloat16; nothing is ever cast"):
            fastadam.load(path, params={"x": array})
        assert (array == 7).all()
    array = np.zeros(4, BFLOAT16)
    fastadam.load(path, params={"x": array})
    assert (array == 1).all()
    fastadam.save(path, params={"x": np.ones(4, np.uint16)})
    with pytest.raises(TypeError, match="is bfloat16, in the checkpoint uint16; nothing is ever cast"):
        fastadam.load(path, params={"x": array})


def small(path):
    """A small file, a way to try a damaged one, and what it must say if that is loaded."""
    params = {"w": np.array([1.5, -2.5], BFLOAT16)}
    opt = fastadam.SGD(params, momentum=0.5, state_dtype="8bit")
    opt.step({"w": np.ones(2, np.float32)})
    fastadam.save(path, params=params, optimizer=opt)
    others = {"w": np.zeros(2, BFLOAT16)}
    new = fastadam.SGD(others, momentum=0.5, state_dtype="8bit")
    saved, fresh = bytes_of(opt), bytes_of(new)
    blank = copy.deepcopy(new.state_dict(raw=True))

    def attempt(data, mmap):
        path.write_bytes(data)
        try:
            fastadam.load(path, params=others, optimizer=new, mmap=mmap)
        except (ValueError, TypeError):
            assert bytes_of(new) == fresh
            return False
        assert bytes_of(new) == saved
        others["w"][...] = 0
        new.load_state_dict(copy.deepcopy(blank))
        return True

    return path.read_bytes(), attempt


def try_flips(path, each):
    data, attempt = small(path)
    assert attempt(data, True) and attempt(data, False)
    loaded = 0
    bits = range(0, 8 * len(data), each)
    for bit in bits:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        loaded += attempt(bytes(changed), bool(bit % 2))
    assert loaded < len(bits) / 2
    assert not any(attempt(data[:size], True) for size in range(0, len(data), each))


def test_flipped_bits_and_cut_files_are_refused_or_harmless(path):
    try_flips(path, 97)


@pytest.mark.slow
def test_more_flipped_bits_are_refused_or_harmless(path):
    try_flips(path, 5)


def test_texts_that_lie_are_refused(tmp_path):
    path = tmp_path / "model.npz"
    opt, params = made("8bit", KINDS[1])

    def entry(text):
        return text["optimizer"]["state"][0]

    def swap(text, one, other):
        e = entry(text)
        e[one], e[other] = e[other], e[one]

    for change in (
        lambda text: entry(text).pop("exp_avg::scale"),
        lambda text: entry(text).update({"exp_avg::codes": 5}),
        lambda text: entry(text).update({"exp_avg::codes": "params/w"}),
        lambda text: entry(text).update({"exp_avg::codes": "nowhere"}),
        lambda text: entry(text).update({"fortran_order": 1}),
        lambda text: entry(text).update({"fortran_order": "optimizer/w/exp_avg::codes"}),
        lambda text: entry(text).update({"seed": -1}),
        lambda text: entry(text).update({"seed": 2**64}),
        lambda text: entry(text).update({"master": "params/w"}),
        lambda text: entry(text).update({"exp_avg": "optimizer/w/exp_avg::codes"}),
        lambda text: swap(text, "exp_avg::codes", "exp_avg::scale"),
        lambda text: swap(text, "exp_avg::codes", "master::low"),
        lambda text: text["arrays"]["params/w"].update(dtype="<u2"),
        lambda text: text["arrays"]["params/w"].update(dtype="<f2"),
        lambda text: text["arrays"]["optimizer/w/exp_avg::codes"].update(dtype="bfloat16"),
        lambda text: text["arrays"]["optimizer/w/master::low"].update(dtype="bfloat16"),
    ):
        fastadam.save(path, params=params, optimizer=opt)
        rewritten(path, change)
        new, others = made("8bit", KINDS[1], steps=1)
        for mmap in True, False:
            with unchanged(new), pytest.raises((ValueError, TypeError)):
                fastadam.load(path, params=others, optimizer=new, mmap=mmap)


# ---- state files


@pytest.mark.parametrize(("state_dtype", "kind"), FORMATS, ids=str)
def test_state_files_are_gone_on_with_to_the_same_bits(tmp_path, state_dtype, kind):
    plain, params = made(state_dtype, kind, steps=0, ema_decay=0.9, seed=9)
    mapped = {key: param.copy() for key, param in params.items()}
    options = {"lr": 0.05, "state_dtype": state_dtype, "master_bits": kind[1], "ema_decay": 0.9}
    for step in range(8):
        if step % 3 == 0:  # as another process would find it; the seed is in the file
            opt = each = None
            opt = fastadam.Adam(mapped, state_file=tmp_path / "state", seed=0 if step else 9, **options)
            assert bytes_of(opt) == bytes_of(plain)
        if step % 4 == 3:
            opt.flush()
            assert condition(tmp_path / "state") == FLUSHED
        for each in plain, opt:
            each.step(numbers(step))
            if step == 5:
                each.reset_master()
        assert condition(tmp_path / "state") == WRITTEN
        assert bytes_of(opt) == bytes_of(plain)
    opt.load_state_dict(copy.deepcopy(plain.state_dict(raw=True)))
    assert bytes_of(opt) == bytes_of(plain)


def test_state_files_of_another_format_are_refused_with_words(tmp_path):
    path = tmp_path / "state"
    for (made_with, made_kind), (state_dtype, kind) in [(FORMATS[i], FORMATS[j]) for i, j in
                                                        [(0, 3), (3, 6), (6, 0), (7, 8), (1, 0), (7, 1)]]:  # fmt: skip
        path.unlink(missing_ok=True)
        params = {"x": np.ones(40, made_kind[0])}
        fastadam.Adam(params, state_dtype=made_with, master_bits=made_kind[1], state_file=path)
        gc.collect()
        before = path.read_bytes()
        with pytest.raises(
            ValueError, match="is the state of something else: (its types|it is of bfloat16 parameters|array)"
        ):
            fastadam.Adam({"x": np.ones(40, kind[0])}, state_dtype=state_dtype, master_bits=kind[1], state_file=path)
        gc.collect()
        assert path.read_bytes() == before
        fastadam.Adam(params, state_dtype=made_with, master_bits=made_kind[1], state_file=path)


def test_a_torn_state_file_of_codes_is_refused(tmp_path):
    path, params = tmp_path / "state", {"x": np.ones(40, BFLOAT16)}
    opt = fastadam.Adam(params, state_dtype="8bit", ema_decay=0.5, state_file=path)
    opt.step({"x": np.ones(40, np.float32)})
    with opt.swap_ema():
        assert condition(path) == TORN
    assert condition(path) == WRITTEN
    with contextlib.suppress(NameError):
        del opt
    gc.collect()
    change_header(path, condition=TORN)
    with pytest.raises(ValueError, match="was left in the middle of a step"):
        fastadam.Adam(params, state_dtype="8bit", ema_decay=0.5, state_file=path)


def test_bfloat16_parameters_in_a_memory_map_are_flushed_with_the_state(tmp_path):
    mapped = np.memmap(tmp_path / "w", BFLOAT16, "w+", shape=(5000,))
    opt = fastadam.Adam(mapped, lr=0.1, state_dtype="8bit", state_file=tmp_path / "state")
    twin = fastadam.Adam(np.zeros(5000, BFLOAT16), lr=0.1, state_dtype="8bit")
    grad = tame(np.random.default_rng(0), 5000, np.float32)
    for each in opt, twin:
        each.step(grad)
    opt.flush()
    del opt
    gc.collect()
    again = np.memmap(tmp_path / "w", ml_dtypes.bfloat16, "r+", shape=(5000,))
    opt = fastadam.Adam(again, lr=0.1, state_dtype="8bit", state_file=tmp_path / "state")
    for each in opt, twin:
        each.step(grad)
    assert bytes_of(opt) == bytes_of(twin)


def test_a_parameter_with_all_its_bits_loses_none_that_were_saved(tmp_path):
    """Rounded parameters with the state of bfloat16 ones would have lost every small step."""
    small = {"w": np.ones(40, BFLOAT16)}
    opt = fastadam.AdamW(small, lr=1e-4, state_dtype="8bit")
    for _ in range(3):
        opt.step({"w": np.ones(40, np.float32)})
    fastadam.save(tmp_path / "c.npz", params=small, optimizer=opt)
    net = {"w": small["w"].astype(np.float32)}
    with pytest.raises(TypeError, match="in the checkpoint bfloat16; nothing is ever cast: .* opt.master"):
        fastadam.load(tmp_path / "c.npz", params=net)
    other = fastadam.AdamW(net, lr=1e-4)
    with pytest.raises(
        ValueError, match="has the low bits .* of a bfloat16 parameter, and this one is float32; load it"
    ):
        fastadam.load(tmp_path / "c.npz", optimizer=other)
    with pytest.raises(ValueError, match="is what a bfloat16 parameter stood for, .* has other numbers; write it into"):
        other.load_state_dict(opt.state_dict())
    assert other.state["w"]["step"] == 0
    net["w"][:] = opt.master("w")
    other.load_state_dict(opt.state_dict())
    assert other.state["w"]["step"] == 3


def test_too_little_memory_for_state_says_what_it_was_for(tmp_path):
    run_python(f"""
import resource
import numpy as np, fastadam
p = np.ones(1 << 24, np.float32)
fastadam.Adam(np.ones(3, np.float32)).step(np.ones(3, np.float32))
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 26), -1))
try:
    fastadam.Adam(p)
except MemoryError as error:
    assert "state of this group takes 1342" in error.__notes__[0], error.__notes__
else:
    raise SystemExit("there was memory")
path = {str(tmp_path / "state")!r}
try:
    fastadam.Adam(p, state_file=path)
except MemoryError as error:
    assert path in str(error) and "ulimit -v" in str(error), error
else:
    raise SystemExit("there was memory")
fastadam.Adam(p, state_dtype="8bit")
""")
    assert not (tmp_path / "state").exists()
