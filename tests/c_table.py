"""fastadam's C interface through ctypes: the structs of fastadam_api.h, the table, and arrays for it."""

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p

import numpy as np

from fastadam import _core

NUMBERS = ["lr", "beta1", "beta2", "eps", "weight_decay", "eps_root"]
NUMBERS += ["momentum", "dampening", "alpha", "lr_decay", "momentum_decay"]
FLAGS = ["decoupled_weight_decay", "amsgrad", "maximize", "bias_correction", "eps_hat", "nesterov", "centered"]
CLASSES = ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "SGD", "RMSprop", "Adagrad"]
# What state[0], state[1] and state[2] are in opt.state.
MOMENTS = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
PLACES = dict.fromkeys(["Adam", "AdamW", "NAdam", "RAdam"], MOMENTS) | {
    "Adamax": ["exp_avg", "exp_inf", None],
    "SGD": ["momentum_buffer", None, None],
    "RMSprop": ["grad_avg", "square_avg", "momentum_buffer"],
    "Adagrad": [None, "sum", None],
}
BITS = {np.dtype(np.float32): 32, np.dtype(np.float64): 64}


class Options(ctypes.Structure):
    _fields_ = [("size", c_size_t), *((name, c_double) for name in NUMBERS), *((name, c_int32) for name in FLAGS)]
    _fields_ += [("rule", c_int32)]


class Array(ctypes.Structure):
    _fields_ = [("param", c_void_p), ("grad", c_void_p), ("state", c_void_p * 3), ("n", c_int64), ("dtype", c_int32)]
    _fields_ += [("step", c_int64), ("product", c_double)]


class Table(ctypes.Structure):
    _fields_ = [("abi", c_uint32), ("size", c_uint32), ("version", c_char_p)]
    _fields_ += [
        ("options", CFUNCTYPE(c_int, c_char_p, POINTER(Options), c_size_t)),
        ("states", CFUNCTYPE(c_int, POINTER(Options))),
        ("update", CFUNCTYPE(c_int, POINTER(Options), POINTER(Array), c_int64, c_double, c_int)),
        ("sum_squares", CFUNCTYPE(c_int, POINTER(Array), c_int64, c_int, POINTER(c_double))),
        ("explain", CFUNCTYPE(c_char_p, c_int)),
    ]


def pointer_in(capsule, name):
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = c_void_p, [ctypes.py_object, c_char_p]
    return get(capsule, name)


table = Table.from_address(pointer_in(_core._C_API, b"fastadam._core._C_API"))


def options_of(name, **changes):
    options = Options()
    assert table.options(name.encode(), options, ctypes.sizeof(options)) == 0
    for key, value in changes.items():
        if key == "betas":
            options.beta1, options.beta2 = value
        else:
            setattr(options, key, value)
    return options


def state_for(options, param):
    needed = table.states(options)
    return [np.zeros_like(param) if needed >> k & 1 else None for k in range(3)]


def address(array):
    return None if array is None else array.ctypes.data


def as_array(param, grad, state, step, product=1.0):
    """The arrays must be kept."""
    return Array(
        address(param),
        address(grad),
        (c_void_p * 3)(*map(address, state)),
        param.size,
        BITS[param.dtype],
        step,
        product,
    )


def update(options, arrays, grad_scale=1.0, threads=0):
    return table.update(options, (Array * len(arrays))(*arrays), len(arrays), grad_scale, threads)
