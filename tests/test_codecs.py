"""The loops of formats in csrc/, called from here: the twin's codes, on every instruction set."""

import ctypes
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, c_int, c_int64, c_void_p
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from helpers import ISAS, assert_same_bits, wild
from test_formats import NAN, bits, every_float, every_upper_half, groups

from fastadam import _core, reference
from fastadam.reference import other_bits

csrc = ctypes.CDLL(_core.__file__)
Decode = CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, c_int64)
Encode = CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, c_int64, c_void_p)


class Codec(Structure):
    _fields_ = [("decode", Decode), ("encode", Encode), ("size", c_int64), ("second_size", c_int64), ("group", c_int64)]


csrc.fa_codec_of.restype, csrc.fa_codec_of.argtypes = POINTER(Codec), [c_int, c_int]
csrc.fa_encode_array.restype = None
csrc.fa_encode_array.argtypes = [c_int, c_void_p, c_void_p, c_void_p, c_int64]


class Format(NamedTuple):
    number: int  # fa_format
    types: tuple[Any, ...]  # of codes, and of what is beside them
    encode: Callable[..., Any]
    decode: Callable[..., Any]


FORMATS = {
    "bfloat16_m": Format(3, (np.uint16,), lambda x, r: (reference.encode_bfloat16(x, other_bits(r)),),
                         reference.decode_bfloat16),
    "bfloat16_v": Format(4, (np.uint16,), lambda x, r: (reference.encode_bfloat16(x, r),), reference.decode_bfloat16),
    "8bit_m": Format(5, (np.uint8, np.uint8), lambda x, r: reference.encode_8bit_m(x, other_bits(r)),
                     reference.decode_8bit_m),
    "8bit_v": Format(6, (np.uint8, np.uint8), reference.encode_8bit_v, reference.decode_8bit_v),
    "split_32": Format(7, (np.uint16, np.int16), lambda x, r: reference.split_32(x), reference.join_32),
    "split_24": Format(8, (np.uint16, np.int8), lambda x, r: reference.split_24(x), reference.join_24),
}  # fmt: skip
AFTER = 77  # what stands behind each array, and stays there


def room(count, dtype):
    return np.full(count + 5, AFTER, dtype)


def used(array, count):
    assert (array[count:] == AFTER).all()
    return array[:count]


def stored(form, n):
    seconds = -(-n // 32) if form.types[-1] == np.uint8 else n
    return [(count, room(count, dtype)) for count, dtype in zip((n, seconds), form.types, strict=False)]


def address(arrays, place):
    return arrays[place][1].ctypes.data if place < len(arrays) else None


def encoded(name, isa, x, r):
    form, arrays = FORMATS[name], stored(FORMATS[name], x.size)
    codec = csrc.fa_codec_of(isa, form.number)[0]
    codec.encode(x.ctypes.data, address(arrays, 0), address(arrays, 1), x.size, r.ctypes.data)
    return [used(array, count) for count, array in arrays]


def decoded(name, isa, *arrays):
    to = room(arrays[0].size, np.float32)
    second = arrays[1].ctypes.data if len(arrays) > 1 else None
    codec = csrc.fa_codec_of(isa, FORMATS[name].number)[0]
    codec.decode(to.ctypes.data, arrays[0].ctypes.data, second, arrays[0].size)
    return used(to, arrays[0].size)


def entered(name, x):
    arrays = stored(FORMATS[name], x.size)
    csrc.fa_encode_array(FORMATS[name].number, x.ctypes.data, address(arrays, 0), address(arrays, 1), x.size)
    return [used(array, count) for count, array in arrays]


def sample(rng, n, name):
    """Half of it groups with magnitudes of their own; NaN of both signs; some zeros. v has no subnormal numbers."""
    x = np.concatenate([wild(rng, n - n // 2, np.float32), groups(rng, n // 64 + 1, 40)[: n // 2]])
    x[rng.random(n) < 1e-3] = -np.float32(np.nan)
    x[n // 2 : n // 2 + 64] = 0  # a whole group
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), np.abs(x)) if name.endswith("_v") else x


def check(name, rng, n):
    form, x, r = FORMATS[name], sample(rng, n, name), rng.integers(0, 2**16, n).astype(np.uint16)
    theirs = form.encode(x, r)
    back = form.decode(*theirs)
    for isa in range(len(ISAS)):
        ours = encoded(name, isa, x, r)
        for a, b in zip(ours, theirs, strict=True):
            assert np.array_equal(a, b), f"{name} {n} {ISAS[isa]}"
        assert_same_bits(decoded(name, isa, *ours), back, f"{name} {n} {ISAS[isa]}")


@pytest.mark.parametrize("name", FORMATS)
def test_every_instruction_set_has_the_twins_codes(name):
    rng = np.random.default_rng(0)
    for n in (0, 1, 15, 31, 32, 33, 100, 511, 512, 5000, 100_003):
        check(name, rng, n)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("name", FORMATS)
def test_every_instruction_set_has_the_twins_codes_of_many_numbers(name, part):
    rng = np.random.default_rng(part + 1)
    for _ in range(50):
        check(name, rng, 1 << 17)


@pytest.mark.parametrize("name", ["8bit_m", "8bit_v"])
def test_every_8_bit_code_is_decoded_as_by_the_twin(name):
    least = 16 if name == "8bit_m" else 32
    codes = np.tile(np.arange(256, dtype=np.uint8), 256 - least)
    scale = np.repeat(np.arange(least, 256, dtype=np.uint8), 8)
    theirs = FORMATS[name].decode(codes, scale)
    for isa in range(len(ISAS)):
        assert_same_bits(decoded(name, isa, codes, scale), theirs, ISAS[isa])


@pytest.mark.parametrize("name", ["8bit_m", "8bit_v"])
def test_what_is_entered_in_8_bits_is_what_the_twin_rounds_to_nearest(name):
    rng = np.random.default_rng(0)
    x = wild(rng, 20_011, np.float32)
    if name == "8bit_v":
        x = np.where(x == 0, -np.float32(0), np.abs(x))
    nearest = getattr(reference, f"encode_{name}")(x, 0x8000)
    for a, b in zip(entered(name, x), nearest, strict=True):
        assert np.array_equal(a, b)


def check_bfloat16(x):
    nan = np.isnan(x)
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = np.where(nan, 0x7FC0, x.astype(ml_dtypes.bfloat16).view(np.uint16))
    assert np.array_equal(entered("bfloat16_m", x)[0], theirs)
    assert np.array_equal(entered("bfloat16_v", x)[0], np.where(x == 0, 0, theirs))


def check_split_32(x):
    expected = np.where(np.isnan(x), NAN, bits(x))
    for isa in range(len(ISAS)):
        assert np.array_equal(
            bits(decoded("split_32", isa, *encoded("split_32", isa, x, np.empty(0, np.uint16)))), expected
        )


def test_entry_to_bfloat16_is_that_of_ml_dtypes_and_nothing_of_float32_is_lost():
    check_bfloat16(every_upper_half())
    check_split_32(every_upper_half())


@pytest.mark.slow
@pytest.mark.parametrize("part", range(16))
def test_all_of_float32(part):
    for x in every_float(part, 16):
        check_bfloat16(x)
        check_split_32(x)
