"""Checkpoints: what is saved comes back, to the bit; what does not match is refused and changes nothing."""

import copy
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from files import SUFFIXES, rewritten
from helpers import assert_same_bits, run_python, snapshot, unchanged

import fastadam
from fastadam.persist import checkpoint


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
    assert snapshot(new) == snapshot(opt)
    train(opt, params, 5, seed=3)
    train(new, other, 5, seed=3)
    assert snapshot(new) == snapshot(opt)
    assert os.listdir(path.parent) == [path.name]


def test_an_optimizer_alone_and_parameters_alone(path):
    params = model()
    opt = fastadam.Adam(params)
    train(opt, params, 2)
    opt.save(path)
    new = fastadam.Adam(model())
    new.load(path)
    assert snapshot(new)[0] == snapshot(opt)[0]
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
        with unchanged(new):
            with pytest.raises(error, match=match):
                fastadam.load(path, params=other, optimizer=new)
            with pytest.raises((error, ValueError)):
                new.load(path)

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
    with pytest.raises(ValueError, match="parameter .b. must be dense in memory"):
        fastadam.load(path, params=other)
    assert not other["a"].any() and not other["c"].any()


@pytest.mark.parametrize("array", [np.ones(2, complex), np.array([None]), np.array(["x"]), np.ma.ones(2), 1.0])
def test_what_cannot_be_stored_is_refused(path, array):
    with pytest.raises(TypeError):
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


def test_no_package_is_needed(tmp_path):
    code = f"""
import sys
sys.modules["safetensors"] = sys.modules["tqdm"] = None
import numpy as np, fastadam
for suffix in "npz", "safetensors":
    path, w = f"{tmp_path}/m.{{suffix}}", np.zeros(1)
    fastadam.save(path, params=np.ones(1))
    fastadam.load(path, params=w)
    assert w == 1
"""
    run_python(code)
    assert sorted(os.listdir(tmp_path)) == ["m.npz", "m.safetensors"]


def test_a_bar_is_shown_where_it_is_asked_for(path, capfd):
    fastadam.save(path, params=np.ones(1000), progress=True)
    fastadam.load(path, params=np.ones(1000), progress=True)
    shown = capfd.readouterr().err
    assert "summing" in shown and "reading" in shown and "8.00k" in shown
    fastadam.save(path, params=np.ones(1000))
    assert capfd.readouterr().err == ""


def test_arrays_that_the_optimizer_does_not_step_are_refused_beside_it(tmp_path):
    """A model made anew after its optimizer would be loaded, and then trained without effect."""
    path, model = tmp_path / "c.npz", {"w": np.ones(3), "frozen": np.ones(2)}
    opt = fastadam.SGD({"w": model["w"]}, lr=1.0)
    fastadam.save(path, params=model, optimizer=opt)  # more than the optimizer has is fine, in a list, too
    fastadam.save(tmp_path / "list.npz", params=[model["frozen"], model["w"]], optimizer=fastadam.SGD([model["w"]]))
    rows = fastadam.SGD({"w": model["w"][1:]})  # a part of an array
    fastadam.save(tmp_path / "rows.npz", params=model, optimizer=rows)
    fastadam.load(tmp_path / "rows.npz", params=model, optimizer=rows)
    remade = {"w": np.zeros(3), "frozen": np.zeros(2)}
    for call in fastadam.load, fastadam.save:
        with pytest.raises(ValueError, match=r"^parameter 'w' is another array than .* opt.rebind\(key, array\)"):
            call(path, params=remade, optimizer=opt)
    assert not remade["w"].any()
    opt.rebind("w", remade["w"])
    fastadam.load(path, params=remade, optimizer=opt)
    opt.step({"w": np.ones(3)})
    assert not remade["w"].any() and remade["frozen"].all() and model["w"].all()


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
def test_flags_are_flags(path, wrong, capfd):
    opt = fastadam.Adam(np.ones(1))
    opt.save(path, progress=np.False_)
    assert capfd.readouterr().err == ""
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
            r"^save takes only path .* opt.save\(.*fastadam.save\(path, params=..., opt",
        ),
        (
            lambda: opt.load(path, params=w),
            r"^load has no params.* opt.load\(.*fastadam.load\(path, params=..., ",
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


@pytest.mark.parametrize(("method", "how"), [("save", "use its own save and load"), ("zero_grad", "to torch.save")])
def test_optimizers_with_files_of_their_own_are_sent_to_them(path, method, how):
    other = type("Other", (), {method: lambda self: None})()  # as fastadam.mpi.Sharded, and as torch's
    for function in fastadam.save, fastadam.load:
        with pytest.raises(TypeError, match=f"must be an optimizer of fastadam, got a Other; .*{how}"):
            function(path, optimizer=other)


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
    with pytest.raises(ValueError, match="m.npz' is damaged or not a checkpoint: metadata"):
        fastadam.load(path, params=w)
    with pytest.raises(ValueError, match="m.npz' is damaged or not a checkpoint: metadata"):
        fastadam.inspect(path)
    assert not w.any()


def test_metadata_that_changes_while_it_is_saved_is_that_of_one_moment(path, monkeypatch):
    metadata, entry = {"epoch": 1}, checkpoint.manifest_entry
    monkeypatch.setattr(checkpoint, "manifest_entry", lambda *args: (metadata.update(epoch=2), entry(*args))[1])
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
    with pytest.raises(ValueError, match="m.npz' is damaged or not a checkpoint"):
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
