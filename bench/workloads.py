"""What is measured, as data: name -> shapes, element type, update rule."""

import math
from dataclasses import dataclass

import numpy as np

RULES = {  # class of fastadam, its options, arrays of its state; peers have the first four
    "Adam": ("Adam", {}, 2),
    "AdamW": ("AdamW", {"weight_decay": 0.01}, 2),
    "AMSGrad": ("Adam", {"amsgrad": True}, 3),
    "clipped": ("Adam", {"max_norm": 1.0}, 2),
    "clipped by value": ("Adam", {"max_value": 0.6}, 2),
    "averaged": ("Adam", {"ema_decay": 0.999}, 3),
    "SGD with momentum": ("SGD", {"momentum": 0.9}, 1),
    "RMSprop centered with momentum": ("RMSprop", {"momentum": 0.9, "centered": True}, 3),
    **{name: (name, {}, arrays) for name, arrays in {"SGD": 0, "RMSprop": 1, "Adagrad": 1}.items()},
    **{name: (name, {}, 2) for name in ("NAdam", "RAdam", "Adamax")},
}
FAMILY = list(RULES)[5:]  # measured against the memory limit


@dataclass(frozen=True)
class Workload:
    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: type = np.float32
    rule: str = "Adam"  # of RULES

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(f"{self.name}: there is no rule {self.rule}; choose from {', '.join(RULES)}")

    @property
    def size(self):
        return sum(map(math.prod, self.shapes))

    @property
    def nbytes(self):
        """Of the parameters."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def step_bytes(self):
        """What a step must move: read and write the parameter and its state, read the gradient; to clip, once more."""
        return self.nbytes * (3 + 2 * RULES[self.rule][2] + (self.rule == "clipped"))

    def make(self):
        """(params, grads): the same for every contender. Gradients stay the same from step to step."""
        rng = np.random.default_rng(0)
        params = [rng.standard_normal(shape, np.float32).astype(self.dtype) for shape in self.shapes]
        grads = [(rng.uniform(0.5, 2.0, s) * rng.choice([-1.0, 1.0], s)).astype(self.dtype) for s in self.shapes]
        return params, [placed(grad, 528) for grad in grads]


@dataclass(frozen=True)
class Table:
    """A table, some of whose rows get gradients."""

    name: str
    height: int
    width: int
    given: int  # rows in a step
    among: int = 0  # of so many of the table's, drawn anew each time; 0: each appears once at most

    @property
    def nbytes(self):
        return 4 * self.height * self.width

    def make(self, sets=1):
        """Several (rows, grads), and some rows that are in none. A column's gradients have one sign: sums are large."""
        rng, found, signs = np.random.default_rng(0), [], np.random.default_rng(1).choice([-1.0, 1.0], self.width)
        for _ in range(sets):
            rows = rng.choice(self.height, self.among or self.given, replace=False)
            rows = rng.choice(rows, self.given) if self.among else rows
            grads = rng.uniform(0.5, 2.0, (self.given, self.width)) * signs
            found.append((rows, placed(grads.astype(np.float32), 528)))
        others = np.setdiff1d(rng.integers(0, self.height, 1000), np.concatenate([rows for rows, _ in found]))
        return found, others


def placed(values, at):
    """A copy that begins `at` bytes, modulo 1024, if it is large.

    Large arrays a few bytes off a multiple of 1 MiB apart slow some processors (csrc/README.md): no contender is to
    suffer from luck, so parameters and gradients are kept apart.
    """
    if values.nbytes < 1 << 20:
        return values.copy()
    memory = np.empty(values.nbytes + 1024, np.uint8)
    start = (at - memory.ctypes.data) % 1024
    copy = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def gpt2():
    """GPT-2 124M: two embeddings, twelve blocks, a final norm; the output layer is tied to the first embedding."""
    width = 768
    block = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(50257, width), (1024, width), *(block * 12), (width,), (width,)]


def resnet50():
    """Convolutions, batch norms' scales and shifts, and the classifier, in torchvision's order of stages."""
    shapes = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in ((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                shapes += [shape, (shape[0],), (shape[0],)]
            if block == 0:
                shapes += [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


SIZES = {"1 K": 1 << 10, "10 K": 10_000, "100 K": 100_000, "1 M": 1 << 20, "10 M": 10_000_000, "64 Mi": 1 << 26}
WORKLOADS = {
    workload.name: workload
    for workload in [
        *(Workload(f"1 x {name}", ((size,),)) for name, size in SIZES.items()),
        Workload("1 x 100 K float64", ((100_000,),), np.float64),
        Workload("1 x 100 K AdamW", ((100_000,),), rule="AdamW"),
        Workload("1 x 100 K AMSGrad", ((100_000,),), rule="AMSGrad"),
        Workload("1 x 1 M float64", ((1 << 20,),), np.float64),
        Workload("1 x 64 Mi float64", ((1 << 26,),), np.float64),
        Workload("1000 x 1 K", ((1 << 10,),) * 1000),
        Workload("10000 x 100", ((100,),) * 10_000),
        Workload("MLP 64-512-512-10", ((64, 512), (512, 512), (512, 10), (512,), (512,), (10,))),
        Workload("ResNet-50", tuple(resnet50())),
        Workload("GPT-2 124M", tuple(gpt2())),
        Workload("embedding 200 K x 128", ((200_000, 128),)),
        Workload("1 x 1 M AdamW", ((1 << 20,),), rule="AdamW"),
        Workload("1 x 1 M AMSGrad", ((1 << 20,),), rule="AMSGrad"),
        Workload("1 x 1 M clipped", ((1 << 20,),), rule="clipped"),
        *(Workload(f"1 x 64 Mi {rule}", ((1 << 26,),), rule=rule) for rule in ("clipped", "AMSGrad", *FAMILY)),
    ]
}
TABLES = {
    table.name: table
    for table in [
        Table("4096 rows of 200 K x 128", 200_000, 128, 4096, 200_000),
        Table("300 rows repeated to 4096 of 200 K x 128", 200_000, 128, 4096, 300),
        Table("100 K rows of 10 M x 64", 10_000_000, 64, 100_000, 10_000_000),
        Table("512 rows of 100 K x 64", 100_000, 64, 512),
    ]
}
