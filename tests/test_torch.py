"""Parity with torch.optim.Adam and AdamW: pytest -m torch (needs torch 2.13.0 or 2.14.1).

The two round differently: torch interpolates m with lerp, divides sqrt(v) by sqrt(bc2) where we multiply v by 1/bc2,
and keeps its factors in double in the for-loop implementation used here. Each step therefore adds a few roundings of
half an ulp on either side, and an error made in m or v decays only with beta. So after T steps we allow

    m, v:  8 ulp  of the same average taken over absolute values (cancellation can make m itself arbitrarily small);
           16 with an L2 penalty, which carries the difference in p into them
    p:     4 ulp  of the largest |p| seen, per step (rounding of p itself, and of an update no larger than that)

both in the precision of the parameters."""

import itertools

import numpy as np
import pytest

import fastadam

pytestmark = pytest.mark.torch
STEPS = 20
FLAGS = list(itertools.product([0.0, 0.1], [False, True], [False, True]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize(("weight_decay", "amsgrad", "maximize"), FLAGS)
@pytest.mark.parametrize("hyper", [{}, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}, {"betas": (0.0, 0.99)}])
def test_training_follows_torch(torch, name, dtype, weight_decay, amsgrad, maximize, hyper):
    options = {"weight_decay": weight_decay, "amsgrad": amsgrad, "maximize": maximize, **hyper}
    rng = np.random.default_rng(0)
    start = rng.standard_normal((37, 11)).astype(dtype)
    grads = [
        (rng.standard_normal(start.shape) * 10.0 ** rng.uniform(-6, 3, start.shape)).astype(dtype) for _ in range(STEPS)
    ]

    ours = start.copy()
    opt = getattr(fastadam, name)(ours, **options)
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    torch_opt = getattr(torch.optim, name)([theirs], foreach=False, **options)
    beta1, beta2 = opt.param_groups[0]["betas"]
    largest, m_scale, v_scale = np.abs(start), np.zeros(start.shape), np.zeros(start.shape)
    for grad in grads:
        full = np.abs(grad) + weight_decay * largest * (name == "Adam")
        m_scale = beta1 * m_scale + (1 - beta1) * full
        v_scale = np.maximum(beta2 * v_scale + (1 - beta2) * full**2, v_scale * amsgrad)
        opt.step(grad)
        theirs.grad = torch.from_numpy(grad)
        torch_opt.step()
        largest = np.maximum(largest, np.abs(ours))

    state = torch_opt.state[theirs]
    for key, scale in ("exp_avg", m_scale), ("exp_avg_sq", v_scale), ("max_exp_avg_sq", v_scale):
        if key in state:
            ulps = np.abs(opt.state[0][key] - state[key].numpy()) / np.spacing(scale.astype(dtype))
            assert ulps.max() <= (16 if weight_decay and name == "Adam" else 8), key
    ulps = np.abs(ours - theirs.detach().numpy()) / np.spacing(largest.astype(dtype))
    assert ulps.max() <= 4 * STEPS
    assert np.abs(ours - start).max() > 1e-3


FAMILY = [
    ("SGD", {"lr": 0.01}),
    ("SGD", {"lr": 0.01, "momentum": 0.9}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    *[("RMSprop", {"momentum": m, "centered": c}) for m in (0.0, 0.8) for c in (False, True)],
    ("RMSprop", {"alpha": 0.5, "eps": 1e-3}),
    ("Adagrad", {}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.1, "eps": 1e-3}),
    ("NAdam", {}),
    ("NAdam", {"betas": (0.5, 0.9), "momentum_decay": 1.0, "eps": 1e-3}),
    ("NAdam", {"decoupled_weight_decay": True}),
    ("RAdam", {}),
    ("RAdam", {"betas": (0.5, 0.6), "eps": 1e-3}),
    ("RAdam", {"decoupled_weight_decay": True}),
    ("Adamax", {}),
    ("Adamax", {"betas": (0.5, 0.9), "eps": 1e-3}),
]


def differences(torch, name, options, dtype, steps=STEPS):
    """Ours and torch's parameters after training from one start on the same gradients, and the largest |p| seen."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal((37, 11)).astype(dtype)
    ours = start.copy()
    opt = getattr(fastadam, name)(ours, **options)
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    torch_opt = getattr(torch.optim, name)([theirs], foreach=False, **options)
    largest = np.abs(start)
    for _ in range(steps):
        grad = (rng.standard_normal(start.shape) * 10.0 ** rng.uniform(-2, 1, start.shape)).astype(dtype)
        opt.step(grad)
        theirs.grad = torch.from_numpy(grad)
        torch_opt.step()
        largest = np.maximum(largest, np.abs(ours))
    assert np.abs(ours - start).max() > 1e-3
    return opt, ours, theirs.detach().numpy(), largest, torch_opt.state[theirs]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), FAMILY)
@pytest.mark.parametrize(("weight_decay", "maximize"), [(0.0, False), (0.1, False), (0.1, True)])
def test_the_family_follows_torch(torch, name, options, dtype, weight_decay, maximize):
    """4 ulp of the largest |p| a step, as above; centered 64, because a variance is what two squares leave of each
    other. torch keeps NAdam's product in float32: 64 ulp of float32 in either precision."""
    options = {**options, "weight_decay": weight_decay, "maximize": maximize}
    opt, ours, theirs, largest, state = differences(torch, name, options, dtype)
    ulp = np.spacing(largest.astype(np.float32 if name == "NAdam" else dtype))
    allowed = 64 * STEPS if options.get("centered") else 64 if name == "NAdam" else 4 * STEPS
    assert (np.abs(ours - theirs) / ulp).max() <= allowed
    assert set(state) - {"step"} == set(opt.state[0]) - {"step"} or (name, options.get("momentum")) == ("SGD", None)


@pytest.mark.parametrize(("name", "options"), FAMILY)
def test_a_state_dict_of_the_family_loads_and_training_goes_on(torch, name, options):
    rng = np.random.default_rng(0)
    parameter = torch.nn.Parameter(torch.from_numpy(rng.standard_normal(50)))
    torch_opt = getattr(torch.optim, name)([parameter], **options)

    def torch_step(grad):
        parameter.grad = torch.from_numpy(grad.copy())
        torch_opt.step()

    ours = np.zeros(50)
    opt = getattr(fastadam, name)(ours, **{k: v for k, v in options.items() if k in ("momentum", "centered")})
    opt.load_state_dict(torch_opt.state_dict())  # before the first step: nothing in it
    for _ in range(7):
        torch_step(rng.standard_normal(50))
    ours[...] = parameter.detach().numpy()
    opt.load_state_dict(torch_opt.state_dict())
    for _ in range(5):
        grad = rng.standard_normal(50)
        torch_step(grad)
        opt.step(grad)
    np.testing.assert_allclose(ours, parameter.detach().numpy(), rtol=1e-6, atol=1e-7)


def test_a_torch_state_dict_loads_and_training_goes_on(torch):
    rng = np.random.default_rng(1)
    start = [rng.standard_normal((5, 3)).astype(np.float32), rng.standard_normal(3).astype(np.float32)]
    parameters = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in start]
    torch_opt = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)

    def torch_step(grads):
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = torch.from_numpy(grad.copy())
        torch_opt.step()

    def gradients():
        return [rng.standard_normal(p.shape).astype(np.float32) for p in start]

    for _ in range(5):
        torch_step(gradients())
    ours = [p.detach().numpy().copy() for p in parameters]
    opt = fastadam.AdamW(ours)
    opt.load_state_dict(torch_opt.state_dict())
    assert [e["step"] for e in opt.state.values()] == [5, 5]
    assert opt.lr == 0.01 and opt.param_groups[0]["weight_decay"] == 0.1
    for _ in range(5):
        grads = gradients()
        torch_step(grads)
        opt.step(grads)
    for a, b in zip(ours, parameters, strict=True):
        assert np.allclose(a, b.detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), [("Adam", {}), ("AdamW", {"amsgrad": True}), *FAMILY])
@pytest.mark.parametrize("steps", [0, 3])
def test_our_state_loads_into_torch_and_training_goes_on(torch, name, options, dtype, steps):
    """Within the rounding of one step for each that is taken, as above."""
    rng = np.random.default_rng(2)
    ours = rng.standard_normal((7, 30)).astype(dtype, order="F")
    opt = getattr(fastadam, name)([ours, np.ones(3)], ema_decay=0.9, **options)
    for _ in range(steps):
        opt.step([rng.standard_normal(ours.shape).astype(dtype, order="F"), None])
    theirs = torch.nn.Parameter(torch.from_numpy(ours.copy(order="C")))
    torch_opt = getattr(torch.optim, name)([theirs, torch.nn.Parameter(torch.ones(3))], foreach=False)
    torch_opt.load_state_dict(opt.torch_state_dict())
    if steps:
        state = torch_opt.state[theirs]
        assert all(v.dtype == getattr(torch, np.dtype(dtype).name) for v in state.values() if v.ndim)
        assert name == "SGD" or float(state["step"]) == steps
    for key, value in opt.param_groups[0].items():
        if key in torch_opt.param_groups[0] and key != "params":
            assert torch_opt.param_groups[0][key] == value, key
    largest = np.abs(ours)
    for _ in range(5):
        grad = rng.standard_normal(ours.shape).astype(dtype)
        opt.step([np.asfortranarray(grad), None])
        theirs.grad = torch.from_numpy(grad)
        torch_opt.step()
        largest = np.maximum(largest, np.abs(ours))
    ulp = np.spacing(largest.astype(np.float32 if name == "NAdam" else dtype))
    allowed = 64 if options.get("centered") or name == "NAdam" else 4
    assert (np.abs(ours - theirs.detach().numpy()) / ulp).max() <= allowed * 5


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax"])
def test_state_in_fewer_bits_goes_to_torch_decoded_and_comes_back(torch, name, state_dtype):
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    rng = np.random.default_rng(2)
    ours = [np.asfortranarray(rng.standard_normal((7, 30)), np.float32), rng.standard_normal(70).astype(np.float32)]
    opt = getattr(fastadam, name)(ours, state_dtype=state_dtype, ema_decay=0.9, seed=5, **options)
    for _ in range(3):
        opt.step([np.asarray(rng.standard_normal(p.shape), np.float32, order="F") for p in ours])
    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy(order="C"))) for p in ours]
    torch_opt = getattr(torch.optim, name)(theirs, **options)
    torch_opt.load_state_dict(opt.torch_state_dict())
    names = [key for key in opt.state_dict()["state"][0] if key not in ("step", "seed", "ema", "mu_product")]
    for i, parameter in enumerate(theirs):
        assert names
        for key in names:
            assert np.array_equal(torch_opt.state[parameter][key].numpy(), opt.state[i][key])
    new = getattr(fastadam, name)([p.copy("K") for p in ours], state_dtype=state_dtype, **options)
    new.load_state_dict(torch_opt.state_dict())
    for i in 0, 1:
        assert new.state[i]["step"] == (1 if name == "SGD" else 3)
        for key in names:
            assert np.array_equal(new.state[i][key], opt.state[i][key])
    for parameter in theirs:
        parameter.grad = torch.ones_like(parameter)
    torch_opt.step()


@pytest.mark.parametrize("bits", [32, 24])
def test_bfloat16_parameters_may_be_torchs_own_memory(torch, bits):
    import ml_dtypes

    parameter = torch.ones(3, dtype=torch.bfloat16)
    array = parameter.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    opt = fastadam.SGD(array, lr=0.001, master_bits=bits)
    for _ in range(10):
        opt.step(np.ones(3, ml_dtypes.bfloat16))
    assert torch.equal(parameter, torch.full((3,), 0.99).bfloat16())
    with pytest.raises(TypeError, match=r"\['exp_avg'\] cannot be converted to an ndarray: .*BFloat16"):
        state = {"step": 1, "exp_avg": parameter, "exp_avg_sq": parameter}
        adam = fastadam.Adam(array)
        adam.load_state_dict({**adam.state_dict(), "state": {0: state}})


def test_torch_reads_a_checkpoint_of_bfloat16_parameters(torch, tmp_path):
    import ml_dtypes
    from safetensors.torch import load_file

    weights = {"w": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16, order="F")}
    opt = fastadam.Adam(weights, state_dtype="8bit")
    fastadam.save(tmp_path / "m.safetensors", params=weights, optimizer=opt)
    loaded = load_file(tmp_path / "m.safetensors")
    assert torch.equal(loaded["params/w"], torch.arange(6).reshape(2, 3).bfloat16())
    assert loaded["optimizer/w/exp_avg::codes"].dtype == torch.uint8
    assert loaded["optimizer/w/master::low"].dtype == torch.int16


def test_what_torch_cannot_go_on_from_is_refused(torch):
    for option in {"eps_hat": True}, {"eps_root": 1e-8}, {"bias_correction": False}:
        with pytest.raises(ValueError, match=f"torch has no {next(iter(option))}"):
            fastadam.Adam(np.ones(2), **option).torch_state_dict()
    opt = fastadam.Adam(np.ones(2), accumulate=2)
    opt.step(np.ones(2))
    with pytest.raises(ValueError, match="gradients wait for a step"):
        opt.torch_state_dict()


def test_torch_reads_a_checkpoint(torch, tmp_path):
    from safetensors.torch import load_file

    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3, order="F")}
    opt = fastadam.Adam(weights)
    fastadam.save(tmp_path / "m.safetensors", params=weights, optimizer=opt)
    loaded = load_file(tmp_path / "m.safetensors")
    assert torch.equal(loaded["params/w"], torch.from_numpy(weights["w"].copy(order="C")))
    assert loaded["optimizer/w/exp_avg"].shape == (2, 3)


def test_torch_tensors_are_refused_with_a_way_out(torch):
    parameter, gradient = torch.ones(3, requires_grad=True), torch.ones(3)
    with pytest.raises(TypeError, match=r"got a Tensor; use \.detach\(\)\.numpy\(\)$"):
        fastadam.SGD(parameter)
    opt = fastadam.SGD(parameter.detach().numpy(), lr=0.5)
    with pytest.raises(TypeError, match=r"got a Tensor; use \.detach\(\)\.numpy\(\)$"):
        opt.step(gradient)
    opt.step(gradient.detach().numpy())
    assert torch.equal(parameter, torch.full((3,), 0.5))


def test_parameters_may_be_torchs_own_memory(torch):
    parameter = torch.ones(3)
    fastadam.Adam(parameter.numpy(), lr=0.5).step(np.ones(3, np.float32))
    assert torch.allclose(parameter, torch.tensor(0.5))


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clipping_follows_clip_grad_norm(torch, max_norm):
    rng = np.random.default_rng(0)
    starts = [rng.standard_normal(n).astype(np.float64) for n in (5, 1000)]
    theirs = [torch.tensor(p.copy(), requires_grad=True) for p in starts]
    opt_theirs = torch.optim.Adam(theirs, lr=0.01)
    opt = fastadam.Adam(starts, lr=0.01, max_norm=max_norm)
    for _ in range(20):
        grads = [rng.standard_normal(p.shape) for p in starts]
        for p, g in zip(theirs, grads, strict=True):
            p.grad = torch.tensor(g.copy())
        norm = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        opt_theirs.step()
        opt.step(grads)
        assert opt.grad_norm == pytest.approx(float(norm), rel=1e-12)
    for ours, p in zip(starts, theirs, strict=True):
        np.testing.assert_allclose(ours, p.detach().numpy(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_that_is_no_number_clips_as_clip_grad_norm_does(torch, bad):
    """A NaN spoils every array, an infinity only its own element; the others take a step of 0."""
    starts = [np.ones(3), np.ones(2)]
    theirs = [torch.tensor(p.copy(), requires_grad=True) for p in starts]
    opt_theirs = torch.optim.SGD(theirs, lr=0.5)
    opt = fastadam.SGD(starts, lr=0.5, max_norm=1.0)
    grads = [np.array([1.0, bad, 2.0]), np.ones(2)]
    for p, g in zip(theirs, grads, strict=True):
        p.grad = torch.tensor(g)
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    opt_theirs.step()
    opt.step(grads)
    for ours, p in zip(starts, theirs, strict=True):
        np.testing.assert_array_equal(ours, p.detach().numpy())
    assert np.isnan(starts[1]).all() == np.isnan(bad) and np.isnan(starts[0][1])


def test_channels_last_weights_step_where_they_are(torch):
    """Not copied: a warning is an error. Their state goes to torch in the same strides."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(5, 4, 3).to(memory_format=torch.channels_last)
    twin = torch.nn.Conv2d(5, 4, 3).to(memory_format=torch.channels_last)
    twin.load_state_dict(conv.state_dict())
    opt = fastadam.Adam([p.detach().numpy() for p in conv.parameters()], lr=0.1)
    opt_theirs = torch.optim.Adam(twin.parameters(), lr=0.1)
    for _ in range(5):
        x = torch.randn(2, 5, 8, 8).to(memory_format=torch.channels_last)
        for net in conv, twin:
            net.zero_grad()
            net(x).square().sum().backward()
        opt.step([p.grad.contiguous(memory_format=torch.channels_last).numpy() if p.ndim == 4 else p.grad.numpy()
                  for p in conv.parameters()])  # fmt: skip
        opt_theirs.step()
    for ours, theirs in zip(conv.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    moment = opt.torch_state_dict()["state"][0]["exp_avg"]
    assert moment.stride() == conv.weight.stride() and not conv.weight.is_contiguous()
