"""The contenders: each an Adam over a list of arrays, in its best mode.

`step(grads)` takes a step and `params()` says where it has got to. Importing what it needs happens in the constructor:
ImportError means that it is not installed, NotImplementedError that it has no such rule.
"""

import shutil
from importlib import import_module

import numpy as np

from .workloads import RULES, placed

LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8
DECAY, MAX_NORM = RULES["AdamW"][1]["weight_decay"], RULES["clipped"][1]["max_norm"]
PEER_RULES = ("Adam", "AdamW", "AMSGrad", "clipped")
CONTENDERS = {}  # by name
COMPILER = shutil.which("c++")  # torch.compile needs it


class Contender:
    rules = ("Adam",)
    dtypes = ("float32", "float64")
    varies = True  # its gradients may differ from step to step
    least_steps = 1  # in one timed run
    warm_up = 1  # steps before all of them

    def __init_subclass__(cls, name=None):
        if not name:
            return
        if not name.startswith("fastadam") and (others := set(cls.rules).difference(PEER_RULES)):
            said = f"no peer can have {', '.join(sorted(others))}, which cannot be checked: choose from"
            raise ValueError(f"{name}: {said} {', '.join(PEER_RULES)}")
        CONTENDERS[name] = cls

    def __init__(self, params, grads, threads, rule="Adam"):
        if rule not in self.rules:
            raise NotImplementedError(f"it has no {rule}")
        if any(p.dtype not in self.dtypes for p in params):
            raise NotImplementedError(f"it takes only {', '.join(self.dtypes)}")
        self.arrays = [placed(p, 16) for p in params]
        self.grads, self.rule, self.t = grads, rule, 0
        self.setup(threads)

    def zeros(self, kind):
        """State of that kind, 0 to 2, apart from the parameters, the gradients and other state (`placed`)."""
        return [placed(np.zeros_like(p), (272, 784, 400)[kind]) for p in self.arrays]

    def run(self, steps):
        for _ in range(steps):
            self.step(self.grads)

    def params(self):
        return self.arrays


class Nothing(Contender):
    """No optimizer at all: the ceiling."""

    setup = step = lambda self, _: None


class Fastadam(Contender, name="fastadam"):
    """fastadam.Adam, all threads ordered."""

    rules = tuple(RULES)

    def setup(self, threads):
        import fastadam

        name, options, _ = RULES[self.rule]
        self.optimizer = getattr(fastadam, name)(self.arrays, lr=LR, threads=threads, **options)

    def step(self, grads):
        self.optimizer.step(grads)


class FastadamDefault(Fastadam, name="fastadam default"):
    """fastadam.Adam as it comes. It learns from the time from step to step, in which no other should have its turn."""

    least_steps = 4
    warm_up = 24  # its first trial of numbers of threads, and some

    def setup(self, threads):
        super().setup(None)


class FastadamSerial(Fastadam):
    def setup(self, threads):
        super().setup(1)


class FastadamShared(FastadamDefault):
    def setup(self, threads):
        super().setup(threads)
        import fastadam

        self.sharing = fastadam.share_threads_with_blas()


class FastadamUpdate(Contender, name="fastadam.adam_update"):
    """fastadam.adam_update as it comes, one call for each array."""

    def setup(self, threads):
        import fastadam

        self.update, self.m, self.v = fastadam.adam_update, self.zeros(0), self.zeros(1)

    def step(self, grads):
        self.t += 1
        for p, g, m, v in zip(self.arrays, grads, self.m, self.v, strict=True):
            self.update(p, g, m, v, self.t, lr=LR)


class NumpyTutorial(Contender, name="NumPy tutorial"):
    rules = PEER_RULES

    def setup(self, threads):
        self.m, self.v = self.zeros(0), self.zeros(1)
        self.largest = self.zeros(2) if self.rule == "AMSGrad" else None

    def step(self, grads):
        self.t += 1
        if self.rule == "clipped":
            norm = np.sqrt(sum((g**2).sum(dtype=np.float64) for g in grads))
            grads = [g * g.dtype.type(min(1, MAX_NORM / (norm + 1e-6))) for g in grads]
        for i, g in enumerate(grads):
            if self.rule == "AdamW":
                self.arrays[i] = self.arrays[i] * (1 - LR * DECAY)
            self.m[i] = BETA1 * self.m[i] + (1 - BETA1) * g
            self.v[i] = BETA2 * self.v[i] + (1 - BETA2) * g**2
            v = self.v[i]
            if self.rule == "AMSGrad":
                v = self.largest[i] = np.maximum(self.largest[i], v)
            m_hat = self.m[i] / (1 - BETA1**self.t)
            v_hat = v / (1 - BETA2**self.t)
            self.arrays[i] = self.arrays[i] - LR * m_hat / (np.sqrt(v_hat) + EPS)


class NumpyInPlace(Contender, name="NumPy in place"):
    def setup(self, threads):
        self.m, self.v, self.scratch = (self.zeros(kind) for kind in range(3))

    def step(self, grads):
        self.t += 1
        step_size, root = LR / (1 - BETA1**self.t), (1 - BETA2**self.t) ** 0.5
        for p, g, m, v, scratch in zip(self.arrays, grads, self.m, self.v, self.scratch, strict=True):
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


class NumbaParallel(Contender, name="numba prange"):
    """numba, parallel=True: one bare kernel call for each array, the coefficients computed inside."""

    rules = ("Adam", "AdamW", "AMSGrad")
    parallel = True

    def setup(self, threads):
        import numba

        numba.set_num_threads(threads)
        # Constants in the arrays' type, or numba computes in float64.
        real = self.arrays[0].dtype.type
        b1, c1, b2, c2, eps = (real(x) for x in (BETA1, 1 - BETA1, BETA2, 1 - BETA2, EPS))
        decay = real(1 - LR * DECAY if self.rule == "AdamW" else 1)
        amsgrad = self.rule == "AMSGrad"

        @numba.njit(parallel=self.parallel, error_model="numpy")
        def update(p, g, m, v, largest, t):
            step_size, inverse = real(LR / (1 - BETA1**t)), real(1 / (1 - BETA2**t))
            for i in numba.prange(p.size):
                m[i] = b1 * m[i] + c1 * g[i]
                v[i] = b2 * v[i] + c2 * g[i] * g[i]
                a = v[i]
                if amsgrad:
                    a = largest[i] = max(largest[i], a)
                p[i] = decay * p[i] - step_size * m[i] / (np.sqrt(a * inverse) + eps)

        self.update = update
        self.flat = [p.reshape(-1) for p in self.arrays]
        self.m, self.v, self.largest = ([a.reshape(-1) for a in self.zeros(kind)] for kind in range(3))
        if not amsgrad:
            self.largest = self.v

    def step(self, grads):
        self.t += 1
        for p, g, m, v, largest in zip(self.flat, grads, self.m, self.v, self.largest, strict=True):
            self.update(p, g if g.ndim == 1 else g.reshape(-1), m, v, largest, self.t)


class NumbaSerial(NumbaParallel, name="numba serial"):
    parallel = False


class ScikitLearn(Contender, name="scikit-learn"):
    """scikit-learn's AdamOptimizer, as MLPClassifier uses it."""

    home = "sklearn.neural_network._stochastic_optimizers"

    def setup(self, threads):
        self.optimizer = import_module(self.home).AdamOptimizer(self.arrays, LR, BETA1, BETA2, EPS)

    def step(self, grads):
        self.optimizer.update_params(self.arrays, grads)


class Thinc(Contender, name="thinc"):
    """thinc's Adam, without its default clipping and averages; it zeroes gradients, so it gets copies (in its time)."""

    dtypes = ("float32",)
    home = "thinc.api"

    def setup(self, threads):
        options = {"beta1": BETA1, "beta2": BETA2, "eps": EPS, "L2": 0.0, "grad_clip": 0.0, "use_averages": False}
        self.optimizer = import_module(self.home).Adam(LR, **options)

    def step(self, grads):
        for i, grad in enumerate(grads):
            self.arrays[i], _ = self.optimizer((i, "W"), self.arrays[i], grad.copy())


class Autograd(Contender, name="autograd"):
    """HIPS autograd's adam loop on a flat vector; its state is float64 and lives only within one run."""

    varies = False
    least_steps = 5  # what a run begins with is shared among them

    def setup(self, threads):
        if sum(p.size for p in self.arrays) > 1 << 26:
            raise NotImplementedError("its float64 state and temporaries need more memory than this machine has")
        from autograd.misc.optimizers import adam

        self.adam, self.flat_grad = adam, np.concatenate([g.ravel() for g in self.grads])
        self.flat = np.concatenate([p.ravel() for p in self.arrays])

    def run(self, steps):
        self.flat = self.adam(lambda x, i: self.flat_grad, self.flat, num_iters=steps, step_size=LR)

    def params(self):
        pieces = np.split(self.flat, np.cumsum([p.size for p in self.arrays])[:-1])
        return [piece.reshape(p.shape) for piece, p in zip(pieces, self.arrays, strict=True)]


class Optax(Contender, name="optax jit"):
    """optax under jax.jit, all donated. (Its AMSGrad is another: the maximum of the corrected v.)"""

    rules = ("Adam", "AdamW")

    def setup(self, threads):
        if len(self.arrays) > 1000:
            raise NotImplementedError(f"jit takes too long to compile a step of {len(self.arrays)} arrays")
        import jax
        import optax

        jax.config.update("jax_enable_x64", True)
        options = {"weight_decay": DECAY} if self.rule == "AdamW" else {}
        optimizer = getattr(optax, self.rule.lower())(LR, BETA1, BETA2, EPS, **options)

        def step(params, state, grads):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.jit_step, self.wait = jax.jit(step, donate_argnums=(0, 1)), jax.block_until_ready
        self.jax_params = [jax.numpy.array(p) for p in self.arrays]
        self.grads = [jax.numpy.array(g) for g in self.grads]
        self.state = optimizer.init(self.jax_params)

    def step(self, grads):
        self.jax_params, self.state = self.jit_step(self.jax_params, self.state, grads)
        self.wait(self.jax_params)

    def params(self):
        return [np.asarray(p) for p in self.jax_params]


class TorchFused(Contender, name="torch fused"):
    """torch.optim.Adam(fused=True), behind clip_grad_norm_ where gradients are clipped."""

    rules = PEER_RULES
    options = {"fused": True}  # noqa: RUF012

    def setup(self, threads):
        import torch

        torch.set_num_threads(threads)
        self.from_numpy, self.bound, self.clip = torch.from_numpy, None, torch.nn.utils.clip_grad_norm_
        self.tensors = [torch.nn.Parameter(torch.from_numpy(p)) for p in self.arrays]
        self.optimizer = self.make(self.tensors)

    def make(self, tensors):
        import torch

        rule, decay = (torch.optim.AdamW, DECAY) if self.rule == "AdamW" else (torch.optim.Adam, 0.0)
        return rule(tensors, LR, (BETA1, BETA2), EPS, decay, self.rule == "AMSGrad", **self.options)

    def step(self, grads):
        clipped = self.rule == "clipped"
        if grads is not self.bound:
            for tensor, grad in zip(self.tensors, grads, strict=True):
                tensor.grad = self.from_numpy(grad.copy() if clipped else grad)  # clipping overwrites it
            self.bound = grads
        if clipped:
            self.clip(self.tensors, MAX_NORM)
        self.optimizer.step()


class TorchForeach(TorchFused, name="torch foreach"):
    options = {"foreach": True}  # noqa: RUF012


class TorchLoop(TorchFused, name="torch for-loop"):
    options = {"foreach": False}  # noqa: RUF012


class TorchCompiled(TorchForeach, name="torch compiled"):
    """The step of torch.optim.Adam through torch.compile, which needs a C++ compiler and 10 seconds at the first."""

    warm_up = 4  # it compiles the first steps, and some again

    def make(self, tensors):
        import torch

        if len(tensors) > 200:
            raise NotImplementedError(f"it takes too long to compile a step of {len(tensors)} arrays")
        if not COMPILER:
            raise ImportError("it needs a C++ compiler")
        optimizer = super().make(tensors)
        optimizer.step = torch.compile(optimizer.step)
        return optimizer


class DeepSpeed(TorchFused, name="DeepSpeed CPUAdam"):
    """DeepSpeedCPUAdam; it compiles its kernel at first use. (It accepts amsgrad=True and ignores it.)"""

    rules = ("Adam", "AdamW", "clipped")
    dtypes = ("float32",)

    def make(self, tensors):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        decay = {"weight_decay": DECAY if self.rule == "AdamW" else 0.0, "adamw_mode": self.rule == "AdamW"}
        return DeepSpeedCPUAdam(tensors, LR, betas=(BETA1, BETA2), eps=EPS, **decay)


# ---- our adapters, which are no peers


class InScikitLearn(ScikitLearn, name="fastadam.sklearn"):
    """The same class, stepped by fastadam."""

    home = "fastadam.sklearn"


class InThinc(Thinc, name="fastadam.thinc"):
    """The same class, stepped by fastadam."""

    home = "fastadam.thinc"


class InTorch(TorchFused, name="fastadam.torch"):
    """The same classes, stepped by fastadam, which clips on the way."""

    def make(self, tensors):
        from fastadam.torch import Adam, AdamW

        rule, decay = (AdamW, DECAY) if self.rule == "AdamW" else (Adam, 0.0)
        self.clip = lambda *_: None
        limit = MAX_NORM if self.rule == "clipped" else None
        return rule(tensors, LR, (BETA1, BETA2), EPS, decay, self.rule == "AMSGrad", max_norm=limit)


PEERS = [name for name in CONTENDERS if not name.startswith("fastadam")]
LATER = (30.0, -10.0, 0.0)  # the gradient's multiples in three more steps, which show wrong betas
PIECE = 1 << 20  # elements compared at once, so that it takes little memory


def check(contender, params, grads, steps):
    """Against float64. With a constant gradient m/bc1 = g and v/bc2 = g*g, so each step, clipped or not, moves by
    lr*g/(|g| + eps). Rules that no peer has: to the bit against fastadam's NumPy twin."""
    if contender.rule not in PEER_RULES:
        return check_twin(contender, params[0].reshape(-1)[:1000], grads[0].reshape(-1)[:1000], steps)
    kept = 1 - LR * DECAY if contender.rule == "AdamW" else 1.0
    moves = LR * sum(kept**i for i in range(steps))
    for arrays in zip(params, grads, contender.params(), strict=True):
        for at in range(0, arrays[0].size, PIECE):
            start, grad, end = (array.reshape(-1)[at : at + PIECE] for array in arrays)
            exact, spacing = grad.astype(np.float64), np.spacing(np.abs(start).max(initial=1.0) + steps * LR)
            expected = kept**steps * start.astype(np.float64) - moves * exact / (np.abs(exact) + EPS)
            close(contender, end, expected, 2e-3 * steps * LR + steps * float(spacing), f"after {steps} steps")
    return check_later(contender, grads, steps, kept) if contender.varies else None


def why_absent(error):
    """What is said of a contender that raised it."""
    return str(error) if isinstance(error, (ImportError, NotImplementedError)) else f"FAILED: {error}"


def close(contender, end, expected, most, when):
    error = np.abs(end - expected).max(initial=0.0)
    assert error <= most, f"{type(contender).__name__}: off by {error:.2e} {when}"


def check_twin(contender, p, g, steps):
    """The first elements of the first array; as many steps as were taken."""
    import fastadam
    from fastadam import reference

    name, options, _ = RULES[contender.rule]
    rule = {key: value for key, value in options.items() if key not in ("max_value", "ema_decay")}
    p = p.copy()
    state = dict(getattr(fastadam, name)(p, **options).state[0])
    ema = state.pop("ema", None)
    g = reference.gradient([g], [1.0], g.dtype, options.get("max_value"))
    for _ in range(steps):
        state["step"] += 1
        product = getattr(reference, f"{name.lower()}_update")(p, g, **state, lr=LR, **rule)
        if product is not None:
            state["mu_product"] = product
        if ema is not None:
            reference.ema_update(ema, p, options["ema_decay"])
    assert np.array_equal(p, contender.arrays[0].reshape(-1)[:1000]), f"{contender.rule}: the step and its twin differ"
    assert ema is None or np.array_equal(ema, contender.optimizer.ema[0].reshape(-1)[:1000])


def check_later(contender, grads, steps, kept):
    """Three more steps with other gradients, the first 1000 elements of each array against a float64 recurrence."""
    before = [p.reshape(-1)[:1000].astype(np.float64) for p in contender.params()]
    for factor in LATER:
        contender.step([grad * grad.dtype.type(factor) for grad in grads])
    norm = np.sqrt(sum(float(np.linalg.norm(grad.astype(np.float64))) ** 2 for grad in grads))
    most = MAX_NORM / norm if contender.rule == "clipped" else np.inf
    for p, grad, end in zip(before, grads, contender.params(), strict=True):
        start, g = p, grad.reshape(-1)[:1000].astype(np.float64)
        m, v = min(1.0, most) * g * (1 - BETA1**steps), (min(1.0, most) * g) ** 2 * (1 - BETA2**steps)
        for t, factor in enumerate(np.clip(LATER, -most, most), steps + 1):
            m = BETA1 * m + (1 - BETA1) * factor * g
            v = BETA2 * v + (1 - BETA2) * (factor * g) ** 2
            p = kept * p - LR * (m / (1 - BETA1**t)) / (np.sqrt(v / (1 - BETA2**t)) + EPS)
        rounding = 4 * float(np.spacing(np.abs(start).max(initial=1.0).astype(grad.dtype)))
        close(contender, end.reshape(-1)[:1000], p, 1e-3 * LR + rounding, "in later steps")
