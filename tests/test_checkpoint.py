"""Checkpoints: whole or not at all, verified, never cast, never unpickled; every file is hostile until it is proven."""

import contextlib
import copy
import itertools
import json
import math
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits, run_python, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

import fastadam
from fastadam import checkpoint

SUFFIXES = [".npz", ".safetensors"]


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    return tmp_path / f"model{request.param}"


def model(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "enc": [rng.standard_normal((3, 4)).astype(np.float32), np.asfortranarray(rng.standard_normal((4, 5)))],
        "scale": np.array(2.5),
        "empty": np.zeros((0, 3)),
    }


def gradients(params, rng):
    return {
        "enc": [
            rng.standard_normal(p.shape).astype(p.dtype, order="F" if i else "C") for i, p in enumerate(params["enc"])
        ],
        "scale": rng.standard_normal(()),
        "empty": np.zeros((0, 3)),
    }


def train(opt, params, steps, seed=1):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        opt.step({**gradients(params, rng), "scale": np.float64(rng.standard_normal())})


def everything(opt):
    """All that a checkpoint keeps, as bytes."""
    groups = [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups]
    arrays = [[p.tobytes() for p in group["params"]] for group in opt.param_groups]
    state = [{k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in e.items()} for e in opt.state.values()]
    return groups, arrays, state


CLASSES = [
    ("Adam", {"amsgrad": True, "max_norm": 1.0}),
    ("AdamW", {"ema_decay": 0.9, "accumulate": 3}),
    ("SGD", {"momentum": 0.9}),
    ("NAdam", {}),
    ("RMSprop", {"centered": True}),
    ("Adagrad", {"lr": np.float32(0.1)}),
]


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(("name", "options"), CLASSES)
def test_training_goes_on_to_the_bit(path, name, options, mmap):
    params = model()
    opt = getattr(fastadam, name)(params, **options)
    train(opt, params, 4)
    fastadam.save(path, params=params, optimizer=opt)
    other = model(7)
    new = getattr(fastadam, name)(other, **options)
    train(new, other, 2, seed=9)
    fastadam.load(path, params=other, optimizer=new, mmap=mmap)
    assert everything(new) == everything(opt)
    train(opt, params, 5, seed=3)
    train(new, other, 5, seed=3)
    assert everything(new) == everything(opt)
    assert os.listdir(path.parent) == [path.name]


def test_an_optimizer_alone_and_parameters_alone(path):
    params = model()
    opt = fastadam.Adam(params)
    train(opt, params, 2)
    opt.save(path)
    new = fastadam.Adam(model())
    new.load(path)
    assert everything(new)[2] == everything(opt)[2]
    with pytest.raises(ValueError, match="has no params; it was saved without"):
        fastadam.load(path, params=params)
    fastadam.save(path, params=params)
    with pytest.raises(ValueError, match="has no optimizer; it was saved without"):
        opt.load(path)
    one = {"scale": np.zeros(())}
    fastadam.load(path, params=one)  # some of them are enough
    assert one["scale"] == params["scale"]
    with pytest.raises(ValueError, match="nothing to save"):
        fastadam.save(path)
    with pytest.raises(ValueError, match="nothing to load into.* fastadam.inspect"):
        fastadam.load(path)


def test_parameters_may_have_other_types_and_groups(path):
    params = [
        {"params": [np.arange(3), np.array([True, False])]},
        {"params": {"half": np.ones(2, np.float16), "byte": np.arange(4, dtype=np.uint8).reshape(2, 2).T}},
    ]
    fastadam.save(path, params=params)
    other = copy.deepcopy(params)
    for group in other:
        for array in group["params"].values() if isinstance(group["params"], dict) else group["params"]:
            array[...] = 0
    fastadam.load(path, params=other)
    assert repr(other) == repr(params)


def test_other_tools_read_the_arrays(tmp_path):
    import safetensors.numpy

    params = model()
    opt = fastadam.Adam(params)
    train(opt, params, 2)
    for suffix in SUFFIXES:
        fastadam.save(tmp_path / f"m{suffix}", params=params, optimizer=opt)
    from_npz = np.load(tmp_path / "m.npz", allow_pickle=False)
    from_safetensors = safetensors.numpy.load_file(tmp_path / "m.safetensors")
    for loaded in from_npz, from_safetensors:
        assert_same_bits(np.asarray(loaded["params/enc.1"]), np.ascontiguousarray(params["enc"][1]))
        assert_same_bits(np.asarray(loaded["optimizer/enc.0/exp_avg"]), opt.state["enc.0"]["exp_avg"])


# ---- what does not match


def test_what_does_not_match_is_said_and_changes_nothing(path):
    params = model()
    opt = fastadam.Adam(params)
    train(opt, params, 2)
    fastadam.save(path, params=params, optimizer=opt)

    def refused(error, match, make=fastadam.Adam, **changes):
        other = {**model(5), **changes}
        new = make(other)
        before = everything(new)
        with pytest.raises(error, match=match):
            fastadam.load(path, params=other, optimizer=new)
        with pytest.raises((error, ValueError)):
            new.load(path)
        assert everything(new) == before

    refused(ValueError, r"has the shape \(2,\), in the checkpoint \(\)", scale=np.ones(2))
    refused(TypeError, "is float32, in the checkpoint float64; nothing is ever cast", scale=np.array(1, np.float32))
    refused(ValueError, r"has no parameters \['more'\]", more=np.ones(2))
    refused(ValueError, "has the state of Adam, not of SGD", make=fastadam.SGD)
    refused(ValueError, "amsgrad=False, the optimizer True", make=lambda p: fastadam.Adam(p, amsgrad=True))
    fewer = model()
    del fewer["empty"]
    with pytest.raises(ValueError, match="has the (same )?parameters"):
        fastadam.Adam(fewer).load(path)


def test_an_array_that_cannot_be_written_is_refused_before_any_is(path):
    params = {"a": np.ones(3), "b": np.ones(3), "c": np.ones((2, 2))}
    fastadam.save(path, params=params)
    other = {"a": np.zeros(3), "b": np.zeros(3), "c": np.zeros((2, 2))}
    other["b"].flags.writeable = False
    with pytest.raises(ValueError, match="parameter .b. must be writeable"):
        fastadam.load(path, params=other)
    other["b"] = np.zeros(6)[::2]
    with pytest.raises(ValueError, match="parameter .b. must be C- or F-contiguous"):
        fastadam.load(path, params=other)
    assert not other["a"].any() and not other["c"].any()


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.ones(2, complex), TypeError),
        (np.array([None]), TypeError),
        (np.array(["x"]), TypeError),
        (np.ma.masked_array(np.ones(2)), TypeError),
        (1.0, TypeError),
    ],
)
def test_what_cannot_be_stored_is_refused(path, array, error):
    with pytest.raises(error):
        fastadam.save(path, params={"x": array})
    assert os.listdir(path.parent) == []


def test_names_that_fall_together_are_refused(path):
    fastadam.save(path, params=np.ones(1))
    a, b = np.zeros(1), np.zeros(1)
    with pytest.raises(ValueError, match="two parameters have the name '0' in a file"):
        fastadam.load(path, params=[{"params": [a]}, {"params": {"0": b}}])
    assert not a.any() and not b.any()
    with pytest.raises(ValueError, match="two arrays would be stored as 'params/0'"):
        fastadam.save(path, params=[{"params": [np.ones(1)]}, {"params": {"0": np.ones(1)}}])


@pytest.mark.parametrize("name", ["model", "model.pt", "model.npz.bak", ".npz"])
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"path must end in .safetensors or .npz"):
        fastadam.save(tmp_path / name, params=np.ones(1))


def test_without_the_package_there_is_npz(tmp_path):
    code = """
import sys
sys.modules["safetensors"] = None
import numpy as np, fastadam
try:
    fastadam.save(sys.argv[1] + "/m.safetensors", params=np.ones(1))
except ImportError as error:
    assert "pip install 'fastadam[checkpoint]'" in str(error) and ".npz" in str(error)
else:
    raise AssertionError
fastadam.save(sys.argv[1] + "/m.npz", params=np.ones(1))
fastadam.load(sys.argv[1] + "/m.npz", params=np.zeros(1))
"""
    subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path)], check=True)
    assert os.listdir(tmp_path) == ["m.npz"]


def test_a_bar_is_shown_where_it_is_asked_for(path, capfd):
    fastadam.save(path, params=np.ones(1000), progress=True)
    fastadam.load(path, params=np.ones(1000), progress=True)
    shown = capfd.readouterr().err
    assert "summing" in shown and "reading" in shown and "8.00k" in shown
    fastadam.save(path, params=np.ones(1000))
    assert capfd.readouterr().err == ""


# ---- arguments


NO_PATHS = [
    (None, TypeError, "path must be a path, a str or os.PathLike, got a NoneType"),
    (3, TypeError, "path must be a path, a str or os.PathLike, got a int"),
    (b"x.npz", TypeError, r"path must be a path, a str or os.PathLike, got a bytes; use os.fsdecode\(path\)"),
    ({"w": np.ones(1)}, TypeError, "path must be a path, a str or os.PathLike, got a dict"),
    ("", ValueError, "path must end in .safetensors or .npz, got ''"),
    ("a\0.npz", ValueError, "path must not have a null character in it"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), NO_PATHS)
def test_what_is_no_path_is_named(wrong, error, message):
    opt = fastadam.Adam(np.ones(1))
    for call in (
        lambda: fastadam.save(wrong, params=np.ones(1)),
        lambda: fastadam.save(wrong),
        lambda: fastadam.load(wrong, params=np.ones(1)),
        lambda: fastadam.inspect(wrong),
        lambda: opt.save(wrong),
        lambda: opt.load(wrong),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("wrong", [1, 0, "yes", np.ones(2), [True], np.float32(1)])
def test_flags_are_flags(path, wrong):
    opt = fastadam.Adam(np.ones(1))
    opt.save(path, progress=np.False_)
    before = path.read_bytes()
    for call in (lambda: opt.load(path, mmap=wrong), lambda: fastadam.load(path, mmap=wrong)):
        with pytest.raises(TypeError, match="mmap must be True or False, got"):
            call()
    for call in (
        lambda: opt.load(path, progress=wrong),
        lambda: opt.save(path, progress=wrong),
        lambda: fastadam.save(path, progress=wrong),
    ):
        with pytest.raises(TypeError, match="progress must be True, False or None, got"):
            call()
    with pytest.raises(TypeError, match="mmap must be True or False, got None"):
        opt.load(path, mmap=None)
    opt.load(path, mmap=np.True_, progress=None)
    assert path.read_bytes() == before


def test_a_call_that_python_would_refuse_says_what_to_write(path):
    w = {"w": np.ones(1)}
    opt = fastadam.Adam(w)
    save = r"fastadam.save\(path, params=..., optimizer=..., metadata=..., progress=...\)"
    load = r"fastadam.load\(path, params=..., optimizer=..., mmap=..., progress=...\)"
    for call, message in (
        (lambda: fastadam.save(path, w, opt), f"save takes only path without a name; write {save}"),
        (lambda: fastadam.save(w, path), f"save takes only path without a name; write {save}"),
        (lambda: fastadam.save(path, model=w), f"save has no model; write {save}"),
        (lambda: fastadam.load(path, w, opt), f"load takes only path without a name; write {load}"),
        (lambda: fastadam.load(path, params=w, metadata={}), f"load has no metadata; write {load}"),
        (lambda: fastadam.inspect(path, params=w), r"inspect has no params; write fastadam.inspect\(path\)"),
        (
            lambda: opt.save(path, w),
            r"Optimizer.save takes only path .* opt.save\(.*fastadam.save\(path, params=..., opt",
        ),
        (
            lambda: opt.load(path, params=w),
            r"Optimizer.load has no params.* opt.load\(.*fastadam.load\(path, params=..., ",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    assert not path.exists()


def test_what_is_no_array_is_named_and_not_converted(path):
    class Never:
        __array__ = lambda self, *_, **__: 1 / 0  # noqa: E731

    fastadam.save(path, params={"enc": [np.ones(1)]})
    for function in fastadam.save, fastadam.load:
        with pytest.raises(TypeError, match="enc.0.* must be a numpy.ndarray, got a Never"):
            function(path, params={"enc": [Never()]})
        with pytest.raises(TypeError, match="0.* must be a numpy.ndarray, got a str"):
            function(path, params="model")  # of which the checkpoint has none, which is not what is wrong
    with pytest.raises(TypeError, match="optimizer must be an optimizer of fastadam, got a Never"):
        fastadam.save(path, optimizer=Never())


def test_a_bar_without_its_package_is_not_taken_for_damage(path, monkeypatch):
    fastadam.save(path, params=np.ones(1))
    monkeypatch.setitem(sys.modules, "tqdm", None)
    for function in fastadam.save, fastadam.load:
        with pytest.raises(ImportError, match="progress=True needs tqdm"):
            function(path, params=np.ones(1), progress=True)


# ---- metadata, and what is in a file


METADATA = {"epoch": 3, "": [], "nested": {"loss": [0.1, -0.0, 1e-300, 2**70, True, None]}, "\ud800é": 'a"\\\n'}


@pytest.mark.parametrize("alone", [False, True])
def test_metadata_comes_back(path, alone):
    w = {"w": np.ones(3)}
    opt = fastadam.Adam(w)

    def save(**options):
        opt.save(path, **options) if alone else fastadam.save(path, params=w, optimizer=opt, **options)

    def load():
        return opt.load(path) if alone else fastadam.load(path, params=w, optimizer=opt)

    save(metadata=METADATA)
    assert repr(load()) == repr(fastadam.inspect(path)["metadata"]) == repr(METADATA)
    save(metadata={"tuple": (1, (2,)), "number": np.float64(0.1)})
    assert repr(load()) == "{'tuple': [1, [2]], 'number': 0.1}"
    for nothing in {}, {"metadata": None}, {"metadata": {}}:
        save(**nothing)
        assert load() == {} == fastadam.inspect(path)["metadata"]


def nested(levels):
    value = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def itself():
    value = {}
    value["a"] = [value]
    return value


def shared():
    """Small in memory, and endless when written out."""
    value = {"a": [0]}
    for _ in range(90):
        value = {"a": value, "b": value}
    return value


NO_METADATA = [
    ([1], TypeError, "metadata must be a dict that JSON can hold, got a list"),
    ("text", TypeError, "metadata must be a dict that JSON can hold, got a str"),
    ({1: 2}, TypeError, r"metadata has the key 1; JSON has keys of str only: use str\(key\)"),
    ({"a": [{"b": 0, None: 1}]}, TypeError, r"metadata\['a'\]\[0\] has the key None; JSON"),
    ({"a": float("nan")}, TypeError, r"metadata\['a'\] is nan, which JSON does not have; use None or a str"),
    ({"a": (0, -float("inf"))}, TypeError, r"metadata\['a'\]\[1\] is -inf"),
    ({"a": np.float32(1)}, TypeError, r"metadata\['a'\] is a float32; JSON holds .*; use .item\(\)"),
    ({"a": np.ones(2)}, TypeError, r"metadata\['a'\] is a ndarray; JSON holds .*; use .tolist\(\)"),
    ({"a": {1, 2}}, TypeError, r"metadata\['a'\] is a set; JSON holds dict"),
    ({"a": b"bytes"}, TypeError, r"metadata\['a'\] is a bytes; JSON holds dict"),
    ({"a": 10**5000}, ValueError, r"metadata\['a'\] is an int of more than 4000 digits; use hex"),
    (nested(101), ValueError, "metadata contains itself, or has more than 100 levels"),
    (itself(), ValueError, "metadata contains itself, or has more than 100 levels"),
    (shared(), ValueError, "metadata has more than 1048576 bytes as JSON"),
    ({"a": "é" * (1 << 18)}, ValueError, "metadata has more than 1048576 bytes as JSON"),
    ({"a": "a" * ((1 << 20) - 8)}, ValueError, "metadata has more than 1048576 bytes as JSON; keep more in a file"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), NO_METADATA)
def test_metadata_that_would_not_come_back_is_refused_before_anything_is_written(tmp_path, wrong, error, message):
    opt, path = fastadam.Adam(np.ones(1)), tmp_path / "m.npz"
    for call in (lambda: opt.save(path, metadata=wrong), lambda: fastadam.save(path, params=[1.0], metadata=wrong)):
        with pytest.raises(error, match=message):
            call()
    assert os.listdir(tmp_path) == []


def test_as_much_metadata_as_is_allowed(path):
    most = {"a": '"' * ((1 << 19) - 5) + "a"}
    assert len(json.dumps(most)) == 1 << 20
    for metadata in most, nested(100):
        fastadam.save(path, params=np.ones(1), metadata=metadata)
        assert fastadam.load(path, params=np.ones(1)) == fastadam.inspect(path)["metadata"] == metadata


@pytest.mark.parametrize(
    "metadata", [[], None, "text", nested(101), {"a": float("nan")}, {"a": float("inf")}, {"a": "a" * (1 << 20)}]
)
def test_metadata_that_save_would_not_take_is_not_loaded(tmp_path, metadata):
    path = tmp_path / "m.npz"
    fastadam.save(path, params=np.ones(2))
    rewritten(path, lambda text: text.update(metadata=metadata))
    w = np.zeros(2)
    with pytest.raises(ValueError, match="m.npz' is damaged or no checkpoint: metadata"):
        fastadam.load(path, params=w)
    with pytest.raises(ValueError, match="m.npz' is damaged or no checkpoint: metadata"):
        fastadam.inspect(path)
    assert not w.any()


def test_metadata_that_changes_while_it_is_saved_is_that_of_one_moment(path, monkeypatch):
    metadata, describe = {"epoch": 1}, checkpoint.describe
    monkeypatch.setattr(checkpoint, "describe", lambda *args: (metadata.update(epoch=2), describe(*args))[1])
    fastadam.save(path, params=np.ones(1), metadata=metadata)
    assert fastadam.load(path, params=np.ones(1)) == {"epoch": 1}


def test_inspect_says_what_is_in_a_file(path):
    first = {"enc": [np.ones((3, 4), np.float32), np.ones(2)]}
    opt = fastadam.AdamW([{"params": first}, {"params": {"s": np.array(1.0)}, "lr": 0.5}], weight_decay=0.25)
    opt.step_one("enc.1", np.ones(2))
    fastadam.save(path, params=first, optimizer=opt, metadata={"epoch": 3})
    found = fastadam.inspect(path)
    matrix, vector = {"dtype": "float32", "shape": (3, 4)}, {"dtype": "float64", "shape": (2,)}
    scalar = {"dtype": "float64", "shape": ()}
    groups = found.pop("param_groups")
    assert found == {
        "format": 1,
        "optimizer": "AdamW",
        "params": {"enc.0": matrix, "enc.1": vector},
        "state": {
            "enc.0": {"exp_avg": matrix, "exp_avg_sq": matrix},
            "enc.1": {"exp_avg": vector, "exp_avg_sq": vector},
            "s": {"exp_avg": scalar, "exp_avg_sq": scalar},
        },
        "steps": {"enc.0": 0, "enc.1": 1, "s": 0},
        "metadata": {"epoch": 3},
    }
    assert [group.pop("params") for group in groups] == [["enc.0", "enc.1"], ["s"]]
    assert groups == [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups]
    fastadam.save(path, params=[np.ones(2)])
    alone = {"format": 1, "optimizer": None, "params": {"0": vector}, "state": {}, "param_groups": [], "steps": {}}
    assert fastadam.inspect(path) == {**alone, "metadata": {}}
    opt.save(path)
    assert fastadam.inspect(path)["params"] == {} and fastadam.inspect(path)["optimizer"] == "AdamW"


def test_inspect_reads_the_text_and_no_elements(path):
    w = np.full(1000, 1.5)
    fastadam.save(path, params=w, metadata={"epoch": 3})
    data = path.read_bytes()
    path.write_bytes(data.replace(w[:10].tobytes(), bytes(80), 1))
    assert fastadam.inspect(path)["metadata"] == {"epoch": 3}
    with pytest.raises(ValueError, match="is not what was saved"):
        fastadam.load(path, params=w)
    path.write_bytes(data.replace(b"epoch", b"epoxy"))
    with pytest.raises(ValueError, match="does not have the sum that it had|Bad CRC"):
        fastadam.inspect(path)
    with pytest.raises(FileNotFoundError, match="nothing.npz"):
        fastadam.inspect("nothing.npz")


LIES = {
    "class": lambda text: text["optimizer"].update({"class": ["SGD"]}),
    "keys that are no list": lambda text: text["optimizer"].update(keys="w"),
    "keys that are no str": lambda text: text["optimizer"].update(keys=[1]),
    "a key twice": lambda text: text.update(params=["w", "w"]),
    "a key without an array": lambda text: text.update(params=["v"]),
    "count": lambda text: text["optimizer"]["groups"][0].update(count=2),
    "counts that agree in all": lambda text: text["optimizer"]["groups"].extend([{"count": -1}, {"count": 1}]),
    "step": lambda text: text["optimizer"]["state"][0].update(step=-1),
    "no step": lambda text: text["optimizer"]["state"][0].pop("step"),
    "more state": lambda text: text["optimizer"]["state"].append({"step": 1}),
    "array": lambda text: text["optimizer"]["state"][0].update(momentum_buffer="optimizer/v/momentum_buffer"),
    "no optimizer": lambda text: text.update(optimizer=None),
}


@pytest.mark.parametrize("lie", LIES)
def test_inspect_refuses_what_would_not_be_of_the_types_it_promises(tmp_path, lie):
    path = tmp_path / "m.npz"
    w = {"w": np.ones(2)}
    fastadam.save(path, params=w, optimizer=fastadam.SGD(w, momentum=0.5))
    rewritten(path, LIES[lie])
    with pytest.raises(ValueError, match="m.npz' is damaged or no checkpoint"):
        fastadam.inspect(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_of_the_first_release_load_and_what_newer_ones_add_is_passed_over(tmp_path, suffix):
    """The files in data/ were written before there was any metadata."""
    old = Path(__file__).parent / "data" / f"format1{suffix}"
    w = {"w": np.zeros(2, np.float32)}
    opt = fastadam.SGD(w, momentum=0.5)
    assert fastadam.load(old, params=w, optimizer=opt) == {}
    assert w["w"].tolist() == [1.0, -3.0] and opt.lr == 0.5
    assert opt.state["w"]["step"] == 1 and opt.state["w"]["momentum_buffer"].tolist() == [1.0, 1.0]
    found = fastadam.inspect(old)
    assert found["steps"] == {"w": 1} and found["metadata"] == {}
    new = tmp_path / "m.npz"
    fastadam.save(new, params=w, optimizer=opt)
    rewritten(new, lambda text: text.update(unknown=[1]))
    assert fastadam.load(new, params=w, optimizer=opt) == {}


# ---- files and crashes


def test_mode_and_links_are_as_users_expect(path):
    before = os.umask(0o027)
    try:
        fastadam.save(path, params=np.ones(1))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    link = path.with_name(f"latest{path.suffix}")
    link.symlink_to(path.name)
    fastadam.save(link, params=np.full(1, 2.0))
    assert link.is_symlink()
    new = np.zeros(1)
    fastadam.load(path, params=new)
    assert new[0] == 2.0


def test_a_private_file_stays_private_and_a_link_may_have_any_target(path):
    fastadam.save(path, params=np.ones(1))
    path.chmod(0o600)
    fastadam.save(path, params=np.ones(1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    blob = path.with_name("blob")
    path.rename(blob)
    path.symlink_to(blob.name)
    fastadam.save(path, params=np.full(1, 3.0))
    new = np.zeros(1)
    fastadam.load(path, params=new)
    assert new[0] == 3.0 and path.is_symlink()


def test_what_changes_while_it_is_saved_does_not_replace_what_was_saved(path, monkeypatch):
    array = np.zeros(1000)
    fastadam.save(path, params=array)
    before = path.read_bytes()
    describe = checkpoint.describe

    def change_after(stored, advance):
        described = describe(stored, advance)
        array[500] += 1
        return described

    monkeypatch.setattr(checkpoint, "describe", change_after)
    with pytest.raises(ValueError, match="is not what was saved: was it changed by another thread"):
        fastadam.save(path, params=array)
    monkeypatch.undo()
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_file_and_folder_are_synced_around_the_renaming(path, monkeypatch):
    calls = []
    replace, fsync = os.replace, os.fsync

    def watched_fsync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    fastadam.save(path, params=np.ones(1))
    assert calls == ["file", "replace", "folder"]


@pytest.mark.parametrize("function", [fastadam.save, fastadam.load])
def test_no_other_thread_steps_while_a_file_is_written_or_read(path, monkeypatch, function):
    weights = {"w": np.ones(3)}
    opt = fastadam.Adam(weights)
    fastadam.save(path, params=weights, optimizer=opt)
    describe, free = checkpoint.describe, []

    def watched(*arguments):
        def try_lock():
            free.append(opt._engine.lock.acquire(blocking=False))

        other = threading.Thread(target=try_lock)
        other.start()
        other.join()
        return describe(*arguments)

    monkeypatch.setattr(checkpoint, "describe", watched)
    function(path, params=weights, optimizer=opt)
    assert free and not any(free)


def test_saving_and_loading_side_by_side_never_fails(path):
    """Each load reads one file, whatever a save puts in its place meanwhile."""
    params = {"a": np.zeros(1000), "b": np.zeros(10)}
    fastadam.save(path, params=params)
    saver = os.fork()
    if saver == 0:
        try:
            while True:
                for array in params.values():
                    array += 1
                fastadam.save(path, params=params)
        finally:
            os._exit(1)
    loaded, seen = {"a": np.zeros(1000), "b": np.zeros(10)}, set()
    try:
        end = time.monotonic() + 600
        for n in itertools.count():
            fastadam.load(path, params=loaded)
            assert (loaded["a"] == loaded["b"][0]).all()
            seen.add(loaded["b"][0])
            if (n >= 200 and len(seen) > 3) or time.monotonic() > end:
                break
    finally:
        os.kill(saver, signal.SIGKILL)
        _, status = os.waitpid(saver, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL and len(seen) > 3


def test_what_save_writes_load_takes(path):
    """Or save says that it would not, and leaves what is there."""
    fastadam.save(path, params={"a": np.ones(1)})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="shorten names"):
        fastadam.save(path, params={f"{i:050000}": np.ones(1) for i in range(400)})
    assert path.read_bytes() == before


def test_nobody_else_reads_a_private_file_while_it_is_written(path, monkeypatch):
    fastadam.save(path, params=np.ones(1))
    path.chmod(0o600)
    modes, chmod = [], os.chmod
    monkeypatch.setattr(
        os, "chmod", lambda aside, mode: (modes.append(os.stat(aside).st_mode & 0o777), chmod(aside, mode))
    )
    fastadam.save(path, params=np.ones(1))
    assert modes == [0o600] and path.stat().st_mode & 0o777 == 0o600


def test_parameters_side_by_side_in_one_buffer_are_loaded(path):
    def views(buffer):
        return [buffer[:3], buffer[3:5], buffer[5:5], buffer[5:]]

    saved, buffer = np.arange(9.0), np.zeros(9)
    fastadam.save(path, params=views(saved), optimizer=fastadam.Adam(views(saved)))
    opt = fastadam.Adam(views(buffer))
    fastadam.load(path, params=views(buffer), optimizer=opt)
    assert (buffer == saved).all()
    buffer[:] = 0
    fastadam.load(path, params=views(buffer))
    assert (buffer == saved).all()


def test_params_are_read_once_and_must_not_be_empty_or_overlap(path):
    fastadam.save(path, params=[np.arange(3.0), np.arange(3.0) + 5])
    a, b = np.zeros(3), np.zeros(3)
    fastadam.load(path, params=(x for x in (a, b)))
    assert a.tolist() == [0, 1, 2] and b.tolist() == [5, 6, 7]
    for nothing in [], {}, [[]]:
        with pytest.raises(ValueError, match="params holds no arrays"):
            fastadam.load(path, params=nothing)
    memory = np.zeros(4)
    with pytest.raises(ValueError, match="parameters 0 and 1 overlap in memory"):
        fastadam.load(path, params=[memory[:3], memory[1:]])
    with pytest.raises(TypeError, match="got a MaskedArray"):
        fastadam.load(path, params=[np.ma.masked_array(np.zeros(3)), b])
    assert not memory.any()


def test_averages_that_were_not_saved_begin_with_the_loaded_parameters(path):
    w = {"w": np.arange(3.0)}
    fastadam.save(path, params=w, optimizer=fastadam.Adam(w))
    other = {"w": np.full(3, 9.0)}
    opt = fastadam.Adam(other, ema_decay=0.9)
    fastadam.load(path, params=other, optimizer=opt)
    assert opt.ema["w"].tolist() == other["w"].tolist() == [0, 1, 2]


STAGES = ["open", "write", "fsync", "replace"]
FAILURES = [
    (stage, error) for stage in STAGES for error in (OSError(28, "No space left on device"), KeyboardInterrupt())
]


@pytest.mark.parametrize(("stage", "error"), [*FAILURES, ("chmod", KeyboardInterrupt())])
def test_a_failure_at_any_stage_leaves_the_old_file_and_no_other(path, monkeypatch, stage, error):
    params = {"a": np.ones(100)}
    fastadam.save(path, params=params)
    before = path.read_bytes()

    def fail(*_, **__):
        raise error

    if stage == "write":
        suffix = path.suffix.removeprefix(".")
        monkeypatch.setattr(checkpoint, f"write_{suffix}", fail)
    else:
        monkeypatch.setattr(os, stage, fail)
    params["a"] += 1
    with pytest.raises(type(error)):
        fastadam.save(path, params=params)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(sys.platform != "linux", reason="sets limits of Linux")
def test_a_full_disk_leaves_the_old_file(path):
    """A limit on the size of files fails writes in the middle, in whatever library they happen."""
    fastadam.save(path, params=np.ones(10))
    before = path.read_bytes()
    code = f"""
import resource, signal, numpy as np, fastadam
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    fastadam.save({str(path)!r}, params=np.ones(1_000_000))
except Exception as error:
    print(type(error).__name__)
else:
    raise AssertionError("it fitted?")
"""
    run_python(code)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def save_for_ever(path, weights, opt):
    while True:
        for array in weights.values():
            array += 1
        fastadam.save(path, params=weights, optimizer=opt)


def check_kills(path, trials):
    weights = {"a": np.zeros((300, 300)), "b": np.zeros(7, np.float32)}
    opt = fastadam.SGD(weights, lr=1.0, momentum=0.5)
    begin = time.perf_counter()
    fastadam.save(path, params=weights, optimizer=opt)
    one_save = time.perf_counter() - begin
    rng = np.random.default_rng(0)
    last, leftovers, done = 0.0, 0, 0
    while done < trials or (done < 20 * trials and not (last and leftovers)):
        done += 1
        begun, begin_saving = os.pipe()
        saver = os.fork()
        if saver == 0:
            try:
                os.write(begin_saving, b".")
                save_for_ever(path, weights, opt)
            finally:
                os._exit(1)
        os.read(begun, 1)  # on a busy machine it may take long until the child runs
        os.close(begun)
        os.close(begin_saving)
        time.sleep(rng.uniform(0, 4 * one_save))
        os.kill(saver, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(saver, 0)[1]) == signal.SIGKILL
        fastadam.load(path, params=weights, optimizer=opt)  # verified, or an error
        now = weights["a"][0, 0]
        assert (weights["a"] == now).all() and (weights["b"] == now).all() and now >= last
        last = now
        left = [name for name in os.listdir(path.parent) if name != path.name]
        leftovers += len(left)
        for name in left:
            (path.parent / name).unlink()
    assert last > 0 and leftovers > 0, "no kill came in the middle: this test no longer tests anything"


def test_a_kill_at_any_instant_leaves_a_whole_file(path):
    check_kills(path, 20)


@pytest.mark.slow
def test_two_hundred_kills_leave_whole_files(path):
    check_kills(path, 200)


# ---- damaged and hostile files


@pytest.fixture
def small(path):
    """A small file, what was in it, and a way to try a damaged one."""
    weights = {"w": np.array([1.5, -2.5], np.float32)}
    opt = fastadam.SGD(weights, momentum=0.5)
    opt.step({"w": np.ones(2, np.float32)})
    fastadam.save(path, params=weights, optimizer=opt)
    saved = everything(opt)
    other = {"w": np.zeros(2, np.float32)}
    new = fastadam.SGD(other, momentum=0.5)
    fresh = everything(new)

    def attempt(data, mmap=False):
        """True if the file loaded, exactly as it was saved; False if it was refused and nothing changed."""
        path.write_bytes(data)
        try:
            fastadam.load(path, params=other, optimizer=new, mmap=mmap)
        except (ValueError, TypeError):
            assert everything(new) == fresh
            return False
        assert everything(new) == saved
        other["w"][...] = 0
        new.load_state_dict(copy.deepcopy(fastadam.SGD({"w": np.zeros(2, np.float32)}, momentum=0.5).state_dict()))
        assert everything(new) == fresh
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


@settings(max_examples=300, deadline=None)
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
        text["crc32"] = checkpoint.crc_of_text(text)
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


def rewritten(path, change):
    """The text of an .npz changed, with a sum that is right."""
    with zipfile.ZipFile(path) as members:
        arrays = {info.filename: members.read(info) for info in members.infolist()}
    text = json.loads(arrays.pop("fastadam.npy")[128:])
    change(text)
    text["crc32"] = checkpoint.crc_of_text(text)
    with zipfile.ZipFile(path, "w") as members:
        with members.open("fastadam.npy", "w") as file:
            np.lib.format.write_array(file, np.frombuffer(json.dumps(text).encode(), np.uint8))
        for name, content in arrays.items():
            members.writestr(name, content)


def test_counts_and_orders_that_lie_are_refused(tmp_path):
    path = tmp_path / "m.npz"
    weights = {"a": np.zeros(2), "b": np.ones(2)}
    opt = fastadam.Adam(weights)

    def attempt(change, match):
        opt.save(path)
        rewritten(path, change)
        before = snapshot(opt)
        with pytest.raises(ValueError, match=match):
            opt.load(path)
        assert snapshot(opt) == before

    attempt(lambda text: text["optimizer"]["groups"][0].update(count=10**12), "has groups of")
    attempt(lambda text: text["optimizer"]["keys"].reverse(), "has the (same )?parameters")
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
        with pytest.raises(ValueError, match="is no regular file"):
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
        with pytest.raises(ValueError, match=f"{path.name}' is damaged or no checkpoint: {message}"):
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
        refused_by_load_and_inspect(path, "the member .* stands twice")


def test_a_name_that_stands_twice_is_refused(tmp_path):
    """In the text of an .npz, at any depth, and in a header of safetensors; with sums that are right."""
    path = tmp_path / "m.npz"
    fastadam.save(path, params={"w": np.ones(2)})
    with zipfile.ZipFile(path) as members:
        raw = members.read("fastadam.npy")[128:].decode()
    for once, twice in ('"format": 1', '"format": 2, "format": 1'), ('"dtype": ', '"dtype": "<f4", "dtype": '):
        assert raw.count(once) == 1
        with_raw_text(path, raw.replace(once, twice))
        refused_by_load_and_inspect(path, "a name stands twice")
    path = tmp_path / "m.safetensors"
    fastadam.save(path, params={"w": np.ones(2)})
    data = path.read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")].decode().strip()
    entry = header[header.index('"params/w"') : -1]
    assert entry.endswith("}")
    path.write_bytes(crafted_safetensors(f"{header[:-1]},{entry}}}".encode(), data[-16:]))
    refused_by_load_and_inspect(path, "a name stands twice")


GIANTS = [[0, 1 << 62], [1 << 40, 0, 1 << 40], [0, 1 << 70], [0] * 65]


@pytest.mark.parametrize("shape", GIANTS)
def test_shapes_that_numpy_has_no_room_for_are_refused_though_nothing_is_in_them(tmp_path, shape):
    text = {"format": 1, "params": ["w"], "arrays": {"params/w": {"dtype": "<f4", "shape": shape, "crc32": 0}}}
    text["crc32"] = checkpoint.crc_of_text(text)
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
    text["crc32"] = checkpoint.crc_of_text(text)
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
    tests = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_checkpoint as t"
    run_python(f"{tests}; t.load_huge({str(path)!r}, {message!r})")


def test_a_file_of_a_newer_format_says_so(path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    fastadam.save(path, params=np.ones(1))
    monkeypatch.undo()
    for call in (lambda: fastadam.load(path, params=np.ones(1)), lambda: fastadam.inspect(path)):
        with pytest.raises(ValueError, match="it has the format 2; this fastadam reads 1: use a newer one"):
            call()
