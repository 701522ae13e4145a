"""Ranges of hyper-parameters, schedules, and groups that are changed between steps."""

import copy

import numpy as np
import pytest
from helpers import snapshot, unchanged

import fastadam

NAN, INF = float("nan"), float("inf")
BAD_VALUES = [
    *[(name, value, ValueError) for name in ("lr", "eps", "weight_decay", "eps_root") for value in (-1e-9, NAN, INF)],
    *[
        (name, value, TypeError)
        for name in ("lr", "eps", "weight_decay", "eps_root")
        for value in (
            *("1", None, True, 1j, [1.0], [1, [2, 3]], np.ones(1)),
            *(np.complex64(1), np.array("0.1"), np.array(b"0.1"), np.array(True), np.timedelta64(1, "s"), np.bool_(1)),
        )
    ],
    ("lr", 10**400, ValueError),
    *[("betas", value, ValueError) for value in ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, NAN))],
    *[("betas", value, TypeError) for value in ((0.9,), 0.9, iter((0.9, 0.99)), (0.9, "0.99"))],
    *[
        (name, value, TypeError)
        for name in ("decoupled_weight_decay", "amsgrad", "maximize", "bias_correction", "eps_hat")
        for value in (1, None, "yes")
    ],
]


def ones():
    return np.ones(4)


@pytest.mark.parametrize(("name", "value", "error"), BAD_VALUES)
def test_values_out_of_range_are_refused_everywhere(name, value, error):
    """By the constructor, in a group, set between steps, and by adam_update; the message names the argument."""
    with pytest.raises(error, match=rf"^{name}"):
        fastadam.Adam(ones(), **{name: value})
    with pytest.raises(error, match=rf"^{name}"):
        fastadam.Adam([{"params": ones(), name: value}])
    arrays = [ones() for _ in range(4)]
    with pytest.raises(error, match=rf"^{name}"):
        fastadam.adam_update(*arrays, 1, **{name: value})
    assert all(np.array_equal(a, ones()) for a in arrays)

    opt = fastadam.Adam([ones(), ones()])
    opt.add_param_group({"params": [ones()]})
    opt.param_groups[1][name] = value
    state = [(e["step"], e["exp_avg"].tobytes()) for e in opt.state.values()]
    with pytest.raises(error, match=rf"^{name}") as caught:
        opt.step([[ones(), ones()], [ones()]])
    assert caught.value.__notes__ == ["in param_groups[1]"]
    assert state == [(e["step"], e["exp_avg"].tobytes()) for e in opt.state.values()]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *[("threads", value, ValueError) for value in (0, -1, 1025)],
        *[("threads", value, TypeError) for value in (2.0, True, "2")],
        *[("max_norm", value, ValueError) for value in (0.0, -1.0)],
        ("max_norm", "1", TypeError),
        ("nonfinite", "ignore", ValueError),
        ("nonfinite", None, TypeError),
    ],
)
def test_options_of_the_optimizer_out_of_range_are_refused(name, value, error):
    with pytest.raises(error, match=rf"^{name} "):
        fastadam.Adam(ones(), **{name: value})


@pytest.mark.parametrize(
    ("value", "error"), [(NAN, ValueError), (INF, ValueError), ("1", TypeError), (None, TypeError), (True, TypeError)]
)
def test_bad_grad_scale_is_refused(value, error):
    opt = fastadam.Adam(ones())
    with unchanged(opt):
        with pytest.raises(error, match="^grad_scale"):
            opt.step(ones(), grad_scale=value)
        with pytest.raises(error, match="^grad_scale"):
            fastadam.adam_update(ones(), ones(), ones(), ones(), 1, grad_scale=value)


def test_numbers_may_be_of_any_kind_that_is_a_number():
    opt = fastadam.Adam(ones(), lr=np.float32(0.5), betas=[0, np.array(0.5)], eps=0, weight_decay=np.int64(1))
    opt.step(ones())
    assert fastadam.Adam(ones(), amsgrad=np.True_).param_groups[0]["amsgrad"]


def test_schedules_are_called_once_per_group_and_step_with_the_count_before_it():
    calls = []

    def schedule(group):
        def lr(count):
            calls.append((group, count))
            return np.float32(0.1)

        return lr

    a, b, c = ones(), ones(), ones()
    opt = fastadam.Adam([{"params": [a, b], "lr": schedule(0)}, {"params": c, "lr": schedule(1)}])
    assert calls == []
    opt.step([[ones(), None], ones()])
    opt.step([[None, ones()], None])
    opt.step([[ones(), ones()], ones()])
    assert calls == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 1), (1, 1)]


@pytest.mark.parametrize(
    "options",
    [
        {"lr": lambda t: 0.1 / (t + 1)},
        {"betas": lambda t: (0.5, 0.9)},
        {"betas": (lambda t: 0.5 + t / 10, 0.9)},
        {"eps": lambda t: 1e-3},
        {"weight_decay": lambda t: 0.1 * t},
        {"eps_root": lambda t: 1e-3 * t},
    ],
)
def test_any_number_may_be_a_schedule(options):
    def value(x, t):
        return tuple(value(y, t) for y in x) if isinstance(x, tuple) else x(t) if callable(x) else x

    a, b = ones(), ones()
    scheduled, by_hand = fastadam.Adam(a, **options), fastadam.Adam(b)
    for t in range(4):
        by_hand.param_groups[0].update({k: value(v, t) for k, v in options.items()})
        scheduled.step(ones() * t)
        by_hand.step(ones() * t)
    assert np.array_equal(a, b)


@pytest.mark.parametrize(("value", "error"), [(-1.0, ValueError), (NAN, ValueError), ("x", TypeError)])
def test_schedule_that_returns_nonsense_changes_nothing(value, error):
    opt = fastadam.Adam([{"params": ones()}, {"params": ones(), "lr": lambda t: value}])
    with unchanged(opt), pytest.raises(error, match="^lr"):
        opt.step([ones(), ones()])


def test_schedule_that_raises_changes_nothing():
    def lr(count):
        raise KeyboardInterrupt

    opt = fastadam.Adam([{"params": ones()}, {"params": ones(), "lr": lr}])
    before = snapshot(opt)
    with pytest.raises(KeyboardInterrupt):
        opt.step([ones(), ones()])
    opt.param_groups[1]["lr"] = 0.1
    assert snapshot(opt)[:2] == before[:2]
    opt.step([ones(), ones()])


@pytest.mark.parametrize(
    "call",
    [
        lambda opt: opt.step(ones()),
        lambda opt: opt.add_param_group({"params": [ones() for _ in range(1000)]}),
        lambda opt: opt.load_state_dict(opt.state_dict()),
    ],
)
def test_schedule_that_changes_its_own_optimizer_is_an_error(call):
    opt = fastadam.Adam(ones(), lr=lambda count: call(opt))
    with unchanged(opt), pytest.raises(RuntimeError, match="from inside its own step"):
        opt.step(ones())


def test_schedule_that_empties_the_groups_does_no_harm():
    a, b = ones(), ones()
    opt = fastadam.Adam([{"params": a, "lr": lambda count: opt.param_groups.clear() or 0.5}, {"params": b}], lr=0.25)
    opt.step([ones(), ones()])
    assert (a[0], b[0]) == pytest.approx((0.5, 0.75))
    with pytest.raises(ValueError, match="none can be taken out"):
        opt.step([ones(), ones()])


def test_values_that_change_in_place_are_read_at_every_step():
    lr, betas, beta1 = np.array(0.5), [0.9, 0.99], np.array(0.9)
    opt = fastadam.Adam([{"params": ones(), "lr": lr}, {"params": ones()}, {"params": ones()}])
    opt.param_groups[1]["betas"], opt.param_groups[2]["betas"] = betas, (beta1, 0.99)
    for values in (0.5, 0.9), (0.25, 0.8), (0.125, 0.7):
        lr[...], betas[0], beta1[...] = values[0], values[1], values[1]
        opt.step([ones()] * 3)
        assert [last["betas"][0] for last in opt.last_values[1:]] == [values[1]] * 2
        assert opt.last_values[0]["lr"] == values[0]


def test_settings_that_a_schedule_changes_count_from_the_next_step_on():
    a = ones()
    opt = fastadam.SGD(a, lr=lambda count: setattr(opt, "max_norm", 1e-3) or 0.25)
    opt.step(ones())
    assert a[0] == 0.75
    opt.step(ones())
    assert 0.74 < a[0] < 0.75


def test_lr_reads_and_sets_all_groups():
    opt = fastadam.Adam([{"params": ones()}, {"params": ones()}], lr=0.1)
    assert opt.lr == 0.1
    opt.lr = 0.2
    assert [g["lr"] for g in opt.param_groups] == [0.2, 0.2]
    opt.param_groups[0]["lr"] = 0.3
    with pytest.raises(ValueError, match="the groups differ in lr; read"):
        opt.lr  # noqa: B018
    with pytest.raises(ValueError, match="^lr must be finite"):
        opt.lr = -1.0
    assert [g["lr"] for g in opt.param_groups] == [0.3, 0.2]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda groups: groups[0].update(params=(ones(),)), "params was replaced"),
        (lambda groups: groups[0].update(amsgrad=True), "amsgrad was False when the group was added"),
        (lambda groups: groups.append(dict(groups[0])), "has 3 groups, the optimizer 2; add_param_group adds one"),
        (lambda groups: groups.pop(), "has 1 groups, the optimizer 2; .* none can be taken out"),
    ],
)
def test_groups_may_not_be_rebuilt_by_hand(change, match):
    opt = fastadam.Adam([{"params": ones()}, {"params": ones()}])
    change(opt.param_groups)
    with pytest.raises(ValueError, match=match):
        opt.step([ones(), ones()])
    assert [e["step"] for e in opt.state.values()] == [0, 0]


def test_keys_deleted_from_a_group_or_misspelt_are_named():
    opt = fastadam.Adam(ones())
    opt.param_groups[0]["epz"] = opt.param_groups[0].pop("eps")
    with pytest.raises(
        ValueError,
        match=r"^param_groups\[0\] has the unknown key 'epz' \(did you mean eps\?\); it must have params, lr, betas",
    ):
        opt.step(ones())
    del opt.param_groups[0]["epz"]
    with pytest.raises(ValueError, match=r"^param_groups\[0\] has lost its eps; it must have"):
        opt.step(ones())
    assert opt.state[0]["step"] == 0


def test_hyper_parameters_are_not_attributes():
    opt = fastadam.Adam(ones())
    for name in ("weight_decay", "betas", "eps_hat"):
        with pytest.raises(AttributeError, match=rf"set opt.param_groups\[i\]\['{name}'\]"):
            setattr(opt, name, 1)
    opt.threads = 2


@pytest.mark.parametrize(
    "params", [{"params": [ones()], "lr": 0.1}, {"lr": 0.1}, {"params": ones(), "lr": ones()[0:1]}]
)
def test_group_outside_a_list_is_explained(params):
    with pytest.raises(ValueError, match="a group must be in a list"):
        fastadam.Adam(params)


@pytest.mark.parametrize(
    "params", [{"w": ones(), "alpha": ones()}, [{"w": ones(), "lr": [ones()]}], [{"eps": {"w": ones()}}, {"w": ones()}]]
)
def test_an_array_may_be_called_as_a_hyper_parameter(params):
    opt = fastadam.RMSprop(params)
    assert len(opt.param_groups) == 1 and sum(map(len, (g["params"] for g in opt.param_groups))) == 2


def test_what_is_no_group_among_groups_is_named():
    with pytest.raises(ValueError, match=r"with other items: item 1 has the keys \['param'\]; make all of them groups"):
        fastadam.Adam([{"params": ones(), "lr": 0.1}, {"param": ones()}])
    with pytest.raises(ValueError, match="with other items: item 0 is a ndarray; make"):
        fastadam.Adam([ones(), {"params": ones()}])


def test_a_list_that_contains_itself_is_no_array_of_a_model():
    loop, names = [], {}
    loop += [loop, loop]
    names |= {"lr": names, "eps": names}
    for params in {"lr": loop}, names:
        with pytest.raises(ValueError, match="a group must be in a list"):
            fastadam.Adam(params)


@pytest.mark.parametrize("value", [1, None, np.array("raise"), np.array(["raise", "skip"])])
def test_a_mode_is_one_of_three_words(value):
    with pytest.raises(TypeError, match=r"^nonfinite must be one of 'propagate', 'raise', 'skip', got "):
        fastadam.Adam(ones(), nonfinite=value)


def test_betas_are_read_as_steps_read_them():
    opt = fastadam.Adam([{"params": ones()}, {"params": ones()}])
    for betas in [0.9, 0.999], np.array([0.9, 0.999]):
        opt.param_groups[1]["betas"] = betas
        opt.step([ones(), ones()])
        assert opt.betas == (0.9, 0.999)
    opt.param_groups[1]["betas"] = 5
    with pytest.raises(TypeError, match=r"^betas must be a pair of numbers, \(beta1, beta2\), got 5$"):
        opt.betas  # noqa: B018
    del opt.param_groups[1]["lr"]
    with pytest.raises(ValueError, match=r"param_groups\[1\] has lost its lr; set"):
        opt.lr  # noqa: B018


def test_group_without_params_is_explained():
    with pytest.raises(ValueError, match="a parameter group needs the key 'params'"):
        fastadam.Adam([{"param": ones(), "lr": 0.1}])


def test_adamw_is_adam_with_decoupled_decay():
    a, b = ones(), ones()
    one, two = fastadam.AdamW(a), fastadam.Adam(b, weight_decay=1e-2, decoupled_weight_decay=True)
    assert one.param_groups[0].keys() == two.param_groups[0].keys()
    for _ in range(3):
        one.step(a.copy())
        two.step(b.copy())
    assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        ({"betas": (lambda: 0.9, 0.99)}, "betas"),  # takes no count
        ({"betas": lambda t: 0.9}, "betas"),
        ({"lr": lambda t: -t}, "lr"),
        ({"eps": lambda t: "1e-8"}, "eps"),
    ],
)
def test_an_error_of_a_schedule_or_its_value_says_which_schedule_it_is(schedule, name):
    opt = fastadam.Adam(np.ones(3), **schedule)
    saved = copy.deepcopy(opt.state_dict())
    saved["state"][0]["step"] = 7
    opt.load_state_dict(saved)
    with pytest.raises((TypeError, ValueError)) as caught:
        opt.step(np.ones(3))
    assert caught.value.__notes__ == [
        f"in the schedule {name}, called with the number of steps taken, 7",
        "in param_groups[0]",
    ]
    assert opt.state[0]["step"] == 7


def test_an_error_of_a_plain_value_names_no_schedule():
    opt = fastadam.SGD(np.ones(3), lr=lambda t: 0.1, momentum=0.9)
    opt.param_groups[0]["momentum"] = -1.0
    with pytest.raises(ValueError, match="momentum") as caught:
        opt.step(np.ones(3))
    opt.param_groups[0].update(momentum=0.9, nesterov=True, dampening=lambda t: 0.5)
    with pytest.raises(ValueError, match="nesterov=True needs dampening 0") as other:
        opt.step(np.ones(3))
    assert caught.value.__notes__ == other.value.__notes__ == ["in param_groups[0]"]


def test_an_unknown_option_is_named_beside_those_that_are_known():
    match = r"NAdam has no learning_rate \(did you mean lr\?\); it has params, lr, betas, .* ema_decay"
    with pytest.raises(TypeError, match=match):
        fastadam.NAdam(np.ones(3), learning_rate=0.1)
    for name in "fused", "foreach":  # not seed, and not max_norm_each
        match = rf"^NAdam has no {name} \(leave it out: every step is fused\); it has params"
        with pytest.raises(TypeError, match=match):
            fastadam.NAdam(np.ones(3), **{name: True})


def test_ctrl_c_in_a_schedule_hides_no_change():
    p, g = np.ones(3), np.ones(3)
    opt = fastadam.SGD(p, lr=0.5, weight_decay=0.125)
    opt.step(g)
    group = opt.param_groups[0]
    before = group["weight_decay"]

    def interrupted(count):
        raise KeyboardInterrupt

    group["momentum"], group["weight_decay"] = 0.9, interrupted
    with pytest.raises(KeyboardInterrupt):
        opt.step(g)
    group["weight_decay"] = before
    with pytest.raises(ValueError, match="momentum was 0 when the group was added"):
        opt.step(g)


def test_a_name_of_a_str_subclass_is_a_name():
    p = np.ones(2)
    opt = fastadam.SGD(p, lr=0.5)
    opt.param_groups[0][np.str_("lr")] = opt.param_groups[0].pop("lr") / 2
    opt.step(np.ones(2))
    assert np.array_equal(p, [0.75, 0.75])
