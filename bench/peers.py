"""The contenders: each an Adam over a list of arrays with gradients that stay the same, in its best mode.

A contender has `run(steps)`, which takes that many steps, and `params()`, where it has got to. Importing what it needs
happens in its constructor: ImportError means that it is not installed.
"""

import numpy as np

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8


class Contender:
    def __init__(self, params, grads, threads):
        self.arrays = [p.copy() for p in params]
        self.grads = grads
        self.setup(threads)

    def run(self, steps):
        for _ in range(steps):
            self.step()

    def params(self):
        return self.arrays


class Fastadam(Contender):
    """fastadam.Adam, all threads ordered."""

    def setup(self, threads):
        import fastadam

        self.optimizer = fastadam.Adam(self.arrays, lr=LR, threads=threads)

    def step(self):
        self.optimizer.step(self.grads)


class FastadamDefault(Fastadam):
    """fastadam.Adam as it comes."""

    def setup(self, threads):
        super().setup(None)


class FastadamUpdate(Contender):
    """fastadam.adam_update, one call for each array."""

    def setup(self, threads):
        import fastadam

        self.update, self.threads, self.t = fastadam.adam_update, threads, 0
        self.state = [(p, g, np.zeros_like(p), np.zeros_like(p)) for p, g in zip(self.arrays, self.grads, strict=True)]

    def step(self):
        self.t += 1
        for p, g, m, v in self.state:
            self.update(p, g, m, v, self.t, lr=LR, threads=self.threads)


class NumpyTutorial(Contender):
    """NumPy as tutorials write it."""

    def setup(self, threads):
        self.t = 0
        self.m = [np.zeros_like(p) for p in self.arrays]
        self.v = [np.zeros_like(p) for p in self.arrays]

    def step(self):
        self.t += 1
        for i, g in enumerate(self.grads):
            self.m[i] = BETA1 * self.m[i] + (1 - BETA1) * g
            self.v[i] = BETA2 * self.v[i] + (1 - BETA2) * g**2
            m_hat = self.m[i] / (1 - BETA1**self.t)
            v_hat = self.v[i] / (1 - BETA2**self.t)
            self.arrays[i] = self.arrays[i] - LR * m_hat / (np.sqrt(v_hat) + EPS)


class NumpyInPlace(Contender):
    """NumPy with every temporary avoided."""

    def setup(self, threads):
        self.t = 0
        self.state = [
            (p, g, np.zeros_like(p), np.zeros_like(p), np.empty_like(p))
            for p, g in zip(self.arrays, self.grads, strict=True)
        ]

    def step(self):
        self.t += 1
        step_size, root = LR / (1 - BETA1**self.t), (1 - BETA2**self.t) ** 0.5
        for p, g, m, v, scratch in self.state:
            m *= BETA1
            m += np.multiply(g, 1 - BETA1, out=scratch)
            v *= BETA2
            np.multiply(g, g, out=scratch)
            scratch *= 1 - BETA2
            v += scratch
            np.sqrt(v, out=scratch)
            scratch /= root
            scratch += EPS
            np.divide(m, scratch, out=scratch)
            scratch *= step_size
            p -= scratch


class NumbaParallel(Contender):
    """numba, parallel=True, one call for each array."""

    parallel = True

    def setup(self, threads):
        import numba

        numba.set_num_threads(threads)

        @numba.njit(parallel=self.parallel)
        def update(p, g, m, v, b1, b2, step_size, inverse, eps):
            for i in numba.prange(p.size):
                m[i] = b1 * m[i] + (1 - b1) * g[i]
                v[i] = b2 * v[i] + (1 - b2) * g[i] * g[i]
                p[i] -= step_size * m[i] / (np.sqrt(v[i] * inverse) + eps)

        self.update, self.t = update, 0
        self.state = [
            (p.reshape(-1), g.reshape(-1), np.zeros(p.size, p.dtype), np.zeros(p.size, p.dtype))
            for p, g in zip(self.arrays, self.grads, strict=True)
        ]

    def step(self):
        self.t += 1
        for p, g, m, v in self.state:
            real = p.dtype.type
            self.update(
                p, g, m, v, real(BETA1), real(BETA2), real(LR / (1 - BETA1**self.t)), real(1 / (1 - BETA2**self.t)),
                real(EPS),
            )  # fmt: skip


class NumbaSerial(NumbaParallel):
    """numba, serial."""

    parallel = False


class ScikitLearn(Contender):
    """scikit-learn's AdamOptimizer, as MLPClassifier uses it."""

    def setup(self, threads):
        from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

        self.optimizer = AdamOptimizer(self.arrays, LR, BETA1, BETA2, EPS)

    def step(self):
        self.optimizer.update_params(self.arrays, self.grads)


class Thinc(Contender):
    """thinc's Adam, without its default clipping; it may overwrite gradients, so it is given copies."""

    def setup(self, threads):
        from thinc.api import Adam

        self.optimizer = Adam(LR, beta1=BETA1, beta2=BETA2, eps=EPS, L2=0.0, grad_clip=0.0)
        self.copies = [g.copy() for g in self.grads]

    def step(self):
        for i, (copy, grad) in enumerate(zip(self.copies, self.grads, strict=True)):
            copy[...] = grad
            self.arrays[i], _ = self.optimizer((i, "W"), self.arrays[i], copy)


class Autograd(Contender):
    """HIPS autograd's adam loop on a flat vector; its state lives only within one run."""

    def setup(self, threads):
        from autograd.misc.optimizers import adam

        self.adam, self.flat_grad = adam, np.concatenate([g.ravel() for g in self.grads])
        self.flat = np.concatenate([p.ravel() for p in self.arrays])

    def run(self, steps):
        self.flat = self.adam(lambda x, i: self.flat_grad, self.flat, num_iters=steps, step_size=LR)

    def params(self):
        pieces = np.split(self.flat, np.cumsum([p.size for p in self.arrays])[:-1])
        return [piece.reshape(p.shape) for piece, p in zip(pieces, self.arrays, strict=True)]


class Optax(Contender):
    """optax.adam under jax.jit, parameters and state donated."""

    def setup(self, threads):
        import jax
        import optax

        jax.config.update("jax_enable_x64", True)
        optimizer = optax.adam(LR, BETA1, BETA2, EPS)

        def step(params, state, grads):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.jit_step, self.wait = jax.jit(step, donate_argnums=(0, 1)), jax.block_until_ready
        self.jax_params, self.jax_grads = (
            [jax.numpy.array(p) for p in self.arrays],
            list(map(jax.numpy.array, self.grads)),
        )
        self.state = optimizer.init(self.jax_params)

    def step(self):
        self.jax_params, self.state = self.jit_step(self.jax_params, self.state, self.jax_grads)
        self.wait(self.jax_params)

    def params(self):
        return [np.asarray(p) for p in self.jax_params]


class TorchFused(Contender):
    """torch.optim.Adam(fused=True)."""

    options = {"fused": True}  # noqa: RUF012

    def setup(self, threads):
        import torch

        torch.set_num_threads(threads)
        tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in self.arrays]
        for tensor, grad in zip(tensors, self.grads, strict=True):
            tensor.grad = torch.from_numpy(grad)
        self.optimizer = self.make(tensors)

    def make(self, tensors):
        import torch

        return torch.optim.Adam(tensors, LR, (BETA1, BETA2), EPS, **self.options)

    def step(self):
        self.optimizer.step()


class TorchForeach(TorchFused):
    """torch.optim.Adam(foreach=True)."""

    options = {"foreach": True}  # noqa: RUF012


class TorchLoop(TorchFused):
    """torch.optim.Adam(foreach=False): one array after the other."""

    options = {"foreach": False}  # noqa: RUF012


class DeepSpeed(TorchFused):
    """DeepSpeedCPUAdam; it compiles its kernel at first use."""

    def make(self, tensors):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(tensors, LR, betas=(BETA1, BETA2), eps=EPS, adamw_mode=False)


CONTENDERS = {
    "fastadam": Fastadam,
    "fastadam default": FastadamDefault,
    "fastadam.adam_update": FastadamUpdate,
    "NumPy tutorial": NumpyTutorial,
    "NumPy in place": NumpyInPlace,
    "numba prange": NumbaParallel,
    "numba serial": NumbaSerial,
    "scikit-learn": ScikitLearn,
    "thinc": Thinc,
    "autograd": Autograd,
    "optax jit": Optax,
    "torch fused": TorchFused,
    "torch foreach": TorchForeach,
    "torch for-loop": TorchLoop,
    "DeepSpeed CPUAdam": DeepSpeed,
}


def check(contender, params, grads, steps):
    """Against float64: with a constant gradient, m/bc1 = g and v/bc2 = g*g, so each step moves by lr*g/(|g| + eps)."""
    for start, grad, end in zip(params, grads, contender.params(), strict=True):
        exact = grad.astype(np.float64)
        moved = steps * LR * exact / (np.abs(exact) + EPS)
        error = np.abs(end.reshape(start.shape) - (start.astype(np.float64) - moved)).max(initial=0.0)
        rounding = steps * np.spacing(np.abs(start).max(initial=1.0) + steps * LR).astype(np.float64)
        assert error <= 2e-3 * steps * LR + rounding, (
            f"{type(contender).__name__}: off by {error:.2e} after {steps} steps"
        )
