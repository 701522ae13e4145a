"""The pictures of docs/benchmarks.md, from tables of results."""

from io import BytesIO

import matplotlib as mpl
from PIL import Image

from .runner import LIMITS
from .workloads import WORKLOADS

mpl.use("Agg")
mpl.rcParams.update({
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.axisbelow": True, "legend.frameon": False, "figure.dpi": 85,
})  # fmt: skip
import matplotlib.pyplot as plt  # noqa: E402

OURS, LIMIT = "#d1495b", "#222222"
COLOURS = {
    "fastadam": OURS, "fastadam default": "#f0a3ae", "fastadam.adam_update": "#8c1c2e",
    "memory limit": LIMIT, "arithmetic limit": LIMIT,
    "torch fused": "#ee964b", "torch foreach": "#f3b780", "torch for-loop": "#f8dac0",
    "DeepSpeed CPUAdam": "#6a4c93", "numba prange": "#1982c4", "numba serial": "#8ac2e6", "optax jit": "#3a7d44",
    "thinc": "#8ac926", "scikit-learn": "#2a9d8f", "autograd": "#b5a642", "NumPy in place": "#9a9a9a",
    "NumPy tutorial": "#5f5f5f",
}  # fmt: skip
SHOWN = ["1 x 1 K", "1 x 100 K", "1 x 1 M", "1000 x 1 K", "ResNet-50", "GPT-2 124M"]
DRAWN = {  # command -> picture, what it shows
    "versus": {"peers": "Times as long as fastadam", "sizes": "Size sweep"},
    "loop": {"loop": "Where an iteration's time goes"},
    "scaling": {"scaling": "Against threads, and against the number of arrays"},
}


def peers(tables):
    """Bars: times as long as fastadam, one panel a workload."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 7.2), layout="constrained")
    for axis, workload in zip(axes.flat, SHOWN, strict=True):
        rows = {row["contender"]: row for row in tables["steps"] if row["workload"] == workload}
        axis.set_visible(bool(rows))
        names = [name for name in rows if not name.startswith("fastadam") and name not in LIMITS]
        names.sort(key=lambda name: rows[name]["against fastadam"][1], reverse=True)
        ratios = [rows[name]["against fastadam"] for name in names]
        middle = [ratio[1] for ratio in ratios]
        errors = [[m - low for low, m, _ in ratios], [high - m for _, m, high in ratios]]
        axis.barh(names, middle, xerr=errors, color=[COLOURS[name] for name in names], error_kw={"lw": 0.8})
        for y, value in enumerate(middle):
            axis.annotate(f"{value:.3g}", (value, y), (3, 0), textcoords="offset points", va="center", fontsize=7)
        axis.axvline(1, color=OURS, lw=1)
        axis.set(xscale="log", title=f"{workload}   (fastadam: {rows['fastadam']['ms']:.3g} ms)" if rows else "")
        axis.margins(x=0.15)
        axis.grid(axis="y", visible=False)
    figure.suptitle("Time of a step, times as long as fastadam (right of the line: slower), with quartiles")
    return figure


def sizes(tables):
    """Nanoseconds a parameter against the number of parameters in one array, and the limits."""
    figure, axis = plt.subplots(figsize=(8, 4.8), layout="constrained")
    rows = [row for row in tables["steps"] if row["workload"].startswith("1 x") and row["workload"].count(" ") == 3]
    for name in dict.fromkeys(row["contender"] for row in rows):
        points = sorted((WORKLOADS[row["workload"]].size, row["ms"]) for row in rows if row["contender"] == name)
        style = {"memory limit": "--", "arithmetic limit": ":"}.get(name, "-")
        width = 2.2 if name == "fastadam" or name in LIMITS else 1
        x, y = zip(*((size, ms / size * 1e6) for size, ms in points), strict=True)
        axis.plot(x, y, style, marker="o", ms=3, lw=width, color=COLOURS[name], label=name)
    axis.set(xscale="log", yscale="log", xlabel="parameters in one float32 array", ylabel="nanoseconds a parameter")
    axis.legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
    axis.set_title("Dashed: the same bytes read and written in C; dotted: the roots and quotients alone")
    return figure


def loop(tables):
    """Stacked bars: forward and backward, step."""
    cases = list(dict.fromkeys(row["h, batch"] for row in tables["iterations"]))
    figure, axes = plt.subplots(1, len(cases), figsize=(3.1 * len(cases), 4.2), layout="constrained", sharey=True)
    for axis, case in zip(axes, cases, strict=True):
        rows = [row for row in tables["iterations"] if row["h, batch"] == case][::-1]
        names = [row["optimizer"] for row in rows]
        passes, steps = ([row[column] for row in rows] for column in ("forward + backward, ms", "step, ms"))
        axis.barh(names, passes, color="#b8c4cc")
        axis.barh(names, steps, left=passes, color=[OURS if n.startswith("fast") else "#5b7083" for n in names])
        axis.set(title=f"h, batch = {case}", xlabel="ms an iteration")
        axis.grid(axis="y", visible=False)
    figure.suptitle("Inside a NumPy training loop: forward + backward (light) and step (dark; fastadam red)")
    return figure


def scaling(tables):
    """GB/s against size for each number of threads, with the limit; milliseconds against arrays."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    counts = sorted({row["threads"] for row in tables["steps"]})
    for place, count in enumerate(counts):
        colour = plt.cm.viridis(place / max(1, len(counts) - 1) * 0.8)
        rows = [row for row in tables["steps"] if row["threads"] == count]
        one = [row for row in rows if row["arrays"] == 1]
        x = [float(row["parameters"]) for row in one]
        speed = [row["GB/s"] for row in one]
        limit = [row["GB/s"] / row["share of the limit"][1] for row in one]
        left.plot(x, speed, marker="o", ms=3, color=colour, label=f"{count} threads")
        left.plot(x, limit, "--", marker="o", ms=3, color=colour)
        split = sorted((row["arrays"], row["ms a step"]) for row in rows if float(row["parameters"]) == 1e6)
        right.plot(*zip(*split, strict=True), marker="o", ms=3, color=colour)
    left.set(xscale="log", xlabel="parameters in one array", ylabel="GB/s", title="Dashed: the limit, as many threads")
    right.set(xscale="log", yscale="log", xlabel="arrays", ylabel="ms a step", title="10^6 parameters in all")
    left.legend()
    return figure


def draw_all(found, folder):
    """PNG of 64 colours: a quarter of the size, and no difference to be seen."""
    for command, pictures in DRAWN.items():
        for name in pictures if command in found else ():
            drawn, figure = BytesIO(), globals()[name](found[command])
            figure.savefig(drawn, bbox_inches="tight")
            plt.close(figure)
            small = Image.open(drawn).convert("RGB").quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            small.save(folder / f"benchmarks-{name}.png", optimize=True)
