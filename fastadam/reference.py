"""The specification, in plain NumPy: what every kernel must compute, to the last bit.

`adam_update` here and ``fastadam.adam_update`` take the same arguments and give the same bits. This one is slow,
makes temporaries, and checks nothing but what NumPy checks. Read it to learn what fastadam computes, or test
against it.
"""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["adam_update", "grad_norm"]


def adam_factors(step, *, lr, betas, weight_decay, maximize, bias_correction, eps_hat, grad_scale):
    """The numbers that are the same for every element: Python floats, evaluated from left to right."""
    beta1, beta2 = float(betas[0]), float(betas[1])
    lr, weight_decay, grad_scale = float(lr), float(weight_decay), float(grad_scale)
    bc1 = 1 - beta1**step if bias_correction else 1.0
    bc2 = 1 - beta2**step if bias_correction else 1.0
    if eps_hat:
        step_size, inv_bc2 = lr * math.sqrt(bc2) / bc1, 1.0
    else:
        step_size, inv_bc2 = lr / bc1, 1 / bc2
    return {
        "s": -grad_scale if maximize else grad_scale,
        "wd": weight_decay,
        "d": 1 - lr * weight_decay,
        "b1": beta1,
        "c1": 1 - beta1,
        "b2": beta2,
        "c2": 1 - beta2,
        "step_size": step_size,
        "inv_bc2": inv_bc2,
    }


def flush(x):
    """+0 where x is subnormal or zero; NaN stays."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, x.dtype.type(0), x)


def adam_update(
    param: np.ndarray,
    grad: np.ndarray | np.floating,
    exp_avg: np.ndarray,
    exp_avg_sq: np.ndarray,
    step: int,
    *,
    lr: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    amsgrad: bool = False,
    max_exp_avg_sq: np.ndarray | None = None,
    maximize: bool = False,
    bias_correction: bool = True,
    eps_root: float = 0.0,
    eps_hat: bool = False,
    grad_scale: float = 1.0,
    threads: int | None = None,
) -> None:
    """Apply one step of Adam in place: the twin of ``fastadam.adam_update``, which documents the arguments.

    .. math::
        m = \\beta_1 m + (1-\\beta_1) g, \\quad v = \\beta_2 v + (1-\\beta_2) g^2, \\quad
        p = p - \\frac{lr}{1-\\beta_1^t} \\frac{m}{\\sqrt{v/(1-\\beta_2^t) + eps_{root}} + eps}

    Every operation on arrays is rounded to the type of `param`, in the order written. `threads` is ignored.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> fastadam.reference.adam_update(p, np.array([3.0, -0.5]), m, v, 1, lr=0.1)
    >>> p
    array([0.9, 1.1])
    """
    R = param.dtype.type
    factors = adam_factors(
        step,
        lr=lr,
        betas=betas,
        weight_decay=weight_decay,
        maximize=maximize,
        bias_correction=bias_correction,
        eps_hat=eps_hat,
        grad_scale=grad_scale,
    )
    with np.errstate(all="ignore"):
        s, wd, d, b1, c1, b2, c2, step_size, inv_bc2 = (R(x) for x in factors.values())
        p = param
        g = s * np.asarray(grad).astype(R)
        if weight_decay != 0 and not decoupled_weight_decay:
            g = g + wd * p
        if weight_decay != 0 and decoupled_weight_decay:
            p = p * d
        exp_avg[...] = m = flush(b1 * exp_avg + c1 * g)
        exp_avg_sq[...] = a = flush(b2 * exp_avg_sq + c2 * (g * g))
        if max_exp_avg_sq is not None:
            max_exp_avg_sq[...] = a = flush(np.maximum(max_exp_avg_sq, a))
        param[...] = p - (step_size * m) / (np.sqrt(a * inv_bc2 + R(eps_root)) + R(eps))


def grad_norm(grads: Sequence[np.ndarray], grad_scale: float = 1.0) -> float:
    """The global norm that ``max_norm`` clips by: the twin of ``opt.grad_norm``.

    .. math:: |grad\\_scale| \\sqrt{\\sum g^2}

    Squares are summed in float64: in blocks of 4096 elements, counted from each array's start in memory order, 16
    interleaved sums, which are then added in pairs; blocks and arrays are added in their order.

    Parameters
    ----------
    grads : sequence of ndarray
        All gradients, in the types and memory orders of their parameters.
    grad_scale : float, default 1
        As given to ``step``.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> fastadam.reference.grad_norm([np.array([3.0]), np.array([0.0, 4.0])], grad_scale=2.0)
    10.0
    """
    total = 0.0
    with np.errstate(all="ignore"):
        for grad in grads:
            g = grad.ravel(order="K").astype(np.float64)
            for start in range(0, g.size, 4096):
                block = g[start : start + 4096]
                rows = np.pad(block, (0, -block.size % 16)).reshape(-1, 16)
                sums = np.zeros(16)
                for row in rows:
                    sums = sums + row * row
                for half in 8, 4, 2, 1:
                    sums = sums[:half] + sums[half:]
                total += float(sums[0])
    return abs(float(grad_scale)) * math.sqrt(total)
