"""fastadam.torch: unusual parameters and gradients, what is refused, and what torch's classes have not.

Run by pytest -m torch (needs torch 2.13.0 or 2.14.1)."""

import copy
import gc
import io
import threading
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
from torch_models import (
    OPTIONS,
    assert_close,
    assert_same_state,
    backward,
    bits,
    network,
    pair,
    plain,
    train,
    two_groups,
)

import fastadam

pytestmark = pytest.mark.torch
PAGE = Path(__file__).parent.parent / "docs/torch.md"


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


def test_a_warning_points_at_the_call_of_step(torch, ours):
    """Not at fastadam/torch.py, nor at the hooks that torch wraps around it."""
    weight = torch.nn.Parameter(torch.ones(4, 3))
    weight.grad = torch.ones(3, 4).t()
    with pytest.warns(fastadam.PerformanceWarning) as caught:
        ours.SGD([weight]).step()
    assert [each.filename for each in caught] == [__file__]


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


def conv(torch, dtype, memory_format):
    torch.manual_seed(0)
    return torch.nn.Conv2d(16, 8, 3).to(dtype).to(memory_format=memory_format)


@pytest.mark.parametrize("layouts", [("channels_last", "contiguous_format"), ("contiguous_format", "channels_last")])
@pytest.mark.parametrize(
    ("dtype", "state_dtype"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "8bit")]
)
def test_low_bits_and_codes_are_loaded_where_axes_lie_in_another_order(torch, ours, dtype, state_dtype, layouts):
    models = [conv(torch, getattr(torch, dtype), getattr(torch, layout)) for layout in layouts]
    opts = [ours.Adam(model.parameters(), state_dtype=state_dtype) for model in models]
    for p in models[0].parameters():
        p.grad = torch.empty_like(p).copy_(torch.linspace(-1, 1, p.numel()).view(p.shape))
    opts[0].step()
    models[1].load_state_dict(models[0].state_dict())
    opts[1].load_state_dict(copy.deepcopy(opts[0].state_dict()))
    inner = [opt._inner for opt in opts]
    for i, names in enumerate(inner[0].state.values()):
        assert all(np.array_equal(inner[0].state[i][n], inner[1].state[i][n]) for n in names if "::" not in n)
        assert np.array_equal(inner[0].master(i), inner[1].master(i))
    for opt in opts:
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.empty_like(p).fill_(0.5)
        opt.step()


def test_nothing_of_bfloat16_is_left_in_the_state_of_a_model_in_float32(torch, ours):
    model = network(torch, torch.bfloat16)
    opt = ours.Adam(model.parameters())
    train(torch, model, opt, 2)
    model.float()
    train(torch, model, opt, 1)
    assert all([*entry] == ["step", "exp_avg", "exp_avg_sq"] for entry in opt.state.values())


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
    "negated": (lambda torch: torch.ones(4, dtype=torch.complex64).conj().imag, {}, "negates .*resolve_neg"),
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


def test_parameters_that_share_memory_are_refused_until_they_do_not(torch, ours):
    p, q = torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)
    opt = ours.SGD([p, q], lr=1.0)
    p.grad, q.grad = torch.ones(4), torch.ones(4)
    q.data = p.data
    for make in opt.step, lambda: ours.SGD([p, q]):
        with pytest.raises(ValueError, match="overlap in memory") as caught:
            make()
        assert "p.data = p.data.clone()" in caught.value.__notes__[0] and torch.equal(p, torch.ones(4))
    q.data = q.data.clone()
    opt.step()
    assert torch.equal(p, torch.zeros(4)) and torch.equal(q, torch.zeros(4))
    assert "that share memory" in PAGE.read_text()


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


def test_max_norm_each_clips_as_one_clip_grad_norm_for_each(torch, ours):
    models, opts = pair(torch, ours, "AdamW", groups=two_groups)
    opts[0].max_norm_each = 0.5
    for i in range(5):
        for model, opt in zip(models, opts, strict=True):
            backward(torch, model, opt, i)
            if opt is opts[1]:
                norms = [torch.nn.utils.clip_grad_norm_([p], 0.5) for p in model.parameters()]
            opt.step()
        assert min(norms) < 0.5 < max(norms)
    assert_close(torch, *models)
    for options in {"max_norm_each": 0.0}, {"max_norm_each": 1.0, "max_norm": 1.0}:
        with pytest.raises(ValueError, match="max_norm"):
            ours.SGD([torch.ones(2)], **options)
    with pytest.raises(ValueError, match="cannot both be set"):
        opts[0].max_norm = 1.0
    assert opts[0].max_norm is None and copy.deepcopy(opts[0]).max_norm_each == 0.5


def test_options_of_the_optimizer_are_refused_in_groups(torch, ours):
    opt = ours.SGD([torch.ones(2)])
    with pytest.raises(ValueError, match="max_norm is no option of groups; give it to SGD"):
        opt.add_param_group({"params": [torch.ones(2)], "max_norm": 1.0})
    assert len(opt.param_groups) == 1


def test_nonfinite_gradients_raise_or_are_left_out(torch, ours):
    p = torch.ones(2, requires_grad=True)
    opt = ours.Adam([p], nonfinite="skip")
    p.grad = torch.tensor([1.0, torch.nan])
    opt.step()
    assert len(opt.state) == 0 and torch.equal(p, torch.ones(2))
    p.data = p.data.clone()  # fastadam's optimizer is made anew
    opt.step()
    assert opt.skipped_steps == copy.deepcopy(opt).skipped_steps == 2
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
    with pytest.raises(ValueError, match="steps in backward need max_norm=None"):
        opts[0].free_gradients_in_backward()


def test_an_optimizer_that_steps_in_backward_is_freed_with_its_model(torch, ours):
    model = network(torch)
    opt = ours.SGD(model.parameters())
    opt.free_gradients_in_backward()
    train(torch, model, opt, 1)
    alive = weakref.ref(opt), weakref.ref(model)
    del opt
    assert alive[0]() is None
    backward_alone = model(torch.ones(1, 5)).sum()
    backward_alone.backward()
    assert model[0].weight.grad is not None
    del model, backward_alone
    gc.collect()
    assert alive[1]() is None


def test_max_norm_each_goes_with_steps_in_backward(torch, ours):
    models = network(torch), network(torch)
    opts = [ours.AdamW(model.parameters(), max_norm_each=0.05) for model in models]
    opts[0].free_gradients_in_backward()
    for model, opt in zip(models, opts, strict=True):
        train(torch, model, opt, 4)
    assert bits(models[0]) == bits(models[1])


def test_steps_in_backward_leave_frozen_and_removed_parameters_alone(torch, ours):
    model = network(torch)
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    opt = ours.AdamW(model.parameters())
    model, opt, before = copy.deepcopy((model, opt, before))  # a copy has no fastadam optimizer yet
    end = opt.free_gradients_in_backward()
    backward(torch, model, opt, 0)
    assert torch.equal(model[0].weight, before) and all(p.grad is None for p in model.parameters())
    opt.step()
    model[0].weight.requires_grad_()
    removed = opt.param_groups[0]["params"].pop()
    backward(torch, model, opt, 1)
    assert [p for p in model.parameters() if p.grad is not None] == [model[0].weight, removed]
    opt.step()
    end()
    assert not torch.equal(model[0].weight, before)


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


def test_a_parameter_given_twice_is_not_stepped_in_backward(torch, ours):
    p = torch.ones(2, requires_grad=True)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        opt = ours.SGD([p, p])
    with pytest.raises(ValueError, match="each parameter given once"):
        opt.free_gradients_in_backward()


def test_hooks_around_loading_see_and_change_the_state(torch, ours):
    model = network(torch)
    opt = ours.Adam(model.parameters())
    train(torch, model, opt, 2)
    saved = copy.deepcopy(opt.state_dict())
    opt.register_load_state_dict_pre_hook(
        lambda _, loaded: {**loaded, "param_groups": [{**loaded["param_groups"][0], "lr": 0.5}]}
    )
    opt.register_load_state_dict_post_hook(lambda new: new.state[model[0].weight]["exp_avg"].fill_(7.0))
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["lr"] == 0.5 and (opt.state[model[0].weight]["exp_avg"] == 7.0).all()


def test_threads_follow_torch_unless_ordered(torch, ours):
    p = torch.ones(100_000, requires_grad=True)
    p.grad = torch.ones(100_000)
    opt, before = ours.SGD([p]), torch.get_num_threads()
    try:
        for given, ordered, used in (1, None, 1), (2, None, 2), (8, None, 3), (1, 2, 2):
            torch.set_num_threads(given)
            opt.threads = ordered
            opt.step()
            assert opt._inner.threads == used and opt.threads == ordered
    finally:
        torch.set_num_threads(before)


def test_hyper_parameters_that_change_in_place_are_seen(torch, ours):
    models, opts = pair(torch, ours, "Adam")
    for opt in opts:
        opt.param_groups[0].update(lr=torch.tensor(0.01), betas=(torch.tensor(0.9), torch.tensor(0.99)))
    for model, opt in zip(models, opts, strict=True):
        for i in range(4):
            train(torch, model, opt, 2, i)
            opt.param_groups[0]["lr"].mul_(0.5)
            opt.param_groups[0]["betas"][0].mul_(0.5)
        opt.param_groups[0]["betas"] = [0.5, 0.9]
        train(torch, model, opt, 1)
        opt.param_groups[0]["betas"][0] = 0.7
        train(torch, model, opt, 1)
    assert_close(torch, *models)


def test_backward_of_other_parameters_sees_new_options(torch, ours):
    p, q = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    opt = ours.SGD([p, q], lr=0.5)
    opt.free_gradients_in_backward()
    p.sum().backward()
    opt.step()
    opt.param_groups[0]["lr"] = 0.25
    q.sum().backward()
    assert torch.equal(p, torch.full((2,), 0.5)) and torch.equal(q, torch.full((2,), 0.75))


def notes(error):
    return " ".join([str(error.value), *getattr(error.value, "__notes__", ())])


def test_errors_name_parameters_and_ways_out_in_torch_that_work(torch, ours):
    model = torch.nn.Embedding(50, 8, sparse=True)
    opt = ours.AdamW(model.named_parameters(), state_dtype="8bit")
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="rows of 8 elements") as caught:
        opt.step()
    assert "Parameter 0 is weight." in notes(caught) and "with state_dtype='float32'" in notes(caught)
    ours.AdamW(model.parameters(), state_dtype="float32").step()
    model.weight.grad = torch.full((50, 8), torch.nan)
    opt = ours.AdamW(model.named_parameters(), nonfinite="raise")
    with pytest.raises(FloatingPointError) as caught:
        opt.step()
    assert "Parameter 0 is weight." in notes(caught)
    model.weight.grad = torch.ones(50, 8)
    opt.step()
    model.weight.data, model.weight.grad = torch.ones(3, 8), None
    with pytest.raises(ValueError, match="must have the shape") as caught:
        opt.step()
    assert "make a new optimizer" in notes(caught)


def test_what_only_fastadams_own_optimizers_take_is_explained(torch, ours):
    p = torch.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match="ema_decay") as caught:
        ours.AdamW([p], ema_decay=0.9)
    assert "for fastadam's own optimizers" in notes(caught)
    schedule = fastadam.schedules.exponential(0.1, 0.5)
    for make in lambda: ours.SGD([p], schedule), lambda: ours.SGD([p], lr=schedule):
        with pytest.raises(TypeError) as caught:
            make()
        assert "LambdaLR(opt, schedule)" in notes(caught)
    opt = ours.SGD([p], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, schedule)
    rates = []
    for _ in range(3):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    assert rates == [0.1, 0.05, 0.025]


@pytest.mark.parametrize("other", ["SGD", "SparseAdam"])
def test_state_of_another_class_is_refused(torch, ours, other):
    table = torch.nn.Embedding(5, 3, sparse=other == "SparseAdam")
    p = table.weight
    opt, theirs = ours.Adam([p]), getattr(torch.optim, other)([p], lr=0.1)
    table(torch.tensor([1])).sum().backward()
    theirs.step()
    saved, before = theirs.state_dict(), opt.state_dict()
    with pytest.raises(ValueError, match="which Adam needs: it is of another optimizer"):
        opt.load_state_dict(saved)
    assert opt.state_dict() == before
    if other == "SparseAdam":
        opt.load_state_dict({**saved, "param_groups": before["param_groups"]})
        assert opt.state[p]["step"] == 1 and torch.equal(opt.state[p]["exp_avg"], theirs.state[p]["exp_avg"])
