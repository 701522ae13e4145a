"""The comparison's page in a real browser, with a software renderer. Needs [viz], playwright and chromium: -m viz."""

import hashlib
import io
import itertools
import struct
from functools import partial

import numpy as np
import pytest
from helpers import chromium

import fastadam
from fastadam.gallery.compare.grid import BETA1, BETA2, CONTENDERS, OPENING, SETTINGS, STEPS
from fastadam.gallery.compare.landscapes import LANDSCAPES

pytestmark = pytest.mark.viz

FLAGS = "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"  # as root, and without a GPU
PANELS = "landscape-3d", "contour", "losses", "corrections", "inside"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page and the pictures, as the command makes them."""
    from fastadam._commands import main

    folder = tmp_path_factory.mktemp("compare")
    main(["compare", "--output", str(folder / "page.html"), "--pictures", str(folder)])
    return folder


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def open_page(browser, made):
    """Opens the page, at rest or in motion, and notes what it asks for and complains about."""
    contexts = []

    def open_page(motion, width=1350, **device):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, reduced_motion=motion, **device))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)  # drawing without a GPU takes seconds
        page.requests, page.complaints = [], []
        page.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto((made / "page.html").as_uri())
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def page(open_page):
    """The page at rest, at its last step, shared by the tests: each chooses what it needs."""
    return open_page("reduce")


def choose(page, **wanted):
    """Set all controls: those that are not wanted to where the page opens."""
    opening = {
        "landscape": 0,
        "setting": SETTINGS.index(1.0),
        "beta1": BETA1.index(OPENING["beta1"]),
        "beta2": BETA2.index(OPENING["beta2"]),
        "start": 0,
        "step": STEPS,
    }
    for name, value in {**opening, **wanted}.items():  # the landscape first: it goes back to the first start
        control = page.locator(f"#{name}")
        if int(control.input_value()) == value:
            continue
        if name == "step":
            control.fill(str(value))
        else:
            control.select_option(index=value)


def differ(a, b):
    """Do two pictures show different things? The same drawing has some hundred pixels that differ by a few levels."""
    return np.count_nonzero((np.abs(a - b) > 32).any(axis=-1)) > 100


def picture(page, panel):
    """What is to be seen of a panel, once two looks agree: its pixels, each with three levels from 0 to 255."""
    from PIL import Image

    box = page.locator(f"#{panel}")

    def look():
        return np.array(Image.open(io.BytesIO(box.screenshot())).convert("RGB"), np.int16)

    before = look()
    for _ in range(20):
        page.wait_for_timeout(100)
        now = look()
        if not differ(before, now):
            return now
        before = now
    pytest.fail(f"{panel} does not come to rest")


def given(page, panel):
    """All that plotly has been given to draw in a panel. The pixels of the same drawing can differ a little."""
    values = (
        "panel => (({ data, layout }) => JSON.stringify([data, layout.annotations]))(document.getElementById(panel))"
    )
    return hashlib.sha256(page.evaluate(values, panel).encode()).hexdigest()


def drawn(page, panel, name, axis):
    """The numbers that plotly has been given for a line."""
    values = page.evaluate(
        "([panel, name, axis]) => Array.from(document.getElementById(panel).data.find((t) => t.name === name)[axis])",
        [panel, name, axis],
    )
    return np.array([np.nan if value is None else value for value in values])


def rows(page):
    """The table: per optimizer, the texts of its row."""
    cells = page.locator("#results tr").evaluate_all("rows => rows.map(row => [...row.cells].map(c => c.innerText))")
    return {name: rest for name, *rest in cells}


def test_page_asks_for_nothing_and_complains_about_nothing(page, made):
    choose(page, landscape=2, setting=3, start=1)
    assert page.complaints == []
    assert page.requests[0] == (made / "page.html").as_uri()
    assert all(url.startswith(("data:", "blob:")) for url in page.requests[1:])
    assert (made / "page.html").stat().st_size < 10e6


CHANGES = [
    ({"landscape": 1}, PANELS[:3] + PANELS[4:]),
    ({"landscape": 2}, PANELS[:3] + PANELS[4:]),
    ({"landscape": 3}, PANELS[:3] + PANELS[4:]),
    ({"landscape": 4}, PANELS[:3] + PANELS[4:]),
    *(({"setting": i}, PANELS[:3] + PANELS[4:]) for i, setting in enumerate(SETTINGS) if setting != 1),
    *(({"beta1": i}, PANELS) for i, beta in enumerate(BETA1) if beta != OPENING["beta1"]),
    *(({"beta2": i}, PANELS) for i, beta in enumerate(BETA2) if beta != OPENING["beta2"]),
    ({"start": 1}, PANELS[:3] + PANELS[4:]),
    ({"start": 2}, PANELS[:3] + PANELS[4:]),
    ({"step": 20}, PANELS),
]


@pytest.fixture(scope="module")
def as_opened(page):
    choose(page)
    return {panel: (given(page, panel), picture(page, panel)) for panel in PANELS}


@pytest.mark.parametrize(("change", "panels"), CHANGES, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_each_control_changes_the_pictures_that_depend_on_it(page, as_opened, change, panels):
    choose(page, **change)
    for panel in PANELS:
        before, seen_before = as_opened[panel]
        assert (given(page, panel) != before) == (panel in panels), panel
        if panel in panels:
            assert differ(picture(page, panel), seen_before), panel


def test_controls_back_where_they_were_draw_the_same(page, as_opened):
    choose(page, landscape=4, setting=3)
    choose(page)
    assert {panel: given(page, panel) for panel in PANELS} == {
        panel: before for panel, (before, _) in as_opened.items()
    }


@pytest.mark.parametrize("i", range(len(LANDSCAPES)), ids=lambda i: LANDSCAPES[i].name)
def test_what_is_drawn_is_what_adam_did(page, i):
    choose(page, landscape=i, start=1)
    landscape = LANDSCAPES[i]
    rate = float(page.evaluate("landscape().rates[chosen.setting].at(-1)"))
    record = fastadam.trace(partial(fastadam.Adam, lr=rate, betas=(0.9, 0.99)), landscape.f, landscape.starts[1], STEPS)
    gaps = np.maximum(record.loss - landscape.lowest, 1e-10)  # the floor of what is drawn
    np.testing.assert_allclose(drawn(page, "losses", "Adam", "y"), gaps, rtol=2e-4)
    np.testing.assert_allclose(drawn(page, "inside", "g", "y"), record.gradient[:-1, 0], rtol=2e-4)
    np.testing.assert_allclose(drawn(page, "inside", "v", "y"), record.state["exp_avg_sq"][:, 0], rtol=2e-4)
    np.testing.assert_allclose(drawn(page, "inside", "step taken", "y"), record.update[:, 0], rtol=2e-4)
    assert drawn(page, "contour", "Adam", "x")[-1] == pytest.approx(record.x[-1, 0], rel=2e-4)
    assert landscape.name in page.locator("#name").inner_text()


def test_table_says_at_which_rate_each_one_runs(page):
    choose(page, setting=SETTINGS.index(None))
    assert {name: cells[0] for name, cells in rows(page).items()} == {c.name: "0.01" for c in CONTENDERS}
    assert "0.01" in page.locator("#fairness").inner_text()
    choose(page, setting=SETTINGS.index(3.0))
    assert len({cells[0] for cells in rows(page).values()}) > 1
    assert "Each runs at 3 " in page.locator("#fairness").inner_text()


def test_what_diverges_is_drawn_to_the_edge_and_named(page):
    choose(page, landscape=4, setting=SETTINGS.index(3.0))
    assert rows(page)["SGD"][1:] == ["not finite", "diverged, step 1"]
    assert "diverged" not in rows(page)["Adam"][2]
    assert page.locator("#contour").get_by_text("SGD diverged").count() == 1
    assert page.locator("#landscape-3d").get_by_text("SGD diverged").count() == 1
    x, y = (drawn(page, "contour", "SGD", axis) for axis in "xy")
    landscape = LANDSCAPES[4]
    gap = int(np.flatnonzero(np.isnan(x))[0])
    assert landscape.shows(np.array([x[:gap], y[:gap]])).all()
    assert y[gap - 1] == pytest.approx(landscape.view[1][0])  # it leaves through the lower edge


def test_a_loss_beyond_float32_is_not_said_to_be_infinite(page):
    choose(page, setting=SETTINGS.index(3.0), step=100)
    rate = float(rows(page)["SGD"][0])
    record = fastadam.trace(partial(fastadam.SGD, lr=rate), LANDSCAPES[0].f, LANDSCAPES[0].starts[0], 100)
    assert np.finfo(np.float32).max < record.loss[-1] < np.inf
    assert rows(page)["SGD"][1] == "> 3 \N{MULTIPLICATION SIGN} 1038"  # 38 is raised


def test_animation_moves_and_can_be_stopped(open_page):
    page = open_page("no-preference")
    assert page.locator("#play").inner_text() == "Pause"
    # clicked by the page itself: on a busy machine a click from here may come after the end
    page.wait_for_function("5 < byId('step').value && (byId('play').click(), true)")
    assert page.locator("#play").inner_text() == "Play"
    stopped = int(page.locator("#step").input_value())
    page.wait_for_timeout(500)
    assert 5 < stopped == int(page.locator("#step").input_value()) < STEPS
    page.locator("#step").fill(str(STEPS - 20))
    before = [picture(page, panel) for panel in PANELS]
    page.click("#play")
    page.wait_for_function(f"byId('step').value === '{STEPS}'")
    page.wait_for_function("byId('play').textContent === 'Play'")
    after = [picture(page, panel) for panel in PANELS]
    assert all(differ(a, b) for a, b in zip(before, after, strict=True))
    assert page.complaints == []


# All that has a place of its own, in or above a plot. Plotly draws the labels of the landscape in space by WebGL.
LABELS = {
    "toolbar": ".modebar",
    "legend": ".legend",
    "title": "[class^=g-], #inside .annotation",
    "colours": ".colorbar",
}
DEVICES = {1400: {}, 1000: {}, 390: {"is_mobile": True, "has_touch": True}}  # three columns, two, one on a phone


def boxes(page, panel):
    """Of a panel: the plot, its card and its labels, each as left, top, right, bottom."""
    return page.evaluate(
        """([panel, labels]) => {
            const plot = document.getElementById(panel);
            const box = (element) => {
                const { left, top, right, bottom } = element.getBoundingClientRect();
                return [left, top, right, bottom];
            };
            const found = {};
            for (const [name, selector] of Object.entries(labels)) {
                [...plot.querySelectorAll(selector)].map(box).filter(([l, t, r, b]) => l < r && t < b)
                    .forEach((box, i) => { found[`${name} ${i}`] = box; });
            }
            const [drawn, card] = [plot.querySelector(".svg-container"), plot.closest("section")];
            return { plot: box(drawn), card: box(card), labels: found };
        }""",
        [panel, LABELS],
    )


def within(inner, outer):
    return all(i >= o for i, o in zip(inner[:2], outer[:2], strict=True)) and all(
        i <= o for i, o in zip(inner[2:], outer[2:], strict=True)
    )


def overlap(a, b):
    return max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])


def assert_everything_has_room(page):
    for panel in PANELS:
        picture(page, panel)  # at rest
        found = boxes(page, panel)
        labels = found["labels"]
        assert {"toolbar 0", "legend 0"} <= labels.keys(), panel
        assert within(found["plot"], found["card"]), panel
        for name, box in labels.items():
            assert within(box, found["card"]), (panel, name)
        for (one, a), (other, b) in itertools.combinations(labels.items(), 2):
            assert not overlap(a, b), (panel, one, other)
    cards = page.evaluate(
        "[...document.querySelectorAll('section')].map(({ scrollWidth, clientWidth }) => [scrollWidth, clientWidth])"
    )
    assert all(needed <= there for needed, there in cards), cards
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("width", DEVICES)
def test_nothing_is_covered_cut_off_or_wider_than_the_page(open_page, width):
    page = open_page("reduce", width, **DEVICES[width])
    assert_everything_has_room(page)
    choose(page, landscape=4, setting=SETTINGS.index(3.0))  # "diverged, step 1" is the widest of the table
    assert_everything_has_room(page)


def test_a_page_that_gets_narrow_and_wide_again_makes_room(open_page):
    page = open_page("reduce", 1400)
    for width in 390, 1400:
        page.set_viewport_size({"width": width, "height": 900})
        assert_everything_has_room(page)


def test_toolbars_offer_no_upload(page):
    buttons = page.locator(".modebar-btn").evaluate_all("buttons => buttons.map(button => button.dataset.title)")
    assert {"Zoom", "Pan", "Reset axes"} <= set(buttons)
    assert not [title for title in buttons if "Share" in title or "loud" in title]


@pytest.mark.parametrize("name", ["compare-landscapes.png", "compare-adam.png"])
def test_pictures_are_pictures_and_small(made, name):
    content = (made / name).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1000 and height > 300
    assert len(content) < 100_000
