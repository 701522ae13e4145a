"""What somebody may have meant by a name that is not there."""

from collections.abc import Iterable
from difflib import get_close_matches

# Other libraries' names for the same, where the spelling does not tell.
ELSEWHERE = {
    "learning_rate": "lr",
    "beta1": "betas",
    "beta2": "betas",
    "clipnorm": "max_norm",
    "global_clipnorm": "max_norm",
    "max_grad_norm": "max_norm",
    "clipvalue": "max_value",
    "grad_clip": "max_norm",
    "wd": "weight_decay",
    "ema_momentum": "ema_decay",
    "num_threads": "threads",
}


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """What to add to a name in an error message; nothing if nothing is near."""
    folded = {str(each).casefold(): str(each) for each in known}
    meant = ELSEWHERE.get(str(name), "")
    found = [meant] if meant in folded else get_close_matches(str(name).casefold(), folded, 1)
    return f" (did you mean {folded[found[0]]}?)" if found else ""
