"""rebind: another array becomes a parameter; its state, its counter and everything else stay."""

import copy
import pickle
import sys
import weakref

import ml_dtypes
import numpy as np
import pytest
from helpers import BAD_LAYOUTS, NOT_ARRAYS, assert_same_bits, run_python, unchanged

import fastadam


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {"W": np.asfortranarray(rng.standard_normal((4, 3)).astype(np.float32)), "b": rng.standard_normal(3)}


CONTAINERS = {
    "mapping": lambda net: net,
    "list": lambda net: list(net.values()),
    "nested": lambda net: {"enc": [{"W": net["W"]}, net["b"]]},
    "groups": lambda net: [{"params": net["W"], "lr": 0.3}, {"params": [net["b"]]}],
}


def as_grads(kind, net):
    given = CONTAINERS[kind](net)
    return [group["params"] for group in given] if kind == "groups" else given


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9, "accumulate": 2}, {"max_norm": 0.5, "threads": 2}], ids=str)
def test_the_new_array_trains_on_as_the_old_one_would_have(kind, options):
    net, twin = arrays(0), arrays(0)
    opt, other = (fastadam.AdamW(CONTAINERS[kind](each), lr=0.1, **options) for each in (net, twin))
    for step in range(6):
        for key, array, old in zip(opt.state, net.values(), dict(net).values(), strict=True):
            if step == 3:
                new = array.copy("K")
                net["W" if array is net["W"] else "b"] = new
                opt.rebind(key, new)
                old[...] = np.nan  # nobody's any more
        for each in opt, other:
            each.step(as_grads(kind, arrays(step + 1)))
        for name in net:
            assert_same_bits(net[name], twin[name], f"{name} {step}")
    assert opt.steps == other.steps and opt.grad_norm == other.grad_norm
    for ours, theirs in zip(opt.state.values(), other.state.values(), strict=True):
        for name in ours:
            assert np.array_equal(ours[name], theirs[name]), name


def test_values_are_not_copied_and_param_groups_shows_the_array():
    net = arrays(0)
    opt = fastadam.SGD([{"params": net}, {"params": {"c": np.ones(2)}}], lr=1.0)
    group, new = opt.param_groups[0], np.full(3, 7.0)
    opt.rebind("b", new)
    assert opt.param_groups[0] is group and group["params"][1] is new and group["params"][0] is net["W"]
    assert (new == 7.0).all()
    opt.step([{"W": None, "b": np.ones(3)}, {"c": None}])
    assert (new == 6.0).all() and opt.state["b"]["step"] == 1
    opt.step_one("b", np.ones(3))
    assert (new == 5.0).all()


def test_overrides_and_the_order_of_groups():
    net = {"a.bias": np.zeros(3), "b": np.zeros(3), "c.bias": np.zeros(3), "d": np.zeros(3)}
    opt = fastadam.SGD(net, lr=1.0, overrides={"*.bias": {"lr": 2.0}})
    for key in net:
        net[key] = np.full(3, 5.0)
        opt.rebind(key, net[key])
    opt.step({key: np.full(3, float(i)) for i, key in enumerate(net)})
    assert [array[0] for array in net.values()] == [5.0, 4.0, 1.0, 2.0]
    for group, keys in zip(opt.param_groups, ["bd", ["a.bias", "c.bias"]], strict=True):
        assert all(param is net[key] for param, key in zip(group["params"], keys, strict=True))


REFUSED = [
    *[(bad, TypeError, match) for bad, match in NOT_ARRAYS],
    *[(make(), ValueError, match) for make, match in BAD_LAYOUTS],
    (np.ones((4, 3)), TypeError, "must be float32, as the one that it replaces, got float64"),
    (np.ones((4, 3), np.int32), TypeError, "must be float32, float64 or bfloat16"),
    (np.ones((3, 4), np.float32), ValueError, r"must have the shape .*, \(4, 3\), got \(3, 4\); make a new optimizer"),
    (np.ones((4, 3), np.float32), ValueError, r"must lie in memory .*order F, got strides \(12, 4\); .*np.empty_like"),
]


@pytest.mark.parametrize(("bad", "error", "match"), REFUSED)
def test_an_array_of_another_kind_changes_nothing(bad, error, match):
    net = arrays(0)
    opt = fastadam.Adam(net)
    opt.step(arrays(1))
    with unchanged(opt), pytest.raises(error, match=rf"^array for parameter 'W' {match}|^array for .*{match}"):
        opt.rebind("W", bad)
    assert opt.param_groups[0]["params"][0] is net["W"]
    opt.step(arrays(2))


def test_an_array_that_overlaps_what_is_written_changes_nothing():
    memory = np.ones(8)
    opt = fastadam.Adam({"a": memory[:3], "b": np.ones(3)}, ema_decay=0.9)
    opt.step({"a": np.ones(3), "b": np.ones(3)})
    for bad in memory[:3], memory[2:5], opt.state["a"]["exp_avg"], opt.state["b"]["ema"]:
        with unchanged(opt), pytest.raises(ValueError, match="overlap in memory"):
            opt.rebind("b", bad)
        with unchanged(opt), pytest.raises(ValueError, match="overlap in memory"):
            opt.rebind("a", opt.param_groups[0]["params"][1])
    opt.rebind("a", memory[1:4])  # its own old memory is free
    opt.rebind("b", memory[4:7])
    before = memory.copy()
    opt.step({"a": np.ones(3), "b": np.ones(3)})
    assert (memory != before).tolist() == [False] + 6 * [True] + [False]


def test_a_gradient_in_the_new_arrays_memory_is_refused_and_in_the_old_ones_is_fine():
    net = {"a": np.ones(3), "b": np.ones(3)}
    opt, old, new = fastadam.SGD(net), net["a"], np.ones(3)
    opt.step({"a": None, "b": new})
    opt.rebind("a", new)
    with unchanged(opt), pytest.raises(ValueError, match="gradient of parameter 'b' and parameter 'a' overlap"):
        opt.step({"a": None, "b": new})
    opt.step({"a": None, "b": old})


def test_unknown_keys_and_other_mistakes():
    opt = fastadam.RowAdagrad({"t": np.ones((2, 3)), "u": np.ones((2, 1))})
    with pytest.raises(KeyError, match=r"no parameter 'v'; there are \['t', 'u'\]"):
        opt.rebind("v", np.ones((2, 3)))
    with pytest.raises(ValueError, match="order C, got strides"):
        opt.rebind("t", np.ones((2, 3), order="F"))
    with pytest.raises(TypeError, match="keep_master must be True or False"):
        opt.rebind("t", np.ones((2, 3)), keep_master=1.5)
    opt.rebind("t", np.ones((2, 3)), keep_master=True)  # does nothing
    opt.rebind("u", np.ones((2, 1), order="F"))  # which is C, too
    opt.param_groups[0] = {**opt.param_groups[0], "params": (np.ones((2, 3)),)}
    with pytest.raises(ValueError, match="params was replaced in param_groups"):
        opt.rebind("t", np.ones((2, 3)))


@pytest.mark.parametrize("bits", [32, 24])
def test_a_master_correction_is_reset_unless_it_is_to_be_kept(bits):
    grads = [np.linspace(0.1, 1, 40, dtype=np.float32)]
    param = np.ones(40, ml_dtypes.bfloat16)
    opt = fastadam.SGD([param], lr=0.0013, master_bits=bits)
    opt.step(grads)
    master = opt.master(0)
    assert (master != param.astype(np.float32)).any()
    opt.rebind(0, param.copy(), keep_master=True)
    assert_same_bits(opt.master(0), master)
    opt.rebind(0, param.copy())
    assert_same_bits(opt.master(0), param.astype(np.float32))
    with unchanged(opt), pytest.raises(TypeError, match="must be bfloat16, as the one"):
        opt.rebind(0, np.ones(40, np.float32))


def test_refused_inside_swap_ema_and_inside_a_step():
    net = arrays(0)
    opt = fastadam.SGD(net, lr=lambda count: opt.rebind("b", np.ones(3)) or 0.1, ema_decay=0.9)
    with unchanged(opt), pytest.raises(RuntimeError, match="from inside its own step"):
        opt.step(arrays(1))
    with opt.swap_ema(), pytest.raises(RuntimeError, match="leave `with opt.swap_ema"):
        opt.rebind("b", np.ones(3))
    opt.rebind("b", np.ones(3))
    with opt.swap_ema():
        assert (opt.param_groups[0]["params"][1] != 1.0).all()  # the old array's average
    assert (opt.param_groups[0]["params"][1] == 1.0).all()


def test_copies_and_pickles_go_on_with_the_new_array(tmp_path):
    net = arrays(0)
    opt = fastadam.Adam(net, lr=0.1)
    opt.step(arrays(1))
    opt.rebind("b", np.full(3, 4.0))
    copies = [copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))]
    path = tmp_path / "opt.npz"
    opt.save(path)
    opt.step(arrays(2))
    for other in copies:
        other.step(arrays(2))
        assert_same_bits(other.param_groups[0]["params"][1], opt.param_groups[0]["params"][1])
    new = {"W": copies[0].param_groups[0]["params"][0].copy("K"), "b": np.full(3, 4.0)}
    fresh = fastadam.Adam(new)
    fresh.load(path)
    fresh.step(arrays(2))
    assert_same_bits(new["b"], opt.param_groups[0]["params"][1])


def test_a_subclass_is_taken_and_the_old_array_is_let_go():
    class Mine(np.ndarray):
        pass

    opt = fastadam.SGD({"w": np.ones(3).view(Mine)}, lr=1.0)
    opt.step({"w": np.ones(3)})
    ref, new = weakref.ref(opt.param_groups[0]["params"][0]), np.ones(3).view(Mine)
    opt.rebind("w", new)
    assert ref() is None
    opt.step({"w": np.ones(3)})
    assert (new == 0.0).all() and opt.param_groups[0]["params"][0] is new


@pytest.mark.skipif(sys.platform != "linux", reason="state_file and forks as Linux has them")
def test_with_a_state_file_and_mapped_parameters(tmp_path):
    def mapped(name, mode="w+"):
        return np.lib.format.open_memmap(tmp_path / name, mode, np.float64, None if mode == "r+" else (9000,))

    old, twin = mapped("old.npy"), np.zeros(9000)
    opt, other = fastadam.Adam(old, state_file=tmp_path / "state"), fastadam.Adam(twin)
    opt.step(np.ones(9000))
    new = mapped("new.npy")
    new[:] = old
    opt.rebind(0, new)
    store = opt._engine.store
    assert [len(maps) for maps in store.params] == [1] and store.params[0][0] is new._mmap
    opt.step(np.ones(9000))
    del opt, store
    opt = fastadam.Adam(mapped("new.npy", "r+"), state_file=tmp_path / "state")
    opt.step(np.ones(9000))
    for _ in range(3):
        other.step(np.ones(9000))
    assert_same_bits(np.asarray(opt.param_groups[0]["params"][0]), twin)
    run_python(f"""
import os, numpy as np, fastadam
opt = fastadam.Adam(np.zeros(5), state_file={str(tmp_path / "forked")!r})
plain, array = fastadam.SGD(np.ones(5), lr=1.0), np.full(5, 3.0)
if os.fork() == 0:
    plain.rebind(0, array)
    plain.step(np.ones(5))
    try:
        opt.rebind(0, array)
    except RuntimeError as error:
        os._exit(0 if "belongs to the process" in str(error) and (array == 2.0).all() else 2)
    os._exit(1)
assert os.wait()[1] == 0
opt.rebind(0, array)
""")
