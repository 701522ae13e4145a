"""The main job: python -m fastadam demo. What trains needs the [demo] extra: pytest -m demo."""

import ast
import os
import re
import struct
from pathlib import Path

import pytest
from helpers import run_python

import fastadam
from fastadam import _commands as commands
from fastadam.gallery import demo


def png_size(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:])


@pytest.mark.demo
def test_demo_learns_the_digits_and_both_ways_agree(tmp_path, capsys):
    path = tmp_path / "picture.png"
    numpy_run, fast_run = demo.main(path)
    for run in numpy_run, fast_run:
        assert run.accuracy >= 0.97
        assert 0 < run.step_seconds < run.total_seconds
    assert fast_run.losses[:50] == pytest.approx(numpy_run.losses[:50], rel=1e-3)
    assert fast_run.losses[-1] < 0.01 * fast_run.losses[0]

    width, height = png_size(path)
    assert width > 1000
    assert height > 400

    printed = capsys.readouterr().out
    assert f"{numpy_run.accuracy:.1%}" in printed
    assert f"{fast_run.step_seconds:.2f} s" in printed


@pytest.mark.demo
@pytest.mark.parametrize(("options", "epochs"), [(["--quick"], demo.QUICK), (["--epochs", "1"], 1)])
def test_a_short_demo_says_beforehand_how_long_it_takes_and_does_all_the_rest(tmp_path, capsys, options, epochs):
    commands.main(["demo", "--output", str(tmp_path / "picture.png"), *options])
    printed = capsys.readouterr().out
    before, after = printed.split("\nDigits, MLP")
    assert re.search(r"^Training takes about [1-9]\d* s here\.$", before, re.MULTILINE)
    assert f" {44 * epochs} steps\n" in after  # of 32 of the 1437 digits to train on
    assert png_size(tmp_path / "picture.png")[0] > 1000


@pytest.mark.demo
@pytest.mark.parametrize("missing", ["matplotlib", "sklearn", "tqdm"])
def test_demo_without_its_extra_says_how_to_get_it_before_it_trains(tmp_path, missing):
    (tmp_path / f"{missing}.py").write_text(f"raise ImportError('no', name={missing!r})")
    code = "from fastadam._commands import main; main(['demo'])"
    result = run_python(code, check=False, PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.strip() == f"the demo needs {missing}: python -m pip install 'fastadam[demo]'"


@pytest.mark.demo
def test_a_kind_of_picture_that_cannot_be_drawn_is_refused_before_the_training(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^--output must end in one of .*\.png.*, got '.*picture\.text'$"):
        demo.main(tmp_path / "picture.text")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("load", "present", "usable", "said"),
    [
        (0.0, 2, 2, False),
        (0.9, 2, 2, False),
        (1.0, 2, 2, True),  # one other program that computes
        (4.0, 2, 2, True),
        (0.9, 1, 1, False),
        (1.0, 1, 1, True),
        (40.0, 64, 2, False),  # a container's share of a large machine
        (63.0, 64, 2, True),
    ],
)
def test_the_demo_says_when_others_want_a_cpu_that_it_may_use(monkeypatch, load, present, usable, said):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 99.0, 99.0), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: present)
    monkeypatch.setattr(fastadam, "get_num_threads", lambda: usable)
    sentence = demo.busy()
    assert (sentence is not None) == said
    assert not said or ("figures below will be off" in sentence and f"load average is {load}" in sentence)


def test_where_the_load_is_unknown_the_demo_says_nothing(monkeypatch):
    def unknown():
        raise OSError

    monkeypatch.setattr(os, "getloadavg", unknown, raising=False)
    assert demo.busy() is None
    monkeypatch.delattr(os, "getloadavg")
    assert demo.busy() is None


@pytest.mark.demo
def test_the_sentence_comes_before_the_figures(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "busy", lambda: "Busy, it says.")
    demo.main(tmp_path / "picture.png", epochs=1)
    assert capsys.readouterr().out.startswith("Busy, it says.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--epochs", "0"], "argument --epochs: must be a whole number >= 1, got '0'"),
        (["demo", "--epochs", "many"], "argument --epochs: must be a whole number >= 1, got 'many'"),
        (["demo", "--epochs", "1.5"], "argument --epochs: must be a whole number >= 1, got '1.5'"),
        (["demo", "--quick", "--epochs", "3"], "argument --epochs: not allowed with argument --quick"),
        (["demo", "--output", "no/such.png"], "argument --output: must be in a folder that exists, got 'no/such.png'"),
        (["demo", "--output", "."], "argument --output: must be a file, got the folder '.'"),
        (["compare", "--output", "no/such.html"], "argument --output: must be in a folder that exists"),
        (["compare", "--pictures", __file__], "argument --pictures: must be a folder or not exist yet, got the file"),
    ],
)
def test_a_bad_argument_is_named_before_anything_begins(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        commands.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_config_is_a_command(capsys):
    commands.main(["config"])
    sentence, empty, *facts = capsys.readouterr().out.splitlines()
    assert sentence.endswith(".") and empty == "" and any(line.startswith("isa:") for line in facts)


def test_importing_fastadam_loads_nothing_of_the_gallery():
    loaded = run_python("import fastadam, sys; print([name for name in sys.modules if 'gallery' in name])").stdout
    assert loaded == "[]\n"


def test_only_the_command_imports_the_gallery():
    package = Path(fastadam.__file__).parent
    for path in package.rglob("*.py"):
        imported = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        if "gallery" in "".join(map(ast.unparse, imported)):
            assert path.name == "_commands.py" or path.is_relative_to(package / "gallery"), path
