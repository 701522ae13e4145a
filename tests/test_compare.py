"""What the comparison draws is what the optimizers do. The page in a browser: tests/test_page.py."""

import base64
import gzip
import json
import re
from functools import partial

import numpy as np
import pytest
from helpers import run_python

import fastadam
from fastadam.gallery.compare import grid as computed
from fastadam.gallery.compare.grid import BETA1, BETA2, CONTENDERS, OPENING, RATES, SETTINGS
from fastadam.gallery.compare.landscapes import LANDSCAPES
from fastadam.gallery.compare.page import MANTISSA, pack, surface, write_page

STEPS = 8

by_landscape = pytest.mark.parametrize("landscape", LANDSCAPES, ids=lambda landscape: landscape.name)


@pytest.fixture(scope="module")
def grid():
    return computed.compute(STEPS)


# ---- landscapes


@by_landscape
def test_gradients_are_those_of_the_values(landscape):
    points = np.random.default_rng(0).uniform(*np.array(landscape.view).T[..., None], (2, 100))
    _, gradients = landscape.f(points)
    for axis in 0, 1:
        shift = np.zeros((2, 1))
        shift[axis] = 1e-5
        differences = (landscape.f(points + shift)[0] - landscape.f(points - shift)[0]) / 2e-5
        # the third derivative, at most 1e5 in these views, times shift**2, and the values' own rounding
        np.testing.assert_allclose(gradients[axis], differences, rtol=1e-6, atol=1e-4)


@by_landscape
def test_minima_are_the_lowest_points_and_in_view(landscape):
    for minimum in landscape.minima:
        value, gradient = landscape.f(np.array(minimum))
        assert value == pytest.approx(landscape.lowest, abs=1e-9)
        assert np.abs(gradient).max() < 1e-4  # minima are given to six decimals
        assert landscape.shows(np.array(minimum))
    assert surface(landscape).min() >= 0


@by_landscape
def test_starts_are_in_view(landscape):
    assert len(landscape.starts) == len(LANDSCAPES[0].starts)
    assert landscape.shows(np.array(landscape.starts).T).all()
    assert not landscape.shows(np.array([np.nan, 0.0]))


# ---- the grid


def directly(name, x, lr, beta1, beta2):
    return {
        "SGD": lambda: fastadam.SGD(x, lr),
        "Momentum": lambda: fastadam.SGD(x, lr, momentum=beta1),
        "RMSprop": lambda: fastadam.RMSprop(x, lr, alpha=beta2),
        "AdaGrad": lambda: fastadam.Adagrad(x, lr),
        "Adam": lambda: fastadam.Adam(x, lr, (beta1, beta2)),
    }[name]()


def test_every_optimizer_runs_with_every_beta_that_it_uses():
    betas = {c.name: [] for c in CONTENDERS}
    for run in computed.runs():
        betas[CONTENDERS[run.contender].name].append((run.beta1, run.beta2))
    assert betas == {
        "SGD": [(None, None)],
        "Momentum": [(beta1, None) for beta1 in BETA1],
        "RMSprop": [(None, beta2) for beta2 in BETA2],
        "AdaGrad": [(None, None)],
        "Adam": [(beta1, beta2) for beta1 in BETA1 for beta2 in BETA2],
    }


@by_landscape
@pytest.mark.parametrize("number", range(len(computed.runs())))
def test_paths_are_those_of_the_optimizers(grid, landscape, number):
    run = computed.runs()[number]
    name = CONTENDERS[run.contender].name
    i, start = LANDSCAPES.index(landscape), number % len(landscape.starts)
    for j, setting in enumerate(SETTINGS):
        lr = 0.01 if setting is None else setting * grid.base_rates[i][run.contender]
        x = np.array(landscape.starts[start])
        opt = directly(name, x, lr, run.beta1, run.beta2)
        with np.errstate(over="ignore", invalid="ignore"):  # rates that are too large
            for t in range(STEPS + 1):
                value, gradient = landscape.f(x)
                assert np.array_equal(grid.paths[i, j, start, number, t], x.astype(np.float32), equal_nan=True)
                gap = np.float32(value - landscape.lowest)
                assert np.array_equal(grid.gaps[i, j, start, number, t], gap, equal_nan=True)
                opt.step(gradient)


def test_the_inside_of_adam_is_its_state(grid):
    place = BETA1.index(0.9) * len(BETA2) + BETA2.index(0.99)
    landscape, lr = LANDSCAPES[0], grid.base_rates[0][-1]
    x = np.array(landscape.starts[0])
    opt = fastadam.Adam(x, lr, (0.9, 0.99))
    for t in range(STEPS):
        gradient, before = landscape.f(x)[1], x.copy()
        opt.step(gradient)
        m, v = opt.state[0]["exp_avg"], opt.state[0]["exp_avg_sq"]
        shares = 1 - 0.9 ** (t + 1), 1 - 0.99 ** (t + 1)
        expected = gradient, m, v, m / shares[0], v / shares[1], x - before
        np.testing.assert_allclose(grid.adam[0, SETTINGS.index(1.0), 0, place, :, :, t], expected, rtol=1e-6)
        np.testing.assert_allclose(grid.corrections[place, :, t], shares, rtol=1e-6)


@by_landscape
def test_base_rates_have_the_lowest_curves_that_stay_in_view(grid, landscape):
    for contender, base in zip(CONTENDERS, grid.base_rates[LANDSCAPES.index(landscape)], strict=True):
        curves = {}
        for lr in RATES:
            make = partial(contender.over, lr=lr, beta1=OPENING["beta1"], beta2=OPENING["beta2"])
            with np.errstate(over="ignore", invalid="ignore"):
                records = [fastadam.trace(make, landscape.f, start, STEPS) for start in landscape.starts]
            if all(landscape.shows(record.x.T).all() for record in records):
                gaps = np.array([record.loss[1:] for record in records]) - landscape.lowest
                curves[lr] = np.log10(np.maximum(gaps, 1e-10)).mean()
        assert curves[base] == pytest.approx(min(curves.values()), rel=1e-9)


# ---- the page


@pytest.fixture(scope="module")
def page(grid, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(grid, "/* plotly.js */", path)
    return path.read_text(encoding="utf-8")


def test_page_is_whole_and_names_nothing_outside(page):
    assert page.count("/* plotly.js */") == 1 and "@@" not in page
    assert not re.search(r"https?:|(src|href)\s*=\s*[\"']?(?!data:)[^\"'>\s]|url\(|@import", page)


def test_page_holds_the_grid(page, grid):
    header = json.loads(re.search(r'<script id="header"[^>]*>(.*?)</script>', page)[1])
    packed = re.search(r'<script id="numbers"[^>]*>(.*?)</script>', page)[1]
    numbers = unpack(packed)
    start = 0
    for name, expected in ("paths", grid.paths), ("gaps", grid.gaps), ("adam", grid.adam):
        assert header["arrays"][name] == list(expected.shape)
        found = numbers[start : start + expected.size].reshape(expected.shape)
        # what is too small for float32's full precision is too small to be seen
        np.testing.assert_allclose(found, expected, rtol=2.0 ** -(MANTISSA + 1), atol=np.finfo(np.float32).tiny)
        start += expected.size
    bases = [landscape["rates"][SETTINGS.index(1.0)] for landscape in header["landscapes"]]
    assert bases == grid.base_rates
    assert header["steps"] == STEPS


def unpack(text):
    columns = np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8)
    return columns.reshape(4, -1).T.copy().view("<f4").ravel()


def test_packing_keeps_what_is_not_finite():
    numbers = np.array([0, -1.5, 1e-30, np.inf, -np.inf, np.nan, np.finfo(np.float32).max], np.float32)
    found = unpack(pack(numbers))
    np.testing.assert_allclose(found[:3], numbers[:3], rtol=2.0 ** -(MANTISSA + 1))
    assert np.array_equal(found[3:], [np.inf, -np.inf, np.nan, np.inf], equal_nan=True)  # the largest rounds up


def test_every_long_stage_shows_how_far_it_is():
    stages = []

    def progress(items, stage):
        for number, item in enumerate(items):
            yield item
            stages.append((stage, number + 1, len(items)))

    computed.compute(1, progress)
    paths = len(LANDSCAPES) * len(SETTINGS) * len(LANDSCAPES[0].starts)
    assert stages == [
        *(("base rates", done, len(LANDSCAPES)) for done in range(1, len(LANDSCAPES) + 1)),
        *(("paths", done, paths) for done in range(1, paths + 1)),
    ]


def test_without_its_extra_it_says_how_to_get_it(tmp_path):
    (tmp_path / "plotly.py").write_text("raise ImportError('no', name='plotly')")
    code = "from fastadam._commands import main; main(['compare'])"
    result = run_python(code, check=False, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.strip() == "the comparison needs plotly: python -m pip install 'fastadam[viz]'"
