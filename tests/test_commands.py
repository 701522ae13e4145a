"""python -m fastadam: what it prints. tests/test_demo.py and test_compare.py have the demo and the comparison."""

import numpy as np
import pytest
from helpers import run_python

import fastadam
from fastadam import _commands, _config


def printed(capsys, *arguments):
    _commands.main(list(arguments))
    return capsys.readouterr().out


def test_without_a_command_it_prints_help_with_examples(capsys):
    out = printed(capsys)
    assert out.count("\n  python -m fastadam ") == 3
    assert all(command in out for command in ("demo", "compare", "config", "inspect"))


def test_version():
    code = "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('fastadam', run_name='__main__')"
    assert run_python(code).stdout == f"fastadam {fastadam.__version__}\n"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "All is well: steps run on up to 4 threads, with AVX2."),
        (
            {"advice": "call it"},
            "All is well: steps run on up to 4 threads, with AVX2; see advice for what may help a loop.",
        ),
        ({"threads": 1}, "All is well: steps run on one thread, with AVX2."),
        ({"openmp": False, "threads": 1}, "This build has no OpenMP, so steps run on one thread, with AVX2."),
        (
            {"isa": "baseline"},
            "FASTADAM_ISA is set, so steps run on up to 4 threads, with the baseline instructions, although AVX2 would "
            "be faster.",
        ),
        (
            {"openmp_waits": "loaded before fastadam"},
            "Another package has loaded OpenMP, whose threads may not sleep between steps: steps run on up to 4 "
            "threads, with AVX2.",
        ),
    ],
)
def test_config_begins_with_a_verdict(change, sentence):
    found = {"isa": "avx2", "isa_available": ["baseline", "avx2"], "openmp": True, "threads": 4}
    assert _config.verdict(found | {"openmp_waits": "passive", "advice": ""} | change) == sentence


def test_inspect_prints_what_is_in_a_checkpoint(capsys, path):
    net = {"hidden": {"weight": np.ones((3, 20), np.float32)}, "bias": np.zeros(20)}
    opt = fastadam.AdamW(net, lr=0.5, overrides={"bias": {"weight_decay": 0.0}})
    opt.step({"hidden": {"weight": np.ones((3, 20), np.float32)}, "bias": None})
    fastadam.save(path, params=net, optimizer=opt, metadata={"epoch": 3})
    first, head, *lines = printed(capsys, "inspect", str(path)).splitlines()
    assert first == f"{path}: AdamW at step 1, parameters"
    assert head.split() == ["array", "dtype", "shape", "steps", "state"]
    assert lines[0].split(maxsplit=6) == ["hidden.weight", "float32", "3", "x", "20", "1", "exp_avg, exp_avg_sq"]
    assert lines[1].split(maxsplit=4) == ["bias", "float64", "20", "0", "exp_avg, exp_avg_sq"]
    assert lines[2].startswith("hyper-parameters of 1 arrays: lr=0.5, ") and "weight_decay=0.0" in lines[3]
    assert lines[4:] == ['metadata: {"epoch": 3}']


def test_inspect_says_that_a_rate_was_a_schedule(capsys, path):
    fastadam.SGD(np.ones(2), lr=lambda count: 0.5).save(path)
    assert "hyper-parameters of 1 arrays: lr from a schedule, momentum=0.0, " in printed(capsys, "inspect", str(path))


def test_inspect_of_parameters_or_an_optimizer_alone(capsys, path):
    fastadam.save(path, params={"w": np.ones(3)})
    assert printed(capsys, "inspect", str(path)).splitlines() == [
        f"{path}: no optimizer, parameters",
        "array  dtype    shape  steps  state",
        "w      float64  3             -",
        "metadata: {}",
    ]
    fastadam.SGD({"w": np.ones(3)}).save(path)
    assert printed(capsys, "inspect", str(path)).startswith(f"{path}: SGD at step 0, no parameters")


def test_inspect_keeps_control_characters_from_the_terminal(capsys, path):
    fastadam.save(path, params={"w\x1b[2J": np.ones(3)}, metadata={"note": "\x1b[31m"})
    out = printed(capsys, "inspect", str(path))
    assert "\x1b" not in out and "w\\x1b[2J" in out


@pytest.mark.parametrize("name", ["no such.npz", "damaged.npz", "other.txt"])
def test_inspect_of_no_checkpoint_says_what_is_wrong(tmp_path, name):
    (tmp_path / "damaged.npz").write_bytes(b"PK")
    with pytest.raises(SystemExit, match=name) as caught:
        _commands.main(["inspect", str(tmp_path / name)])
    assert isinstance(caught.value.code, str)  # printed, and the exit status is 1
