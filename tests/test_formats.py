"""The twin of what is stored with fewer bits than float32: how numbers are rounded, and what steps make of it."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits

from fastadam import reference
from fastadam.reference import (
    adam_update,
    decode_8bit_m,
    decode_8bit_v,
    decode_bfloat16,
    decode_state,
    encode_8bit_m,
    encode_8bit_v,
    encode_bfloat16,
    encode_state,
    formats,
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

LOW = ["bfloat16", "8bit"]
ADAM = ["exp_avg", "exp_avg_sq"]
STATE = {
    "adam": ADAM,
    "sgd": ["momentum_buffer"],
    "rmsprop": ["square_avg", "momentum_buffer"],
    "adagrad": ["sum"],
    "rowadagrad": ["sum"],
    "nadam": ADAM,
    "radam": ADAM,
    "adamax": ["exp_avg", "exp_inf"],
}
SIGNED = ["exp_avg", "momentum_buffer"]
NAN = 0x7FC00000
both = pytest.mark.parametrize(
    ("encode", "decode", "least", "count"),  # the least scale; how many codes without the sign
    [
        pytest.param(encode_8bit_v, decode_8bit_v, 32, 256, id="v"),
        pytest.param(encode_8bit_m, decode_8bit_m, 16, 128, id="m"),
    ],
)


def floats(integers):
    return np.asarray(integers).astype(np.uint32).view(np.float32)


def bits(x):
    return x.view(np.uint32)


def every_upper_half():
    """Each sign, exponent and upper 7 bits of a fraction, with several lower halves."""
    low = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x80, 0x180, 0x7F80, *np.random.default_rng(0).integers(0, 2**16, 4)]
    return floats(np.arange(2**16, dtype=np.uint32)[:, None] << 16 | np.array(low, np.uint32)).ravel()


def every_float(part, parts):
    """All of float32, in pieces: of this part of them all."""
    for first in range(part << 17, 2**32, parts << 17):  # each in the second-level cache: twice as fast
        yield floats(np.arange(first, first + 2**17))


# ---- bfloat16


def check_nearest_bfloat16(x):
    codes, nan = nearest_bfloat16(x), np.isnan(x)
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(codes[~nan], theirs[~nan])
    assert (codes[nan] == 0x7FC0).all()


def test_nearest_bfloat16_is_that_of_ml_dtypes():
    check_nearest_bfloat16(every_upper_half())


def test_every_code_of_bfloat16_is_decoded_exactly():
    codes = np.arange(2**16, dtype=np.uint16)
    assert_same_bits(decode_bfloat16(codes), codes.view(ml_dtypes.bfloat16).astype(np.float32))
    numbers = ~np.isnan(decode_bfloat16(codes))
    for r in 0, 0x8000, 0xFFFF:
        assert np.array_equal(encode_bfloat16(decode_bfloat16(codes), r)[numbers], codes[numbers])


def test_bfloat16_is_rounded_up_as_often_as_its_lower_half_is_worth():
    r = np.arange(2**16, dtype=np.uint16)
    for x in floats([0x3F800000, 0x3F800001, 0x3F80C000, 0xBF80C000, 0x3FFFFFFF, 0x00000123, 0x7F7F8000]):
        codes = encode_bfloat16(np.full(2**16, x), r).astype(np.uint32) << 16
        assert np.array_equal(np.unique(codes), np.unique([bits(x) & 0xFFFF0000, bits(x) + 0xFFFF & 0xFFFF0000]))
        assert codes.mean() == bits(x)  # exact in float64


def test_special_values_of_bfloat16():
    x = floats([0, 0x80000000, 0x7F800000, 0xFF800000, NAN, 0xFFC00000, 0x7F800001, 0xFFFFFFFF])
    for r in 0, 0x8000, 0xFFFF:
        assert encode_bfloat16(x, r).tolist() == [0, 0x8000, 0x7F80, 0xFF80, *[0x7FC0] * 4]


# ---- bfloat16 parameters with a correction


def check_split_32(x):
    high, low = split_32(x)
    nan = np.isnan(x)
    assert high.dtype == np.uint16 and low.dtype == np.int16
    assert np.array_equal(bits(join_32(high, low)), np.where(nan, NAN, bits(x)))
    ties = bits(x) & 0xFFFF == 0x8000
    nearest = nearest_bfloat16(x)
    assert np.array_equal(high[~ties], nearest[~ties])
    assert np.array_equal(high[ties & ~nan], (bits(x)[ties & ~nan] >> 16) + 1)  # away from 0


def check_split_24(x):
    high, low = split_24(x)
    y, numbers = join_24(high, low), ~np.isnan(x)
    assert high.dtype == np.uint16 and low.dtype == np.int8
    assert (bits(y)[~numbers] == NAN).all()
    away = bits(y)[numbers].astype(np.int64) - bits(x)[numbers]
    assert (np.abs(away) <= 128).all() and not (bits(y) & 0xFF).any()
    assert not (bits(y)[numbers][np.abs(away) == 128] & 0x100).any()  # ties to even
    again = split_24(y)
    assert np.array_equal(again[0], high) and np.array_equal(again[1], low)
    assert np.array_equal(high, split_32(y)[0])


def test_split_32_loses_nothing():
    check_split_32(every_upper_half())


def test_split_24_is_the_nearest():
    check_split_24(every_upper_half())


@pytest.mark.slow
@pytest.mark.parametrize("part", range(16))
def test_all_of_float32(part):
    for x in every_float(part, 16):
        check_nearest_bfloat16(x)
        check_split_32(x)


@pytest.mark.parametrize("state_dtype", ["float32", *LOW])
def test_bfloat16_parameters_with_16_more_bits_are_float32(state_dtype):
    rng = np.random.default_rng(1)
    p = rng.standard_normal((9, 70)).astype(np.float32)
    high, low = split_32(p.ravel())
    part = high.view(ml_dtypes.bfloat16).reshape(p.shape)
    states = [fresh_state(ADAM, p.shape, state_dtype=state_dtype) for _ in range(2)]
    states[1]["master::low"] = low
    for step in range(1, 6):
        grad = rng.standard_normal(p.shape).astype(ml_dtypes.bfloat16)
        for param, state in zip((p, part), states, strict=True):
            stored_update(adam_update, param, grad, step, state, state_dtype=state_dtype, seed=4, weight_decay=0.1)
    assert_same_bits(join_32(part.view(np.uint16).ravel(), low), p.ravel())
    for name, array in states[0].items():
        assert np.array_equal(array, states[1][name])


@pytest.mark.parametrize("master_bits", [32, 24])
def test_small_weight_decay_reaches_bfloat16_parameters(master_bits):
    grad, factor = np.zeros(50, np.float32), np.float32(1 - 2**-10)
    p = np.linspace(1, 2, 50, dtype=np.float32).astype(ml_dtypes.bfloat16)
    before = p.astype(np.float32)
    assert np.array_equal(nearest_bfloat16(before * factor), nearest_bfloat16(before))  # alone, they would not move
    state = fresh_state(ADAM, 50, master_bits=master_bits)
    decay = {"lr": 2**-3, "weight_decay": 2**-7, "decoupled_weight_decay": True}
    for step in range(1, 101):
        stored_update(adam_update, p, grad, step, state, master_bits=master_bits, **decay)
    assert np.allclose(p.astype(np.float32), before * factor**100, rtol=2**-8, atol=0)


# ---- 8 bits


def groups(rng, count, spread):
    """Groups of 32 numbers, each with a magnitude of its own; the smallest is up to 2**spread below the largest."""
    largest = 10.0 ** rng.uniform(-28, 38, count)
    x = largest[:, None] * 2.0 ** -rng.uniform(0, spread, (count, 32))
    return x.astype(np.float32).ravel()


def every_code_and_scale(least):
    """8 groups for each scale."""
    return np.tile(np.arange(256), 255 - least), np.repeat(np.arange(least, 255), 8)


@both
def test_every_8_bit_code_is_decoded_exactly(encode, decode, least, count):
    codes, scale = every_code_and_scale(least)
    y = decode(codes.astype(np.uint8), scale.astype(np.uint8))
    q, e = codes % count, np.repeat(scale, 32) - (least - 1)
    exact = np.where(q == 0, 0, (1 + q % 8 / 8) * 2.0 ** (q // 8 + e - 127))
    exact = np.where(codes >= count, -exact, exact)
    assert_same_bits(y, exact.astype(np.float32))
    assert np.isnan(decode(np.arange(256).astype(np.uint8), np.full(8, 255, np.uint8))).all()


@both
def test_what_was_decoded_is_stored_as_it_was(encode, decode, least, count):
    """Whatever the random bits are. The largest code of each group gives it the scale that it has."""
    codes, scale = (x.astype(np.uint8) for x in every_code_and_scale(least))
    codes[codes == 128] = 128 if count == 256 else 0  # -0 of m is never stored
    codes[::32] = count - 1
    x = decode(codes, scale)
    for r in 0, 0x8000, 0xFFFF:
        again = encode(x, r)
        assert np.array_equal(again[0], codes) and np.array_equal(again[1], scale)


@pytest.mark.parametrize("r", [0, 1, 0x8000, 0xFFFF, None])
@both
def test_8_bits_are_within_their_spacing(encode, decode, least, count, r):
    """In steps of 1/8 of a power of two; over 2**31 : 1 in a group of v, and 2**15 : 1 of m."""
    rng = np.random.default_rng(2)
    x = groups(rng, 3000, count / 8 - 1.5)
    if encode is encode_8bit_m:
        x *= rng.choice([-1, 1], x.size)
    y = decode(*encode(x, random_bits(0, 1, x.size) if r is None else r))
    away = np.abs(bits(x).astype(np.int64) - bits(y))
    assert (away < 2**20 if r != 0x8000 else away <= 2**19).all()
    assert np.array_equal(x > 0, y > 0)


@both
def test_rounding_up_never_leaves_the_codes(encode, decode, least, count):
    """As a sum would that is one too large for a byte."""
    x = floats(np.repeat(np.arange(0x00900000, 0x7F700001, 0x7FFF), 32))  # from the smallest code to the largest
    y = decode(*encode(x, 0xFFFF))
    assert (y >= x).all() and (bits(y) - bits(x) < 2**20).all()


@both
def test_8_bits_are_rounded_up_as_often_as_the_rest_is_worth(encode, decode, least, count):
    r = np.arange(2**16, dtype=np.uint16)
    for x in floats([0x3F800000, 0x3F800010, 0x3F8C0000, 0x3FFFFFFF, 0x2F123456]):
        y = decode(*encode(np.full(2**16, x), r))
        assert np.array_equal(np.unique(bits(y)), np.unique([bits(x) & 0xFFF00000, bits(x) + 0xFFFFF & 0xFFF00000]))
        assert -16 <= bits(y).mean() - bits(x) <= 0  # 20 bits are rounded away, and r has 16


def test_no_v_but_zero_becomes_zero():
    x = np.concatenate([[3e38, 0, -0.0], 10.0 ** np.linspace(-45, 38, 29)]).astype(np.float32)
    for v, r in itertools.product((x, np.repeat(x, 32)), (0, 0x8000, 0xFFFF)):
        y = decode_8bit_v(*encode_8bit_v(v, r))
        assert np.array_equal(y == 0, v == 0) and not np.signbit(y).any()
    normal = x[x >= np.finfo(np.float32).tiny]
    assert decode_bfloat16(encode_bfloat16(normal, 0)).all()


def test_v_from_the_largest_to_the_smallest_in_one_group():
    x = 2.0 ** -np.arange(32, dtype=np.float32)
    codes, scale = encode_8bit_v(x, 0)
    assert scale == 127 and codes.tolist() == [*range(248, 0, -8), 1]
    assert decode_8bit_v(codes, scale).tolist() == [*x[:-1], 1.125 * 2**-31]


def test_m_from_the_largest_to_the_smallest_in_one_group():
    x = 2.0 ** -np.arange(32, dtype=np.float32) * np.tile([1, -1], 16)
    codes, scale = encode_8bit_m(x, 0)
    assert scale == 127 and not codes[15:].any()  # +0
    assert decode_8bit_m(codes, scale).tolist() == [*x[:15], *[0] * 17]


def test_small_numbers_and_zeros_in_8_bits():
    small = floats([0, 0x80000000, 1, 0x80000001, 0x7FFFFF, 0x807FFFFF])
    for r in 0, 0xFFFF:
        codes, scale = encode_8bit_m(small, r)
        assert not codes[:4].any() and scale == 16
        codes, scale = encode_8bit_v(small[::2], r)
        assert codes.tolist() == [0, 1, 1] and scale == 32
        assert encode_8bit_v(small[1:2], r)[0] == 0
    assert encode_8bit_m(small, 0)[0].tolist() == [0] * 6


@both
def test_what_is_not_finite_or_too_large_makes_its_group_nan(encode, decode, least, count):
    for bad in floats([0x7F800000, NAN, 0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0x7F700001, 0x7F7FFFFF]):
        x = np.ones(70, np.float32)
        x[40] = bad
        stored = encode(x, 0x8000)
        y = decode(*stored)
        assert np.isnan(y[32:64]).all() and (y[:32] == 1).all() and (y[64:] == 1).all()
        if bad != bad:  # whose sign depends on the order of operands
            x[40] = floats(bits(bad) ^ 0x80000000)
            assert all(map(np.array_equal, encode(x, 0x8000), stored))
    codes, _ = encode(floats([0x7FC12345, NAN, 0x7FFFFFFF]), 0xFFFF)
    assert (codes == codes[1]).all()
    assert decode(*encode(floats([0x7F700000]), 0xFFFF)) == floats([0x7F700000])  # the largest: 3.19e38


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 64, 95, 1000])
@both
def test_the_last_group_may_be_shorter(encode, decode, least, count, size):
    x = groups(np.random.default_rng(3), 32, 8)[:size]
    codes, scale = encode(x, 0x8000)
    assert codes.shape == (size,) and scale.shape == (-(-size // 32),)
    padded = encode(np.concatenate([x, np.zeros(-size % 32, np.float32)]), 0x8000)
    assert np.array_equal(codes, padded[0][:size]) and np.array_equal(scale, padded[1])
    assert_same_bits(decode(codes, scale), decode(*padded)[:size])


# ---- random bits


def one_by_one(seed, step, i):
    def mix64(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    key = mix64((mix64((seed + step * 0x9E3779B97F4A7C15) % 2**64) + i // 512 * 512) % 2**64) >> 32
    x = (key + i % 256 * 0x9E3779B1) % 2**32
    x = (x ^ x >> 16) * 0x21F0AAAD % 2**32
    x = (x ^ x >> 15) * 0xD35A2D97 % 2**32
    x = x ^ x >> 15
    return x >> 16 if i % 512 >= 256 else x & 0xFFFF


@pytest.mark.parametrize(
    ("seed", "step", "first", "size"),
    [
        (0, 1, 0, 1500),
        (2**64 - 1, 10**9, 300, 700),
        (2**63 - 1, 2**40, 511, 2),
        (5, 2, 2**33 + 5, 1030),
        (1, 1, 512, 512),
        (1, 1, 3, 0),
        (1, 1, 512, 0),
    ],
)
def test_random_bits_follow_from_seed_step_and_place_alone(seed, step, first, size):
    r = random_bits(seed, step, size, first)
    assert r.dtype == np.uint16 and r.tolist() == [one_by_one(seed, step, first + i) for i in range(size)]


LAGS = [0, 1, 2, 3, 8, 16, 32, 64, 255, 256, 257, 512]


def correlation(a, b):
    """In standard deviations, if they were independent and uniform."""
    return (a - 32767.5) @ (b - 32767.5) / np.sqrt(len(a)) / ((2**32 - 1) / 12)


def worst_of_numbers(a, b, lags):
    """Between one and what stands behind it in the other; not with itself."""
    same = a is b
    a, b = a.astype(float), b.astype(float)
    return max(abs(correlation(a[lag:], b[: len(b) - lag])) for lag in lags if lag or not same)


def worst_of_bits(a, b):
    """The same, between each of the 16 bits of one and of the other."""
    x, y = (((r[:, None] >> np.arange(16, dtype=np.uint16)) & 1).astype(np.float32) * 2 - 1 for r in (a, b))
    worst = 0
    for lag in LAGS:
        table = np.abs(x[lag:].T @ y[: len(y) - lag]) / np.sqrt(len(y) - lag)
        worst = max(worst, table[~np.eye(16, dtype=bool)].max() if a is b and not lag else table.max())
    return worst


def test_random_bits_are_uniform():
    r = random_bits(0, 1, 2**20)
    for x in r, other_bits(r):
        assert abs(x.mean() - 32767.5) < 5 * 65536 / np.sqrt(12 * x.size)
        chi2 = ((np.bincount(x, minlength=2**16) - 16) ** 2 / 16).sum()
        assert abs(chi2 - 2**16) < 5 * np.sqrt(2 * 2**16)


@pytest.mark.parametrize("size", [2**19, pytest.param(2**22, marks=pytest.mark.slow)])
def test_random_bits_do_not_depend_on_each_other(size):
    """5 standard deviations, in 10 000 correlations: by chance once in 200 hashes."""
    r = random_bits(0, 1, size)
    assert worst_of_bits(r, r) < 5
    r = r[: size // 4]
    assert worst_of_numbers(r, r, range(1, 65)) < 5
    for seed, step in [(0, 2), (1, 1)]:
        assert worst_of_bits(r, random_bits(seed, step, r.size)) < 5
    for seed, step in [(0, 3), (0, 1001), (2, 1), (2**32, 1), (2**62, 1), (1, 2)]:
        assert worst_of_numbers(r, random_bits(seed, step, r.size), [0, 1, 8, 256, 512]) < 5, (seed, step)


def test_a_hash_with_one_multiplication_is_noticed():
    x = np.random.default_rng(0).integers(0, 2**32, (2**10, 1)).astype(np.uint32)
    x = x + np.arange(256, dtype=np.uint32) * np.uint32(0x9E3779B1)
    x = (x ^ x >> 16) * np.uint32(0x21F0AAAD)
    x = x ^ x >> 15
    r = np.concatenate([x & 0xFFFF, x >> 16], axis=1).ravel().astype(np.uint16)
    assert worst_of_bits(r, r) > 7


def test_bits_for_m_are_almost_independent_of_those_for_v():
    """Their bytes swapped: the upper one of each is the lower one of the other, which counts 512 / 65537."""
    r = random_bits(0, 1, 2**18)
    assert np.array_equal(other_bits(other_bits(r)), r)
    assert abs(np.corrcoef(r, other_bits(r))[0, 1] - 512 / 65537) < 5 / 2**9
    for state_dtype, half in ("bfloat16", 1 / 256), ("8bit", 1 / 16):
        x = np.full(r.size, 1 + half, np.float32)
        m, v = (decode_state(name, encode_state(name, x, state_dtype, r), state_dtype) > x for name in ADAM)
        assert abs(m.mean() - 0.5) < 5 / 2**10 and abs(np.corrcoef(m, v)[0, 1]) < 5 / 2**9


# ---- state


@pytest.mark.parametrize("state_dtype", LOW)
@pytest.mark.parametrize("name", sorted({name for names in STATE.values() for name in names}))
def test_fresh_state_is_zero(name, state_dtype):
    state = fresh_state([name], (5, 20), state_dtype=state_dtype, master_bits=24)
    assert_same_bits(decode_state(name, state, state_dtype), np.zeros(100, np.float32))
    assert not state[f"{name}::codes"].any() and not state["master::low"].any()
    if state_dtype == "8bit":
        assert state[f"{name}::scale"].tolist() == [16 if name in SIGNED else 32] * 4


@pytest.mark.parametrize("state_dtype", LOW)
def test_values_that_are_loaded_are_rounded_to_nearest_and_then_stay(state_dtype):
    rng = np.random.default_rng(5)
    for name in ADAM:
        x = groups(rng, 100, 8)
        stored = encode_state(name, x, state_dtype)
        y = decode_state(name, stored, state_dtype)
        assert (np.abs(bits(x).astype(np.int64) - bits(y)) <= (2**15 if state_dtype == "bfloat16" else 2**19)).all()
        again = encode_state(name, y, state_dtype)
        assert_same_bits(decode_state(name, again, state_dtype), y)
        signs = np.signbit(decode_state(name, encode_state(name, np.float32([-0.0]), state_dtype), state_dtype))
        assert signs == (name == "exp_avg" and state_dtype == "bfloat16")
        codes = encode_state(name, floats([NAN, 0xFFC00000, 0x7F800001]), state_dtype)[f"{name}::codes"]
        assert (codes == codes[0]).all()


def one_step(rule, param, grad, state, state_dtype, **options):
    update = getattr(reference, f"{rule}_update")
    if rule in ("sgd", "rmsprop"):
        options["momentum"] = 0.9
    state = {**state, "mu_product": 1.0} if rule == "nadam" else state
    return stored_update(update, param, grad, 2, state, state_dtype=state_dtype, weight_decay=0.01, lr=0.1, **options)


def some_state(rng, rule, shape, state_dtype):
    """Both as it is stored and decoded: of a step before this one."""
    shape = shape[:1] if rule == "rowadagrad" else shape
    stored, plain = {}, {}
    for name in STATE[rule]:
        x = rng.standard_normal(np.prod(shape)).astype(np.float32)
        x = x if name in SIGNED else x**2
        stored |= encode_state(name, x, state_dtype)
        plain[name] = decode_state(name, stored, state_dtype).reshape(shape)
    return stored, plain


@pytest.mark.parametrize("state_dtype", LOW)
@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("rule", STATE)
def test_parameters_follow_from_state_that_is_not_rounded(rule, half, state_dtype):
    rng, shape = np.random.default_rng(6), (21, 33)
    stored, plain = some_state(rng, rule, shape, state_dtype)
    grad = rng.standard_normal(shape).astype(half)
    p = rng.standard_normal(shape).astype(np.float32)
    high, low = split_32(p.ravel())
    part, in_parts = high.view(ml_dtypes.bfloat16).reshape(shape), {k: a.copy() for k, a in stored.items()}
    in_parts["master::low"] = low
    twin = p.copy()
    expected = one_step(rule, twin, grad.astype(np.float32), plain, "float32")
    assert one_step(rule, p, grad, stored, state_dtype) == expected
    assert one_step(rule, part, grad, in_parts, state_dtype) == expected
    assert_same_bits(p, twin)
    assert_same_bits(join_32(part.view(np.uint16).ravel(), low), twin.ravel())
    for name in STATE[rule]:
        y = decode_state(name, stored, state_dtype)
        away = np.abs(bits(y).astype(np.int64) - bits(plain[name].ravel()))
        inside = np.abs(plain[name].ravel()) > 1e-3  # of m, what is smaller may be 0
        assert away.any() and (away[inside] < (2**16 if state_dtype == "bfloat16" else 2**20)).all()
        for raw in stored:
            assert np.array_equal(stored[raw], in_parts[raw])


@pytest.mark.parametrize("state_dtype", LOW)
def test_an_elements_random_bits_are_those_of_its_place(state_dtype):
    """So parts give what the whole gives, and memory order is what counts."""
    rng, n = np.random.default_rng(7), 32 * 50
    p = rng.standard_normal(n).astype(np.float32)
    grad = rng.standard_normal(n).astype(np.float32)
    whole, columns, parts = (fresh_state(ADAM, n, state_dtype=state_dtype) for _ in range(3))
    args = {"state_dtype": state_dtype, "seed": 9}
    table = p.reshape(40, 40, order="F").copy(order="F")
    ours = p.copy()
    stored_update(adam_update, ours, grad, 1, whole, **args)
    stored_update(adam_update, table, grad.reshape(40, 40, order="F"), 1, columns, **args)
    for a, b in [(0, 32), (32, 544), (544, 1056), (1056, n)]:
        part = {raw: x[a // 32 : b // 32] if "scale" in raw else x[a:b] for raw, x in parts.items()}
        stored_update(adam_update, p[a:b], grad[a:b], 1, part, first=a, **args)
    assert_same_bits(ours, p)
    assert_same_bits(ours, table.ravel(order="F"))
    for raw, x in whole.items():
        assert np.array_equal(x, columns[raw]) and np.array_equal(x, parts[raw])
    other = fresh_state(ADAM, n, state_dtype=state_dtype)
    stored_update(adam_update, np.ones(n, np.float32), grad, 1, other, state_dtype=state_dtype, seed=10)
    assert (other["exp_avg::codes"] != whole["exp_avg::codes"]).any()


def means_after(state_dtype, steps, beta, grad, size=4096):
    """m and v that were 1 for long, after some steps with a smaller gradient: as they should be, and as they are."""
    p, grads = np.zeros(size, np.float32), np.full(size, grad, np.float32)
    state = {}
    for name in ADAM:
        state |= encode_state(name, np.ones(size, np.float32), state_dtype)
    for step in range(1, steps + 1):
        stored_update(adam_update, p, grads, step, state, state_dtype=state_dtype, betas=(beta, beta), lr=0.0)
    exact = [beta**steps + (1 - beta**steps) * x for x in (grad, grad**2)]
    return exact, [decode_state(name, state, state_dtype).mean(dtype=float) for name in ADAM]


@pytest.mark.parametrize("grad", [0.1, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("beta", "steps"), [(0.9, 60), (0.99, 200), (0.999, 300), pytest.param(0.999, 3000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("state_dtype", LOW)
def test_averages_do_not_freeze(state_dtype, beta, steps, grad):
    (m, v), (our_m, our_v) = means_after(state_dtype, steps, beta, grad)
    assert abs(our_m / m - 1) < 0.02
    assert abs(our_v / v - 1) < (0.05 if state_dtype == "8bit" else 0.02)


@pytest.mark.parametrize(
    ("state_dtype", "beta", "steps", "grad", "which", "frozen"),
    [
        ("bfloat16", 0.999, 200, 0.1, 1, 1.0),
        ("bfloat16", 0.99, 500, 0.5, 0, 0.6953125),
        ("8bit", 0.9, 500, 0.5, 0, 0.8125),
        ("8bit", 0.99, 200, 0.5, 0, 1.0),
        ("8bit", 0.999, 200, 0.1, 1, 1.0),
    ],
)
def test_averages_rounded_to_nearest_freeze(monkeypatch, state_dtype, beta, steps, grad, which, frozen):
    """What the random bits are for: without them the test above fails."""
    monkeypatch.setattr(formats, "random_bits", lambda seed, step, size, first: np.full(size, 0x8000, np.uint16))
    monkeypatch.setattr(formats, "other_bits", lambda r: r)
    exact, ours = means_after(state_dtype, steps, beta, grad, size=32)
    assert ours[which] == frozen > 1.2 * exact[which]


def longest_step(state_dtype):
    """Of 200 with gradients over 5 decades side by side, in units of lr."""
    rng, size = np.random.default_rng(8), 4096
    scale = 10.0 ** rng.uniform(-5, 0, size)
    p, state = np.zeros(size, np.float32), fresh_state(ADAM, size, state_dtype=state_dtype)
    longest = 0
    for step in range(1, 201):
        before, grad = p.copy(), (rng.standard_normal(size) * scale).astype(np.float32)
        stored_update(adam_update, p, grad, step, state, state_dtype=state_dtype, lr=1.0)
        longest = max(longest, np.abs(p - before).max())
    return longest


@pytest.mark.parametrize("state_dtype", ["float32", *LOW])
def test_small_gradients_among_large_ones_do_not_explode(state_dtype):
    assert longest_step(state_dtype) < 1.5


def test_small_gradients_explode_if_a_v_may_become_zero(monkeypatch):
    def forgetful(x, r):
        codes, scale = encode_8bit_v(x, r)
        return np.where(decode_8bit_v(np.ones_like(codes), scale) > 1.2 * x, 0, codes).astype(np.uint8), scale

    monkeypatch.setattr(formats, "encode_8bit_v", forgetful)
    assert longest_step("8bit") > 100


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("state_dtype", LOW)
def test_nan_is_its_groups_from_the_next_step_on(state_dtype, bad):
    size, at = 100, 40
    p, clean = np.ones(size, np.float32), np.ones(size, np.float32)
    states = [fresh_state(ADAM, size, state_dtype=state_dtype) for _ in range(2)]
    gone = np.zeros(size, bool)
    for step in range(1, 4):
        grad = np.random.default_rng(step).standard_normal(size).astype(np.float32)
        stored_update(adam_update, clean, grad, step, states[1], state_dtype=state_dtype)
        if step == 1:
            grad[at] = bad
        stored_update(adam_update, p, grad, step, states[0], state_dtype=state_dtype)
        gone[at] = True
        assert_same_bits(p[~gone], clean[~gone])
        assert np.isnan(p[gone]).all()
        if state_dtype == "8bit":
            gone[32:64] = True
    for name in ADAM:
        assert np.array_equal(~np.isfinite(decode_state(name, states[0], state_dtype)), gone)


def test_gradients_of_float64_are_rounded_once():
    """To float32 and no further, though the parameters are bfloat16."""
    grad = np.array([1 + 2**-24 + 2**-40, 1 + 2**-12])
    p, low = np.zeros(2, ml_dtypes.bfloat16), np.zeros(2, np.int16)
    stored_update(reference.sgd_update, p, grad, 1, {"master::low": low}, lr=1.0)
    assert_same_bits(join_32(p.view(np.uint16), low), -grad.astype(np.float32))
