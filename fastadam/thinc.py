"""thinc's Adam with fastadam's steps, for thinc and spaCy: in a config ``@optimizers = "fastadam.Adam.v1"``."""

import math
from typing import Any

import numpy as np
from thinc.backends import NumpyOps
from thinc.optimizers import Optimizer

import fastadam

__all__ = ["Adam"]

OPS = NumpyOps()
BELOW = {"learn_rate": math.inf, "L2": math.inf, "beta1": 1, "beta2": 1, "eps": math.inf, "grad_clip": math.inf}
ATTRIBUTES = {"beta1": "b1", "beta2": "b2"}  # thinc's names for them, where they differ from its arguments


class Adam(Optimizer):
    """thinc's Adam, updated in one pass: the same arguments and attributes, called in the same way.

    .. math::
        g &= g \\min(1, grad\\_clip / \\lVert g \\rVert), \\quad
        p = p - lr \\frac{\\sqrt{1-\\beta_2^t}}{1-\\beta_1^t} \\frac{m}{\\sqrt{v} + eps} \\\\
        p &= p - lr \\cdot L2 \\cdot p, \\quad average = d \\cdot average + (1-d) p, \\quad
        d = \\min((1+t)/(10+t), 0.9999)

    lr is ``learn_rate * lr_scale``. Called as ``optimizer(key, weights, gradient, lr_scale=1.0)``, it changes the array
    `weights`, fills `gradient` with zeros and returns both. Its results differ from thinc's in the last digits.
    What fastadam does not do is left to thinc: both betas of 0, which is its SGD, arrays on a GPU, and weights or
    gradients that are not float32 and C-contiguous.

    Parameters
    ----------
    learn_rate : float, list, generator or schedule, default 0.001, >= 0
        Schedules are thinc's; of fastadam's give ``(lr(t) for t in itertools.count())``. All numbers below may be given
        in these ways. They are checked at each step.
    L2 : float, default 0, >= 0
        Decay of the weights after the step; with ``L2_is_weight_decay=False`` added to the gradient, before it is
        clipped.
    beta1, beta2 : float, default 0.9 and 0.999, in (0, 1), or both 0
        Decay of m and v per step.
    eps : float, default 1e-8, >= 0
        Added to the root.
    grad_clip : float, default 1.0, >= 0
        The largest norm of the gradient of one array; 0 does not clip.
    use_averages : bool, default True
        Keep averages of the weights, which begin as zeros.
    L2_is_weight_decay : bool, default True
        See `L2`.

    Attributes
    ----------
    mom1, mom2, averages : dict of ndarray
        m, v (1-D) and the averages of each key; `averages` is None without `use_averages`.
    nr_update : dict of int
        t of each key.

    Raises
    ------
    TypeError, ValueError
        A number is out of its range, or a call was given something that `fastadam.adam_update` refuses. Nothing has
        been stepped then.

    Examples
    --------
    >>> import numpy as np
    >>> from fastadam.thinc import Adam
    >>> optimizer = Adam(0.1)
    >>> weights, gradient = np.zeros(3, "f"), np.full(3, 0.5, "f")
    >>> _ = optimizer((0, "b"), weights, gradient)
    >>> weights.round(4), gradient
    (array([-0.1, -0.1, -0.1], dtype=float32), array([0., 0., 0.], dtype=float32))

    References
    ----------
    ``thinc/optimizers.py`` of thinc 8.3 and 9.1.
    """

    __slots__ = ()

    def __init__(
        self,
        learn_rate: Any = 0.001,
        *,
        L2: Any = 0.0,  # noqa: N803
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        eps: Any = 1e-8,
        grad_clip: Any = 1.0,
        use_averages: bool = True,
        L2_is_weight_decay: bool = True,  # noqa: N803
    ) -> None:
        options = {"L2": L2, "beta1": beta1, "beta2": beta2, "eps": eps, "grad_clip": grad_clip}
        options |= {"use_averages": use_averages, "L2_is_weight_decay": L2_is_weight_decay}
        super().__init__(learn_rate, **options)

    def __call__(self, key: Any, weights: Any, gradient: Any, *, lr_scale: float = 1.0) -> Any:
        if len(gradient) < 1:
            return weights, gradient
        learn_rate, decay, beta1, beta2, eps, clip = self._numbers(key, lr_scale)
        lr, given = learn_rate * lr_scale, gradient
        if decay and not self.L2_is_weight_decay:
            gradient, decay = gradient + decay * weights, 0.0
        # Decay after the step, p*kept - step*kept, is AdamW with other numbers.
        kept = 1.0 - lr * decay
        plain = beta1 > 0 and kept > 0 and not self.use_radam
        if not (plain and _is_flat(weights) and _is_flat(gradient)):
            return super().__call__(key, weights, given, lr_scale=lr_scale)
        if not given.flags.writeable:
            raise ValueError(f"the gradient of {key!r} is read-only, and a step fills it with zeros; give a copy")
        if key not in self.mom1:
            self.mom1[key], self.mom2[key] = OPS.alloc1f(weights.size), OPS.alloc1f(weights.size)
        m: Any = self.mom1[key]
        average = (self.averages or {}).get(key, weights)
        if m.size != weights.size or average.shape != weights.shape:
            raise ValueError(
                f"the weights of {key!r} have the shape {weights.shape}, and had another before; give each array a key "
                "of its own"
            )
        v: Any = self.mom2[key]
        t, flat = self.nr_update[key] + 1, gradient.reshape(-1)
        norm = math.sqrt(flat @ flat) if clip else 0.0
        fastadam.adam_update(
            weights.reshape(-1),
            flat,
            m,
            v,
            t,
            lr=lr * kept,
            betas=(beta1, beta2),
            eps=eps,
            eps_hat=True,
            weight_decay=decay / kept,
            decoupled_weight_decay=True,
            grad_scale=clip / norm if norm > clip else 1.0,
        )
        self.nr_update[key] = t
        given.fill(0)
        if self.averages is not None:
            if key not in self.averages:
                self.averages[key] = OPS.alloc(weights.shape, dtype="float32")
            OPS.update_averages(self.averages[key], weights, t)
        return weights, given

    def _numbers(self, key: Any, lr_scale: float) -> list[float]:
        """Those of this step, checked. thinc 9 has a schedule where thinc 8 has the number."""
        found = [getattr(self, ATTRIBUTES.get(name, name)) for name in BELOW]
        found = [x(self.step, key=key, last_score=self.last_score) if callable(x) else x for x in found]
        for (name, below), value in zip([*BELOW.items(), ("lr_scale", math.inf)], [*found, lr_scale], strict=True):
            if not (0 <= value < below or (name == "grad_clip" and value == math.inf)):
                allowed = ">= 0" if name == "grad_clip" else "in [0, 1)" if below == 1 else "finite and >= 0"
                raise ValueError(f"{name} must be {allowed}, got {value}")
        if (found[2] > 0) != (found[3] > 0):
            raise ValueError(
                f"beta1={found[2]} and beta2={found[3]}: thinc has no such rule; give two above 0, or two 0"
            )
        return found


def _is_flat(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.float32 and array.flags.c_contiguous
