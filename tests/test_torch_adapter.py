"""fastadam.torch beside torch's own for-loop: pytest -m torch (needs torch 2.13.0 or 2.14.1, and expecttest).

Tolerances are those of torch's own tests of its implementations against each other (`torch.testing.assert_close`)."""

import copy
import inspect
import io
import pickle
import warnings

import numpy as np
import pytest
from torch_models import (
    OPTIONS,
    assert_close,
    assert_same_state,
    backward,
    batch,
    bits,
    network,
    pair,
    plain,
    train,
    two_groups,
)

import fastadam

pytestmark = pytest.mark.torch
CLASSES = ["SGD", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"]
each_class = pytest.mark.parametrize("name", CLASSES)


@pytest.fixture(scope="module")
def infos(torch):
    """What torch tests its own optimizers with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_optimizers import optim_db
    return {info.optim_cls.__name__: info for info in optim_db}


# -- the same as torch


def test_every_class_is_tested_here(ours):
    assert sorted(ours.__all__) == sorted(CLASSES)


@each_class
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torchs_own_inputs_give_what_torch_gives(torch, ours, infos, name, grouped, dtype):
    for given in infos[name].optim_inputs_func(device="cpu"):
        groups = two_groups if grouped else lambda model: model.parameters()
        models, opts = pair(torch, ours, name, getattr(torch, dtype), groups, **given.kwargs)
        for model, opt in zip(models, opts, strict=True):
            train(torch, model, opt, 7)
        # A variance is what two squares leave of each other, so roundings in them are larger in it.
        loose = {"rtol": 1e-4, "atol": 1e-4} if given.kwargs.get("centered") and dtype == "float32" else {}
        assert_close(torch, *models, **loose)
        assert_same_state(torch, *opts, **loose)
        assert opts[0].state_dict()["param_groups"] == [
            {**group, **{k: None for k in ("foreach", "fused") if k in group}}
            for group in opts[1].state_dict()["param_groups"]
        ]


@each_class
def test_what_torch_refuses_is_refused_in_its_words(torch, ours, infos, name):
    count = 0
    for given in infos[name].optim_error_inputs_func(device="cpu", dtype=torch.float32):
        arguments = given.optimizer_error_input
        with pytest.raises(given.error_type, match=given.error_regex), warnings.catch_warnings():
            warnings.simplefilter("error")
            getattr(ours, name)(arguments.params, **arguments.kwargs)
        count += 1
    assert count > 5
    with pytest.raises(TypeError, match="max_nrom"):
        getattr(ours, name)([torch.ones(2)], max_nrom=1.0)


@each_class
def test_the_bits_are_those_of_fastadam(torch, ours, name):
    options = {"lr": 0.01, "weight_decay": 0.1, "max_norm": 0.5, **OPTIONS.get(name, {})}
    model = network(torch)
    opt = getattr(ours, name)(model.parameters(), **options)
    arrays = [p.detach().numpy().copy() for p in model.parameters()]
    own = getattr(fastadam, name)(arrays, **options)
    for i in range(6):
        backward(torch, model, opt, i)
        own.step([p.grad.numpy().copy() for p in model.parameters()])
        opt.step()
        assert opt.grad_norm == own.grad_norm > 0
    assert bits(model) == [array.tobytes() for array in arrays]
    for i, p in enumerate(model.parameters()):
        for key, value in opt.state[p].items():
            assert value.dim() == 0 or np.array_equal(value.numpy(), own.state[i][key])
            assert key != "mu_product" or value.item() == own.state[i][key]


@each_class
def test_state_appears_when_torchs_does(torch, ours, name):
    options = [{}, {"momentum": 0.9}] if name == "SGD" else [{}, OPTIONS.get(name, {})]
    for given in options:
        models, opts = pair(torch, ours, name, **given)
        assert_same_state(torch, *opts)
        for model, opt in zip(models, opts, strict=True):
            backward(torch, model, opt, 0)
            for p in list(model.parameters())[:2]:
                p.grad = None
            opt.step()
        assert_same_state(torch, *opts)
        assert len(opts[0].state) == (0 if name == "SGD" and not given else 4 + 2 * (name == "Adagrad"))
        for model, opt in zip(models, opts, strict=True):
            train(torch, model, opt, 2)
        assert_same_state(torch, *opts)
        assert_close(torch, *models)
        pointers = [v.data_ptr() for entry in opts[0].state.values() for v in entry.values()]
        train(torch, models[0], opts[0], 1)
        assert pointers == [v.data_ptr() for entry in opts[0].state.values() for v in entry.values()]
        assert all(entry["step"].dtype == torch.float32 for entry in opts[0].state.values() if "step" in entry)


SCHEDULERS = {
    "StepLR": {"step_size": 3},
    "OneCycleLR": {"max_lr": 0.05, "total_steps": 12},
    "CyclicLR": {"base_lr": 0.001, "max_lr": 0.02, "step_size_up": 4},
    "ReduceLROnPlateau": {"patience": 0, "threshold": 10.0},
    "LambdaLR": {"lr_lambda": lambda epoch: 0.8**epoch},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("name", "options"), [("AdamW", {}), ("SGD", {"momentum": 0.9}), ("Adagrad", {})])
def test_torchs_schedulers_do_what_they_do_with_torch(torch, ours, scheduler, name, options):
    models, opts = pair(torch, ours, name, groups=two_groups, **{"lr": 0.01, **options})
    given = dict(SCHEDULERS[scheduler])
    if scheduler in ("OneCycleLR", "CyclicLR") and name == "Adagrad":
        given["cycle_momentum"] = False
    seen = []
    for model, opt in zip(models, opts, strict=True):
        schedule, values = getattr(torch.optim.lr_scheduler, scheduler)(opt, **given), []
        for i in range(12):
            backward(torch, model, opt, i)
            opt.step()
            schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
            values.append([(g["lr"], g.get("momentum"), g.get("betas")) for g in opt.param_groups])
        seen.append(values)
    assert seen[0] == seen[1] and len({str(value) for value in seen[0]}) > 2
    assert_close(torch, *models)


@pytest.mark.parametrize(
    ("name", "flags"),
    [("AdamW", {}), ("AdamW", {"fused": True}), ("SGD", {}), ("SGD", {"fused": True}), ("NAdam", {})],  # never fused
)
def test_grad_scaler_scales_and_leaves_steps_out(torch, ours, name, flags):
    models = network(torch), network(torch)
    opts = getattr(ours, name)(models[0].parameters(), **flags), plain(torch, name)(models[1].parameters())
    for model, opt in zip(models, opts, strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        for i in range(6):
            opt.zero_grad()
            scaler.scale(model(batch(torch, model, i)).square().mean()).backward()
            if i == 3:
                next(model.parameters()).grad[0, 0] = torch.inf
            scaler.step(opt)
            scaler.update()
        assert scaler.get_scale() != 1024.0
    assert_close(torch, *models)
    assert_same_state(torch, *opts)


def test_closures_hooks_and_no_grad(torch, ours):
    from torch.optim.optimizer import register_optimizer_step_pre_hook as register

    models, opts = pair(torch, ours, "Adam")
    for model, opt in zip(models, opts, strict=True):
        seen = []
        opt.register_step_pre_hook(lambda *_, seen=seen: seen.append("before"))
        opt.register_step_post_hook(lambda *_, seen=seen: seen.append("after"))
        whole = register(lambda *_, seen=seen: seen.append("all"))

        def closure(model=model, opt=opt, seen=seen):
            assert torch.is_grad_enabled()
            seen.append("closure")
            return backward(torch, model, opt, 0)

        with torch.no_grad():
            loss = opt.step(closure)
        whole.remove()
        assert seen == ["all", "before", "closure", "after"] and loss.item() > 0
        assert opt.step() is None
    with torch.profiler.profile() as profile:
        opts[0].step()
    assert sum(event.name.startswith("Optimizer.step#Adam.step") for event in profile.events()) == 1
    assert isinstance(opts[0], torch.optim.Adam) and repr(opts[0]).startswith("Adam (")


def test_compile_calls_the_step(torch, ours):
    models = network(torch), network(torch)
    opts = [ours.AdamW(model.parameters()) for model in models]
    compiled = torch.compile(lambda: opts[0].step(), backend="eager")
    for i in range(2):
        for model, opt in zip(models, opts, strict=True):
            backward(torch, model, opt, i)
        compiled()
        opts[1].step()
    assert bits(models[0]) == bits(models[1])


@each_class
def test_state_dicts_load_both_ways_and_training_goes_on(torch, ours, name):
    for given in {}, {"momentum": 0.9} if name == "SGD" else OPTIONS.get(name, {"weight_decay": 0.1}):
        models, opts = pair(torch, ours, name, **given)
        straight, expected = models[1], opts[1]
        train(torch, straight, expected, 9)
        model, opt, loaded = models[0], None, None
        for part, make in enumerate([plain(torch, name), getattr(ours, name), plain(torch, name)]):
            opt = make(model.parameters(), **given)
            if loaded is not None:
                opt.load_state_dict(loaded)
            train(torch, model, opt, 3, 3 * part)
            file = io.BytesIO()
            torch.save(opt.state_dict(), file)
            file.seek(0)
            loaded = torch.load(file, weights_only=True)
        assert_close(torch, model, straight)
        assert_same_state(torch, opt, expected)


@each_class
@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_a_copy_goes_on_to_the_same_bits(torch, ours, name, how):
    options = {"weight_decay": 0.1, "max_norm": 0.3, **OPTIONS.get(name, {})}
    model = network(torch)
    opt = getattr(ours, name)(two_groups(model), **options)
    train(torch, model, opt, 3)
    if how == "state_dict":
        other = network(torch, seed=1)
        new = getattr(ours, name)(two_groups(other), **options)
        other.load_state_dict(model.state_dict())
        new.load_state_dict(opt.state_dict())
    else:
        both = model, opt
        other, new = copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))
    assert new.max_norm == 0.3
    for m, o in (model, opt), (other, new):
        train(torch, m, o, 3, 3)
    assert bits(model) == bits(other)
    assert_same_state(torch, opt, new)
    assert {v.data_ptr() for e in opt.state.values() for v in e.values()}.isdisjoint(
        v.data_ptr() for e in new.state.values() for v in e.values()
    )


# -- what changes between steps


def test_groups_are_added_and_their_options_read_at_each_step(torch, ours):
    models, opts = pair(torch, ours, "Adam", groups=lambda model: list(model[0].parameters()))
    for model, opt in zip(models, opts, strict=True):
        train(torch, model, opt, 2)
        opt.add_param_group({"params": model[3].parameters(), "lr": torch.tensor(0.02), "weight_decay": 0.1})
        opt.param_groups[0].update(betas=(0.5, 0.9), eps=1e-3, maximize=True)
        train(torch, model, opt, 3)
    assert_close(torch, *models)
    assert_same_state(torch, *opts)


@each_class
@pytest.mark.parametrize("change", ["assign", "double", "replace"])
def test_state_follows_parameters_that_move(torch, ours, name, change):
    """torch's own class goes on with the new memory, too; after double() with its old state of another type."""
    models, opts = pair(torch, ours, name, **OPTIONS.get(name, {}))
    for model, opt in zip(models, opts, strict=True):
        train(torch, model, opt, 3)
        if change == "assign":
            params = dict(model.named_parameters())
            model.load_state_dict({key: p.detach().clone() * 0.9 for key, p in params.items()}, assign=True)
            opt.param_groups[0]["params"] = list(model.parameters())  # assign makes new parameters
            opt.state = type(opt.state)(dict, zip(model.parameters(), opt.state.values(), strict=False))
        elif change == "double":
            model.double()
            for entry in opt.state.values() if opt is opts[1] else ():
                entry.update({k: v.double() for k, v in entry.items() if v.dim()})
        else:
            for p in model.parameters():
                p.data = p.data.clone()
        train(torch, model, opt, 3, 3)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p.float(), q.float())  # the first steps were in float32
    for p, state in opts[0].state.items():
        assert all(value.dtype == p.dtype for key, value in state.items() if key not in ("step", "mu_product"))


def test_axes_that_are_swapped_in_place_are_noticed(torch, ours):
    results = []
    for cls in ours.Adam, plain(torch, "Adam"):
        p = torch.arange(9.0).reshape(3, 3).requires_grad_()
        opt = cls([p], lr=0.1)
        for i in range(4):
            p.grad = torch.empty_like(p, requires_grad=False).copy_(torch.linspace(-1, i, 9).reshape(3, 3))
            opt.step()
            p.data = p.data.t()
        results.append(p)
    torch.testing.assert_close(*results)


def test_what_is_written_into_state_counts(torch, ours):
    models, opts = pair(torch, ours, "AdamW", amsgrad=True)
    for change in range(5):
        for model, opt in zip(models, opts, strict=True):
            train(torch, model, opt, 2)
            entry = opt.state[next(model.parameters())]
            if change == 0:
                entry["exp_avg"].zero_()
            elif change == 1:
                entry["step"].fill_(1.0)
            elif change == 2:
                entry["exp_avg_sq"] = torch.full((9, 5), 0.25)
            elif change == 3:
                opt.state.clear()
            else:
                opt.state = type(opt.state)(dict)
            train(torch, model, opt, 2, 2)
        assert_close(torch, *models)
        assert_same_state(torch, *opts)


def test_options_that_need_state_may_be_switched_on(torch, ours):
    models, opts = pair(torch, ours, "SGD")
    for model, opt in zip(models, opts, strict=True):
        train(torch, model, opt, 2)
        opt.param_groups[0]["momentum"] = 0.5
        train(torch, model, opt, 3)
        opt.param_groups[0]["momentum"] = 0
        train(torch, model, opt, 2)
    assert_close(torch, *models)
    model = network(torch)
    opt = ours.Adam(model.parameters())
    train(torch, model, opt, 2)
    opt.param_groups[0]["amsgrad"] = True
    train(torch, model, opt, 1)
    assert [entry["step"].item() for entry in opt.state.values()] == [3.0] * 6
    assert all(torch.equal(entry["max_exp_avg_sq"], entry["exp_avg_sq"]) for entry in opt.state.values())


def test_state_whose_memory_moves_counts(torch, ours):
    models, opts = pair(torch, ours, "Adam")
    for model, opt in zip(models, opts, strict=True):
        train(torch, model, opt, 2)
        entry = opt.state[next(model.parameters())]
        entry["exp_avg"].data = torch.zeros(9, 5)
        train(torch, model, opt, 2)
        for values in opt.state.values():
            for value in values.values():
                value.share_memory_()
        train(torch, model, opt, 2)
        entry["step"].share_memory_()
        train(torch, model, opt, 2)
    assert_close(torch, *models)
    assert_same_state(torch, *opts)


def test_state_may_have_entries_that_are_no_parameters(torch, ours):
    """Subclasses keep numbers of their own there."""
    models, opts = pair(torch, ours, "Adam")
    for model, opt in zip(models, opts, strict=True):
        opt.state["own"] = 3
        train(torch, model, opt, 2)
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))
        train(torch, model, opt, 2)
        assert opt.state["own"] == 3
    assert_close(torch, *models)


def test_a_parameter_may_become_a_part_of_itself(torch, ours):
    results = []
    for cls in ours.SGD, plain(torch, "SGD"):
        p = torch.ones(6, requires_grad=True)
        opt = cls([p], lr=1.0)
        p.grad = torch.ones(6)
        opt.step()
        p.grad, p.data = None, p.data[:4]
        p.grad = torch.ones(4)
        if cls is ours.SGD:
            with pytest.raises(ValueError, match=r"gradient of parameter 0 must have the shape"):
                opt.step()  # seen only now
        opt.step()
        results.append(p)
    torch.testing.assert_close(*results)


def test_frozen_parameters_wait_and_go_on(torch, ours):
    models, opts = pair(torch, ours, "AdamW")
    for model, opt in zip(models, opts, strict=True):
        for i in range(3):
            for k, p in enumerate(model.parameters()):
                p.requires_grad_(k % 3 != i)
            train(torch, model, opt, 3, 3 * i)
    assert_close(torch, *models)
    assert_same_state(torch, *opts)


def test_a_state_dict_that_does_not_fit_changes_nothing(torch, ours):
    model = network(torch)
    opt = ours.Adam(model.parameters())
    train(torch, model, opt, 2)
    good, bad = copy.deepcopy(opt.state_dict()), copy.deepcopy(opt.state_dict())
    bad["state"][5]["exp_avg_sq"] = torch.ones(7)
    bad["param_groups"][0]["lr"] = 0.5
    with pytest.raises(ValueError, match=r"\['exp_avg_sq'\] must have the shape \(3,\), got \(7,\)"):
        opt.load_state_dict(bad)
    assert opt.param_groups[0]["lr"] == 1e-3
    for key, entry in opt.state_dict()["state"].items():
        assert all(torch.equal(value, good["state"][key][name]) for name, value in entry.items())
    other = copy.deepcopy((model, opt))
    for m, o in (model, opt), other:
        train(torch, m, o, 2, 2)
    assert bits(model) == bits(other[0])


@each_class
def test_signatures_are_torchs_and_then_fastadams_options(torch, ours, name):
    cls = getattr(ours, name)
    theirs = list(inspect.signature(getattr(torch.optim, name)).parameters.values())
    parameters = list(inspect.signature(cls).parameters.values())
    assert parameters[: len(theirs)] == theirs
    options = ["max_norm", "max_norm_each", "nonfinite", "threads", "state_dtype", "seed"]
    assert [parameter.name for parameter in parameters[len(theirs) :]] == options

    class Mine(cls):
        def __init__(self, model):
            super().__init__(model.parameters(), lr=0.5)

    assert list(inspect.signature(Mine).parameters) == ["model"]
    assert Mine(network(torch)).param_groups[0]["lr"] == 0.5


def test_graphs_from_before_a_step_are_still_an_error(torch, ours):
    model = network(torch)
    opt = ours.SGD([*model.parameters(), torch.ones(2, requires_grad=True)])
    before = backward(torch, model, opt, 0), model(batch(torch, model, 1)).sum()
    versions = [p._version for p in opt.param_groups[0]["params"]]
    opt.step()
    assert [p._version for p in opt.param_groups[0]["params"]] == [v + 1 for v in versions[:-1]] + versions[-1:]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before[1].backward()
