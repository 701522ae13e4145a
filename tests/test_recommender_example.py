"""examples/recommender.py and docs/rows.md: gradients, training, ways to step that agree, the page and its picture."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import fastadam

ROOT = Path(__file__).parent.parent
USERS, ITEMS, PAIRS = 300, 500, 20_000


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import recommender

    monkeypatch.setattr(recommender, "BATCH", 256)
    return recommender


def trained(example, name, steps):
    """The arrays after training on a small shop, and what `train` returns."""
    who, shown = example.observed_pairs(np.random.default_rng(0), USERS, ITEMS, PAIRS)
    params = example.start(USERS, ITEMS)
    held_out, data = (who[:1000], shown[:1000]), (who[1000:], shown[1000:])
    return params, *example.train(example.WAYS[name], params, data, held_out, steps)


def test_gradients_are_those_of_finite_differences(example):
    rng = np.random.default_rng(3)
    params = {name: rng.standard_normal(p.shape) / 3 for name, p in example.start(4, 5, np.float64).items()}
    batch = rng.integers(4, size=12), rng.integers(5, size=(12, 1 + example.NEGATIVES))  # rows repeat
    grads = example.gradients(params, *batch)
    assert grads.keys() == params.keys()
    for name, p in params.items():
        whole = np.zeros_like(p)
        rows = grads[name]
        if isinstance(rows, fastadam.Rows):
            np.add.at(whole, rows.rows, rows.grads)
        else:
            whole[...] = rows
        for _ in range(5):
            direction, begin, ends = rng.standard_normal(p.shape), p.copy(), []
            for h in 1e-5, -1e-5:
                p[...] = begin + h * direction
                ends.append(example.loss(example.scores(params, *batch)))
            p[...] = begin
            # 1e-9: losses near 1, rounded at 1e-16, over 2e-5, and the third derivative times 1e-10
            assert (ends[0] - ends[1]) / 2e-5 == pytest.approx((whole * direction).sum(), rel=1e-6, abs=1e-9), name


def test_the_loss_of_scores_that_are_known(example):
    assert example.loss(np.zeros((3, 5))) == pytest.approx(np.log(2))
    assert example.loss(np.array([[50.0, -50.0], [50.0, -50.0]])) == pytest.approx(0, abs=1e-9)
    assert example.loss(np.array([[-50.0, 50.0]])) == pytest.approx(50)


def test_a_few_items_are_chosen_again_and_again_and_each_user_by_taste(example):
    who, shown = example.observed_pairs(np.random.default_rng(1), 20, ITEMS, PAIRS)
    assert who.shape == (PAIRS,) and shown.shape == (PAIRS, 1 + example.NEGATIVES)
    chosen, random = (np.bincount(column, minlength=ITEMS) for column in (shown[:, 0], shown[:, 1]))
    assert np.sort(chosen)[-25:].sum() > 2 * np.sort(random)[-25:].sum()
    favourites = [np.bincount(shown[who == user, 0], minlength=ITEMS).argmax() for user in range(20)]
    assert len(set(favourites)) > 5


@pytest.mark.parametrize("name", ["fastadam.Adam, rows", "fastadam.RowAdagrad, rows", "fastadam.Adam, dense"])
def test_it_learns(example, name):
    _, curve, seconds, auc = trained(example, name, 120)
    assert curve[0, 1] == pytest.approx(np.log(2), abs=0.01)  # knows nothing
    assert curve[-1, 1] < 0.8 * curve[0, 1] and auc > 0.65
    assert (np.diff(curve[:, 0]) > 0).all() and curve[-1, 0] == pytest.approx(120 * seconds.sum())


def test_numpy_on_rows_computes_the_same(example):
    """But for rounding, which training carries on. Seen after 60 steps: 6e-7 of parameters that move by up to 0.5."""
    ours, ours_curve, *_ = trained(example, "fastadam.Adam, rows", 60)
    theirs, theirs_curve, *_ = trained(example, "Adam in NumPy, rows", 60)
    for name, p in ours.items():
        assert np.abs(p - example.start(USERS, ITEMS)[name]).max() > 0.05
        assert np.allclose(p, theirs[name], rtol=0, atol=1e-5), name
    assert np.allclose(ours_curve[:, 1], theirs_curve[:, 1], rtol=1e-5)


@pytest.mark.torch
@pytest.mark.filterwarnings("default")
def test_sparse_adam_computes_the_same_but_for_eps(example, monkeypatch):
    """torch adds eps to the root of v, not of v/bc2: eps_hat=True here. Seen after 60 steps: 8e-7, else 2e-2."""
    theirs, theirs_curve, *_ = trained(example, "torch SparseAdam", 60)
    monkeypatch.setitem(example.WAYS, "hat", lambda params: fastadam.Adam(params, lr=example.RATE, eps_hat=True).step)
    ours, ours_curve, *_ = trained(example, "hat", 60)
    for name in "user", "item", "bias":
        assert np.allclose(ours[name], theirs[name], rtol=0, atol=1e-4), name
    assert np.allclose(ours_curve[:, 1], theirs_curve[:, 1], rtol=1e-5)


def cells(table):
    return {line.split("|")[1].strip(): line.split("|")[2:-1] for line in table.splitlines() if line.startswith("|")}


def test_it_prints_a_table_and_does_without_torch(example, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    curves = example.main(["--steps", "10"], USERS, ITEMS, PAIRS)
    table = cells(capsys.readouterr().out)
    assert [name for name in table if name.strip("-")] == list(example.WAYS)
    assert table["torch SparseAdam"][0].strip() == "torch is not installed" and "torch SparseAdam" not in curves
    for name, curve in curves.items():
        steps, *_, loss, auc = table[name]
        assert int(steps) == (2 if "dense" in name else 10)
        assert float(loss) == pytest.approx(curve[-1, 1], abs=1e-4) and 0.3 < float(auc) < 1


@pytest.mark.demo
def test_it_draws(example, tmp_path):
    curves = {"one": np.array([[0.0, 0.7], [1.0, 0.5]]), "two": np.array([[0.0, 0.7], [2.0, 0.6]])}
    example.draw(curves, tmp_path / "picture.png")
    picture = (tmp_path / "picture.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and 5_000 < len(picture) < 100_000


PAGE = (ROOT / "docs/rows.md").read_text()


def test_the_page_shows_what_is_run_today(example):
    assert (ROOT / "docs/recommender.png").stat().st_size < 100_000
    (table,) = (block for block in PAGE.split("\n\n") if "gradients, ms" in block)
    steps = {name: row[0].strip() for name, row in cells(table).items() if name.strip("-")}
    assert steps == {name: "120" if "dense" in name else "600" for name in example.WAYS}


@pytest.mark.sklearn
def test_gradients_of_scipy_sparse_as_the_page_says():
    from scipy import sparse

    first, second = re.findall(r"```python\n((?!>>> ).*?)```", PAGE, re.DOTALL)
    rng = np.random.default_rng(0)
    G = sparse.random_array((50, 8), density=0.03, format="csr", rng=rng)
    X = sparse.random_array((6, 50), density=0.1, format="csr", rng=rng)
    error = rng.standard_normal((6, 8))
    for code, dense in (first, G.toarray()), (second, X.T @ error):
        names = {"np": np, "fastadam": fastadam, "G": G, "X": X, "error": error}
        names["table"], expected = np.ones((50, 8)), np.ones((50, 8))
        names["opt"] = fastadam.SGD(names["table"], lr=0.5)
        exec(code, names)
        fastadam.SGD(expected, lr=0.5).step(dense)
        assert np.allclose(names["table"], expected, rtol=0, atol=1e-15) and (expected != 1).any()
        assert (expected == 1).all(axis=1).any()
