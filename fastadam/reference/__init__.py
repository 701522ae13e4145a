"""The specification, in plain NumPy: what every kernel must compute, to the last bit.

One function for each optimizer: a step on one array, in place, with state that is passed in by its name in
`opt.state`. The optimizers, and ``fastadam.adam_update``, give the same bits. These are slow, make temporaries, and
check nothing but what NumPy checks. Read them to learn what fastadam computes, or test against them.

Every operation on arrays is rounded to the type of `param`, in the order written.
"""

from fastadam.reference.gradients import ema_update, grad_norm, gradient, sum_rows
from fastadam.reference.rules import (
    adagrad_update,
    adam_update,
    adamax_update,
    nadam_update,
    radam_update,
    rmsprop_update,
    rowadagrad_update,
    sgd_update,
)

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
