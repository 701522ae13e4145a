"""Small models with an optimizer of fastadam.torch, and the same with torch's, for tests."""

import functools
import inspect

OPTIONS = {"SGD": {"momentum": 0.9, "nesterov": True}, "RMSprop": {"momentum": 0.8, "centered": True}}


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
