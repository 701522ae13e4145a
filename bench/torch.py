"""fastadam.torch in PyTorch's training loops, beside torch's AdamW.

Models train side by side in one process, some iterations of each in turns: forward, backward, step and zero_grad,
all in float32 with torch's threads. Ratios are to the time with torch's fused AdamW: below 1 is faster. After five
iterations the weights must be torch's.
"""

import copy
import statistics
import time

from .results import must_have, promise, quartiles, ratio

ROUNDS, BLOCK = 41, 0.12  # seconds of a turn
FUSED, OURS = "torch fused", "fastadam.torch"
BARS = {"MLP 64-512-512-10": 0.95, "transformer, 3 layers, d 128": 0.9, "CNN, 4 layers": 0.9, "200 x (16 x 16)": 0.7}


def models():
    """{name: (model, batch, loss)}"""
    import torch
    from torch import nn

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.links = nn.ParameterList([torch.randn(16, 16) / 4 for _ in range(200)])

        def forward(self, x):
            for link in self.links:
                x = torch.tanh(x @ link)
            return x

    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True) for _ in range(3)]
    transformer = nn.Sequential(nn.Embedding(97, 128), *layers, nn.Linear(128, 97))
    convolutions = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
    cnn = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64 * 10 * 10, 10))
    mlp = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    nets = (mlp, torch.randn(64, 64)), (transformer, torch.randint(97, (8, 32))), (cnn, torch.randn(16, 3, 16, 16))
    return dict(zip(BARS, [*nets, (Chain(), torch.randn(16, 16))], strict=True))


class Training:
    def __init__(self, make, model, x):
        self.model, self.x = copy.deepcopy(model), x
        self.opt = make(self.model.parameters())

    def iterate(self, count):
        """Seconds an iteration, and of its step."""
        stepping, start = 0.0, time.perf_counter()
        for _ in range(count):
            self.model(self.x).square().mean().backward()
            before = time.perf_counter()
            self.opt.step()
            stepping += time.perf_counter() - before
            self.opt.zero_grad()
        return (time.perf_counter() - start) / count, stepping / count


def contenders():
    import torch

    import fastadam.torch

    return {
        FUSED: lambda params: torch.optim.AdamW(params, fused=True),
        OURS: fastadam.torch.AdamW,
    }


def same_weights(trainings):
    """Ours and torch's after as many iterations: rounding, which the model makes larger, and much less than a step."""
    import torch

    for training in trainings.values():
        training.iterate(5)
    theirs = list(trainings[FUSED].model.parameters())
    for training in trainings.values():
        for p, q in zip(training.model.parameters(), theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=0.0, atol=2e-4)


def measure(chosen):
    must_have("torch", "torch")
    iterations = []
    for name, (model, x) in models().items():
        trainings = {key: Training(make, model, x) for key, make in contenders().items()}
        same_weights(trainings)
        count = max(2, int(BLOCK / trainings[FUSED].iterate(3)[0]))
        times = {key: [] for key in trainings}
        for i in range(3 if chosen.quick else ROUNDS):
            for key, training in list(trainings.items())[:: 1 if i % 2 else -1]:
                training.iterate(1)  # brings its data back into the cache
                times[key].append(training.iterate(count))
        whole, step = ({key: [pair[k] for pair in pairs] for key, pairs in times.items()} for k in (0, 1))
        for key in trainings:
            ms = {"iteration, ms": statistics.median(whole[key]) * 1e3, "step, ms": statistics.median(step[key]) * 1e3}
            over = {"iteration over fused": ratio(whole[key], whole[FUSED])}
            over["step over fused"] = ratio(step[key], step[FUSED])
            yield "iterations", [{"model": name, "optimizer": key, **ms, **over}]
        iterations.append([a / b for a, b in zip(whole[OURS], whole[FUSED], strict=True)])
        what = {"model": name, "what": "step over torch's fused"}
        yield "promises", [promise(what, f"<= {BARS[name]}", ratio(step[OURS], step[FUSED]))]
        what = {"model": name, "what": "iteration over torch's fused"}
        yield "promises", [promise(what, "<= 1.01", quartiles(iterations[-1]))]
    means = [statistics.geometric_mean(each) for each in zip(*iterations, strict=True)]
    what = {"model": "all", "what": "iteration over torch's fused, geometric mean"}
    yield "promises", [promise(what, "<= 0.96", quartiles(means))]
