"""The main job: python -m fastadam demo. Needs the [demo] extra: pytest -m demo."""

import struct

import pytest
from helpers import run_python

import fastadam.__main__

pytestmark = pytest.mark.demo


def test_demo_learns_the_digits_and_both_ways_agree(tmp_path, capsys):
    from fastadam import demo

    path = tmp_path / "picture.png"
    numpy_run, fast_run = demo.main(path)
    for run in numpy_run, fast_run:
        assert run.accuracy >= 0.97
        assert 0 < run.step_seconds < run.total_seconds
    assert fast_run.losses[:50] == pytest.approx(numpy_run.losses[:50], rel=1e-3)
    assert fast_run.losses[-1] < 0.01 * fast_run.losses[0]

    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:])
    assert width > 1000
    assert height > 400

    printed = capsys.readouterr().out
    assert f"{numpy_run.accuracy:.1%}" in printed
    assert f"{fast_run.step_seconds:.2f} s" in printed


def test_demo_without_its_extra_says_how_to_get_it(tmp_path):
    (tmp_path / "tqdm.py").write_text("raise ImportError('no', name='tqdm')")
    code = "import sys; from fastadam.__main__ import main; main(['demo'])"
    result = run_python(code, check=False, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.strip().endswith("the demo needs tqdm: python -m pip install 'fastadam[demo]'")


def test_config_is_a_command(capsys):
    fastadam.__main__.main(["config"])
    assert "isa:" in capsys.readouterr().out
