"""Hyper-parameters that change while training: the usual schedules, as functions of the number of steps taken.

>>> import numpy as np, fastadam
>>> lr = fastadam.schedules.warmup_cosine(0.1, warmup_steps=2, total_steps=10)
>>> opt = fastadam.AdamW(np.zeros(3), lr=lr)
>>> [round(lr(t), 3) for t in (0, 1, 2, 6, 10, 1000)]
[0.0, 0.05, 0.1, 0.05, 0.0, 0.0]

A schedule is called with t, the number of steps taken so far: 0 for the first step. It returns a Python float. Beyond
its end it stays at its end value. It can be any hyper-parameter that is a number, or one of the betas. Each step checks
that the value is one that the hyper-parameter may have.

Schedules are values. Two with the same arguments are equal and have one hash, and `repr` evaluates to an equal one.
Pickle and `copy.deepcopy` take them, alone or inside an optimizer. To change one, make another.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from fastadam._numbers import as_count, as_number

__all__ = ["constant", "exponential", "one_cycle", "piecewise", "warmup_cosine", "warmup_linear"]


def _magnitude(value: Any, name: str) -> float:
    x = as_number(value, name)
    if not 0.0 <= x < math.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {value!r}")
    return x


def _positive(value: Any, name: str) -> float:
    x = as_number(value, name)
    if not 0.0 < x < math.inf:
        raise ValueError(f"{name} must be finite and > 0, got {value!r}")
    return x


def _cosine(begin: float, end: float, share: float) -> float:
    """From `begin` at 0 to `end` at 1 in half a wave, level at both."""
    return end + (begin - end) * (1.0 + math.cos(math.pi * share)) / 2.0


class _Schedule(ABC):
    """The base class: checks t."""

    def __call__(self, t: int) -> float:
        return self._at(as_count(t, "t", 0))

    @abstractmethod
    def _at(self, t: int) -> float: ...

    def _keep(self, **checked: Any) -> None:
        """Replace the arguments by the checked ones, although nothing can be set from outside."""
        for name, value in checked.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class constant(_Schedule):
    r"""The same value at every step.

    .. math:: f(t) = value

    Parameters
    ----------
    value : float, finite, >= 0
        What it returns.

    Raises
    ------
    TypeError, ValueError
        The argument, or t when it is called, is of the wrong kind or out of range.

    Examples
    --------
    >>> from fastadam.schedules import constant
    >>> constant(0.1)(0), constant(0.1)(1000)
    (0.1, 0.1)

    References
    ----------
    As optax's ``constant_schedule``.
    """

    value: float

    def __post_init__(self) -> None:
        self._keep(value=_magnitude(self.value, "value"))

    def _at(self, t: int) -> float:
        return self.value


@dataclass(frozen=True)
class _Warmup(_Schedule):
    """What the two schedules with a warm-up have in common: all but the way down."""

    peak: float
    warmup_steps: int
    total_steps: int
    _: KW_ONLY
    start: float = 0.0
    end: float = 0.0

    def __post_init__(self) -> None:
        self._keep(
            peak=_magnitude(self.peak, "peak"),
            warmup_steps=as_count(self.warmup_steps, "warmup_steps", 0),
            total_steps=as_count(self.total_steps, "total_steps", 1),
            start=_magnitude(self.start, "start"),
            end=_magnitude(self.end, "end"),
        )
        if self.warmup_steps >= self.total_steps:
            raise ValueError(
                f"warmup_steps must be less than total_steps, which counts them, too; "
                f"got {self.warmup_steps} and {self.total_steps}"
            )

    def _at(self, t: int) -> float:
        if t < self.warmup_steps:
            return self.start + (self.peak - self.start) * t / self.warmup_steps
        if t >= self.total_steps:
            return self.end
        return self._down((t - self.warmup_steps) / (self.total_steps - self.warmup_steps))

    @abstractmethod
    def _down(self, share: float) -> float: ...


@dataclass(frozen=True)
class warmup_linear(_Warmup):
    r"""In a straight line up to the peak, and in another one down to the end.

    .. math::
        f(t) = start + (peak - start) \, t / w \quad \text{if } t < w, \text{ else} \quad
        peak + (end - peak) \min(1, (t - w) / (T - w))

    with w = warmup_steps and T = total_steps.

    Parameters
    ----------
    peak : float, finite, >= 0
        The value after the warm-up, at t = warmup_steps.
    warmup_steps : int, >= 0, < total_steps
        How many steps the way up takes. 0 begins at the peak.
    total_steps : int, >= 1
        How many steps both ways take together: from there on the value is `end`.
    start : float, default 0, finite, >= 0
        The value at t = 0, if there is a warm-up.
    end : float, default 0, finite, >= 0
        The value from t = total_steps on.

    Raises
    ------
    TypeError, ValueError
        An argument, or t when it is called, is of the wrong kind or out of range.

    Examples
    --------
    >>> from fastadam.schedules import warmup_linear
    >>> lr = warmup_linear(1.0, warmup_steps=2, total_steps=6)
    >>> [lr(t) for t in range(8)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]

    References
    ----------
    Devlin et al., "BERT", NAACL 2019, appendix A.2, and ``get_linear_schedule_with_warmup`` of transformers.
    """

    def _down(self, share: float) -> float:
        return self.peak + (self.end - self.peak) * share


@dataclass(frozen=True)
class warmup_cosine(_Warmup):
    r"""In a straight line up to the peak, and in half a cosine wave down to the end.

    .. math::
        f(t) = start + (peak - start) \, t / w \quad \text{if } t < w, \text{ else} \quad
        end + (peak - end) (1 + \cos(\pi \min(1, (t - w) / (T - w)))) / 2

    with w = warmup_steps and T = total_steps.

    Parameters
    ----------
    peak : float, finite, >= 0
        The value after the warm-up, at t = warmup_steps.
    warmup_steps : int, >= 0, < total_steps
        How many steps the way up takes. 0 begins at the peak.
    total_steps : int, >= 1
        How many steps both ways take together: from there on the value is `end`.
    start : float, default 0, finite, >= 0
        The value at t = 0, if there is a warm-up.
    end : float, default 0, finite, >= 0
        The value from t = total_steps on.

    Raises
    ------
    TypeError, ValueError
        An argument, or t when it is called, is of the wrong kind or out of range.

    Examples
    --------
    >>> from fastadam.schedules import warmup_cosine
    >>> lr = warmup_cosine(1.0, warmup_steps=2, total_steps=6)
    >>> [round(lr(t), 3) for t in range(8)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]

    References
    ----------
    Loshchilov & Hutter, "SGDR", ICLR 2017, equation 5, without restarts; optax's ``warmup_cosine_decay_schedule``,
    where total_steps is called decay_steps.
    """

    def _down(self, share: float) -> float:
        return _cosine(self.peak, self.end, share)


@dataclass(frozen=True)
class one_cycle(_Schedule):
    r"""Up to the peak and down to nearly nothing, both in half a cosine wave.

    .. math::
        f(t) &= c(peak / d, \; peak, \; t / u) \quad \text{if } t \le u, \text{ else} \\
        f(t) &= c(peak, \; peak / d / D, \; (\min(t, T - 1) - u) / (T - 1 - u)) \\
        c(a, b, x) &= b + (a - b) (1 + \cos(\pi x)) / 2, \quad u = pct\_start \cdot T - 1

    with T = total_steps, d = div_factor and D = final_div_factor.

    Parameters
    ----------
    peak : float, finite, >= 0
        The largest value: torch's max_lr.
    total_steps : int, >= 1
        How many steps the cycle takes. The last one, at t = total_steps - 1, has the end value, and all later ones.
    pct_start : float, default 0.3, from 0 to 1
        The share of the steps that goes up. (A share, not per cent; the name is torch's.)
    div_factor : float, default 25, finite, > 0
        The first value is peak / div_factor.
    final_div_factor : float, default 1e4, finite, > 0
        The end value is the first one divided by it.

    Raises
    ------
    TypeError, ValueError
        An argument, or t when it is called, is of the wrong kind or out of range.

    Examples
    --------
    >>> from fastadam.schedules import one_cycle
    >>> lr = one_cycle(1.0, total_steps=10)
    >>> [round(lr(t), 3) for t in range(11)]
    [0.04, 0.52, 1.0, 0.95, 0.812, 0.611, 0.389, 0.188, 0.05, 0.0, 0.0]

    References
    ----------
    Smith & Topin, "Super-Convergence", 2018, arXiv:1708.07120; ``torch.optim.lr_scheduler.OneCycleLR`` with
    anneal_strategy "cos", which has the first value before its first step, too. It cycles the momentum as well: give
    another schedule as a part of betas for that.
    """

    peak: float
    total_steps: int
    _: KW_ONLY
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self) -> None:
        self._keep(
            peak=_magnitude(self.peak, "peak"),
            total_steps=as_count(self.total_steps, "total_steps", 1),
            pct_start=as_number(self.pct_start, "pct_start"),
            div_factor=_positive(self.div_factor, "div_factor"),
            final_div_factor=_positive(self.final_div_factor, "final_div_factor"),
        )
        if not 0.0 <= self.pct_start <= 1.0:
            raise ValueError(f"pct_start must be from 0 to 1, a share of the steps; got {self.pct_start!r}")

    def _at(self, t: int) -> float:
        t, first = min(t, self.total_steps - 1), self.peak / self.div_factor
        top = self.pct_start * self.total_steps - 1.0  # the step of the peak, which need not be a whole number
        if t <= top:
            return _cosine(first, self.peak, t / top if top else 1.0)
        return _cosine(self.peak, first / self.final_div_factor, (t - top) / (self.total_steps - 1 - top))


@dataclass(frozen=True)
class exponential(_Schedule):
    r"""Multiplied by the same factor at regular intervals. It has no end.

    .. math:: f(t) = value \cdot rate^{t / steps}

    Parameters
    ----------
    value : float, finite, >= 0
        The first value.
    rate : float, finite, >= 0
        The factor: less than 1 decays, more than 1 grows.
    steps : int, default 1, >= 1
        In how many steps the value is multiplied by rate; a smooth curve in between.

    Raises
    ------
    TypeError, ValueError
        An argument, or t when it is called, is of the wrong kind or out of range.

    Examples
    --------
    >>> from fastadam.schedules import exponential
    >>> lr = exponential(1.0, 0.5, steps=100)
    >>> [round(lr(t), 3) for t in (0, 50, 100, 200)]
    [1.0, 0.707, 0.5, 0.25]

    References
    ----------
    As optax's ``exponential_decay`` and, with steps=1, ``torch.optim.lr_scheduler.ExponentialLR``.
    """

    value: float
    rate: float
    steps: int = 1

    def __post_init__(self) -> None:
        self._keep(
            value=_magnitude(self.value, "value"),
            rate=_magnitude(self.rate, "rate"),
            steps=as_count(self.steps, "steps", 1),
        )

    def _at(self, t: int) -> float:
        if self.value == 0.0:
            return 0.0
        try:
            return self.value * self.rate ** (t / self.steps)
        except OverflowError:
            return 0.0 if self.rate < 1.0 else math.inf  # the optimizer says that it must be finite


@dataclass(frozen=True)
class piecewise(_Schedule):
    r"""Another value from each boundary on.

    .. math:: f(t) = boundaries[\max \{ b : b \le t \}], \quad \text{before the first: } value

    Parameters
    ----------
    value : float, finite, >= 0
        The value before the first boundary.
    boundaries : mapping of int >= 0 to float, finite, >= 0
        {t: the value from there on}, in any order. Values, not factors.

    Raises
    ------
    TypeError, ValueError
        An argument, or t when it is called, is of the wrong kind or out of range.

    Examples
    --------
    >>> from fastadam.schedules import piecewise
    >>> lr = piecewise(0.1, {100: 0.01, 200: 0.001})
    >>> lr(0), lr(99), lr(100), lr(5000)
    (0.1, 0.1, 0.01, 0.001)

    References
    ----------
    As Keras's ``PiecewiseConstantDecay``. torch's ``MultiStepLR`` and optax's ``piecewise_constant_schedule`` take
    factors.
    """

    value: float
    boundaries: Mapping[int, float] = field(hash=False)  # a dict has no hash

    def __post_init__(self) -> None:
        if not isinstance(self.boundaries, Mapping):
            raise TypeError(f"boundaries must be a mapping of steps to values, got {self.boundaries!r}")
        pairs = [
            (as_count(t, "a key of boundaries", 0), _magnitude(value, f"boundaries[{t!r}]"))
            for t, value in self.boundaries.items()
        ]
        self._keep(value=_magnitude(self.value, "value"), boundaries=dict(sorted(pairs)))

    def _at(self, t: int) -> float:
        now = self.value
        for boundary, value in self.boundaries.items():
            if boundary > t:
                break
            now = value
        return now
