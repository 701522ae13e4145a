"""Formats with fewer bits than float32: what of state and parameters is stored, and how a step rounds it.

A step decodes into float32, which is exact, applies the rule, and encodes what it computed. Integers are of 32 bits,
modulo 2**32. Codes, scales and random bits have one dimension, in memory order.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fastadam.reference.rules import rowadagrad_update

NAN = np.uint32(0x7FC00000)
HALF = 0x8000  # of the 16 bits that are rounded away: to nearest
SIGNED = "exp_avg", "momentum_buffer"
NOT_NEGATIVE = "exp_avg_sq", "square_avg", "sum", "exp_inf"


def bits(x):
    """Of float32, as integers."""
    return np.asarray(x, np.float32).view(np.uint32)


def magnitude(x):
    """The bits without the sign; those of every NaN that is computed are the same, and the largest."""
    return np.minimum(bits(x) & 0x7FFFFFFF, NAN)


def is_bfloat16(array):
    """Is it an array of bfloat16, whichever library has registered the type?"""
    return array.dtype.name == "bfloat16" and array.dtype.itemsize == 2


def axes_of(array):
    """From the slowest in memory to the fastest; those of length 1 do not matter."""
    return sorted(range(array.ndim), key=lambda axis: -array.strides[axis] if array.shape[axis] > 1 else 0)


def in_memory_order(array):
    """A view of a dense array with one dimension."""
    return array.transpose(axes_of(array)).reshape(-1)


def laid_out_as(array, flat):
    """The array of its shape whose elements lie so in memory, in its order."""
    axes = axes_of(array)
    return flat.reshape([array.shape[axis] for axis in axes]).transpose(np.argsort(axes))


# ---- random bits


def mix64(z):
    """A bijection of 64 bits that looks random: the last step of splitmix64."""
    z = (z ^ (z >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> 27)) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> 31)


def random_bits(seed: int, step: int, size: int, first: int = 0) -> np.ndarray:
    """16 random bits for each element: a function of seed, step and the element's place alone.

    Blocks of 512 elements are counted from the array's start. One word of 32 bits serves two elements of a block: its
    lower half that in the first half of the block, its upper half that 256 places behind it.

    Parameters
    ----------
    seed : int
        Of the array, modulo 2**64.
    step : int
        The array's counter of this step, 1 for the first.
    size, first : int
        For elements `first`, ..., `first` + `size` - 1 of the array, in memory order.

    Examples
    --------
    >>> import fastadam
    >>> fastadam.reference.random_bits(seed=0, step=1, size=4)
    array([52105, 59522, 48236, 57599], dtype=uint16)
    >>> fastadam.reference.random_bits(seed=0, step=1, size=2, first=2)
    array([48236, 57599], dtype=uint16)
    """
    blocks = np.arange(first // 512, -(-(first + size) // 512), dtype=np.uint64)
    of_step = mix64(np.array([(seed + step * 0x9E3779B97F4A7C15) % 2**64], np.uint64))
    key = (mix64(of_step + blocks * np.uint64(512)) >> 32).astype(np.uint32)
    x = key[:, None] + np.arange(256, dtype=np.uint32) * np.uint32(0x9E3779B1)
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * np.uint32(0xD35A2D97)
    x = x ^ (x >> 15)
    words = np.concatenate([x & 0xFFFF, x >> 16], axis=1).astype(np.uint16)
    return words.ravel()[first % 512 :][:size]


def other_bits(r: np.ndarray) -> np.ndarray:
    """The random bits for m where those for v are `r`: the two bytes swapped.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> [hex(r) for r in fastadam.reference.other_bits(np.array([0x1234, 0x00FF], np.uint16))]
    ['0x3412', '0xff00']
    """
    return (r << 8) | (r >> 8)


# ---- bfloat16


def encode_bfloat16(x: np.ndarray, r: np.ndarray | int) -> np.ndarray:
    """The upper 16 bits of float32, rounded up with the probability that the lower 16 are worth.

    .. math:: code = \\lfloor (bits(x) + r) / 2^{16} \\rfloor

    A NaN is 0x7FC0.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> x = np.full(4, 1 + 0.75 / 128, np.float32)  # between 1 and 1 + 1/128, and 3 times as near to the latter
    >>> fastadam.reference.encode_bfloat16(x, np.array([0x0000, 0x4000, 0x8000, 0xC000], np.uint16)) - 0x3F80
    array([0, 1, 1, 1], dtype=uint16)
    """
    return (np.where(np.isnan(x), NAN, bits(x) + np.asarray(r, np.uint32)) >> 16).astype(np.uint16)


def nearest_bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, and the even one of two: how a value that is loaded is stored.

    .. math::
        code = \\lfloor (u + \\mathrm{7FFF}_{16} + \\lfloor u / 2^{16} \\rfloor \\bmod 2) / 2^{16} \\rfloor,
        \\quad u = bits(x)

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> fastadam.reference.nearest_bfloat16(np.array([1, 1 + 1 / 256, 1 + 3 / 256], np.float32)) - 0x3F80
    array([0, 0, 2], dtype=uint16)
    """
    return encode_bfloat16(x, 0x7FFF + ((bits(x) >> 16) & 1))


def decode_bfloat16(codes: np.ndarray) -> np.ndarray:
    """Float32 that has these upper 16 bits, and zeros below them.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> fastadam.reference.decode_bfloat16(np.array([0x3F80, 0xC040, 0x7FC0], np.uint16))
    array([ 1., -3., nan], dtype=float32)
    """
    return (codes.astype(np.uint32) << 16).view(np.float32)


# ---- 8 bits, with a scale for each group of 32 elements


def scale_of(a, least):
    """The scale of each group: the exponent that the group's largest magnitude may get when it is rounded up."""
    largest = np.maximum.reduceat(a, np.arange(0, a.size, 32))
    return np.clip((largest + 0xFFFFF) >> 23, least, 255).astype(np.uint8)


def of_each(scale, size):
    """The scale of each element's group."""
    return np.repeat(scale.astype(np.int32), 32)[:size]


def encode_8bit_v(x: np.ndarray, r: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers that are not negative in one byte each, and a scale E for each group of 32.

    .. math:: E = clip(\\lfloor (\\max a + \\mathrm{FFFFF}_{16}) / 2^{23} \\rfloor, 32, 255), \\quad
        code = \\max(\\lfloor (a + 2^4 r) / 2^{20} \\rfloor - 8 (E - 31), 1), \\quad a = bits(x)

    A code has 5 bits of an exponent and 3 of a fraction. What is too small for its group gets the smallest code: only 0
    is stored as 0, because a parameter whose v is 0 while its m is not would jump.

    Returns
    -------
    codes, scale : ndarray of uint8
        The last group may be shorter. E = 255 says that the group is NaN.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> codes, scale = fastadam.reference.encode_8bit_v(np.array([0, 1, 1.125, 2, 1e-20], np.float32), 0x8000)
    >>> codes, scale
    (array([  0, 240, 241, 248,   1], dtype=uint8), array([128], dtype=uint8))
    """
    a = magnitude(x)
    scale = scale_of(a, 32)
    c = ((a + (np.asarray(r, np.uint32) << 4)) >> 20).astype(np.int32) - ((of_each(scale, a.size) - 31) << 3)
    return np.where(a == 0, 0, np.maximum(c, 1)).astype(np.uint8), scale


def decode_8bit_v(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Float32 from codes of `encode_8bit_v`.

    .. math:: bits = 2^{20} code + 2^{23} (E - 31)

    Code 0 is 0; a group with E = 255 is NaN.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> fastadam.reference.decode_8bit_v(np.array([0, 240, 241, 248], np.uint8), np.array([128], np.uint8))
    array([0.   , 1.   , 1.125, 2.   ], dtype=float32)
    """
    each = of_each(scale, codes.size).astype(np.uint32)
    u = np.where(codes == 0, np.uint32(0), (codes.astype(np.uint32) << 20) + ((each - 31) << 23))
    return np.where(each == 255, NAN, u).view(np.float32)


def encode_8bit_m(x: np.ndarray, r: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers with a sign in one byte each, and a scale E for each group of 32.

    .. math:: E = clip(\\lfloor (\\max a + \\mathrm{FFFFF}_{16}) / 2^{23} \\rfloor, 16, 255), \\quad
        c = \\lfloor (a + 2^4 r) / 2^{20} \\rfloor - 8 (E - 15), \\quad a = |bits(x)|

    A code has a sign, 4 bits of an exponent and 3 of a fraction. It is 0 where c < 1, so small numbers become +0. The
    random bits are those of `other_bits`.

    Returns
    -------
    codes, scale : ndarray of uint8
        The last group may be shorter. E = 255 says that the group is NaN; its codes are 0, because the sign of a NaN
        depends on the processor.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> codes, scale = fastadam.reference.encode_8bit_m(np.array([-1, 1.125, -2, -1e-20], np.float32), 0x8000)
    >>> codes, scale
    (array([240, 113, 248,   0], dtype=uint8), array([128], dtype=uint8))
    """
    a = magnitude(x)
    scale = scale_of(a, 16)
    each = of_each(scale, a.size)
    c = ((a + (np.asarray(r, np.uint32) << 4)) >> 20).astype(np.int32) - ((each - 15) << 3)
    sign = (bits(x) >> 31).astype(np.int32)
    return np.where((c < 1) | (each == 255), 0, c | sign << 7).astype(np.uint8), scale


def decode_8bit_m(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Float32 from codes of `encode_8bit_m`.

    .. math:: bits = 2^{20} (code \\bmod 2^7) + 2^{23} (E - 15), \\quad \\text{and the sign}

    Code 0 is 0; a group with E = 255 is NaN.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> fastadam.reference.decode_8bit_m(np.array([0, 240, 113, 248], np.uint8), np.array([128], np.uint8))
    array([ 0.   , -1.   ,  1.125, -2.   ], dtype=float32)
    """
    each = of_each(scale, codes.size).astype(np.uint32)
    small, sign = codes.astype(np.uint32) & 127, codes.astype(np.uint32) >> 7
    u = np.where(small == 0, np.uint32(0), (small << 20) + ((each - 15) << 23)) | (sign << 31)
    return np.where(each == 255, NAN, u).view(np.float32)


# ---- parameters in bfloat16 with a correction


def split_32(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float32 as the nearest bfloat16, of two the one away from 0, and a correction of 16 bits: exactly.

    .. math:: high = \\lfloor (bits(x) + 2^{15}) / 2^{16} \\rfloor, \\quad low = bits(x) - 2^{16} high

    A NaN is 0x7FC00000.

    Returns
    -------
    high : ndarray of uint16
        The bits of bfloat16.
    low : ndarray of int16

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> high, low = fastadam.reference.split_32(np.array([1, 1.1, -1.1], np.float32))
    >>> fastadam.reference.decode_bfloat16(high), low
    (array([ 1.       ,  1.1015625, -1.1015625], dtype=float32), array([     0, -13107, -13107], dtype=int16))
    """
    u = np.where(np.isnan(x), NAN, bits(x))
    return ((u + 0x8000) >> 16).astype(np.uint16), u.astype(np.uint16).view(np.int16)


def joined(high, low):
    """The sum of the bits. It never changes the sign, so that a 0 that somebody wrote stays one."""
    size = np.maximum(((high & 0x7FFF).astype(np.int32) << 16) + low, 0)
    return (size.view(np.uint32) | ((high & 0x8000).astype(np.uint32) << 16)).view(np.float32)


def join_32(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Float32 from the two parts of `split_32`.

    .. math:: bits = 2^{16} high + low

    With the sign of `high`, and 0 if that is 0 and `low` negative, which `split_32` does not return.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> fastadam.reference.join_32(*fastadam.reference.split_32(np.array([1, 1.1, -1.1], np.float32)))
    array([ 1. ,  1.1, -1.1], dtype=float32)
    """
    return joined(high, low.astype(np.int32))


def split_24(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float32, rounded to its upper 24 bits, as bfloat16 and a correction of 8 bits.

    .. math::
        u = \\lfloor (bits(x) + \\mathrm{7F}_{16} + \\lfloor bits(x) / 2^8 \\rfloor \\bmod 2) / 2^8 \\rfloor, \\quad
        high = \\lfloor (u + 2^7) / 2^8 \\rfloor, \\quad low = u - 2^8 high

    A NaN is 0x7FC00000.

    Returns
    -------
    high : ndarray of uint16
        The bits of bfloat16.
    low : ndarray of int8

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> high, low = fastadam.reference.split_24(np.array([1, 1.1, -1.1], np.float32))
    >>> fastadam.reference.decode_bfloat16(high), low
    (array([ 1.       ,  1.1015625, -1.1015625], dtype=float32), array([  0, -51, -51], dtype=int8))
    """
    u = np.where(np.isnan(x), NAN, bits(x) + 0x7F + ((bits(x) >> 8) & 1)) >> 8
    return ((u + 0x80) >> 8).astype(np.uint16), u.astype(np.uint8).view(np.int8)


def join_24(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Float32 from the two parts of `split_24`.

    .. math:: bits = 2^{16} high + 2^8 low

    As `join_32`.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> fastadam.reference.join_24(*fastadam.reference.split_24(np.array([1, 1.1, -1.1], np.float32)))
    array([ 1.       ,  1.1000061, -1.1000061], dtype=float32)
    """
    return joined(high, low.astype(np.int32) << 8)


MASTERS = {32: (split_32, join_32), 24: (split_24, join_24)}


# ---- a step


def encode_state(name: str, x: np.ndarray, state_dtype: str, r: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """One array of state as it is stored, by the raw names of `opt.state`.

    Parameters
    ----------
    name : str
        Of the state. "exp_avg" and "momentum_buffer" have a sign, and take the bits of `other_bits`.
    x : ndarray of float32, in one dimension
    state_dtype : "bfloat16" or "8bit"
    r : ndarray of uint16, or None, default None
        From `random_bits`. None is how loading stores: to nearest, every NaN the same, and no -0 where nothing is
        negative.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> fastadam.reference.encode_state("exp_avg", np.array([1, -2], np.float32), "8bit")
    {'exp_avg::codes': array([112, 248], dtype=uint8), 'exp_avg::scale': array([128], dtype=uint8)}
    """
    assert name in SIGNED + NOT_NEGATIVE, name
    if r is None:
        x = np.where(np.isnan(x), NAN, bits(x)).view(np.float32)
        if name in NOT_NEGATIVE:
            x = np.where(x == 0, np.float32(0), x)
    elif name in SIGNED:
        r = other_bits(r)
    if state_dtype == "bfloat16":
        return {f"{name}::codes": nearest_bfloat16(x) if r is None else encode_bfloat16(x, r)}
    encode = encode_8bit_m if name in SIGNED else encode_8bit_v
    codes, scale = encode(x, HALF if r is None else r)
    return {f"{name}::codes": codes, f"{name}::scale": scale}


def decode_state(name: str, state: dict[str, Any], state_dtype: str) -> np.ndarray:
    """One array of state in float32, in one dimension, from what is stored of it.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> stored = fastadam.reference.encode_state("exp_avg", np.array([1, -2], np.float32), "8bit")
    >>> fastadam.reference.decode_state("exp_avg", stored, "8bit")
    array([ 1., -2.], dtype=float32)
    """
    codes = state[f"{name}::codes"]
    if state_dtype == "bfloat16":
        return decode_bfloat16(codes)
    decode = decode_8bit_m if name in SIGNED else decode_8bit_v
    return decode(codes, state[f"{name}::scale"])


def fresh_state(
    names: Iterable[str], shape: int | tuple[int, ...], *, state_dtype: str = "float32", master_bits: int | None = None
) -> dict[str, Any]:
    """The state before the first step, by the raw names of `opt.state`: zeros.

    With `master_bits`, a correction for bfloat16 parameters that are exact is among it.

    Examples
    --------
    >>> import fastadam
    >>> fastadam.reference.fresh_state(["exp_avg"], 3, state_dtype="8bit")
    {'exp_avg::codes': array([0, 0, 0], dtype=uint8), 'exp_avg::scale': array([16], dtype=uint8)}
    """
    state: dict[str, Any] = {}
    for name in names:
        zeros = np.zeros(shape, np.float32)
        state |= {name: zeros} if state_dtype == "float32" else encode_state(name, zeros.ravel(), state_dtype)
    if master_bits is not None:
        state["master::low"] = np.zeros(np.prod(shape, dtype=int), f"int{master_bits - 16}")
    return state


def stored_update(
    update: Callable[..., Any],
    param: np.ndarray,
    grad: np.ndarray | np.generic,
    step: int,
    state: dict[str, Any],
    *,
    state_dtype: str = "float32",
    master_bits: int | None = None,
    seed: int = 0,
    first: int = 0,
    **options: Any,
) -> Any:
    """Apply one step of a rule in place, to parameters and state in any of the formats.

    The rule takes float32: the decoded gradient, state and parameters. Parameters follow from the state that it
    computes, before that is rounded to what is stored.

    Parameters
    ----------
    update : function
        The rule's twin, as `adam_update`.
    param : ndarray of float32 or bfloat16
        Dense, its axes in any order.
    grad : ndarray of float16, bfloat16, float32 or float64
    step : int
        The counter of this step, 1 for the first.
    state : dict
        By the raw names of `opt.state`, as from `fresh_state`.
    state_dtype : "float32", "bfloat16" or "8bit", default "float32"
    master_bits : 32, 24 or None, default None
        Of bfloat16 parameters; None is 32.
    seed : int, default 0
        Of the array.
    first : int, default 0
        The place of the state's first element, where it is a part of an array; with 8 bits a multiple of 32.
    **options
        Passed to `update`, whose result is returned.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> from fastadam.reference import adam_update, fresh_state, stored_update
    >>> p, state = np.ones(2, np.float32), fresh_state(["exp_avg", "exp_avg_sq"], 2, state_dtype="8bit")
    >>> stored_update(adam_update, p, np.array([3.0, -0.5]), 1, state, state_dtype="8bit", lr=0.1)
    >>> p, state["exp_avg::codes"], state["exp_avg_sq::scale"]
    (array([0.9, 1.1], dtype=float32), array([122, 229], dtype=uint8), array([120], dtype=uint8))
    """
    if is_bfloat16(param):
        split, join = MASTERS[master_bits or 32]
        high, low = (in_memory_order(a) for a in (param.view(np.uint16), state["master::low"]))
        p = laid_out_as(param, join(high, low))
    else:
        p = param
    stored = [name.removesuffix("::codes") for name in state if name.endswith("::codes")]
    arrays = {name: x for name, x in state.items() if "::" not in name}
    flat = {name: decode_state(name, state, state_dtype) for name in stored}
    arrays |= {name: x if update is rowadagrad_update else laid_out_as(param, x) for name, x in flat.items()}

    g = np.asarray(grad)
    result = update(p, decode_bfloat16(g.view(np.uint16)) if is_bfloat16(g) else g, step=step, **arrays, **options)

    if is_bfloat16(param):
        high[...], low[...] = split(in_memory_order(p))
    for name in stored:
        x = in_memory_order(arrays[name])
        for raw, codes in encode_state(name, x, state_dtype, random_bits(seed, step, x.size, first)).items():
            state[raw][...] = codes
    return result
