"""The rules: one function for each optimizer, a step on one array."""

import math
from collections.abc import Sequence

import numpy as np

from fastadam.reference.gradients import average, flush, start, sum_squares


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

    `threads` is ignored.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> fastadam.reference.adam_update(p, np.array([3.0, -0.5]), m, v, 1, lr=0.1)
    >>> p
    array([0.9, 1.1])
    """
    R = param.dtype.type
    beta1, beta2, lr = float(betas[0]), float(betas[1]), float(lr)
    bc1 = 1 - beta1**step if bias_correction else 1.0
    bc2 = 1 - beta2**step if bias_correction else 1.0
    if eps_hat:
        step_size, inv_bc2 = lr * math.sqrt(bc2) / bc1, 1.0
    else:
        step_size, inv_bc2 = lr / bc1, 1 / bc2
    with np.errstate(all="ignore"):
        g, p = start(param, grad, lr, weight_decay, decoupled_weight_decay, maximize, grad_scale)
        exp_avg[...] = m = average(exp_avg, g, beta1)
        exp_avg_sq[...] = a = average(exp_avg_sq, g * g, beta2)
        if max_exp_avg_sq is not None:
            max_exp_avg_sq[...] = a = flush(np.maximum(max_exp_avg_sq, a))
        param[...] = p - (R(step_size) * m) / (np.sqrt(a * R(inv_bc2) + R(eps_root)) + R(eps))


def sgd_update(
    param: np.ndarray,
    grad: np.ndarray | np.floating,
    step: int,
    *,
    momentum_buffer: np.ndarray | None = None,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """Apply one step of SGD in place: the twin of ``fastadam.sgd_update``, which documents the arguments.

    .. math:: b = \\mu b + (1-dampening) g, \\quad p = p - lr \\cdot b

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p = np.ones(2)
    >>> fastadam.reference.sgd_update(p, np.array([3.0, -0.5]), 1, lr=0.1)
    >>> p
    array([0.7 , 1.05])
    """
    R = param.dtype.type
    with np.errstate(all="ignore"):
        g, p = start(param, grad, lr, weight_decay, False, maximize, grad_scale)
        if momentum != 0:
            assert momentum_buffer is not None, "momentum needs momentum_buffer"
            c1 = 1.0 if step == 1 else 1 - float(dampening)
            momentum_buffer[...] = b = flush(R(momentum) * momentum_buffer + R(c1) * g)
            g = g + R(momentum) * b if nesterov else b
        param[...] = p - R(lr) * g


def rmsprop_update(
    param: np.ndarray,
    grad: np.ndarray | np.floating,
    square_avg: np.ndarray,
    step: int,
    *,
    momentum_buffer: np.ndarray | None = None,
    grad_avg: np.ndarray | None = None,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """Apply one step of RMSprop in place: the twin of ``fastadam.rmsprop_update``, which documents the arguments.

    .. math:: v = \\alpha v + (1-\\alpha) g^2, \\quad p = p - lr \\frac{g}{\\sqrt{v} + eps}

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, v = np.ones(2), np.zeros(2)
    >>> fastadam.reference.rmsprop_update(p, np.array([3.0, -0.5]), v, 1, lr=0.1)
    >>> p.round(6)
    array([0., 2.])
    """
    R = param.dtype.type
    alpha = float(alpha)
    with np.errstate(all="ignore"):
        g, p = start(param, grad, lr, weight_decay, False, maximize, grad_scale)
        square_avg[...] = a = average(square_avg, g * g, alpha)
        if centered:
            assert grad_avg is not None, "centered needs grad_avg"
            grad_avg[...] = m = average(grad_avg, g, alpha)
            a = a - m * m
            a = np.where(a < 0, R(0), a)
        if momentum != 0:
            assert momentum_buffer is not None, "momentum needs momentum_buffer"
            momentum_buffer[...] = b = flush(R(momentum) * momentum_buffer + g / (np.sqrt(a) + R(eps)))
            param[...] = p - R(lr) * b
        else:
            param[...] = p - (R(lr) * g) / (np.sqrt(a) + R(eps))


def adagrad_update(
    param: np.ndarray,
    grad: np.ndarray | np.floating,
    sum: np.ndarray,
    step: int,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """Apply one step of Adagrad in place: the twin of ``fastadam.adagrad_update``, which documents the arguments.

    .. math:: s = s + g^2, \\quad p = p - \\frac{lr}{1 + (t-1) lr\\_decay} \\frac{g}{\\sqrt{s} + eps}

    `initial_accumulator_value` is what `sum` was filled with before the first step, and is not used.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, s = np.ones(2), np.zeros(2)
    >>> fastadam.reference.adagrad_update(p, np.array([3.0, -0.5]), s, 1, lr=0.1)
    >>> p.round(6)
    array([0.9, 1.1])
    """
    R = param.dtype.type
    step_size = float(lr) / (1 + (step - 1) * float(lr_decay))
    with np.errstate(all="ignore"):
        g, p = start(param, grad, lr, weight_decay, False, maximize, grad_scale)
        sum[...] = a = flush(sum + g * g)
        param[...] = p - (R(step_size) * g) / (np.sqrt(a) + R(eps))


def rowadagrad_update(
    param: np.ndarray,
    grad: np.ndarray,
    sum: np.ndarray,
    step: int,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """Apply one step of RowAdagrad in place: the twin of ``fastadam.rowadagrad_update``, which documents the arguments.

    .. math:: s = s + mean(g^2), \\quad p = p - \\frac{lr}{1 + (t-1) lr\\_decay} \\frac{g}{\\sqrt{s} + eps}

    `sum` (s) has one number for each row. Squares are summed as `grad_norm` sums those of an array, row by row.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, s = np.ones((2, 2)), np.zeros(2)
    >>> fastadam.reference.rowadagrad_update(p, np.array([[3.0, 4.0], [0.0, -0.5]]), s, 1, lr=0.1)
    >>> s, p.round(4)
    (array([12.5  ,  0.125]), array([[0.9151, 0.8869],
           [1.    , 1.1414]]))
    """
    R = param.dtype.type
    step_size = float(lr) / (1 + (step - 1) * float(lr_decay))
    with np.errstate(all="ignore"):
        g, p = start(param, grad, lr, weight_decay, False, maximize, grad_scale)
        if param.size:
            rows = g.reshape(len(g), -1)
            sum[...] = a = flush(sum + (sum_squares(rows, np.zeros(len(rows))) / rows.shape[1]).astype(R))
            root = np.sqrt(a).reshape(-1, *[1] * (param.ndim - 1)) + R(eps)
            param[...] = p - (R(step_size) * g) / root


def nadam_update(
    param: np.ndarray,
    grad: np.ndarray | np.floating,
    exp_avg: np.ndarray,
    exp_avg_sq: np.ndarray,
    step: int,
    mu_product: float,
    *,
    lr: float = 2e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> float:
    """Apply one step of NAdam in place, and return the new `mu_product`, which is 1 before the first step.

    The twin of ``fastadam.nadam_update``, which has the equations and documents the arguments.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> product = fastadam.reference.nadam_update(p, np.array([3.0, -0.5]), m, v, 1, 1.0, lr=0.1)
    >>> p.round(4), round(product, 4)
    (array([0.8944, 1.1056]), 0.4501)
    """
    R = param.dtype.type
    beta1, beta2, lr = float(betas[0]), float(betas[1]), float(lr)
    mu = beta1 * (1 - 0.5 * 0.96 ** (step * float(momentum_decay)))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * float(momentum_decay)))
    mu_product = mu_product * mu
    grad_size = lr * (1 - mu) / (1 - mu_product)
    step_size = lr * mu_next / (1 - mu_product * mu_next)
    with np.errstate(all="ignore"):
        g, p = start(param, grad, lr, weight_decay, decoupled_weight_decay, maximize, grad_scale)
        exp_avg[...] = m = average(exp_avg, g, beta1)
        exp_avg_sq[...] = v = average(exp_avg_sq, g * g, beta2)
        param[...] = p - (R(grad_size) * g + R(step_size) * m) / (np.sqrt(v * R(1 / (1 - beta2**step))) + R(eps))
    return mu_product


def radam_update(
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
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """Apply one step of RAdam in place: the twin of ``fastadam.radam_update``, which has the equations and documents
    the arguments.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> fastadam.reference.radam_update(p, np.array([3.0, -0.5]), m, v, 1, lr=0.1)
    >>> p
    array([0.7 , 1.05])
    """
    R = param.dtype.type
    beta1, beta2, lr = float(betas[0]), float(betas[1]), float(lr)
    bc1, bc2 = 1 - beta1**step, 1 - beta2**step
    most = 2 / (1 - beta2) - 1
    now = most - 2.0 * step * beta2**step / bc2
    with np.errstate(all="ignore"):
        g, p = start(param, grad, lr, weight_decay, decoupled_weight_decay, maximize, grad_scale)
        exp_avg[...] = m = average(exp_avg, g, beta1)
        exp_avg_sq[...] = v = average(exp_avg_sq, g * g, beta2)
        if now > 5:
            rect = math.sqrt((now - 4) * (now - 2) * most / ((most - 4) * (most - 2) * now))
            param[...] = p - (R(lr * rect * math.sqrt(bc2) / bc1) * m) / (np.sqrt(v) + R(eps))
        else:  # an infinite v, whose square has overflowed, makes this NaN
            param[...] = p - (R(lr / bc1) * m) / (np.sqrt(v * R(0)) + R(1))


def adamax_update(
    param: np.ndarray,
    grad: np.ndarray | np.floating,
    exp_avg: np.ndarray,
    exp_inf: np.ndarray,
    step: int,
    *,
    lr: float = 2e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """Apply one step of Adamax in place: the twin of ``fastadam.adamax_update``, which documents the arguments.

    .. math:: u = \\max(\\beta_2 u, |g| + eps), \\quad p = p - \\frac{lr}{1-\\beta_1^t} \\frac{m}{u}

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, m, u = np.ones(2), np.zeros(2), np.zeros(2)
    >>> fastadam.reference.adamax_update(p, np.array([3.0, -0.5]), m, u, 1, lr=0.1)
    >>> p.round(6)
    array([0.9, 1.1])
    """
    R = param.dtype.type
    beta1, beta2 = float(betas[0]), float(betas[1])
    step_size = float(lr) / (1 - beta1**step)
    with np.errstate(all="ignore"):
        g, p = start(param, grad, lr, weight_decay, False, maximize, grad_scale)
        exp_avg[...] = m = average(exp_avg, g, beta1)
        exp_inf[...] = u = flush(np.maximum(R(beta2) * exp_inf, np.abs(g) + R(eps)))
        param[...] = p - (R(step_size) * m) / u
