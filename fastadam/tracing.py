"""A record of an optimizer at work: points, losses, gradients and state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np

from fastadam._numbers import as_count, as_number
from fastadam.optimizer import Optimizer
from fastadam.rules import Adam


@dataclass(frozen=True, eq=False)
class Trace:
    """What `trace` returns. The first axis of every array is time; what has the shape of x0 has its axes after it.

    Attributes
    ----------
    x, gradient : ndarray, shape (steps + 1, ...)
        The start and where each step led, and the gradients there.
    update : ndarray, shape (steps, ...)
        What each step added to x.
    loss : float64 ndarray, shape (steps + 1,)
        The values there.
    state : mapping of str to ndarray, each (steps, ...) or (steps,)
        The optimizer's own state by its names ("exp_avg", "momentum_buffer", "step", ...), after each step.
    correction : mapping of str to float64 ndarray, shape (steps,)
        Adam's factors 1 - beta**t by which "exp_avg" and "exp_avg_sq" fall short: ones without bias_correction. Empty
        for other optimizers.
    corrected : mapping of str to ndarray, shape (steps, ...)
        Adam's averages divided by these factors.

    Examples
    --------
    >>> import fastadam
    >>> record = fastadam.trace(fastadam.Adam, lambda x: (x @ x, 2 * x), [3.0, 4.0], steps=2)
    >>> record.loss[0], record.x.shape, record.state["exp_avg"].shape
    (np.float64(25.0), (3, 2), (2, 2))
    """

    x: np.ndarray
    loss: np.ndarray
    gradient: np.ndarray
    state: Mapping[str, np.ndarray]
    correction: Mapping[str, np.ndarray]
    corrected: Mapping[str, np.ndarray]

    @property
    def update(self) -> np.ndarray:
        """The effective steps, shape (steps, ...): what each step added to x."""
        return np.diff(self.x, axis=0)


def trace(
    optimizer: Callable[[np.ndarray], Optimizer],
    f: Callable[[np.ndarray], tuple[Any, Any]],
    x0: Any,
    steps: SupportsIndex,
) -> Trace:
    r"""Run an optimizer on a function of your own and keep a record of every step.

    .. math:: x_{t+1} = x_t + \text{update}_t(\nabla f(x_t), \text{state}_t)

    Parameters
    ----------
    optimizer : callable
        Given the array to optimize, returns an optimizer over it: a class such as ``fastadam.Adam``,
        ``functools.partial(fastadam.Adam, lr=0.1)``, or ``lambda x: fastadam.SGD(x, lr=0.1, momentum=0.9)``.
    f : callable
        Given x, which it cannot write into, returns the value there, a number, and the gradient, an array of the
        shape of x. It is called steps + 1 times.
    x0 : array_like of any shape
        The start, which stays as it is. float32 and float64 are kept, integers become float64.
    steps : int, >= 1
        How many steps to take.

    Returns
    -------
    Trace
        Copies of x, loss, gradient and state. A loss or gradient that is NaN or infinite is recorded as it is.

    Raises
    ------
    TypeError, ValueError
        Something is of the wrong kind, dtype, value or shape; the message says what is allowed.

    Notes
    -----
    For Adam and AdamW the bias-corrected averages are recorded, too. Schedules of betas are called again for
    that, in the end, with the same counts.

    Examples
    --------
    Adam's first step is lr in each coordinate, however steep or flat it is there:

    >>> from functools import partial
    >>> import numpy as np, fastadam
    >>> def ravine(x):
    ...     steep = np.array([1.0, 100.0])
    ...     return steep @ x**2 / 2, steep * x
    >>> record = fastadam.trace(partial(fastadam.Adam, lr=0.1), ravine, x0=[-2.0, 1.0], steps=100)
    >>> record.gradient[0]
    array([ -2., 100.])
    >>> record.update[0].round(6)
    array([ 0.1, -0.1])
    >>> record.state["exp_avg"][0], record.corrected["exp_avg"][0]
    (array([-0.2, 10. ]), array([ -2., 100.]))
    >>> bool(record.loss[-1] < 1e-3 * record.loss[0])
    True

    References
    ----------
    The corrections are those of Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, section 3.
    """
    for name, value in ("optimizer", optimizer), ("f", f):
        if not callable(value):
            hint = "; give what makes one, such as functools.partial(fastadam.Adam, lr=0.1)" if name != "f" else ""
            raise TypeError(f"{name} must be callable, got a {type(value).__name__}{hint}")
    x = as_start(x0)
    count = as_count(steps, "steps", 1)
    stepper = optimizer(x)
    check_is_over(stepper, x)

    xs = np.empty((count + 1, *x.shape), x.dtype)
    gradients = np.empty_like(xs)
    losses = np.empty(count + 1)
    rows: list[dict[str, Any]] = []
    for t in range(count + 1):
        xs[t] = x
        here = xs[t, ...]
        here.flags.writeable = False
        losses[t], gradients[t] = as_value_and_gradient(f(here), x)
        if t < count:
            stepper.step(gradients[t, ...])
            (entry,) = stepper.state.values()
            rows.append({name: np.array(value) for name, value in entry.items()})
    state = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    correction = corrections(stepper, state["step"]) if isinstance(stepper, Adam) else {}
    corrected = {}
    for name, factor in correction.items():  # in the average's own type
        corrected[name] = state[name] / factor.astype(x.dtype).reshape(-1, *[1] * x.ndim)
    return Trace(xs, losses, gradients, state, correction, corrected)


def corrections(adam: Adam, counts: np.ndarray) -> dict[str, np.ndarray]:
    """What Adam divided its averages by in its last step, given its counter after each call."""
    (group,) = adam.param_groups
    factors = []
    for taken in np.maximum(counts - 1, 0).tolist():  # before the first step any divisor will do: averages are zero
        betas = at(group["betas"], taken) if group["bias_correction"] else (0.0, 0.0)
        factors.append([1 - float(at(beta, taken)) ** (taken + 1) for beta in betas])
    return dict(zip(("exp_avg", "exp_avg_sq"), np.array(factors).T, strict=True))


def at(value: Any, taken: int) -> Any:
    """A schedule's value after `taken` steps; anything else as it is."""
    return value(taken) if callable(value) else value


def as_start(x0: Any) -> np.ndarray:
    """A copy of x0 to optimize in."""
    x = np.array(x0, order="C")
    if x.dtype.kind in "iu":
        x = x.astype(np.float64)
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"x0 must be an array of float32, float64 or integers, got {x.dtype}")
    return x


def check_is_over(stepper: Optimizer, x: np.ndarray) -> None:
    if not isinstance(stepper, Optimizer):
        raise TypeError(f"optimizer must return one of fastadam's optimizers, got a {type(stepper).__name__}")
    params = [param for group in stepper.param_groups for param in group["params"]]
    if len(params) != 1 or params[0] is not x:
        raise ValueError("optimizer must return an optimizer over the one array that it is given, and no other")


def as_value_and_gradient(pair: Any, x: np.ndarray) -> tuple[float, np.ndarray]:
    try:
        value, gradient = pair
    except (TypeError, ValueError):
        length = f" of length {len(pair)}" if isinstance(pair, tuple | list) else ""
        raise TypeError(f"f must return a pair (value, gradient), got a {type(pair).__name__}{length}") from None
    gradient = np.asarray(gradient)
    if gradient.dtype.kind not in "iuf":
        raise TypeError(f"f must return a gradient of real numbers, got {gradient.dtype}")
    if gradient.shape != x.shape:
        raise ValueError(f"f must return a gradient of the shape of x0, {x.shape}, got {gradient.shape}")
    return as_number(value, "the value that f returns"), gradient
