"""examples/groups.py does what it says: decay, schedules, a head added, arrays frozen and thawed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastadam

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import groups

    return groups


def test_gradients_are_those_of_finite_differences(example):
    rng = np.random.default_rng(3)
    params = {
        "body.W": rng.standard_normal((4, 32)),
        **{name: rng.standard_normal(32) for name in ("body.b", "norm.gain", "norm.shift")},
        **example.new_head("first", rng),
        **example.new_head("second", rng),
    }
    x, y = rng.standard_normal((5, 4)), rng.standard_normal(5)
    _, grads = example.loss_and_gradients(params, "first", x, y)
    assert [name for name in params if grads[name] is None] == ["second.W", "second.b"]
    for name, array in params.items():
        if grads[name] is None:
            continue
        direction, start = rng.standard_normal(array.shape), array.copy()
        ends = []
        for h in (1e-5, -1e-5):
            array[...] = start + h * direction
            ends.append(example.loss_and_gradients(params, "first", x, y)[0])
        array[...] = start
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx((grads[name] * direction).sum(), rel=1e-6, abs=1e-8), name


def test_every_array_is_in_one_group_and_only_matrices_decay(example):
    params = {"W": np.ones((2, 2)), "b": np.ones(2), "embedding": np.ones((3, 2)), "gain": np.ones(2)}
    parts = example.groups(params)
    assert sorted(name for part in parts for name in part["params"]) == sorted(params)
    assert all(array is params[name] for part in parts for name, array in part["params"].items())
    opt = fastadam.AdamW(parts, lr=0.5, weight_decay=0.5)
    opt.step(example.in_groups({name: np.zeros_like(array) for name, array in params.items()}, parts))
    assert {name: array.flat[0] for name, array in params.items()} == {"W": 0.75, "b": 1, "embedding": 1, "gain": 1}


def test_training_in_three_phases(example, capsys):
    params, opt, losses, copies = example.main()
    names = ("body.W", "body.b", "norm.gain", "norm.shift", "first.W", "first.b", "second.W", "second.b")
    phases = [dict.fromkeys(names[:6], 1), {n: n.startswith("second") for n in names}, None]
    phases[2] = {"body.W": 1, "body.b": 1, "norm.gain": 0, "norm.shift": 0} | dict.fromkeys(names[4:], 0.5)
    assert set(params) == set(names)
    for name in names:
        assert opt.state[name]["step"] == sum(300 * phase.get(name, 0) for phase in phases), name
    for before, after, phase in zip(copies, copies[1:], phases[1:], strict=False):
        for name in before:
            assert np.array_equal(before[name], after[name]) == (not phase[name]), name

    first, second, both = np.reshape(losses, (3, 300))
    for phase in first, second:
        assert phase[-20:].mean() < 0.2 * phase[:20].mean()
    assert both[-20:].mean() < 0.5 * both[:20].mean()

    printed = capsys.readouterr().out
    assert f"{first[:20].mean():.3f} -> {first[-20:].mean():.3f}" in printed
    assert "unchanged to the bit: body.W, body.b, norm.gain, norm.shift, first.W, first.b\n" in printed
    rows = [line.split() for line in printed[printed.index("next lr") :].splitlines()[1:]]
    assert {row[0]: row[1:] for row in rows} == {
        "body.W": ["600", "0.01", "0.01000"],
        "body.b": ["600", "0.0", f"{0.01 * 0.997**600:.5f}"],
        "norm.gain": ["300", "0.0", f"{0.01 * 0.997**600:.5f}"],
        "norm.shift": ["300", "0.0", f"{0.01 * 0.997**600:.5f}"],
        "first.W": ["450", "0.01", "0.01000"],
        "first.b": ["450", "0.0", f"{0.01 * 0.997**600:.5f}"],
        "second.W": ["450", "0.01", "0.02000"],
        "second.b": ["450", "0.0", "0.02000"],
    }


def test_it_runs_as_users_run_it():
    command = [sys.executable, str(EXAMPLES / "groups.py")]
    assert "first.W" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
