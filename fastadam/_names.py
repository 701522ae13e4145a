"""What a user may have meant by an unknown name, and what to write instead."""

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Other libraries' names for the same, where the spelling does not tell.
ELSEWHERE = {"learning_rate": "lr", "schedule": "lr", "wd": "weight_decay", "num_threads": "threads", "rho": "alpha"}
ELSEWHERE |= dict.fromkeys(["b1", "b2", "beta1", "beta2", "beta_1", "beta_2"], "betas")
ELSEWHERE |= dict.fromkeys(["global_clipnorm", "max_grad_norm", "grad_clip", "clip_norm"], "max_norm")
ELSEWHERE |= {"clipnorm": "max_norm_each", "clipvalue": "max_value", "ema": "ema_decay", "ema_momentum": "ema_decay"}
ELSEWHERE |= {"Momentum": "SGD", "SparseAdam": "Rows"}
FUSED = ("foreach", "fused")  # torch's choices of how to compute; here there is one


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """For an error message: the known name that is nearest, or nothing."""
    from difflib import get_close_matches

    folded = {str(each).casefold(): str(each) for each in known}
    if str(name) in FUSED and "lr" in folded:
        return " (leave it out: every step is fused)"
    meant = ELSEWHERE.get(str(name), "")
    found = [meant.casefold()] if meant.casefold() in folded else get_close_matches(str(name).casefold(), folded, 1)
    return f" (did you mean {folded[found[0]]}?)" if found else ""


def by_name(write: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """If arguments are given without their names, or under others, the error says what to write."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = list(signature(function).parameters)
        unnamed = known.index("path") + 1

        @wraps(function)
        def call(*arguments: P.args, **named: P.kwargs) -> R:
            unknown = [name for name in named if name not in known]
            if unknown or len(arguments) > unnamed:
                problem = f"has no {', '.join(unknown)}" if unknown else "takes only path without a name"
                raise TypeError(f"{function.__name__} {problem}; write {write}")
            return function(*arguments, **named)

        return call

    return decorate
