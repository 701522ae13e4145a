"""The figures of examples/worked.py are true: against Adam written out in Python's own floats."""

import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "examples" / "worked.py"


@pytest.fixture(scope="module")
def worked():
    spec = importlib.util.spec_from_file_location("worked", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_hand(gradients_at, position, lr, steps, beta2=0.999):
    """Positions after each step, as the paper's algorithm 1 says."""
    x = list(position)
    m, v = [0.0] * len(x), [0.0] * len(x)
    for t in range(1, steps + 1):
        for i, g in enumerate(gradients_at(t, tuple(x))):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = beta2 * v[i] + (1 - beta2) * g * g
            x[i] -= lr * (m[i] / (1 - 0.9**t)) / (math.sqrt(v[i] / (1 - beta2**t)) + 1e-8)
        yield tuple(x)


def test_first_steps(worked):
    x, m, v = 5.0, 0.0, 0.0
    for t, row in enumerate(worked.first_steps(), 1):
        g = 2 * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        corrected_m, corrected_v = m / (1 - 0.9**t), v / (1 - 0.999**t)
        step = -0.1 * corrected_m / (math.sqrt(corrected_v) + 1e-8)
        x += step
        assert dict(zip(worked.COLUMNS, row.tolist(), strict=True)) == pytest.approx(
            {
                "t": t,
                "gradient": g,
                "m": m,
                "v": v,
                "m / (1 - 0.9**t)": corrected_m,
                "v / (1 - 0.999**t)": corrected_v,
                "step": step,
                "x": x,
            },
            rel=1e-12,
        )
    assert t == 3


def test_square(worked):
    path = [5.0, *(x for (x,) in by_hand(lambda t, x: (2 * x[0],), (5.0,), 0.001, 11_000))]
    after_1000, arrived = worked.square()
    assert after_1000 == pytest.approx(path[1000], rel=1e-9) and round(after_1000, 4) == 4.0447
    assert arrived == next(number for number, x in enumerate(path, 1) if abs(2 * x) < 1e-7) == 10_813


def test_line(worked):
    points = [(x, 2 * x + 1) for x in range(1, 6)]

    def gradients(t, weights):
        errors = [weights[0] * x + weights[1] - y for x, y in points]
        return 2 * sum(e * x for e, (x, _) in zip(errors, points, strict=True)) / 5, 2 * sum(errors) / 5

    *_, last = by_hand(gradients, (0.0, 0.0), 0.01, 50)
    assert worked.line() == pytest.approx(last, rel=1e-9)
    assert [round(x, 4) for x in last] == [0.4812, 0.4807]
    assert worked.line(1000, 0.1) == pytest.approx((2, 1), abs=1e-3)


def test_cubic(worked):
    assert worked.cubic(0) == 0
    *_, (last,) = by_hand(lambda t, x: (3 * x[0] ** 2 - 4 * x[0],), (0.5,), 0.1, 100)
    assert worked.cubic(0.5) == pytest.approx(last, rel=1e-9) == pytest.approx(4 / 3, abs=0.02)


def test_agreeing_gradients(worked):
    given = (0.9, 0.8, 0.7, 0.6)
    expected = [x for (x,) in by_hand(lambda t, x: (given[t - 1],), (0.0,), 0.1, 4)]
    assert worked.agreeing_gradients() == pytest.approx(expected, rel=1e-9)
    assert [round(x, 4) for x in expected] == [-0.1, -0.1995, -0.2981, -0.3953]


@pytest.mark.parametrize(("beta2", "expected"), [(0.999, 0.883), (0.99, 0.975)])
def test_a_large_gradient_is_remembered_for_as_long_as_beta2_says(worked, beta2, expected):
    path = [x for (x,) in by_hand(lambda t, x: (10.0 if t == 1 else 1.0,), (0.0,), 1.0, 300, beta2)]
    step = worked.step_after_a_large_gradient(beta2)
    assert step == pytest.approx(path[-2] - path[-1], rel=1e-6)
    assert round(step, 3) == expected


def test_it_runs_as_users_run_it():
    printed = subprocess.run([sys.executable, str(PATH)], capture_output=True, text=True, check=True).stdout
    shown = re.search(r"```text\n(.*?)```", (PATH.parent.parent / "docs" / "pictures.md").read_text(), re.DOTALL)[1]
    assert len(shown.splitlines()) == 4 and shown in printed
    for figure in (
        "4.0447",
        "10813",
        "0.4812",
        "0.4807",
        "from 0 at 0.0000",
        "-0.1995 -0.2981 -0.3953",
        "0.883",
        "0.975",
    ):
        assert re.search(re.escape(figure), printed), figure
