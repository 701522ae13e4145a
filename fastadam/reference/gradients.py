"""What comes before a rule and after it, and the operations that rules share."""

import math
from collections.abc import Sequence

import numpy as np


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
    max_value : float > 0 or None, default None
        None does not clip.

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

    Parameters
    ----------
    ema : ndarray of float32 or float64
        The average, updated in place.
    param : ndarray
        The parameter, of the same shape and type.
    ema_decay : float from 0 to 1
        As the option of this name.

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


def clip_scale(grads: Sequence[np.ndarray], max_norm: float, grad_scale: float = 1.0) -> float:
    """What clipping by a norm multiplies gradients by, grad_scale included: the ``grad_scale`` of the rule's twin.

    .. math:: grad\\_scale \\cdot \\min(1, \\frac{max\\_norm}{norm + 10^{-6}})

    Parameters
    ----------
    grads : sequence of ndarray
        As for `grad_norm`. With ``max_norm`` all gradients; with ``max_norm_each`` one array's alone, for each of them.
    max_norm : float
        Either of these options.
    grad_scale : float, default 1
        As given to ``step``. With ``accumulate`` it is in `gradient` already: 1 here.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> grads = [np.array([3.0, 4.0]), np.array([0.5])]
    >>> [round(fastadam.reference.clip_scale([grad], 1.0), 6) for grad in grads]
    [0.2, 1.0]
    """
    factor = max_norm / (grad_norm(grads, grad_scale) + 1e-6)
    return float(grad_scale) if factor >= 1 else float(grad_scale) * factor


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
        In any order; they may repeat.
    grads : ndarray of shape (k, ...)
        The gradient of each.
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
