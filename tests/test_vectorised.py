"""Every loop was vectorised at the width of its instruction set, without fused multiply-add.

Read from the disassembly of the extension that is installed."""

import functools
import platform
import re
import shutil
import subprocess
import sys

import pytest
from helpers import ISAS

from fastadam import _core

RULES = [
    *("adam" + decay + amsgrad for decay in ("", "_l2", "_decoupled") for amsgrad in ("", "_amsgrad")),
    *("sgd" + decay + momentum for decay in ("", "_l2") for momentum in ("", "_momentum", "_nesterov")),
    *("rmsprop" + decay + m + c for decay in ("", "_l2") for m in ("", "_momentum") for c in ("", "_centered")),
    *("nadam" + decay for decay in ("", "_l2", "_decoupled")),
    *("adamax" + decay for decay in ("", "_l2")),
    *("row_adagrad" + decay for decay in ("", "_l2")),
    *("gradient" + name for name in ("", "_summed", "_clipped", "_summed_clipped", "_in_place")),
    "average",
]
SQUARED = [rule for rule in RULES if rule.split("_")[0] in ("adam", "rmsprop", "nadam")]
SMALL = [f"{rule}_small" for rule in SQUARED if platform.machine() == "x86_64"]  # others need no care for small squares
LOOPS = {"f32": [*RULES, *SMALL], "f64": RULES}
NORMS = ["squares", "squares_piece", "row_squares", "row_squares_l2"]
OTHERS = ["add_mean"]  # of one number
CODECS = ["decode_float16", "decode_bfloat16", "encode_bfloat16_m", "encode_bfloat16_v", "random"]
CODECS += [f"{way}_{name}" for way in ("decode", "encode") for name in ("split_32", "split_24")]
GROUPS = [f"{way}_8bit_{name}" for way in ("decode", "encode") for name in "mv"]  # AVX-512 takes AVX2's
PACKED = {  # (instruction set, element type): what a vectorised square root and division look like
    "x86_64": {
        ("baseline", "f32"): (r"\bsqrtps\s.*%xmm", r"\bdivps\s.*%xmm"),
        ("baseline", "f64"): (r"\bsqrtpd\s.*%xmm", r"\bdivpd\s.*%xmm"),
        ("avx2", "f32"): (r"\bvsqrtps\s.*%ymm", r"\bvdivps\s.*%ymm"),
        ("avx2", "f64"): (r"\bvsqrtpd\s.*%ymm", r"\bvdivpd\s.*%ymm"),
        ("avx512", "f32"): (r"\bvsqrtps\s.*%zmm", r"\bvdivps\s.*%zmm"),
        ("avx512", "f64"): (r"\bvsqrtpd\s.*%zmm", r"\bvdivpd\s.*%zmm"),
    },
    "aarch64": {
        ("baseline", "f32"): (r"\bfsqrt\s+v\d+\.4s", r"\bfdiv\s+v\d+\.4s"),
        ("baseline", "f64"): (r"\bfsqrt\s+v\d+\.2d", r"\bfdiv\s+v\d+\.2d"),
    },
}
PRODUCTS = {  # (instruction set, element type): what a vectorised product looks like
    "x86_64": {
        (isa, real): rf"\b{v}mulp{real_letter}\s.*%{register}"
        for isa, v, register in (("baseline", "", "xmm"), ("avx2", "v", "ymm"), ("avx512", "v", "zmm"))
        for real, real_letter in (("f32", "s"), ("f64", "d"))
    },
    "aarch64": {("baseline", "f32"): r"\bfmul\s+v\d+\.4s", ("baseline", "f64"): r"\bfmul\s+v\d+\.2d"},
}
SHIFTS = {  # what a vectorised shift, or the same by interleaving zeros, looks like
    ("x86_64", "baseline"): r"\bp(unpck[lh]wd|s[lr]ld)\s.*%xmm",
    ("x86_64", "avx2"): r"\bvps[lr]ld\s.*%ymm",
    ("x86_64", "avx512"): r"\bvps[lr]ld\s.*%zmm",
    ("aarch64", "baseline"): r"\b(s?u?shll?|u?shrn?|zip\d|u[sz][rp]a?\d?)2?\s+v\d+\.(4s|8h|4h)",
}
FUSED = r"\bvfn?m(add|sub)|\bfml[as]\b|\bfn?m(add|sub)\b"

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in PACKED, reason="reads the disassembly of x86-64 and aarch64"
)


@functools.cache
def disassemble(path, objdump="objdump"):
    """{function: its instructions}"""
    assert shutil.which(objdump), f"{objdump} is missing: install binutils"
    text = subprocess.run([objdump, "-d", path], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^[0-9a-f]+ <(.+)>:$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def expected_in(rule, machine, isa, real):
    """A product always; a root and a quotient where the rule has them."""
    root, quotient = PACKED[machine][isa, real]
    others = {"sgd": [], "gradient": [], "average": [], "adamax": [quotient], "row": [quotient]}
    return [PRODUCTS[machine][isa, real], *others.get(rule.split("_")[0], [root, quotient])]


@pytest.fixture
def functions():
    return disassemble(_core.__file__)


@pytest.mark.parametrize(
    ("rule", "isa", "real"), [(rule, *key) for key in PACKED.get(platform.machine(), {}) for rule in LOOPS[key[1]]]
)
def test_loop_is_vectorised_at_full_width(functions, rule, isa, real):
    body = functions[f"{rule}_{real}_{isa}"]
    for pattern in expected_in(rule, platform.machine(), isa, real):
        assert re.search(pattern, body), f"no {pattern} in {rule}_{real}_{isa}"
    assert not re.search(FUSED, body), "a fused multiply-add rounds once where the specification rounds twice"


@pytest.mark.parametrize(("isa", "real"), PACKED.get(platform.machine(), {}))
@pytest.mark.parametrize("loop", NORMS)
def test_the_norm_is_vectorised_at_full_width_in_float64(functions, loop, isa, real):
    body = functions[f"{loop}_{real}_{isa}"]
    assert re.search(PRODUCTS[platform.machine()][isa, "f64"], body) and not re.search(FUSED, body)


@pytest.mark.parametrize("isa", dict.fromkeys(isa for isa, _ in PACKED.get(platform.machine(), {})))
@pytest.mark.parametrize("loop", [*CODECS, *GROUPS])
def test_formats_are_vectorised_at_full_width(functions, loop, isa):
    """They shift numbers of 32 bits."""
    if loop not in GROUPS or isa != "avx512":
        assert re.search(SHIFTS[platform.machine(), isa], functions[f"{loop}_{isa}"])


def test_every_compiled_loop_is_looked_at(functions):
    expected = {
        f"{loop}_{real}_{isa}" for isa, real in PACKED[platform.machine()] for loop in (*LOOPS[real], *NORMS, *OTHERS)
    }
    isas = {isa for isa, _ in PACKED[platform.machine()]}
    expected |= {f"{loop}_{isa}" for isa in isas for loop in CODECS}
    expected |= {f"{loop}_{isa}" for isa in isas - {"avx512"} for loop in GROUPS}
    found = {name for name in functions if re.search(r"_(baseline|avx2|avx512)$", name)}
    assert found == expected
    assert {isa for isa, _ in PACKED[platform.machine()]} >= set(ISAS)
