"""The kernel on 64-bit Arm, under emulation: the bits of x86-64, and vectorised loops.

Needs a cross compiler and qemu: pytest -m aarch64 (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user)."""

import re
import subprocess

import pytest
from helpers import ROOT, compiler_flags
from test_vectorised import FUSED, PACKED, RULES, disassemble, expected_in

FLAGS = compiler_flags()
SOURCES = [
    ROOT / "tests" / "same_bits.c",
    *(ROOT / "csrc").glob("*.c"),
]

pytestmark = pytest.mark.aarch64


def build(compiler, path):
    command = [
        compiler,
        *FLAGS,
        "-fopenmp",
        "-static",
        f"-I{ROOT / 'csrc'}",
        *map(str, SOURCES),
        "-o",
        str(path),
        "-lm",
    ]
    subprocess.run(command, check=True)
    return str(path)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build("aarch64-linux-gnu-gcc", tmp_path_factory.mktemp("arm") / "same_bits")


def test_the_bits_of_another_processor_are_the_same(program, tmp_path):
    theirs = subprocess.run(["qemu-aarch64", program], capture_output=True, text=True, check=True).stdout
    ours = subprocess.run([build("cc", tmp_path / "same_bits")], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"[0-9a-f]{16}\n", ours)
    assert ours == theirs


@pytest.mark.parametrize(("isa", "real"), PACKED["aarch64"])
@pytest.mark.parametrize("rule", RULES)
def test_loop_is_vectorised_at_full_width(program, rule, isa, real):
    body = disassemble(program, "aarch64-linux-gnu-objdump")[f"{rule}_{real}_{isa}"]
    for pattern in expected_in(rule, "aarch64", isa, real):
        assert re.search(pattern, body)
    assert not re.search(FUSED, body)
