"""The specification, in plain NumPy: what every kernel must compute, to the last bit.

One function for each optimizer: a step on one array, in place, with state that is passed in by its name in
`opt.state`. The optimizers, and ``fastadam.adam_update``, give the same bits. These are slow, make temporaries, and
check nothing but what NumPy checks. Read them to learn what fastadam computes, or test against them.

Every operation on arrays is rounded to the type of `param`, in the order written.
"""

import math
from collections.abc import Sequence

import numpy as np

__all__ = [
    "adagrad_update",
    "adam_update",
    "adamax_update",
    "ema_update",
    "grad_norm",
    "gradient",
    "nadam_update",
    "radam_update",
    "rmsprop_update",
    "rowadagrad_update",
    "sgd_update",
    "sum_rows",
]


def flush(x):
    """+0 where x is subnormal or zero; NaN stays."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, x.dtype.type(0), x)


def start(param, grad, lr, weight_decay, decoupled_weight_decay, maximize, grad_scale):
    """The gradient and the parameters as the rule finds them: scaled, negated, decayed."""
    R = param.dtype.type
    p = param
    g = R(-float(grad_scale) if maximize else float(grad_scale)) * np.asarray(grad).astype(R)
    if weight_decay != 0 and not decoupled_weight_decay:
        g = g + R(weight_decay) * p
    if weight_decay != 0 and decoupled_weight_decay:
        p = p * R(1 - float(lr) * float(weight_decay))
    return g, p


def average(old, new, beta):
    """Exponential moving average."""
    R = old.dtype.type
    return flush(R(beta) * old + R(1 - beta) * new)


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
    """Apply one step of stochastic gradient descent in place: the twin of ``fastadam.SGD``, which explains arguments.

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
    """Apply one step of RMSprop in place: the twin of ``fastadam.RMSprop``, which explains the arguments.

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
    """Apply one step of Adagrad in place: the twin of ``fastadam.Adagrad``, which explains the arguments.

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
    """Apply one step of row-wise Adagrad in place: the twin of ``fastadam.RowAdagrad``, which explains the arguments.

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

    The twin of ``fastadam.NAdam``, which has the equations and explains the arguments.

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
    """Apply one step of RAdam in place: the twin of ``fastadam.RAdam``, which has the equations and explains arguments.

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
    """Apply one step of Adamax in place: the twin of ``fastadam.Adamax``, which explains the arguments.

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


def gradient(
    grads: Sequence[np.ndarray], grad_scales: Sequence[float], dtype: type, max_value: float | None = None
) -> np.ndarray:
    """The gradient that a rule takes with `accumulate` or `max_value`: the mean of several, clipped by value.

    .. math:: \\min(\\max(\\frac{1}{k} \\sum_i grad\\_scale_i \\cdot g_i, -max\\_value), max\\_value)

    Parameters
    ----------
    grads : sequence of k ndarrays
        In the order of the calls.
    grad_scales : sequence of k floats
        As given to ``step`` with each.
    dtype : float32 or float64
        The parameter's.
    max_value : float or None, default None

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> fastadam.reference.gradient([np.array([2.0]), np.array([8.0])], [1.0, 1.0], np.float64, max_value=4.0)
    array([4.])
    """
    R = np.dtype(dtype).type
    with np.errstate(all="ignore"):
        total = R(grad_scales[0]) * np.asarray(grads[0]).astype(R)
        for scale, grad in zip(grad_scales[1:], grads[1:], strict=True):
            total = total + R(scale) * np.asarray(grad).astype(R)
        mean = total * R(1 / len(grads))
        if max_value is not None:
            limit = R(max_value)
            mean = np.where(mean > limit, limit, np.where(mean < -limit, -limit, mean))
    return mean


def ema_update(ema: np.ndarray, param: np.ndarray, ema_decay: float) -> None:
    """Move the average of a parameter in place, after its step.

    .. math:: ema = ema\\_decay \\cdot ema + (1 - ema\\_decay) p

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> ema = np.array([5.0])
    >>> fastadam.reference.ema_update(ema, np.array([3.0]), 0.75)
    >>> ema
    array([4.5])
    """
    with np.errstate(all="ignore"):
        ema[...] = average(ema, param, float(ema_decay))


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
    total = np.zeros(1)
    with np.errstate(all="ignore"):
        for grad in grads:
            total = sum_squares(np.ravel(grad, order="K")[None], total)
    return abs(float(grad_scale)) * math.sqrt(total[0])


def sum_squares(rows, total):
    """For each row add the sum of squares of each block of 4096 elements to the total, in their order."""
    x = rows.astype(np.float64)
    for start in range(0, x.shape[1], 4096):
        block = x[:, start : start + 4096]
        lanes = np.pad(block, ((0, 0), (0, -block.shape[1] % 16))).reshape(len(x), -1, 16)
        sums = np.zeros((len(x), 16))
        for i in range(lanes.shape[1]):
            sums = sums + lanes[:, i] * lanes[:, i]
        for half in 8, 4, 2, 1:
            sums = sums[:, :half] + sums[:, half:]
        total = total + sums[:, 0]
    return total


def sum_rows(rows: np.ndarray, grads: np.ndarray, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows, ascending, and the gradient of each: what a step with ``fastadam.Rows(rows, grads)`` takes.

    .. math:: g_r = \\sum_{i: rows_i = r} grads_i

    Gradients of the same row are added in the order given. The step is then the rule's on these rows of the parameter
    and of its state alone. The norm to clip by is `grad_norm` with each of these gradients as an array of its own.

    Parameters
    ----------
    rows : ndarray of k integers
    grads : ndarray of shape (k, ...)
    dtype : float32 or float64
        The parameter's.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, m, v = np.ones((4, 2)), np.zeros((4, 2)), np.zeros((4, 2))
    >>> grads = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> u, g = fastadam.reference.sum_rows(np.array([2, 0, 2]), grads, p.dtype)
    >>> u, g
    (array([0, 2]), array([[3., 4.],
           [6., 8.]]))
    >>> some = p[u], m[u], v[u]
    >>> fastadam.reference.adam_update(some[0], g, some[1], some[2], 1, lr=0.1)
    >>> p[u], m[u], v[u] = some
    """
    R = np.dtype(dtype).type
    distinct, inverse = np.unique(rows, return_inverse=True)
    total = np.full((len(distinct), *grads.shape[1:]), R(-0.0))  # -0.0 + x is x
    with np.errstate(all="ignore"):
        np.add.at(total, inverse, grads.astype(R))
    return distinct, total
