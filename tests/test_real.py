"""The comparison in examples/real.py; its runs need the [demo] extra: pytest -m demo."""

import math
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def char_model(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import char_model

    return char_model


@pytest.fixture
def real(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import real

    return real


def test_gradients_of_the_language_model_are_those_of_finite_differences(char_model):
    """Along a random direction in each array, and along each coordinate of the biases."""
    rng = np.random.default_rng(0)
    model = char_model.CharModel(rng, characters=11, width=3, hidden=7, dtype=np.float64)
    for array in model.params.values():
        array[...] = rng.standard_normal(array.shape) / 2
    x, y = rng.integers(11, size=(6, char_model.CONTEXT)), rng.integers(11, size=6)
    _, grads = model.loss_and_gradients(x, y)
    assert grads.keys() == model.params.keys()

    def slope(array, direction, h=1e-5):
        start, ends = array.copy(), []
        for step in h, -h:
            array[...] = start + step * direction
            ends.append(model.loss_and_gradients(x, y)[0])
        array[...] = start
        return (ends[0] - ends[1]) / (2 * h)

    for name, array in model.params.items():
        directions = [rng.standard_normal(array.shape)] + (list(np.eye(len(array))) if array.ndim == 1 else [])
        for direction in directions:
            # 1e-8: differences of losses near 3, rounded at 1e-16, over 2e-5, and the third derivative times 1e-10
            assert slope(array, direction) == pytest.approx((grads[name] * direction).sum(), rel=1e-6, abs=1e-8), name


def test_an_untrained_model_knows_nothing_and_a_sure_one_all(char_model):
    assert char_model.cross_entropy(np.zeros((5, 8)), np.arange(5))[0] == pytest.approx(math.log(8))
    assert char_model.cross_entropy(1000 * np.eye(8), np.arange(8))[0] == 0
    assert char_model.cross_entropy(1000 * np.eye(8), (np.arange(8) + 1) % 8)[0] == 1000


def test_the_text_is_long_and_no_paragraph_is_in_it_twice(char_model):
    text = char_model.python_help()
    paragraphs = text.split("\n\n")
    assert len(text) > 100_000 and len(set(paragraphs)) == len(paragraphs)
    contexts, following, characters = char_model.examples(text)
    alphabet = sorted(set(text))
    assert characters == len(alphabet)
    for i in 0, 12_345, len(following) - 1:
        window = "".join(alphabet[number] for number in [*contexts[i], following[i]])
        assert window == text[i : i + char_model.CONTEXT + 1]


@pytest.mark.demo
@pytest.mark.parametrize("make_task", ["digits", "help_texts"])
def test_all_optimizers_start_alike_and_learn(real, make_task):
    task = getattr(real, make_task)(60)
    rates = {"SGD": 0.3, "SGD, momentum 0.9": 0.03}
    first = set()
    for name, make in real.OPTIMIZERS.items():
        run = real.train(task, make, rates.get(name, 0.003), seed=7)
        first.add(run.losses[0])
        assert len(run.losses) == 60
        assert np.mean(run.losses[-10:]) < 0.9 * run.losses[0], name
        loss, accuracy = real.evaluate(run.model, *task.parts["test"])
        assert loss < 0.9 * run.losses[0] and accuracy > 0.15, name
    assert len(first) == 1
    assert real.train(task, real.OPTIMIZERS["Adam"], 0.003, seed=8).losses[0] not in first


@pytest.mark.demo
def test_only_matrices_decay(real):
    for task in real.digits(1), real.help_texts(1):
        model = task.make_model(np.random.default_rng(0))
        decaying, others = real.groups(model.params)
        names = [*decaying["params"], *others["params"]]
        assert sorted(names) == sorted(model.params)
        assert others["weight_decay"] == 0 and "weight_decay" not in decaying
        assert all(model.params[name].ndim == 2 for name in decaying["params"])
        biases = [name for name, array in model.params.items() if array.ndim == 1]
        assert biases and set(biases) | ({"embedding"} & set(names)) == set(others["params"])


@pytest.mark.demo
def test_a_rate_that_diverges_loses(real):
    task = real.digits(60)
    diverged = real.train(task, real.OPTIMIZERS["SGD"], 1e6, seed=0)
    assert len(diverged.losses) == 60 and diverged.losses[-1] == math.inf
    assert real.evaluate(diverged.model, *task.parts["validation"])[0] == math.inf
    table = real.sweep(task, [0.01, 1e6], [0], real.tqdm(disable=True))
    assert all(min(row, key=row.get) == 0.01 for row in table.values())


def rows(table):
    """The cells of a table in Markdown, by the name of the row, in bold or not."""
    cells = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {name: rest for name, *rest in cells[2:]}


@pytest.mark.demo
def test_quick_run_prints_tables_and_draws(tmp_path):
    path = tmp_path / "picture.png"
    command = [sys.executable, str(EXAMPLES / "real.py"), "--quick", "--picture", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    blocks = printed.strip().split("\n\n")
    assert [blocks[0][:10], blocks[3][:14], blocks[6]] == ["### digits", "### help texts", f"Picture: {path}"]
    for untrained, (sweep, result) in (math.log(10), blocks[1:3]), (math.log(90), blocks[4:6]):
        swept, results = rows(sweep), rows(result)
        assert len(swept) == 5 and swept.keys() == results.keys()
        for name, losses in swept.items():
            best = min(range(3), key=lambda i: float(losses[i]))
            assert sweep.count(f"**{losses[best]}**") >= 1
            rate, trained, test, *_ = results[name]
            assert float(rate) == [1e-3, 1e-2, 1e-1][best]
            for loss in trained, test:
                middle, low, high = map(float, re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", loss).groups())
                assert 0 < low <= middle <= high < untrained, name

    picture = path.read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) < 100_000
    width, height = struct.unpack(">II", picture[16:24])
    assert width > 900 and height > 300


@pytest.mark.demo
def test_the_page_shows_what_is_run_today(real):
    page = (EXAMPLES.parent / "docs" / "comparison.md").read_text()
    tables = [block for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    for sweep, result in tables[:2], tables[2:]:
        assert [float(rate) for rate in sweep.splitlines()[0].split("|")[2:-1]] == real.RATES
        swept, results = rows(sweep), rows(result)
        assert list(swept) == list(results) == list(real.OPTIMIZERS)
        for name, losses in swept.items():
            best = min(range(len(losses)), key=lambda i: float(losses[i]))
            assert float(results[name][0]) == real.RATES[best]
            assert 0 < best < len(losses) - 1  # at an edge, a better rate might lie beyond it
    assert (EXAMPLES.parent / "docs" / "real-comparison.png").stat().st_size < 100_000
