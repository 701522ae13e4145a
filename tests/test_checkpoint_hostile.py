"""Any file may be a checkpoint, damaged or made to harm: it is loaded as it says, or refused and nothing changes."""

import contextlib
import copy
import json
import math
import os
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from files import SUFFIXES, rewritten
from helpers import run_python, snapshot, unchanged
from hypothesis import given, settings
from hypothesis import strategies as st

import fastadam
from fastadam.persist import checkpoint
from fastadam.persist.checkpoint import crc_of_text


@pytest.fixture
def small(path):
    """A small file, what was in it, and a way to try a damaged one."""
    weights = {"w": np.array([1.5, -2.5], np.float32)}
    opt = fastadam.SGD(weights, momentum=0.5)
    opt.step({"w": np.ones(2, np.float32)})
    fastadam.save(path, params=weights, optimizer=opt)
    saved = snapshot(opt)
    other = {"w": np.zeros(2, np.float32)}
    new = fastadam.SGD(other, momentum=0.5)
    fresh = snapshot(new)

    def attempt(data, mmap=False):
        """True if the file loaded, exactly as it was saved; False if it was refused and nothing changed."""
        path.write_bytes(data)
        try:
            fastadam.load(path, params=other, optimizer=new, mmap=mmap)
        except (ValueError, TypeError):
            assert snapshot(new) == fresh
            return False
        assert snapshot(new) == saved
        other["w"][...] = 0
        new.load_state_dict(copy.deepcopy(fastadam.SGD({"w": np.zeros(2, np.float32)}, momentum=0.5).state_dict()))
        assert snapshot(new) == fresh
        return True

    return path, path.read_bytes(), attempt


def test_every_truncation_is_refused(small):
    _, data, attempt = small
    assert attempt(data)
    assert not any(attempt(data[:size]) for size in range(len(data)))


def flip(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_flipped_bits_are_refused_or_harmless(small):
    """Every seventh bit here, all of them in the slow tier."""
    _, data, attempt = small
    loaded = [attempt(flip(data, bit), mmap=bool(bit % 2)) for bit in range(0, 8 * len(data), 7)]
    assert sum(loaded) < len(loaded) / 2


@pytest.mark.slow
def test_every_flipped_bit_is_refused_or_harmless(small):
    _, data, attempt = small
    loaded = [attempt(flip(data, bit)) for bit in range(8 * len(data))]
    assert sum(loaded) < len(loaded) / 2


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=300), suffix=st.sampled_from(SUFFIXES))
def test_any_bytes_are_refused(tmp_path_factory, data, suffix):
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        fastadam.load(path, params={"w": np.zeros(2)})
    with pytest.raises(ValueError, match="damaged"):
        fastadam.inspect(path)


def check_types(found):
    """What inspect returns is what it promises, whatever a file said."""

    def is_array(about):
        return (
            about.keys() == {"dtype", "shape"}
            and np.broadcast_to(np.zeros((), about["dtype"]), about["shape"]).ndim < 9
        )

    assert found["format"] == 1 and isinstance(found["optimizer"], str | None)
    assert all(isinstance(key, str) and is_array(about) for key, about in found["params"].items())
    assert all(isinstance(key, str) and all(map(is_array, entry.values())) for key, entry in found["state"].items())
    assert all(type(step) is int and step >= 0 for step in found["steps"].values())
    assert [key for group in found["param_groups"] for key in group["params"]] == list(found["steps"])
    json.dumps(found["metadata"], allow_nan=False)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_texts_with_a_right_sum_but_wrong_contents_are_refused(tmp_path_factory, data):
    """An attacker can compute sums. Any part of the text is replaced by anything."""
    path = tmp_path_factory.getbasetemp() / "crafted.npz"
    weights = {"w": np.array([1.5, -2.5])}
    opt = fastadam.NAdam(weights)
    fastadam.save(path, params=weights, optimizer=opt)
    with zipfile.ZipFile(path) as members:
        arrays = {info.filename: members.read(info) for info in members.infolist()}
    text = json.loads(arrays["fastadam.npy"][128:])
    place = text
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
        else:
            break
    place[key] = data.draw(json_values)
    if data.draw(st.booleans()):
        text["crc32"] = crc_of_text(text)
    raw = np.frombuffer(json.dumps(text).encode(), np.uint8)
    with zipfile.ZipFile(path, "w") as members:
        for name, content in arrays.items():
            if name == "fastadam.npy":
                with members.open(name, "w") as file:
                    np.lib.format.write_array(file, raw)
            else:
                members.writestr(name, content)
    before = snapshot(opt)
    try:
        fastadam.load(path, params=weights, optimizer=opt)
    except (ValueError, TypeError):
        assert snapshot(opt) == before
    else:
        opt.step({"w": np.ones(2)})  # what was let in can be used
    with contextlib.suppress(ValueError):
        check_types(fastadam.inspect(path))


def crafted_safetensors(header, data=b""):
    raw = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(raw)) + raw + data


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1),
        crafted_safetensors(b"[" * 100_000),
        crafted_safetensors(
            {"params/w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, b"12345678"
        ),
        crafted_safetensors({"params/w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"12345678"),
        crafted_safetensors({"params/w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, b"12345678"),
        crafted_safetensors({"params/w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**62]}}, b"12345678"),
        crafted_safetensors({"__metadata__": {"fastadam": "{}"}}),
        crafted_safetensors({"__metadata__": {"fastadam": "[" * 100_000}}),
        crafted_safetensors({"__metadata__": {"fastadam": "9" * 10_000}}),
    ],
)
def test_hostile_headers_are_refused(tmp_path, data):
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        fastadam.load(path, params={"w": np.zeros(2, np.float32)})


def test_counts_and_orders_that_lie_are_refused(tmp_path):
    path = tmp_path / "m.npz"
    weights = {"a": np.zeros(2), "b": np.ones(2)}
    opt = fastadam.Adam(weights)

    def attempt(change, match):
        opt.save(path)
        rewritten(path, change)
        with unchanged(opt), pytest.raises(ValueError, match=match):
            opt.load(path)

    attempt(lambda text: text["optimizer"]["groups"][0].update(count=10**12), "in other groups")
    attempt(lambda text: text["optimizer"]["keys"].reverse(), "under 'b' it has the state of another parameter")
    attempt(lambda text: text.update(format=0), "format 0")


def test_long_texts_and_things_that_are_no_files_are_refused(tmp_path):
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w") as members, members.open("fastadam.npy", "w") as file:
        np.lib.format.write_array(file, np.zeros(20 << 20, np.uint8))
    with pytest.raises(ValueError, match="its text has 20971520 bytes"):
        fastadam.load(path, params=np.zeros(2))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        fastadam.inspect(path)
    os.mkfifo(path)
    for call in (lambda: fastadam.load(path, params=np.zeros(2)), lambda: fastadam.inspect(path)):
        with pytest.raises(ValueError, match="is not a regular file"):
            call()
    with pytest.raises(TypeError, match="optimizer must be an optimizer of fastadam, got a dict"):
        fastadam.save(tmp_path / "other.npz", optimizer={})


def test_a_zip_bomb_and_a_pickle_are_refused(tmp_path):
    path = tmp_path / "m.npz"
    np.savez_compressed(path, fastadam=np.zeros(50_000_000, np.uint8))
    with pytest.raises(ValueError, match="is not a stored .npy"):
        fastadam.load(path, params={"w": np.zeros(2)})
    np.savez(path, fastadam=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="damaged"):
        fastadam.load(path, params={"w": np.zeros(2)})


def with_raw_text(path, raw, names=("params/w",)):
    """An .npz with such a text, and arrays of 2 float64 by these names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of zipfile, about names that stand twice
        with zipfile.ZipFile(path, "w") as members:
            for name, array in [("fastadam", np.frombuffer(raw.encode(), np.uint8)), *((n, np.ones(2)) for n in names)]:
                with members.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array)


def refused_by_load_and_inspect(path, message, w=None):
    w = np.zeros(2) if w is None else w
    for call in (lambda: fastadam.load(path, params={"w": w}), lambda: fastadam.inspect(path)):
        with pytest.raises(ValueError, match=f"{path.name}' is damaged or not a checkpoint: {message}"):
            call()
    assert not w.any()


def test_a_member_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "m.npz"
    fastadam.save(path, params={"w": np.ones(2)})
    with zipfile.ZipFile(path) as members:
        raw = members.read("fastadam.npy")[128:].decode()
    with_raw_text(path, raw)
    fastadam.load(path, params={"w": np.zeros(2)})
    for names in ("params/w", "params/w"), ("params/w", "fastadam"):
        with_raw_text(path, raw, names)
        refused_by_load_and_inspect(path, "the member .* appears twice")


def test_a_name_that_stands_twice_is_refused(tmp_path):
    """In the text of an .npz, at any depth, and in a header of safetensors; with sums that are right."""
    path = tmp_path / "m.npz"
    fastadam.save(path, params={"w": np.ones(2)})
    with zipfile.ZipFile(path) as members:
        raw = members.read("fastadam.npy")[128:].decode()
    for once, twice in ('"format": 1', '"format": 2, "format": 1'), ('"dtype": ', '"dtype": "<f4", "dtype": '):
        assert raw.count(once) == 1
        with_raw_text(path, raw.replace(once, twice))
        refused_by_load_and_inspect(path, "a name appears twice")
    path = tmp_path / "m.safetensors"
    fastadam.save(path, params={"w": np.ones(2)})
    data = path.read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")].decode().strip()
    entry = header[header.index('"params/w"') : -1]
    assert entry.endswith("}")
    path.write_bytes(crafted_safetensors(f"{header[:-1]},{entry}}}".encode(), data[-16:]))
    refused_by_load_and_inspect(path, "a name appears twice")


GIANTS = [[0, 1 << 62], [1 << 40, 0, 1 << 40], [0, 1 << 70], [0] * 65]


@pytest.mark.parametrize("shape", GIANTS)
def test_shapes_that_numpy_has_no_room_for_are_refused_though_nothing_is_in_them(tmp_path, shape):
    text = {"format": 1, "params": ["w"], "arrays": {"params/w": {"dtype": "<f4", "shape": shape, "crc32": 0}}}
    text["crc32"] = crc_of_text(text)
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    header = {"params/w": entry, "__metadata__": {"fastadam": json.dumps(text)}}
    path = tmp_path / "m.safetensors"
    path.write_bytes(crafted_safetensors(header))
    refused_by_load_and_inspect(path, "no array can have the dtype float32 and the shape")
    path = tmp_path / "m.npz"
    with_raw_text(path, json.dumps(text), [])
    described = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({', '.join(map(str, shape))}), }}\n".encode()
    with zipfile.ZipFile(path, "a") as members:
        members.writestr("params/w.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(described)) + described)
    refused_by_load_and_inspect(path, "no array can have the dtype float32 and the shape")


def test_the_largest_shape_of_nothing_is_kept(path):
    w = np.zeros((0, (1 << 61) - 1), np.float32)
    fastadam.save(path, params=w)
    fastadam.load(path, params=w)
    assert fastadam.inspect(path)["params"] == {"0": {"dtype": "float32", "shape": (0, (1 << 61) - 1)}}


def sparse_safetensors(path, shape):
    """Zeros whose header is in order, and takes all of the shape to be there."""
    nbytes = 4 * math.prod(shape)
    text = {"format": 1, "params": ["w"], "arrays": {"params/w": {"dtype": "<f4", "shape": shape, "crc32": 0}}}
    text["crc32"] = crc_of_text(text)
    header = {"params/w": {"dtype": "F32", "shape": shape, "data_offsets": [0, nbytes]}}
    header = json.dumps({**header, "__metadata__": {"fastadam": json.dumps(text)}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + nbytes)


GIBI = 1 << 30


def sparse_directory(path):
    """A .npz whose end says that a gibibyte of zeros before it is the directory."""
    with open(path, "wb") as file:
        file.seek(GIBI)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, GIBI, 0, 0))


def sparse_header(path):
    """An array in an .npz whose header says that it has a gibibyte."""
    with zipfile.ZipFile(path, "w") as members:
        members.writestr("w.npy", b"\x93NUMPY\2\0" + struct.pack("<L", GIBI) + b"{")
    raw = path.read_bytes()
    at = raw.index(b"PK\1\2")
    directory = bytearray(raw[at:])
    directory[20:28] = struct.pack("<2L", GIBI + 13, GIBI + 13)  # its sizes
    end = directory.index(b"PK\5\6")
    directory[end + 16 : end + 20] = struct.pack("<L", at + GIBI)
    with open(path, "wb") as file:
        file.write(raw[:at])
        file.seek(at + GIBI)
        file.write(directory)


def many_members(path):
    """A directory that is longer than so few arrays explain."""
    with zipfile.ZipFile(path, "w") as members:
        for i in range(300):
            members.writestr(f"{i:060000}.npy", b"")


HUGE = {
    "a terabyte of another shape": (".safetensors", lambda path: sparse_safetensors(path, [1 << 38]), "has the shape"),
    "a terabyte of header": (
        ".safetensors",
        lambda path: path.write_bytes(struct.pack("<Q", 1 << 40)),
        "its header has",
    ),
    "a directory": (".npz", sparse_directory, "its directory or a header has"),
    "a header": (".npz", sparse_header, "its directory or a header has"),
    "many members": (".npz", many_members, "its directory or a header has"),
}


def load_huge(path, message):
    """In a process of its own, whose peak begins anew."""

    def kibibytes(what):
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(what))

    Path("/proc/self/clear_refs").write_text("5")
    before = kibibytes("VmRSS")
    with pytest.raises(ValueError, match=message):
        fastadam.load(path, params={"w": np.zeros(2, np.float32)})
    if message == "has the shape":  # only the model says that it is too large
        assert fastadam.inspect(path)["params"] == {"w": {"dtype": "float32", "shape": (1 << 38,)}}
    else:
        with pytest.raises(ValueError, match=message):
            fastadam.inspect(path)
    assert kibibytes("VmHWM") - before < 100_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("what", HUGE)
def test_huge_hostile_files_take_no_memory(tmp_path, what):
    suffix, write, message = HUGE[what]
    path = tmp_path / f"m{suffix}"
    write(path)
    tests = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_checkpoint_hostile as t"
    run_python(f"{tests}; t.load_huge({str(path)!r}, {message!r})")


def test_a_file_of_a_newer_format_says_so(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    fastadam.save(path, params=np.ones(1))
    monkeypatch.undo()
    for call in (lambda: fastadam.load(path, params=np.ones(1)), lambda: fastadam.inspect(path)):
        with pytest.raises(ValueError, match="it has the format 2; this fastadam reads 1: use a newer one"):
            call()
