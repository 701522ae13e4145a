"""Numbers and flags from users as plain Python ones, or errors that say what is allowed."""

import math
from collections.abc import Mapping
from itertools import combinations
from operator import index
from typing import Any

import numpy as np

MAX_THREADS = 1024
MODES = ("propagate", "raise", "skip")  # of nonfinite, in the compiled part's order


def as_number(value: Any, name: str) -> float:
    """Any real number: Python's, NumPy's scalars and 0-d arrays, and what other libraries' scalars convert to.

    float() alone would also parse text, and the bytes of anything that has a buffer."""
    if isinstance(value, np.generic | np.ndarray):
        real = value.dtype.kind in "iuf" and value.ndim == 0
    else:
        real = type(value) is not bool and (hasattr(type(value), "__float__") or hasattr(type(value), "__index__"))
    try:
        if real:
            return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got {value!r}") from None
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be a number, got {value!r}")


def as_integer(value: Any, name: str, kind: str = "an int") -> int:
    """Any integer: Python's, NumPy's scalars and 0-d arrays, and what has __index__; but not a bool."""
    if type(value) is int:
        return value
    if not isinstance(value, bool | np.bool_):
        try:
            return index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be {kind}, got {value!r}")


def as_count(value: Any, name: str, least: int) -> int:
    n = as_integer(value, name)
    if n < least:
        raise ValueError(f"{name} must be >= {least}, got {n}")
    return n


def as_flag(value: Any, name: str) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r}")


def as_pair(betas: Any) -> tuple[Any, Any]:
    try:
        if not hasattr(betas, "__next__"):  # an iterator could be read only once
            beta1, beta2 = betas
            return beta1, beta2
    except (TypeError, ValueError):
        pass
    raise TypeError(f"betas must be a pair of numbers, (beta1, beta2), got {betas!r}")


def as_threads(threads: Any, name: str) -> int:
    """A number of threads; 0 stands for None, the automatic choice."""
    if threads is None:
        return 0
    n = as_integer(threads, name, "an int or None")
    if not 1 <= n <= MAX_THREADS:
        raise ValueError(f"{name} must be from 1 to {MAX_THREADS}, got {n}; None lets fastadam choose")
    return n


def as_limit(value: Any, name: str) -> float:
    """A bound; infinity stands for None."""
    if value is None:
        return math.inf
    x = as_number(value, name)
    if not x > 0.0:
        raise ValueError(f"{name} must be > 0 or None, got {value!r}")
    return x


def as_nonfinite(value: Any) -> int:
    if not isinstance(value, str) or value not in MODES:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"nonfinite must be one of {', '.join(map(repr, MODES))}, got {value!r}")
    return MODES.index(value)


def check_nesterov(momentum: Any, dampening: Any) -> None:
    """What SGD must have beside nesterov=True."""
    if momentum == 0 or dampening != 0:
        raise ValueError(f"nesterov=True needs momentum > 0 and dampening 0, got {momentum!r} and {dampening!r}")


def as_product(value: Any, name: str) -> float:
    """NAdam's product of momenta, which torch keeps as a float tensor."""
    product = as_number(value, name)
    if not 0 <= product <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value!r}")
    return product


def as_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """What an optimizer does before and after its rule, in numbers: the fields of csrc's fa_settings."""
    plain: dict[str, Any] = {
        "threads": as_threads(values["threads"], "threads"),
        "max_norm": as_limit(values["max_norm"], "max_norm"),
        "max_norm_each": as_limit(values["max_norm_each"], "max_norm_each"),
        "max_value": as_limit(values["max_value"], "max_value"),
    }
    for one, other in combinations(("max_norm", "max_norm_each", "max_value"), 2):
        if max(plain[one], plain[other]) < math.inf:
            raise ValueError(f"{one} and {other} cannot both be set; make one of them None")
    plain["nonfinite"] = as_nonfinite(values["nonfinite"])
    plain["accumulate"] = as_integer(values["accumulate"], "accumulate")
    if not 1 <= plain["accumulate"] < 2**31:
        raise ValueError(f"accumulate must be >= 1 and less than 2**31, got {plain['accumulate']}")
    decay = values["ema_decay"]
    plain["average"] = decay is not None
    plain["ema_decay"] = as_number(decay, "ema_decay") if plain["average"] else 1.0
    if not 0.0 <= plain["ema_decay"] <= 1.0:
        raise ValueError(f"ema_decay must be from 0 to 1 or None, got {decay!r}")
    if not 0 <= as_integer(values["seed"], "seed") < 2**63:
        raise ValueError(f"seed must be >= 0 and less than 2**63, got {values['seed']}")
    return plain
