"""fastadam.torch beside torch's own for-loop: pytest -m torch (needs torch==2.13.0 and expecttest).

Tolerances are those of torch's own tests of its implementations against each other (`torch.testing.assert_close`)."""

import copy
import functools
import inspect
import io
import pickle
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastadam

pytestmark = pytest.mark.torch
CLASSES = ["SGD", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop"]
PAGE = Path(__file__).parent.parent / "docs/torch.md"
each_class = pytest.mark.parametrize("name", CLASSES)


@pytest.fixture(scope="module")
def torch():
    import torch

    assert torch.__version__.startswith("2.13.0")
    return torch


@pytest.fixture(scope="module")
def ours(torch):
    import fastadam.torch

    assert sorted(fastadam.torch.__all__) == sorted(CLASSES)
    return fastadam.torch


@pytest.fixture(scope="module")
def infos(torch):
    """What torch tests its own optimizers with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_optimizers import optim_db
    return {info.optim_cls.__name__: info for info in optim_db}


def plain(torch, name):
    """torch's class, computing in a loop."""
    cls = getattr(torch.optim, name)
    flags = [flag for flag in ("foreach", "fused") if flag in inspect.signature(cls.__init__).parameters]
    return functools.partial(cls, **dict.fromkeys(flags, False))


def network(torch, dtype=None, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.Tanh(), torch.nn.LayerNorm(9), torch.nn.Linear(9, 3)).to(
        dtype or torch.float32
    )


def two_groups(model):
    """Weights and the rest, as many scripts have it."""
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.dim() > 1]},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0, "lr": 0.003},
    ]


def batch(torch, model, i):
    p = next(model.parameters())
    return torch.randn(8, 5, dtype=p.dtype, generator=torch.Generator().manual_seed(i))


def backward(torch, model, opt, i):
    opt.zero_grad()
    loss = model(batch(torch, model, i)).square().mean()
    loss.backward()
    return loss


def train(torch, model, opt, steps, start=0):
    for i in range(start, start + steps):
        backward(torch, model, opt, i)
        opt.step()


def pair(torch, ours, name, dtype=None, groups=lambda model: model.parameters(), **options):
    """A model with our optimizer, and the same with torch's."""
    models = network(torch, dtype), network(torch, dtype)
    return models, (getattr(ours, name)(groups(models[0]), **options), plain(torch, name)(groups(models[1]), **options))


def strides(x):
    """Of the axes where they matter."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def assert_same_state(torch, one, other, **tolerance):
    """The same entries, of the same kinds, in the same order."""
    one, other = one.state_dict()["state"], other.state_dict()["state"]
    assert list(one) == list(other)
    for key, entry in other.items():
        assert list(one[key]) == list(entry)
        for name, value in entry.items():
            mine = one[key][name]
            assert mine.shape == value.shape and strides(mine) == strides(value), name
            if name == "mu_product":  # torch's is float32, and is rounded at each step
                torch.testing.assert_close(mine.float(), value.float())
            else:
                torch.testing.assert_close(mine, value, **tolerance)


def assert_close(torch, one, other, **tolerance):
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerance)


def bits(model):
    return [p.detach().numpy().tobytes() for p in model.parameters()]


# -- the same as torch


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


OPTIONS = {"SGD": {"momentum": 0.9, "nesterov": True}, "RMSprop": {"momentum": 0.8, "centered": True}}


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


@pytest.mark.parametrize("flags", [{}, {"fused": True}])
@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam"])
def test_grad_scaler_scales_and_leaves_steps_out(torch, ours, name, flags):
    if name == "NAdam" and flags:
        return  # torch's has no fused form
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


def test_graphs_from_before_a_step_are_still_an_error(torch, ours):
    model = network(torch)
    opt = ours.SGD([*model.parameters(), torch.ones(2, requires_grad=True)])
    before = backward(torch, model, opt, 0), model(batch(torch, model, 1)).sum()
    versions = [p._version for p in opt.param_groups[0]["params"]]
    opt.step()
    assert [p._version for p in opt.param_groups[0]["params"]] == [v + 1 for v in versions[:-1]] + versions[-1:]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before[1].backward()


# -- unusual parameters and gradients


def test_parameters_with_permuted_axes_keep_their_layout(torch, ours):
    def convolutions():
        torch.manual_seed(0)
        first, second = torch.nn.Conv2d(3, 6, 3), torch.nn.Conv2d(6, 1, 1)
        model = torch.nn.Sequential(first, torch.nn.ReLU(), second).to(memory_format=torch.channels_last)
        model.extra = torch.nn.Parameter(torch.randn(4, 3, 2).permute(2, 0, 1))
        return model

    models = convolutions(), convolutions()
    opts = ours.AdamW(models[0].parameters()), plain(torch, "AdamW")(models[1].parameters())
    for _ in range(2):
        for model, opt in zip(models, opts, strict=True):
            for i in range(3):
                opt.zero_grad()
                x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(i))
                (model(x).square().mean() + (model.extra**3).sum()).backward()
                if i == 1:
                    model[0].weight.grad = model[0].weight.grad.contiguous()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore" if i == 1 else "error", fastadam.PerformanceWarning)
                    opt.step()
        assert_close(torch, *models)
        assert_same_state(torch, *opts)
        for opt in opts:
            opt.load_state_dict(copy.deepcopy(opt.state_dict()))


def test_a_parameter_given_twice_is_stepped_twice_as_in_torch(torch, ours):
    results = []
    for cls in ours.Adam, plain(torch, "Adam"):
        model = network(torch)
        with pytest.warns(UserWarning, match="duplicate parameters"):
            opt = cls([*model.parameters(), model[0].weight])
        train(torch, model, opt, 4)
        assert opt.state[model[0].weight]["step"] == 8 and opt.state[model[0].bias]["step"] == 4
        results.append(model)
    assert_close(torch, *results)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        opt = ours.Adam([model[0].bias, model[0].bias], max_norm=1.0)
    with pytest.raises(ValueError, match="given twice, and max_norm would count it twice"):
        opt.step()


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "8bit"])
def test_bfloat16_parameters_keep_their_low_bits_in_state_dicts(torch, ours, state_dtype):
    import ml_dtypes

    def both(seed=0):
        model = network(torch, torch.bfloat16, seed)
        return model, ours.AdamW(model.parameters(), lr=1e-3, state_dtype=state_dtype, seed=3)

    model, opt = both()
    arrays = [p.detach().view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16) for p in model.parameters()]
    own = fastadam.AdamW(arrays, lr=1e-3, state_dtype=state_dtype, seed=3)
    for i in range(20):
        backward(torch, model, opt, i)
        own.step([p.grad.view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16) for p in model.parameters()])
        opt.step()
        if i % 5 == 0:
            file = io.BytesIO()
            torch.save([model.state_dict(), opt.state_dict()], file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            model, opt = both(seed=1)
            model.load_state_dict(saved[0])
            opt.load_state_dict(saved[1])
    for p, array in zip(model.parameters(), arrays, strict=True):
        assert np.array_equal(p.detach().view(torch.int16).numpy(), array.view(np.int16))
    first = opt.state[model[0].weight]
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    assert state_dtype == "8bit" or first["exp_avg"].dtype == kinds[state_dtype]
    assert first["master::low"].dtype == torch.int16 and first["master::low"].any()
    if state_dtype != "8bit":  # which torch's class cannot take; it rounds the others to bfloat16
        theirs = plain(torch, "AdamW")(model.parameters())
        theirs.load_state_dict(opt.state_dict())
        train(torch, model, theirs, 2)
        opt.load_state_dict(theirs.state_dict())
        train(torch, model, opt, 2)
        assert opt.state[model[0].weight]["step"] == 24


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
def test_state_in_fewer_bits_goes_on_to_the_same_bits(torch, ours, state_dtype):
    models = network(torch), network(torch)
    opts = [ours.Adam(model.parameters(), state_dtype=state_dtype, seed=5) for model in models]
    for i in range(6):
        for model, opt in zip(models, opts, strict=True):
            train(torch, model, opt, 1, i)
        loaded = copy.deepcopy(opts[1].state_dict())
        opts[1] = ours.Adam(models[1].parameters(), state_dtype=state_dtype)
        opts[1].load_state_dict(loaded)
    assert bits(models[0]) == bits(models[1])
    opts[0].load_state_dict(plain(torch, "Adam")(models[0].parameters()).state_dict())
    assert len(opts[0].state) == 0


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "Adam"])
def test_sparse_gradients_step_the_rows_that_appear(torch, ours, name):
    def table():
        torch.manual_seed(0)
        return torch.nn.Embedding(20, 4, sparse=True)

    model, theirs = table(), table()
    opt = getattr(ours, name)(model.parameters(), lr=0.1)
    other = torch.optim.SparseAdam if name == "Adam" else plain(torch, name)
    other = other(theirs.parameters(), lr=0.1)
    array = model.weight.detach().numpy().copy()
    own = getattr(fastadam, name)(array, lr=0.1)
    for i in range(4):
        ids = torch.randint(0, 20, (9,), generator=torch.Generator().manual_seed(i))
        factors = torch.randn(9, 4, generator=torch.Generator().manual_seed(i + 9))
        for m, o in (model, opt), (theirs, other):
            o.zero_grad()
            (m(ids) * factors).sum().backward()
            assert m.weight.grad.is_sparse and not m.weight.grad.is_coalesced()
            o.step()
        own.step(fastadam.Rows(ids.numpy(), factors.numpy()))
    assert model.weight.detach().numpy().tobytes() == array.tobytes()
    torch.testing.assert_close(model.weight, theirs.weight)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_gradients_that_are_part_of_a_graph_and_0_d_or_empty_parameters(torch, ours):
    results = []
    for cls in ours.Adam, plain(torch, "Adam"):
        params = [torch.tensor(2.0, requires_grad=True), torch.ones(0, 3, requires_grad=True)]
        params.append(torch.ones(1, 3).t().requires_grad_())
        opt = cls(params, lr=0.1)
        for _ in range(3):
            opt.zero_grad()
            sum((p**2).sum() for p in params).backward(create_graph=True)
            opt.step()
        opt.zero_grad()
        results.append(torch.nn.ParameterList(params))
    assert_close(torch, *results)


# What is refused: how to make it, and what the error says. docs/torch.md has a row for each.
REFUSED = {
    "on another device": (lambda torch: torch.ones(2, device="meta"), {}, "is on meta; use torch's own class there"),
    "complex": (lambda torch: torch.ones(2, dtype=torch.complex64), {}, "is complex; keep torch.view_as_real"),
    "float16": (lambda torch: torch.ones(2, dtype=torch.float16), {}, "is torch.float16; make it float32 and train"),
    "gaps": (lambda torch: torch.ones(4, 4)[:, ::2], {}, "has gaps in memory, .*strides"),
    "expand": (lambda torch: torch.ones(1).expand(4), {}, "has gaps in memory, or elements that share it"),
    "capturable": (lambda torch: torch.ones(2), {"capturable": True}, "fastadam has no capturable=True; set it"),
    "differentiable": (lambda torch: torch.ones(2), {"differentiable": True}, "no differentiable=True; set it"),
    "negative `lr`": (lambda torch: torch.ones(2), {"lr": -0.1}, "Invalid learning rate"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_fastadam_cannot_step_is_refused_with_a_way_out(torch, ours, what):
    make, options, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        ours.AdamW([make(torch)], **options)
    if not options:
        opt = ours.AdamW([torch.ones(2)])
        with pytest.raises(ValueError, match=message):
            opt.add_param_group({"params": [make(torch)]})
        assert len(opt.param_groups) == 1
        if what != "on another device":  # which torch does not let a tensor become
            p = torch.ones(2, requires_grad=True)
            opt = ours.AdamW([p])
            p.data = make(torch)
            with pytest.raises(ValueError, match=message):
                opt.step()
    assert what in PAGE.read_text()


def test_sparse_gradients_of_other_layouts_are_refused_and_nothing_changes(torch, ours):
    p, q = torch.ones(4, 3, requires_grad=True), torch.ones(2, requires_grad=True)
    opt = ours.SGD([q, p])
    q.grad, p.grad = torch.ones(2), torch.eye(4, 3).to_sparse()
    with pytest.raises(ValueError, match=r"layout torch.sparse_coo; only rows .*use p.grad = p.grad.to_dense\(\)"):
        opt.step()
    assert torch.equal(q, torch.ones(2))
    p.grad = p.grad.to_dense()
    opt.step()
    assert not torch.equal(p, torch.ones(4, 3))


# -- what torch's classes have not


def test_clipping_is_that_of_clip_grad_norm(torch, ours):
    models, opts = pair(torch, ours, "AdamW")
    opts[0].max_norm = 0.05
    for i in range(5):
        for model, opt in zip(models, opts, strict=True):
            backward(torch, model, opt, i)
            if opt is opts[1]:
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            opt.step()
        assert opts[0].grad_norm == pytest.approx(norm.item(), rel=1e-5) and norm > 0.05
    assert_close(torch, *models)
    with pytest.raises(ValueError, match="max_norm must be > 0"):
        opts[0].max_norm = -1.0
    with pytest.raises(ValueError, match="max_norm must be > 0"):
        ours.SGD([torch.ones(2)], max_norm=-1.0)
    assert opts[0].max_norm == 0.05


def test_nonfinite_gradients_raise_or_are_left_out(torch, ours):
    p = torch.ones(2, requires_grad=True)
    opt = ours.Adam([p], nonfinite="skip")
    p.grad = torch.tensor([1.0, torch.nan])
    opt.step()
    assert len(opt.state) == 0 and torch.equal(p, torch.ones(2))
    opt.nonfinite = "raise"
    with pytest.raises(FloatingPointError, match="gradient of parameter 0 has NaN"):
        opt.step()
    p.grad = torch.ones(2)
    opt.step()
    assert opt.state[p]["step"] == 1


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "SGD"])
def test_gradients_freed_in_backward_give_the_same_bits(torch, ours, name):
    models = network(torch), network(torch)
    opts = [getattr(ours, name)(two_groups(model), **OPTIONS.get(name, {})) for model in models]
    end = opts[0].free_gradients_in_backward()
    for i in range(4):
        for model, opt in zip(models, opts, strict=True):
            backward(torch, model, opt, i)
            assert all((p.grad is None) == (opt is opts[0]) for p in model.parameters())
            opt.step()
            opt.param_groups[0]["lr"] *= 0.5
        if i == 1:
            for opt in opts:
                opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert bits(models[0]) == bits(models[1])
    first = dict(sorted(opts[0].state_dict()["state"].items()))
    assert str(first) == str(opts[1].state_dict()["state"])
    end()
    backward(torch, models[0], opts[0], 0)
    assert all(p.grad is not None for p in models[0].parameters())
    opts[0].max_norm = 1.0
    with pytest.raises(ValueError, match="max_norm needs the gradients of all parameters"):
        opts[0].free_gradients_in_backward()


def test_threads_each_with_an_optimizer(torch, ours):
    models = [network(torch) for _ in range(4)]

    def work(model):
        train(torch, model, ours.AdamW(model.parameters(), threads=1), 10)

    workers = [threading.Thread(target=work, args=(model,)) for model in models]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len({str(bits(model)) for model in models}) == 1
