"""The specification, in plain NumPy: what every kernel must compute, to the last bit.

One function for each optimizer: a step on one array, in place, with state that is passed in by its name in
`opt.state`. `stored_update` is such a step on parameters and state that are stored with fewer bits than float32. The
optimizers, and the functions of these names in ``fastadam``, give the same bits. These here are slow, make temporaries,
and check nothing but what NumPy checks. Read them to learn what fastadam computes, or test against them.

Every operation on arrays is rounded to the type of `param`, in the order written.
"""

from fastadam.reference.formats import (
    decode_8bit_m,
    decode_8bit_v,
    decode_bfloat16,
    decode_state,
    encode_8bit_m,
    encode_8bit_v,
    encode_bfloat16,
    encode_state,
    fresh_state,
    join_24,
    join_32,
    nearest_bfloat16,
    other_bits,
    random_bits,
    split_24,
    split_32,
    stored_update,
)
from fastadam.reference.gradients import clip_scale, ema_update, grad_norm, gradient, sum_rows
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
    "clip_scale",
    "decode_8bit_m",
    "decode_8bit_v",
    "decode_bfloat16",
    "decode_state",
    "ema_update",
    "encode_8bit_m",
    "encode_8bit_v",
    "encode_bfloat16",
    "encode_state",
    "fresh_state",
    "grad_norm",
    "gradient",
    "join_24",
    "join_32",
    "nadam_update",
    "nearest_bfloat16",
    "other_bits",
    "radam_update",
    "random_bits",
    "rmsprop_update",
    "rowadagrad_update",
    "sgd_update",
    "split_24",
    "split_32",
    "stored_update",
    "sum_rows",
]
