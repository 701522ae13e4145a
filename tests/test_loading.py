"""State that comes from elsewhere: other tools' dicts, memory maps, optimizers with other options."""

import copy
import pickle

import numpy as np
import pytest
from helpers import assert_same_bits, snapshot

import fastadam


def trained(**options):
    w = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(3.0)}
    opt = fastadam.Adam(w, lr=0.1, **options)
    opt.step({"a": np.ones((2, 3)), "b": np.ones(3)})
    return w, opt


# ---- what other tools leave in groups


@pytest.mark.parametrize(
    "left",
    [
        {"initial_lr": 0.1, "max_lr": 0.5, "min_lr": 4e-6, "max_momentum": 0.95, "base_momentum": 0.85},  # OneCycleLR
        {"swa_lr": 0.05},  # SWALR
        {"foreach": None, "fused": True, "capturable": False, "differentiable": False},
        {"name": "head", 5: "a key that is no str"},
    ],
)
def test_what_other_tools_left_in_a_saved_group_is_dropped(left):
    _, opt = trained()
    saved = copy.deepcopy(opt.state_dict())
    saved["param_groups"][0].update(left, lr=0.2)
    _, other = trained()
    other.load_state_dict(saved)
    assert other.lr == 0.2 and not left.keys() & other.param_groups[0].keys()
    other.step({"a": np.ones((2, 3)), "b": np.ones(3)})


def test_a_torch_dict_with_nothing_but_a_schedulers_keys_loads():
    opt = fastadam.SGD([np.ones(2)], lr=0.5)
    opt.load_state_dict({"state": {}, "param_groups": [{"lr": 0.1, "params": [0], "swa_lr": 0.05}]})
    assert opt.lr == 0.1


def test_what_a_user_misspells_is_still_an_error():
    with pytest.raises(ValueError, match="unknown hyper-parameter 'swa_lr'"):
        fastadam.SGD([{"params": np.ones(2), "swa_lr": 0.1}])
    opt = fastadam.SGD(np.ones(2))
    opt.param_groups[0]["swa_lr"] = 0.1
    with pytest.raises(ValueError, match="has the unknown key 'swa_lr'"):
        opt.step(np.ones(2))


# ---- subclasses and memory maps


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_an_optimizer_is_unpickled_from_arrays_of_any_subclass():
    _, opt = trained()
    state = opt.__getstate__()
    state["_engine"]["arrays"] = [
        {name: a.view(np.matrix) if a.ndim == 2 else a.view(np.recarray) for name, a in arrays.items()}
        for arrays in state["_engine"]["arrays"]
    ]
    other = fastadam.Adam.__new__(fastadam.Adam)
    other.__setstate__(copy.copy(state))
    assert snapshot(other) == snapshot(opt)
    assert all(type(a) is np.ndarray for a in other.state["a"].values() if isinstance(a, np.ndarray))


def mapped(array, folder, mode):
    path = folder / f"{id(array)}.npy"
    np.save(path, array)
    return np.load(path, mmap_mode=mode)


def as_maps(opt, folder, mode):
    """What joblib makes of an optimizer whose arrays are large."""
    state = opt.__getstate__()
    state["_engine"] = {
        **state["_engine"],
        "arrays": [
            {name: mapped(a, folder, mode) for name, a in arrays.items()} for arrays in state["_engine"]["arrays"]
        ],
    }
    params = [
        {**group, "params": tuple(mapped(p, folder, mode) for p in group["params"])} for group in opt.param_groups
    ]
    other = type(opt).__new__(type(opt))
    other.__setstate__({**state, "param_groups": params})
    return other


def test_an_optimizer_is_unpickled_from_memory_maps_that_copy_on_write(tmp_path):
    _, opt = trained()
    other = as_maps(opt, tmp_path, "c")
    for each in opt, other:
        each.step({"a": np.ones((2, 3)), "b": np.ones(3)})
    assert snapshot(other) == snapshot(opt)


def test_read_only_memory_maps_are_refused_with_what_joblib_needs(tmp_path):
    _, opt = trained()
    state = opt.__getstate__()
    plain = np.asarray(mapped(opt.param_groups[0]["params"][0], tmp_path, "r"))  # a view of a map is as read-only
    with pytest.raises(ValueError, match="parameter 'a' comes as a read-only memory map"):
        fastadam.Adam.__new__(fastadam.Adam).__setstate__({**state, "param_groups": [{"params": (plain, plain)}]})
    with pytest.raises(ValueError, match="parameter 'a' comes as a read-only .*max_nbytes=None or mmap_mode='c'"):
        as_maps(opt, tmp_path, "r")


def test_loading_looks_at_each_array_once(monkeypatch):
    """Not each source up by asking every array: 4 times the arrays took 16 times as long."""
    opt = fastadam.SGD([np.zeros(1) for _ in range(400)], momentum=0.5, ema_decay=0.9)
    opt.step([np.ones(1)] * 400)
    asked = []
    shares_memory = np.shares_memory
    monkeypatch.setattr(np, "shares_memory", lambda a, b: asked.append(1) or shares_memory(a, b))
    groups = opt.state_dict()["param_groups"]
    opt.load_state_dict({"state": {}, "param_groups": groups})
    opt.load_state_dict(opt.state_dict())
    assert opt.steps == 0 and 0 < len(asked) <= 2 * 2 * 2 * 400


def test_sources_that_are_other_arrays_of_the_optimizer_are_copied_first():
    """Averages go where parameters are, and the other way round."""
    w, opt = trained(ema_decay=0.5)
    saved = opt.state_dict()
    entries = saved["state"]
    for i, name in enumerate(("a", "b")):
        entries[i]["exp_avg"], entries[i]["exp_avg_sq"] = entries[i]["exp_avg_sq"], entries[i]["exp_avg"]
        entries[i]["ema"] = w[name]
    before = {key: {k: np.copy(v) for k, v in entry.items()} for key, entry in opt.state.items()}
    opt.load_state_dict(saved)
    for key, entry in opt.state.items():
        assert_same_bits(entry["exp_avg"], before[key]["exp_avg_sq"])
        assert_same_bits(entry["exp_avg_sq"], before[key]["exp_avg"])
        assert_same_bits(entry["ema"], w[key])


# ---- sums and averages that the new optimizer does not keep


def checkpoint(opt, w, path):
    fastadam.save(path, params=w, optimizer=opt)
    return path


def test_a_state_without_a_sum_that_waits_loads_where_none_is_kept(tmp_path):
    w, opt = trained(accumulate=2)
    opt.step({"a": np.ones((2, 3)), "b": np.ones(3)})
    path = checkpoint(opt, w, tmp_path / "c.npz")
    others, other = trained()
    fastadam.load(path, params=others, optimizer=other)
    assert other.steps == 1 and "grad_sum" not in other.state["a"]
    for name in "exp_avg", "exp_avg_sq":
        assert_same_bits(other.state["a"][name], opt.state["a"][name])
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    other.step({"a": np.ones((2, 3)), "b": np.ones(3)})


def test_a_sum_that_waits_is_not_dropped_in_silence(tmp_path):
    w, opt = trained(accumulate=3)
    path = checkpoint(opt, w, tmp_path / "c.npz")
    _, other = trained()
    before = snapshot(other)
    match = "has a sum of gradients, 1 so far, that waits for a step.*make it with accumulate. .*delete 'grad_count'"
    with pytest.raises(ValueError, match=match):
        fastadam.load(path, optimizer=other)
    assert snapshot(other) == before
    fastadam.load(path, optimizer=trained(accumulate=2)[1])
    saved = copy.deepcopy(opt.state_dict())
    for entry in saved["state"].values():
        del entry["grad_count"], entry["grad_sum"]
    other.load_state_dict(saved)
    assert other.steps == 0


def test_averages_are_not_dropped_in_silence(tmp_path):
    w, opt = trained(ema_decay=0.9)
    path = checkpoint(opt, w, tmp_path / "c.npz")
    _, other = trained()
    before = snapshot(other)
    match = r"an average of the parameter \(ema\).*make it with ema_decay. .*delete 'ema'"
    with pytest.raises(ValueError, match=match):
        fastadam.load(path, optimizer=other)
    assert snapshot(other) == before
    keeps = trained(ema_decay=1.0)[1]  # the way out, from a file
    fastadam.load(path, optimizer=keeps)
    saved = keeps.state_dict()
    for entry in saved["state"].values():
        del entry["ema"]
    other.load_state_dict(saved)
    assert other.steps == 1


def test_a_bad_hyper_parameter_is_refused_before_a_gradient_joins_a_sum():
    calls = []
    opt = fastadam.SGD({"a": np.ones(1), "b": np.ones(1)}, accumulate=2, lr=lambda t: calls.append(t) or 0.1)
    opt.param_groups[0]["momentum"] = -1.0
    before = snapshot(opt)
    for step in lambda: opt.step({"a": np.ones(1), "b": np.ones(1)}), lambda: opt.step_one("a", np.ones(1)):
        with pytest.raises(ValueError, match="^momentum must be finite"):
            step()
    assert snapshot(opt) == before and not calls
    opt.param_groups[0]["momentum"] = 0.0
    for _ in range(2):
        opt.step({"a": np.ones(1), "b": np.ones(1)})
    assert calls == [0] and opt.steps == 1


def test_hyper_parameters_that_do_not_go_together_are_refused_before_a_gradient_joins_a_sum():
    groups = [{"params": np.ones(1)}, {"params": np.ones(1), "nesterov": True}]
    opt = fastadam.SGD(groups, momentum=0.5, accumulate=2)
    opt.param_groups[1]["dampening"] = 0.5
    for use in lambda: opt.step([np.ones(1), np.ones(1)]), opt.state_dict:
        with pytest.raises(ValueError, match="nesterov=True needs dampening 0") as caught:
            use()
        assert caught.value.__notes__ == ["in param_groups[1]"]
    assert opt.state[0]["grad_count"] == 0


def test_pickles_of_optimizers_that_keep_sums_and_averages_are_whole():
    _, opt = trained(accumulate=2, ema_decay=0.5)
    assert snapshot(pickle.loads(pickle.dumps(opt))) == snapshot(opt)


def test_loading_after_a_refused_group_reads_no_memory_of_it():
    opt = fastadam.Adam([np.ones(300_000)])
    for _ in range(20):  # what was refused is freed, and the copies may lie there
        x = np.ones(300_000)
        with pytest.raises(ValueError, match="overlap"):
            opt.add_param_group({"params": [x, x]})
        del x
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    opt.step([np.ones(300_000)])
    assert opt.steps == 1
