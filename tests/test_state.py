"""State, groups that are added, saving and loading: nothing lost, nothing half done."""

import copy
import pickle
import sys
import threading
import types

import numpy as np
import pytest
from helpers import assert_same_bits, run_python, snapshot, unchanged

import fastadam


def model(seed=0):
    rng = np.random.default_rng(seed)
    return {"W": np.asfortranarray(rng.standard_normal((4, 3)).astype(np.float32)), "b": rng.standard_normal(3)}


def gradients(step):
    rng = np.random.default_rng(100 + step)
    return {"W": rng.standard_normal((4, 3)).astype(np.float32).copy("F"), "b": rng.standard_normal(3)}


def train(opt, steps):
    for step in steps:
        opt.step(gradients(step) if step % 3 else {**gradients(step), "b": None})


def make(params, **options):
    return fastadam.AdamW(params, lr=0.05, amsgrad=True, **options)


@pytest.fixture
def trained():
    params = model()
    opt = make(params)
    train(opt, range(5))
    return params, opt


def assert_same_training(params, opt, other_params, other):
    """Also when both go on."""
    train(opt, range(5, 9))
    train(other, range(5, 9))
    for key in params:
        assert_same_bits(params[key], other_params[key])
    assert snapshot(opt) == snapshot(other)


# ---- the view of the state


def test_state_exists_from_construction_and_is_live():
    params = model()
    opt = make(params)
    assert list(opt.state) == ["W", "b"] and len(opt.state) == 2
    entry = opt.state["W"]
    assert list(entry) == ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
    assert entry["step"] == 0 and type(entry["step"]) is int
    assert entry["exp_avg"].dtype == np.float32 and entry["exp_avg"].shape == (4, 3)
    opt.step(gradients(1))
    assert entry["exp_avg"].all() and opt.state["W"]["step"] == 1
    assert np.shares_memory(opt.state["W"]["exp_avg"], entry["exp_avg"])
    entry["exp_avg"][...] = 7
    assert opt.state["W"]["exp_avg"][0, 0] == 7
    assert "max_exp_avg_sq" not in fastadam.Adam(np.ones(1)).state[0]


def test_state_cannot_be_rebound_by_mistake(trained):
    with pytest.raises(TypeError):
        trained[1].state["W"]["step"] = 0
    with pytest.raises(TypeError):
        trained[1].state["W"] = {}
    with pytest.raises(KeyError, match="no parameter 'V'; there are"):
        trained[1].state["V"]


def test_repr_tells_groups_and_sizes(trained):
    name, header, group, settings = repr(trained[1]).splitlines()
    assert name == "AdamW"
    columns = list(zip(header.split(), group.split()[:4], strict=False))
    assert columns == [("group", "0"), ("arrays", "2"), ("elements", "15"), ("lr", "0.05")]
    assert "amsgrad" in group and "steps=5" in settings and "max_norm=None" in settings and "ema_decay=None" in settings


# ---- groups


def test_group_added_in_the_middle_starts_fresh():
    a, b = np.ones(2), np.ones(2)
    opt = fastadam.Adam([a], lr=0.1)
    opt.step([np.ones(2)])
    opt.add_param_group({"params": b, "lr": 0.5})
    opt.step([[np.ones(2)], np.ones(2)])
    assert [e["step"] for e in opt.state.values()] == [2, 1]
    assert b == pytest.approx(0.5)
    assert [g["lr"] for g in opt.param_groups] == [0.1, 0.5]


@pytest.mark.parametrize(
    ("group", "error", "match"),
    [
        ([np.ones(2)], TypeError, "must be a dict"),
        ({"lr": 0.1}, ValueError, "needs the key 'params'"),
        (
            {"params": np.ones(2), "weight_decy": 0.1},
            ValueError,
            r"'weight_decy' in a group .did you mean weight_decay",
        ),
        ({"params": np.ones(2), "lr": -1.0}, ValueError, "^lr"),
        ({"params": {"W": np.ones(2)}}, ValueError, "two parameters have the key 'W'"),
        ({"params": {"V": np.ones(2, int)}}, TypeError, "parameter 'V' must be float32"),
        ({"params": "V"}, TypeError, "parameter 0 must be a numpy.ndarray, got a str"),
    ],
)
def test_bad_group_is_refused_whole(trained, group, error, match):
    opt = trained[1]
    with unchanged(opt), pytest.raises(error, match=match):
        opt.add_param_group(group)
    train(opt, [5])


def test_group_that_overlaps_is_refused_whole():
    params, other = model(), model()
    opt, twin = make(params), make(other)
    for bad in params["b"], opt.state["b"]["exp_avg"]:
        with unchanged(opt), pytest.raises(ValueError, match="overlap"):
            opt.add_param_group({"params": {"c": np.ones(3), "d": bad}})
    assert_same_training(params, opt, other, twin)


# ---- state_dict


def test_state_dict_has_torchs_layout(trained):
    _, opt = trained
    saved = opt.state_dict()
    assert saved.keys() == {"state", "param_groups"}
    assert list(saved["state"]) == [0, 1]
    assert saved["state"][1]["step"] == opt.state["b"]["step"] == 3
    assert np.shares_memory(saved["state"][0]["exp_avg"], opt.state["W"]["exp_avg"])
    (group,) = saved["param_groups"]
    assert group["params"] == [0, 1] and group["param_names"] == ["W", "b"]
    assert group["lr"] == 0.05 and group["decoupled_weight_decay"] and group["amsgrad"]


def test_names_in_another_order_load_by_name():
    one, other = {"a": np.zeros(2), "b": np.zeros(2)}, {"b": np.zeros(2), "a": np.zeros(2)}
    saved, loaded = fastadam.Adam(one), fastadam.Adam(other)
    saved.step({"a": np.ones(2), "b": np.full(2, 100.0)})
    loaded.load_state_dict(saved.state_dict())
    assert (loaded.state["a"]["exp_avg"] == saved.state["a"]["exp_avg"]).all()
    assert (loaded.state["b"]["exp_avg"] == 100.0 * loaded.state["a"]["exp_avg"]).all()


def test_state_dict_numbers_run_over_groups():
    opt = fastadam.Adam([{"params": [np.ones(1), np.ones(2)]}, {"params": {"x": np.ones(3)}}])
    groups = opt.state_dict()["param_groups"]
    assert [g["params"] for g in groups] == [[0, 1], [2]]
    assert [g["param_names"] for g in groups] == [[0, 1], ["x"]]


@pytest.mark.parametrize("way", ["state_dict", "pickled state_dict", "pickle", "deepcopy"])
def test_stopping_and_resuming_is_the_same_as_going_on(trained, way):
    params, opt = trained
    if "state_dict" in way:
        other_params = copy.deepcopy(params)
        other = make(other_params)
        train(other, range(2))  # to be overwritten
        for key in params:
            other_params[key][...] = params[key]
        saved = opt.state_dict()
        other.load_state_dict(pickle.loads(pickle.dumps(saved)) if "pickled" in way else saved)
    elif way == "pickle":
        other_params, other = pickle.loads(pickle.dumps((params, opt)))
    else:
        other_params, other = copy.deepcopy((params, opt))
    assert type(other) is fastadam.AdamW
    assert other.state["W"]["exp_avg"] is not opt.state["W"]["exp_avg"]
    assert_same_training(params, opt, other_params, other)


def test_copies_step_the_copied_parameters(trained):
    params, opt = trained
    copied = copy.deepcopy(opt)
    before = params["W"].copy()
    copied.step(gradients(1))
    assert np.array_equal(params["W"], before)
    assert not np.array_equal(copied.param_groups[0]["params"][0], before)


def test_copies_can_be_given_more_groups(trained):
    copied = pickle.loads(pickle.dumps(fastadam.Adam([np.ones(1)], threads=2)))
    copied.add_param_group({"params": [np.ones(1)]})
    assert list(copied.state) == [0, 1] and copied.threads == 2
    copied.step([[np.ones(1)], [np.ones(1)]])


def test_schedules_are_left_out_of_state_dicts_and_kept_on_loading():
    def schedule(count):
        return 0.5

    opt = fastadam.Adam(np.ones(1), lr=schedule, betas=(schedule, 0.9))
    saved = pickle.loads(pickle.dumps(opt.state_dict()))
    assert saved["param_groups"][0].keys().isdisjoint({"lr", "betas"})
    opt.load_state_dict(saved)
    assert opt.lr is schedule


def test_pickles_of_a_version_without_the_newest_options_go_on():
    params = [np.ones(3), np.ones(2)]
    opt = fastadam.Adam(params, amsgrad=True)
    opt.step([np.ones(3), np.ones(2)])
    saved = opt.__getstate__()
    del saved["_engine"]["settings"]["max_norm_each"], saved["_engine"]["orders"]
    other = object.__new__(fastadam.Adam)
    other.__setstate__(pickle.loads(pickle.dumps(saved)))
    for each in opt, other:
        each.step([np.full(3, 2.0), np.ones(2)])
    assert np.array_equal(other.param_groups[0]["params"][0], params[0]) and other.max_norm_each is None


def test_loading_takes_torchs_way_of_writing_things(trained):
    params, opt = trained
    saved = copy.deepcopy(opt.state_dict())
    for entry in saved["state"].values():
        entry["step"] = np.float32(entry["step"])
    del saved["param_groups"][0]["param_names"], saved["param_groups"][0]["eps_hat"]
    saved["param_groups"][0].update(foreach=None, fused=True, capturable=False, differentiable=False, initial_lr=1.0)
    saved["param_groups"][0]["params"] = ["x", "y"]
    saved["state"] = {"y": saved["state"][1], "x": saved["state"][0]}
    other_params = copy.deepcopy(params)
    other = make(other_params)
    other.load_state_dict(saved)
    assert_same_training(params, opt, other_params, other)


def test_parameters_without_an_entry_start_fresh(trained):
    saved = trained[1].state_dict()
    saved["state"] = {0: saved["state"][0], 1: {}}
    opt = make(model())
    train(opt, range(3))
    opt.load_state_dict(saved)
    assert opt.state["b"]["step"] == 0 and not opt.state["b"]["exp_avg"].any()
    assert opt.state["W"]["step"] == 5


OWN_ADAMS = {  # docs/coming-from.md's: what it subtracts, of lr 0.01, and what to write here
    "textbook": (lambda m, v, t: m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-3), {}),
    "eps_hat": (
        lambda m, v, t: np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-3),
        {"eps_hat": True},
    ),
    "uncorrected": (lambda m, v, t: m / (np.sqrt(v) + 1e-3), {"bias_correction": False}),
}


@pytest.mark.parametrize("decay", ["none", "L2", "decoupled"])
@pytest.mark.parametrize(("direction", "options"), OWN_ADAMS.values(), ids=OWN_ADAMS)
def test_an_adam_of_ones_own_goes_on_here_in_mid_training(direction, options, decay):
    def own(p, m, v, t, g):
        if decay == "L2":
            g = g + 0.1 * p
        if decay == "decoupled":
            p = p - 0.01 * 0.1 * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        return p - 0.01 * direction(m, v, t), m, v

    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((20, 5))
    p, m, v = rng.standard_normal(5), np.zeros(5), np.zeros(5)
    for t in range(1, 11):
        p, m, v = own(p, m, v, t, gradients[t - 1])
    kind = fastadam.AdamW if decay == "decoupled" else fastadam.Adam
    other, here = np.ones(2), p.copy()
    opt = kind([other, here], 0.01, eps=1e-3, weight_decay=0.0 if decay == "none" else 0.1, **options)
    saved = opt.state_dict()
    saved["state"][1] = {"step": 10, "exp_avg": m, "exp_avg_sq": v}
    opt.load_state_dict(saved)
    for t in range(11, 21):
        p, m, v = own(p, m, v, t, gradients[t - 1])
        opt.step([None, gradients[t - 1]])
    np.testing.assert_allclose(here, p, rtol=1e-12)
    assert opt.state[1]["step"] == 20 and opt.state[0]["step"] == 0


def test_loading_arrays_of_the_same_optimizer_in_another_order():
    a, b = np.ones(3), np.ones(3)
    opt = fastadam.Adam([a, b])
    opt.step([np.ones(3), np.zeros(3)])
    saved = opt.state_dict()
    saved["state"] = {0: saved["state"][1], 1: saved["state"][0]}
    opt.load_state_dict(saved)
    assert not opt.state[0]["exp_avg"].any() and opt.state[1]["exp_avg"].all()


GROUP_EDITS = {
    "reversed": lambda opt: opt.param_groups.reverse(),
    "deleted": lambda opt: opt.param_groups.pop(),
    "params replaced": lambda opt: opt.param_groups[0].update(params=(np.zeros(2),)),
    "amsgrad changed": lambda opt: opt.param_groups[0].update(amsgrad=True),
    "key deleted": lambda opt: opt.param_groups[0].pop("lr"),
    "key misspelt": lambda opt: opt.param_groups[0].update(lrr=opt.param_groups[0].pop("lr")),
}


@pytest.mark.parametrize("edit", GROUP_EDITS)
@pytest.mark.parametrize(
    "use",
    [
        pickle.dumps,
        copy.deepcopy,
        lambda opt: opt.state_dict(),
        lambda opt: opt.load_state_dict({"state": {}, "param_groups": []}),
        lambda opt: opt.step([np.ones(2), np.ones(2)]),
    ],
)
def test_groups_that_were_rebuilt_by_hand_are_refused_by_all(edit, use):
    opt = fastadam.Adam([{"params": np.ones(2), "lr": 0.1}, {"params": np.ones(2), "lr": 0.2}])
    opt.step([np.ones(2), np.ones(2)])
    GROUP_EDITS[edit](opt)
    with pytest.raises(ValueError, match=r"param_groups|amsgrad was False"):
        use(opt)
    assert [entry["step"] for entry in opt.state.values()] == [1, 1]


@pytest.mark.parametrize("group", [None, [], types.MappingProxyType({})])
def test_group_that_is_no_dict_is_a_type_error(group):
    opt = fastadam.Adam(np.ones(2))
    opt.param_groups[0] = group
    with pytest.raises(TypeError, match=r"param_groups\[0\] must be a dict"):
        opt.step(np.ones(2))


def test_shallow_copies_are_refused(trained):
    with pytest.raises(TypeError, match=r"use copy.deepcopy"):
        copy.copy(trained[1])


def test_betas_are_nobody_elses_list():
    betas = [0.9, 0.99]
    opt, other = fastadam.Adam(np.ones(2), betas=betas), fastadam.Adam(np.ones(2))
    other.load_state_dict(opt.state_dict())
    betas[0] = 0.1
    assert opt.param_groups[0]["betas"] == other.param_groups[0]["betas"] == (0.9, 0.99)


def test_state_that_lies_about_its_shape_is_refused_whole():
    class Liar(np.ndarray):
        shape = property(lambda self: (3,))
        dtype = property(lambda self: np.dtype(np.float64))

    opt = fastadam.Adam([np.ones(3), np.ones(3)])
    opt.step([np.ones(3), np.ones(3)])
    for lie in np.ones(5).view(Liar), np.ones(1, complex).view(Liar):
        saved = copy.deepcopy(opt.state_dict())
        saved["state"][0]["exp_avg"][...] = 7
        saved["state"][1]["exp_avg"] = lie
        with unchanged(opt), pytest.raises((ValueError, TypeError), match=r"parameter 1\)\['exp_avg'\] must"):
            opt.load_state_dict(saved)


def test_stale_state_dict_of_live_arrays_is_refused(trained):
    """state_dict refers to the live arrays, as torch's does; its counters do not move on with them."""
    opt = trained[1]
    saved = opt.state_dict()
    opt.load_state_dict(saved)
    train(opt, [5])
    match = r"says step 5.*its arrays are this optimizer's own.*step 6; .*copy.deepcopy"
    with unchanged(opt), pytest.raises(ValueError, match=match):
        opt.load_state_dict(saved)


def break_state(change):
    def broken(saved):
        change(saved["state"][1])

    return broken


def break_group(change):
    def broken(saved):
        change(saved["param_groups"][0])

    return broken


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda saved: saved.pop("state"), ValueError, "needs the keys"),
        (lambda saved: saved["param_groups"].append({}), ValueError, "has 2 groups, the optimizer 1"),
        (lambda saved: saved.update(state=[]), TypeError, r"\['state'\] must be a dict, got a list"),
        (lambda saved: saved.update(param_groups={}), TypeError, r"\['param_groups'\] must be a list, got a dict"),
        (lambda saved: saved.update(param_groups=[1]), TypeError, r"\['param_groups'\]\[0\] must be a dict, got a int"),
        (break_group(lambda g: g.pop("params")), TypeError, r"\['params'\] must be a list, got a NoneType"),
        (break_group(lambda g: g.update(params=[0, 0])), ValueError, "lists a parameter twice"),
        (lambda saved: saved["state"].update({1: None}), TypeError, r"parameter 'b'\) must be a dict, got a NoneType"),
        (lambda saved: saved["state"].update({1: {"step": 5}}), ValueError, r"parameter 'b'\) has the keys \['step'\]"),
        (break_group(lambda g: g["params"].pop()), ValueError, "has 1 parameters"),
        (break_group(lambda g: g.update(param_names=["b", "V"])), ValueError, "delete 'param_names'"),
        (break_group(lambda g: g.update(param_names=["W", "W"])), ValueError, "delete 'param_names'"),
        (break_group(lambda g: g.update(param_names=["W", ("b", [])])), ValueError, "delete 'param_names'"),
        (break_group(lambda g: g.update(momentum=0.9)), ValueError, "of another optimizer: it has momentum"),
        (break_group(lambda g: g.update(param_names=5)), TypeError, r"\['param_names'\] must be a list, got a int"),
        (break_group(lambda g: g.update(params=[0, [1]])), TypeError, r"\['params'\] must list .*, got a list"),
        (break_group(lambda g: g.update(lr=-1.0)), ValueError, "^lr"),
        (break_group(lambda g: g.update(amsgrad=False)), ValueError, "amsgrad=False, the optimizer True"),
        (lambda saved: saved["state"].update({7: {}}), ValueError, r"entries \[7\]"),
        (break_state(lambda e: e.pop("max_exp_avg_sq")), ValueError, r"parameter 'b'\) has the keys"),
        (break_state(lambda e: e.update(momentum_buffer=np.ones(3))), ValueError, "has the keys"),
        (break_state(lambda e: e.update(exp_avg=np.ones(3, np.float32))), TypeError, "must be float64, got float32"),
        (break_state(lambda e: e.update(exp_avg=np.ones(3, ">f8"))), TypeError, "must be float64"),
        (break_state(lambda e: e.update(exp_avg=np.ones(4))), ValueError, r"must have the shape \(3,\)"),
        (break_state(lambda e: e.update(exp_avg=[1.0] * 3)), TypeError, "must be an array, got a list"),
        (break_state(lambda e: e.update(step=1.5)), ValueError, "must be an integer >= 0 .*got 1.5"),
        (break_state(lambda e: e.update(step=-1)), ValueError, "must be an integer >= 0"),
        (break_state(lambda e: e.update(step=2**63)), ValueError, "must be an integer >= 0"),
        (break_state(lambda e: e.update(step=float("nan"))), ValueError, "must be an integer >= 0"),
        (break_state(lambda e: e.update(step="3")), TypeError, "must be a number"),
    ],
)
def test_state_dict_that_does_not_match_is_refused_whole(trained, change, error, match):
    saved = copy.deepcopy(trained[1].state_dict())
    change(saved)
    opt = make(model())
    train(opt, range(2))
    with unchanged(opt), pytest.raises(error, match=match):
        opt.load_state_dict(saved)


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_what_is_done_to_views_of_the_state_disturbs_no_step(trained):
    _, opt = trained
    twin = copy.deepcopy(opt)
    view, other = opt.state["W"]["exp_avg"], opt.state["W"]["exp_avg_sq"]
    view.flags.writeable = False
    other.dtype = np.int32
    opt.step(gradients(7))
    twin.step(gradients(7))
    assert snapshot(opt) == snapshot(twin)
    assert np.array_equal(view, twin.state["W"]["exp_avg"])
    opt.load_state_dict(make(model()).state_dict())
    assert not view.any()


def test_large_counters_survive_and_the_last_step_is_refused():
    opt = fastadam.Adam([np.ones(1), np.ones(1)])
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][1]["step"] = 2**63 - 2
    opt.load_state_dict(saved)
    opt.step([np.ones(1), np.ones(1)])
    assert opt.state[1]["step"] == 2**63 - 1
    with unchanged(opt), pytest.raises(ValueError, match="parameter 1 has taken"):
        opt.step([np.ones(1), np.ones(1)])


def test_copies_keep_what_users_and_subclasses_attach():
    opt = Tagged(np.ones(1))
    opt.tag = "mine"
    for copied in copy.deepcopy(opt), pickle.loads(pickle.dumps(opt)):
        assert type(copied) is Tagged and copied.tag == "mine"


class Tagged(fastadam.Adam):
    tag = "nobody's"


def test_an_entry_of_the_state_is_a_dict_that_can_be_kept(trained):
    entry = trained[1].state["b"]
    for copied in copy.deepcopy(entry), pickle.loads(pickle.dumps(entry)), dict(entry):
        assert type(copied) is dict
        assert copied["step"] == 3 and np.array_equal(copied["exp_avg"], entry["exp_avg"])
        copied["step"] = 0
    for change in (entry.clear, entry.popitem, lambda: entry.update(step=0), lambda: entry.pop("step")):
        with pytest.raises(TypeError, match="read-only"):
            change()


def test_state_dict_that_changes_the_optimizer_while_it_is_read_is_an_error(trained):
    opt = trained[1]

    class Meddling(dict):
        def items(self):
            opt.add_param_group({"params": {f"p{i}": np.ones(1) for i in range(1000)}})
            return super().items()

    saved = opt.state_dict()
    saved["state"] = Meddling(saved["state"])
    saved["state"][1] = Meddling(saved["state"][1])
    with unchanged(opt), pytest.raises(RuntimeError, match="from inside its own step"):
        opt.load_state_dict(saved)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_group_that_does_not_fit_into_memory_is_refused_whole():
    run_python("""
import resource, numpy as np, fastadam
opt = fastadam.Adam([np.ones(3)])
big = np.ones(1 << 26, np.float32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), resource.RLIM_INFINITY))
for _ in range(2):
    try:
        opt.add_param_group({"params": [big]})
    except MemoryError:
        pass
    else:
        raise AssertionError("it did fit")
    assert list(opt.state) == [0] and len(opt.param_groups) == 1 and len(opt.state_dict()["state"]) == 1
    opt.step([np.ones(3)])
opt.add_param_group({"params": [np.ones(2)]})
opt.step([[np.ones(3)], [np.ones(2)]])
""")


def test_no_other_thread_steps_while_an_optimizer_is_copied():
    """Its arrays are copied after they were listed, so the lock is held until the end."""
    got = []

    class Looks:
        def __deepcopy__(self, memo):
            other = threading.Thread(target=lambda: got.append(opt._engine.lock.acquire(blocking=False)))
            other.start()
            other.join()
            return self

    opt = fastadam.Adam(np.ones(3))
    opt._looks = Looks()
    copied = copy.deepcopy(opt)
    assert got == [False] and copied._looks is opt._looks
