"""The same as on the page, as still pictures: where the page opens, on every landscape."""

from io import BytesIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from fastadam.gallery.compare.grid import ADAM, CONTENDERS, OPENING, SETTINGS, Grid, Progress, runs
from fastadam.gallery.compare.landscapes import LANDSCAPES
from fastadam.gallery.compare.page import surface

BASE = SETTINGS.index(1.0)
START = 0
FLOOR = 1e-10  # of drawn losses
SHOWN = [run for run in runs() if run.beta1 in (None, OPENING["beta1"]) and run.beta2 in (None, OPENING["beta2"])]


def write_pictures(grid: Grid, folder: Path, progress: Progress) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [(landscapes, "compare-landscapes.png"), (adam, "compare-adam.png")]
    return [draw(grid, folder / name) for draw, name in progress(pictures, "pictures")]


def save(figure, path: Path, dpi: int) -> Path:
    """A PNG of 128 colours: a third of the size, and no difference to be seen."""
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    return path


def landscapes(grid: Grid, path: Path) -> Path:
    """Paths in space and from above, and the losses below them."""
    figure, columns = plt.figure(figsize=(17, 10.5), layout="constrained"), len(LANDSCAPES)
    for i, landscape in enumerate(LANDSCAPES):
        space = figure.add_subplot(3, columns, 1 + i, projection="3d", computed_zorder=False)
        above, below = (figure.add_subplot(3, columns, 1 + row * columns + i) for row in (1, 2))
        heights = np.log10(1 + surface(landscape) / landscape.scale)
        x, y = (np.linspace(*edges, len(heights)) for edges in landscape.view)
        space.plot_surface(*np.meshgrid(x, y), heights, cmap="Blues_r", alpha=0.75, zorder=1)
        east, north, up = landscape.eye
        space.view_init(np.degrees(np.arctan2(up, np.hypot(east, north))), np.degrees(np.arctan2(north, east)))
        space.set(xlabel="x", ylabel="y", zticklabels=[])
        above.contourf(x, y, heights, levels=14, cmap="Blues_r", alpha=0.75)
        for run in SHOWN:
            contender = CONTENDERS[run.contender]
            place = i, BASE, START, runs().index(run)
            label = f"{contender.name}, {grid.base_rates[i][run.contender]:g}"
            above.plot(*grid.paths[place].T, ".-", color=contender.colour, linewidth=1.4, markersize=3)
            height = np.log10(1 + grid.gaps[place] / landscape.scale)
            seen = landscape.shows(grid.paths[place].T)
            path_in_view = *grid.paths[place][seen].T, height[seen]
            space.plot(*path_in_view, ".-", color=contender.colour, linewidth=1.4, markersize=3, zorder=2)
            below.semilogy(np.maximum(grid.gaps[place], FLOOR), color=contender.colour, label=label)
        above.plot(*np.transpose(landscape.minima), "*", color="white", markeredgecolor="black", markersize=11)
        above.plot(*landscape.starts[START], "o", color="none", markeredgecolor="black", markersize=8)
        above.set(title=landscape.name, xlim=landscape.view[0], ylim=landscape.view[1], xlabel="x", ylabel="y")
        below.set(xlabel="step", ylabel="loss above minimum" if i == 0 else "")
        below.legend(title="at the learning rate", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    figure.suptitle(
        "The same start and as many steps for all; each at the rate that suits it best of those that stay in view"
    )
    return save(figure, path, 72)


def adam(grid: Grid, path: Path) -> Path:
    """What Adam keeps for one coordinate of the ravine."""
    place = [run for run in runs() if CONTENDERS[run.contender].name == "Adam"].index(SHOWN[-1])
    values = dict(zip(ADAM, grid.adam[0, BASE, START, place, :, 0], strict=True))
    rate = grid.base_rates[0][-1]
    t = np.arange(1, values["step"].size + 1)
    figure, (averages, squares, shares, step) = plt.subplots(1, 4, figsize=(17, 3.6), layout="constrained")
    averages.plot(t, values["gradient"], color="silver", label="gradient g")
    averages.plot(t, values["m"], color="tab:orange", label="m")
    averages.plot(t, values["corrected m"], color="tab:red", label=r"$\hat m = m / (1-\beta_1^t)$")
    squares.semilogy(t, values["v"], color="tab:cyan", label="v")
    squares.semilogy(t, values["corrected v"], color="tab:blue", label=r"$\hat v = v / (1-\beta_2^t)$")
    for share, colour, number, beta in zip(
        grid.corrections[place], ("tab:red", "tab:blue"), (1, 2), OPENING.values(), strict=True
    ):
        shares.plot(t, share, color=colour, label=rf"$1-\beta_{number}^t$, $\beta_{number}$ = {beta}")
    step.plot(t, values["step"], color="tab:green", label=r"$-lr \cdot \hat m / (\sqrt{\hat v} + \epsilon)$")
    for sign in 1, -1:
        step.axhline(
            sign * rate, color="grey", linestyle="--", linewidth=1, label=f"± lr = {rate:g}" if sign == 1 else None
        )
    titles = "Gradient and its average", "Average of its square", "Share that averages hold", "Effective step"
    for axes, title in zip((averages, squares, shares, step), titles, strict=True):
        axes.set(title=title, xlabel="step t", xlim=(0, t[-1]))
        axes.legend(loc="center right" if axes in (shares, step) else "upper right")
    figure.suptitle(
        f"Adam from inside: coordinate x of the {LANDSCAPES[0].name.lower()} "
        f"(beta2 is {OPENING['beta2']}, not the paper's 0.999, to show more in so few steps)"
    )
    return save(figure, path, 95)
