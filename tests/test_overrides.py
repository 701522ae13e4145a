"""Hyper-parameters by the names of arrays: the same as groups written by hand."""

import copy
import pickle

import numpy as np
import pytest
from helpers import assert_same_bits, snapshot

import fastadam

SHAPES = {"enc": {"W": (5, 3), "bias": (3,)}, "head": {"W": (3, 2), "bias": (2,)}, "scale": (4,)}
PATTERNS = {"*.bias": {"weight_decay": 0.0}, "head.*": {"lr": lambda t: 0.1 / (t + 1)}, "sc?le": {"weight_decay": 0}}


def filled(shapes, seed):
    rng = np.random.default_rng(seed)
    make = lambda tree: {k: make(v) if isinstance(v, dict) else rng.standard_normal(v) for k, v in tree.items()}  # noqa: E731
    return make(shapes)


def by_hand(tree):
    """The groups that PATTERNS stand for: values, and arrays by their keys."""
    return [
        ({}, {"enc.W": tree["enc"]["W"]}),
        (
            {"weight_decay": 0.0},
            {"enc.bias": tree["enc"]["bias"], "head.bias": tree["head"]["bias"], "scale": tree["scale"]},
        ),
        ({"lr": PATTERNS["head.*"]["lr"]}, {"head.W": tree["head"]["W"]}),
    ]


@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5}, {"ema_decay": 0.9, "accumulate": 2, "nonfinite": "skip"}])
def test_overrides_are_the_groups_written_by_hand(options):
    weights, twin = filled(SHAPES, 1), filled(SHAPES, 1)
    opt = fastadam.AdamW(weights, lr=0.2, overrides=PATTERNS, **options)
    hand = fastadam.AdamW([{"params": arrays, **values} for values, arrays in by_hand(twin)], lr=0.2, **options)
    for seed in range(5):
        grads = filled(SHAPES, 10 + seed)
        opt.step(grads)
        hand.step([arrays for _, arrays in by_hand(grads)])
    for (_, ours), (_, theirs) in zip(by_hand(weights), by_hand(twin), strict=True):
        for key in ours:
            assert_same_bits(ours[key], theirs[key], key)
    assert opt.grad_norm == hand.grad_norm and opt.last_values == hand.last_values
    assert snapshot(opt)[0] == snapshot(hand)[0]
    without_state = lambda optimizer: [{**group, "params": None} for group in optimizer.param_groups]  # noqa: E731
    assert without_state(opt) == without_state(hand)
    assert repr(opt.state_dict()) == repr(hand.state_dict())


def test_keys_are_those_of_the_container():
    opt = fastadam.SGD([np.ones(i) for i in (1, 2, 3, 4)], overrides={"1": {"lr": 0.5}, "[02]": {"momentum": 0.9}})
    assert list(opt.state) == [3, 1, 0, 2]
    assert opt.state_dict()["param_groups"][2]["param_names"] == [0, 2]
    assert [[p.size for p in group["params"]] for group in opt.param_groups] == [[4], [2], [1, 3]]
    opt.step([np.ones(1), None, np.ones(3), None])
    assert {key: entry["step"] for key, entry in opt.state.items()} == {0: 1, 1: 0, 2: 1, 3: 0}
    opt.step_one(1, np.ones(2))
    assert opt.state[1]["step"] == 1


def test_groups_without_arrays_are_left_out_and_equal_values_are_one_group():
    opt = fastadam.SGD([np.ones(1), np.ones(2)], overrides={"0": {"lr": 0.5}, "1": {"lr": 0.5}})
    assert len(opt.param_groups) == 1 and len(opt.param_groups[0]["params"]) == 2
    opt = fastadam.Adam([np.ones(1), np.ones(2)], overrides={"0": {"betas": [0.5, 0.9]}, "*": {"betas": (0.5, 0.9)}})
    assert len(opt.param_groups) == 1 and opt.betas == (0.5, 0.9)
    opt = fastadam.SGD([np.ones(1)], overrides={"*": {"lr": 0.5}, "0": {"lr": 0.1}})
    assert [group["lr"] for group in opt.param_groups] == [0.5]
    opt = fastadam.SGD(np.ones(1), overrides={})
    assert len(opt.param_groups) == 1


def test_a_group_that_is_added_has_its_own_place_in_step():
    a, b, c = np.ones(1), np.ones(2), np.ones(3)
    opt = fastadam.SGD([a, b], lr=1.0, overrides={"0": {"lr": 0.5}})
    opt.add_param_group({"params": c, "lr": 0.25})
    assert list(opt.state) == [1, 0, 2]
    opt.step([[np.ones(1), np.ones(2)], np.ones(3)])
    assert (a[0], b[0], c[0]) == (0.5, 0.0, 0.75)


def test_copies_and_checkpoints_keep_the_order(tmp_path):
    weights = [np.ones(1), np.ones(2)]
    opt = fastadam.SGD(weights, lr=1.0, momentum=0.5, overrides={"0": {"lr": 0.5}})
    grads = [np.ones(1), np.full(2, 2.0)]
    opt.step(grads)
    fastadam.save(tmp_path / "c.npz", params=weights, optimizer=opt)
    copies = [copy.deepcopy((weights, opt)), pickle.loads(pickle.dumps((weights, opt)))]
    again = [np.ones(1), np.ones(2)]
    loaded = fastadam.SGD(again, lr=9.0, momentum=0.9, overrides={"0": {}})
    fastadam.load(tmp_path / "c.npz", params=again, optimizer=loaded)
    opt.step(grads)
    for others, other in [*copies, (again, loaded)]:
        other.step(grads)
        for ours, theirs in zip(weights, others, strict=True):
            assert_same_bits(ours, theirs)


def test_a_checkpoint_of_other_groups_says_so(tmp_path):
    weights = [np.ones(1), np.ones(2)]
    fastadam.SGD(weights, overrides={"0": {"lr": 0.5}}).save(tmp_path / "c.npz")
    match = "the same parameters in other groups.*make it with the groups, or the overrides"
    with pytest.raises(ValueError, match=match):
        fastadam.SGD(weights).load(tmp_path / "c.npz")


def test_a_checkpoint_of_the_same_groups_in_another_order_loads(tmp_path):
    """Of the names within a group, that is: `step` takes gradients in any order, too."""
    one = {"a": np.ones(1, "f4"), "b": np.ones(2, "f4"), "c": np.ones(3, "f4")}
    other = {"c": np.zeros(3, "f4"), "b": np.zeros(2, "f4"), "a": np.zeros(1, "f4")}
    grads = {name: np.arange(1, 1 + a.size, dtype="f4") for name, a in one.items()}
    saved, loaded = (
        fastadam.Adam(arrays, state_dtype="bfloat16", overrides={"b": {"lr": 0.5, "state_dtype": "float32"}})
        for arrays in (one, other)
    )
    saved.step(grads)
    fastadam.save(tmp_path / "c.npz", params=one, optimizer=saved)
    fastadam.load(tmp_path / "c.npz", params=other, optimizer=loaded)
    for opt in saved, loaded:
        opt.step(grads)
    for name, array in one.items():
        assert_same_bits(array, other[name])


def test_a_state_file_takes_overrides(tmp_path):
    make = lambda: fastadam.Adam([np.ones(1), np.ones(2)], overrides={"0": {"lr": 0.5}}, state_file=tmp_path / "s")  # noqa: E731
    opt = make()
    opt.step([np.ones(1), np.ones(2)])
    del opt
    assert {key: entry["step"] for key, entry in make().state.items()} == {1: 1, 0: 1}


@pytest.mark.parametrize(
    ("overrides", "error", "match"),
    [
        ({"*.bia": {"lr": 0.1}}, ValueError, r"^overrides: the pattern '\*.bia' matches none of the keys \['a.bias',"),
        ({"*": {"lrr": 0.1}}, ValueError, r"unknown hyper-parameter 'lrr' in overrides\['\*'\] \(did you mean lr\?\)"),
        ({"*": {"params": 0.1}}, ValueError, r"unknown hyper-parameter 'params' in overrides\['\*'\]"),
        ({"*": {"max_norm": 0.1}}, ValueError, r"'max_norm' in overrides\['\*'\] \(it is an argument of the op"),
        ({"*": {"lr": -1}}, ValueError, "^lr must be finite"),
        ({"*": 0.1}, TypeError, r"overrides\['\*'\] must be a dict of hyper-parameters, got a float"),
        ({0: {"lr": 0.1}}, TypeError, "overrides: a pattern must be a str, got 0"),
        ([("*", {"lr": 0.1})], TypeError, "overrides must be a dict of patterns, got a list"),
        ({"*": {"nesterov": True}}, ValueError, "nesterov=True needs"),
    ],
)
def test_overrides_that_mean_nothing_are_refused(overrides, error, match):
    with pytest.raises(error, match=match):
        fastadam.SGD({"a": {"bias": np.ones(1)}, "b": np.ones(1)}, overrides=overrides)


def test_overrides_do_not_go_with_groups():
    with pytest.raises(ValueError, match="with groups, put the values into the groups"):
        fastadam.SGD([{"params": np.ones(1)}], overrides={"*": {"lr": 0.1}})
