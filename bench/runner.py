"""What runs in a contender's process: back-to-back steps, or a training loop.

Nothing here imports fastadam before the contender: it would load OpenMP's runtime with its own wait policy, and the
peers' workers would no longer wait as they do for their users.
"""

import time

import numpy as np

from .limits import LIMITS
from .peers import CONTENDERS, FastadamSerial, FastadamShared, Nothing, check, why_absent
from .workers import share_stolen

BLOCK = 0.02  # seconds of work per turn, at least one step
LARGE = 1 << 27  # bytes of parameters: such contenders meet fastadam one by one, or memory runs out


class Runner:
    """In a process of its own: contenders on one workload."""

    def __init__(self, names):
        self.names = names

    def prepare(self, workload, threads):
        """{name: why it is absent}"""
        self.params, self.grads = workload.make()
        self.contenders, self.taken, self.steps, absent = {}, {}, {}, {}
        for name in self.names:
            make = LIMITS.get(name) or CONTENDERS[name]
            try:
                contender = make(self.params, self.grads, threads, workload.rule)
                contender.run(contender.warm_up)  # compiles and allocates
            except Exception as error:
                absent[name] = why_absent(error)
                continue
            self.contenders[name], self.taken[name], self.steps[name] = contender, contender.warm_up, 1
            once = min(self.turn(name) for _ in range(2 if workload.nbytes < LARGE else 1))
            self.steps[name] = max(contender.least_steps, min(2000, int(BLOCK / once)))
        return absent

    def turn(self, name):
        """Seconds a step."""
        contender, steps = self.contenders[name], self.steps[name]
        warm_up = max(1, steps // 4)  # it takes several steps to bring its data back into a cache that others have used
        contender.run(warm_up)
        start = time.perf_counter()
        contender.run(steps)
        seconds = time.perf_counter() - start
        self.taken[name] += warm_up + steps
        return seconds / steps

    def finish(self):
        """{name: what is wrong with its result}"""
        failed = {}
        for name, contender in self.contenders.items():
            try:
                if name not in LIMITS:
                    check(contender, self.params, self.grads, self.taken[name])
            except AssertionError as error:
                failed[name] = why_absent(error)
        self.contenders = self.params = self.grads = None
        return failed


OTHERS = ("NumPy tutorial", "NumPy in place", "numba prange", "numba serial", "scikit-learn", "thinc", "torch fused",
          "torch foreach", "DeepSpeed CPUAdam")  # fmt: skip
VARIANTS = {  # in a training loop: contender, environment
    "no optimizer": (Nothing, {}),
    "fastadam default": (CONTENDERS["fastadam default"], {}),
    "fastadam 1 thread": (FastadamSerial, {}),
    "fastadam OpenMP threads": (CONTENDERS["fastadam"], {}),
    "fastadam OpenMP threads spinning": (CONTENDERS["fastadam"], {"GOMP_SPINCOUNT": "300000"}),  # libgomp's own
    "fastadam shared team": (FastadamShared, {}),
    **{name: (CONTENDERS[name], {}) for name in OTHERS},
}


class Training:
    """A float32 MLP, 64-width-width-10, in NumPy under one optimizer. ImportError if that is not installed."""

    def __init__(self, name, width, batch, threads):
        rng = np.random.default_rng(0)
        self.x, self.labels = rng.standard_normal((batch, 64)).astype(np.float32), rng.integers(0, 10, batch)
        shapes = [(64, width), (width, width), (width, 10), (width,), (width,), (10,)]
        zeros = [np.zeros(shape, np.float32) for shape in shapes]
        self.contender = VARIANTS[name][0](zeros, zeros, threads)
        from fastadam.gallery.demo import MLP  # after the contender, which must load its own runtime

        self.model = MLP([64, width, width, 10], np.random.default_rng(1))
        for mine, start in zip(self.contender.params(), self.model.weights + self.model.biases, strict=True):
            mine[...] = start
        self.adopt()

    def adopt(self):
        """The model computes with the optimizer's parameters; some make new arrays at each step."""
        arrays = self.contender.params()
        self.model.weights, self.model.biases = arrays[:3], arrays[3:]

    def iterate(self, count):
        """Seconds an iteration: forward and backward; step."""
        forward_backward = step = 0.0
        for _ in range(count):
            start = time.perf_counter()
            self.loss, grads = self.model.loss_and_gradients(self.x, self.labels)
            middle = time.perf_counter()
            self.contender.step(grads["weights"] + grads["biases"])
            self.adopt()
            forward_backward += middle - start
            step += time.perf_counter() - middle
        self.contender.grads = grads["weights"] + grads["biases"]
        return forward_backward / count, step / count


def train(name, width, batch, iterations, threads):
    """(seconds of forward and backward, of the step, of a step back to back; the loss), share of the time stolen."""
    training = Training(name, width, batch, threads)
    training.iterate(max(iterations // 3, 30))  # to warm up: fastadam has tried numbers of threads by then
    times, share = share_stolen(training.iterate, iterations)
    for count in iterations // 3, iterations:
        start = time.perf_counter()
        for _ in range(count):
            training.contender.step(training.contender.grads)
        alone = (time.perf_counter() - start) / count
    return (*times, alone, training.loss), share
