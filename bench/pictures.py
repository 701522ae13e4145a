"""The pictures of docs/benchmarks.md, from tables of results."""

from io import BytesIO

import matplotlib as mpl
import numpy as np
from PIL import Image

from .limits import LIMITS
from .peers import CONTENDERS
from .quality_formats import FORMATS, NUDGED
from .workloads import WORKLOADS

mpl.use("Agg")
mpl.rcParams.update({"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True, "figure.dpi": 100})
import matplotlib.pyplot as plt  # noqa: E402

OURS, PASSES, OTHERS = "#d1495b", "#b8c4cc", "#5b7083"
COLOURS = dict(zip(CONTENDERS, plt.cm.tab20.colors, strict=False)) | {"fastadam": OURS} | dict.fromkeys(LIMITS, "black")
SHOWN = ["1 x 1 K", "1 x 100 K", "1 x 1 M", "1000 x 1 K", "ResNet-50", "GPT-2 124M"]
DRAWN = {  # command -> picture, what it shows
    "versus": {"peers": "Times as long as fastadam", "sizes": "Size sweep"},
    "loop": {"loop": "Where an iteration's time goes", "iteration": "Time of a training iteration"},
    "scaling": {"scaling": "Against threads, and against the number of arrays"},
    "quality": {"memory": "Final loss against bytes a parameter"},
}
MARKS = {"fastadam": "o", "to nearest": "x", "peer": "^"}


def peers(tables):
    """Bars: times as long as fastadam, one panel a workload."""
    figure, axes = plt.subplots(2, 3, figsize=(11, 7.2), layout="constrained")
    for axis, workload in zip(axes.flat, SHOWN, strict=True):
        rows = {row["contender"]: row["against fastadam"] for row in tables["steps"] if row["workload"] == workload}
        names = [name for name in rows if not name.startswith("fastadam") and name not in LIMITS]
        names.sort(key=lambda name: rows[name][1], reverse=True)
        low, middle, high = zip(*(rows[name] for name in names), strict=True) if names else ([], [], [])
        bars = axis.barh(names, middle, color=[COLOURS[name] for name in names])
        axis.hlines(names, low, high, color="black", lw=0.8)
        axis.bar_label(bars, [f"  {value:.3g}" for value in middle], fontsize=7)
        axis.axvline(1, color=OURS, lw=1)
        axis.set(xscale="log", title=workload, xmargin=0.15)
    figure.suptitle("Time of a step, times as long as fastadam (right of the line: slower), with quartiles")
    return figure


def sizes(tables):
    """Nanoseconds a parameter against the number of parameters in one array, and the limits."""
    figure, axis = plt.subplots(figsize=(8, 4.8), layout="constrained")
    rows = [row for row in tables["steps"] if row["workload"].startswith("1 x") and row["workload"].count(" ") == 3]
    for name in dict.fromkeys(row["contender"] for row in rows):
        points = sorted((WORKLOADS[row["workload"]].size, row["ms"]) for row in rows if row["contender"] == name)
        style = {"memory limit": "--", "arithmetic limit": ":"}.get(name, ".-")
        width = 2.2 if name == "fastadam" or name in LIMITS else 1
        x, y = zip(*((size, ms / size * 1e6) for size, ms in points), strict=True)
        axis.plot(x, y, style, lw=width, color=COLOURS[name], label=name)
    axis.set(xscale="log", yscale="log", xlabel="parameters in one float32 array", ylabel="nanoseconds a parameter")
    axis.legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
    axis.set_title("Dashed: the same bytes read and written in C; dotted: the roots and quotients alone")
    return figure


IN_SHORT = {"NumPy tutorial": "Adam in NumPy", "torch fused": "torch fused", "fastadam shared team": "fastadam"}


def iteration(tables):
    """The README's: the same with few contenders."""
    rows = [row for row in tables["iterations"] if row["optimizer"] in IN_SHORT]
    if {row["optimizer"] for row in rows} != IN_SHORT.keys():
        raise ValueError(f"bench/results/loop.json needs {', '.join(IN_SHORT)}")
    rows.sort(key=lambda row: list(IN_SHORT).index(row["optimizer"]))
    return loop({"iterations": [row | {"optimizer": IN_SHORT[row["optimizer"]]} for row in rows]}, 2.2)


def loop(tables, height=4.2):
    """Stacked bars: forward and backward, step."""
    cases = list(dict.fromkeys(row["h, batch"] for row in tables["iterations"]))
    figure, axes = plt.subplots(1, len(cases), figsize=(3.1 * len(cases), height), layout="constrained", sharey=True)
    for axis, case in zip(axes, cases, strict=True):
        rows = [row for row in tables["iterations"] if row["h, batch"] == case][::-1]
        names = [row["optimizer"] for row in rows]
        passes, steps = ([row[column] for row in rows] for column in ("forward + backward, ms", "step, ms"))
        axis.barh(names, passes, color=PASSES)
        axis.barh(names, steps, left=passes, color=[OURS if name.startswith("fast") else OTHERS for name in names])
        axis.set(title=f"h, batch = {case}", xlabel="ms an iteration")
    figure.suptitle("Inside a NumPy training loop: forward + backward (light) and step (dark; fastadam red)")
    return figure


def scaling(tables):
    """GB/s against size for each number of threads, with the limit; milliseconds against arrays."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for count in sorted({row["threads"] for row in tables["steps"]}):
        rows = [row for row in tables["steps"] if row["threads"] == count]
        one = [row for row in rows if row["arrays"] == 1]
        x, speed = ([float(row[column]) for row in one] for column in ("parameters", "GB/s"))
        share = [row["share of the limit"][1] for row in one]
        (line,) = left.plot(x, speed, ".-", label=f"threads: {count}")
        left.plot(x, [a / b for a, b in zip(speed, share, strict=True)], ".--", color=line.get_color())
        split = sorted((row["arrays"], row["ms a step"]) for row in rows if row["parameters"] == "1e+06")
        right.plot(*zip(*split, strict=True), ".-")
    left.set(xscale="log", xlabel="parameters in one array", ylabel="GB/s", title="Dashed: the limit, as many threads")
    right.set(xscale="log", yscale="log", xlabel="arrays", ylabel="ms a step", title="10^6 parameters in all")
    left.legend()
    return figure


def kind_of(name):
    form = FORMATS[name]
    return "peer" if form.process != "fastadam" else "to nearest" if "nearest" in name else "fastadam"


def memory(tables):
    """For each task the difference of the final loss to float32's against the bytes that a parameter takes."""
    tasks = list(dict.fromkeys(row["task"] for row in tables["losses"]))
    figure, axes = plt.subplots(1, len(tasks), figsize=(2.4 * len(tasks), 4), layout="constrained", sharey=True)
    names = [name for name in dict.fromkeys(row["format"] for row in tables["losses"]) if name != NUDGED]
    colours = dict(zip(names, plt.cm.tab20.colors[::2] + plt.cm.tab20.colors[1::2], strict=False))
    for axis, task in zip(np.atleast_1d(axes), tasks, strict=True):
        for row in (row for row in tables["losses"] if row["task"] == task and row["format"] in names):
            if row["difference, %"] is None:  # it diverged
                continue
            name, at = row["format"], (row["bytes a parameter"], row["difference, %"])
            style = {"fmt": MARKS[kind_of(name)], "ms": 7, "capsize": 2, "color": colours[name]}
            axis.errorbar(*at, yerr=row["error, %"], label=name, **style)
        axis.axhline(0, color="black", lw=0.6)
        axis.set(title=task, xlabel="bytes a parameter", xlim=(4, 13), xticks=(5, 6, 8, 10, 12))
        axis.set_yscale("symlog", linthresh=2)
    figure.supylabel("final loss, % above float32's", fontsize=9)
    handles = {
        label: handle
        for axis in np.atleast_1d(axes)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)
    return figure


def file_name(name):
    return f"{name}.png" if name == "memory" else f"benchmarks-{name}.png"  # the README shows that one


def draw_all(found, folder):
    """PNG of 64 colours: a quarter of the size, and no difference to be seen."""
    for command, pictures in DRAWN.items():
        for name in pictures if command in found else ():
            drawn, figure = BytesIO(), globals()[name](found[command])
            figure.savefig(drawn, bbox_inches="tight")
            plt.close(figure)
            small = Image.open(drawn).convert("RGB").quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
            small.save(folder / file_name(name), optimize=True)
