"""The pictures of docs/benchmarks.md."""

import statistics

import matplotlib as mpl

from .runner import LIMITS
from .workloads import WORKLOADS

mpl.use("Agg")
mpl.rcParams.update({
    "svg.hashsalt": "fastadam", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True, "legend.frameon": False,
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


def save(figure, folder, name):
    figure.savefig(folder / f"benchmarks-{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def peers(results, folder):
    """Bars: times as long as fastadam, one panel a workload."""
    from .report import Versus

    versus = Versus(results)
    shown = [workload for workload in SHOWN if workload in versus.rounds]
    figure, axes = plt.subplots(2, 3, figsize=(11, 7.2), layout="constrained")
    for axis, workload in zip(axes.flat, shown, strict=False):
        ratios = {name: versus.ratio(workload, name) for name in versus.names() if name != "fastadam.adam_update"}
        ratios = {name: r for name, r in ratios.items() if r and name not in (*LIMITS, "fastadam default")}
        names = sorted(ratios, key=lambda name: ratios[name][1], reverse=True)
        middle = [ratios[name][1] for name in names]
        errors = [[m - ratios[n][0] for n, m in zip(names, middle, strict=True)],
                  [ratios[n][2] - m for n, m in zip(names, middle, strict=True)]]  # fmt: skip
        axis.barh(names, middle, xerr=errors, color=[COLOURS[name] for name in names], error_kw={"lw": 0.8})
        for y, value in enumerate(middle):
            axis.annotate(f"{value:.3g}", (value, y), (3, 0), textcoords="offset points", va="center", fontsize=7)
        axis.axvline(1, color=OURS, lw=1)
        axis.set_xscale("log")
        axis.margins(x=0.15)
        seconds = statistics.median(versus.samples(workload, "fastadam"))
        axis.set_title(f"{workload}   (fastadam: {seconds * 1e3:.3g} ms)", fontsize=9)
        axis.grid(axis="y", visible=False)
    for axis in list(axes.flat)[len(shown) :]:
        axis.set_visible(False)
    figure.suptitle("Time of a step, times as long as fastadam (right of the line: slower), with quartiles")
    save(figure, folder, "peers")


def sizes(results, folder):
    """Nanoseconds a parameter against the number of parameters in one array, and the memory limit."""
    from .report import Versus

    versus = Versus(results)
    workloads = [w for w in versus.rounds if w in WORKLOADS and WORKLOADS[w].shapes and len(WORKLOADS[w].shapes) == 1]
    workloads = [w for w in workloads if w.startswith("1 x") and w.count(" ") == 3]
    workloads.sort(key=lambda w: WORKLOADS[w].size)
    figure, axis = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for name in versus.names():
        points = [(WORKLOADS[w].size, versus.samples(w, name)) for w in workloads if versus.samples(w, name)]
        if not points:
            continue
        x = [size for size, _ in points]
        y = [statistics.median(samples) / size * 1e9 for size, samples in points]
        ours = name == "fastadam" or name in LIMITS
        style = "--" if name == "memory limit" else ":" if name == "arithmetic limit" else "-"
        axis.plot(x, y, style, marker="o", ms=3, lw=2.2 if ours else 1, color=COLOURS[name], label=name)
    axis.set(xscale="log", yscale="log", xlabel="parameters in one float32 array", ylabel="nanoseconds a parameter")
    axis.legend(fontsize=7, ncols=1, bbox_to_anchor=(1.01, 1), loc="upper left")
    axis.set_title(
        "Cost of a parameter; dashed: the same bytes read and written in C; dotted: the roots and quotients alone"
    )
    save(figure, folder, "sizes")


def loop(results, folder):
    """Stacked bars: forward and backward, step."""
    figure, axes = plt.subplots(1, len(results), figsize=(3.1 * len(results), 4.2), layout="constrained", sharey=True)
    for axis, result in zip(list(axes.flat) if len(results) > 1 else [axes], results, strict=True):
        names = list(result["seconds"])[::-1]
        columns = {
            name: [statistics.median(c) * 1e3 for c in zip(*result["seconds"][name], strict=True)] for name in names
        }
        passes = [columns[name][0] for name in names]
        steps = [columns[name][1] for name in names]
        axis.barh(names, passes, color="#b8c4cc", label="forward + backward")
        axis.barh(names, steps, left=passes, color=[OURS if n.startswith("fast") else "#5b7083" for n in names])
        axis.set(title=f"h = {result['width']}, batch {result['batch']}", xlabel="ms an iteration")
        whole = sorted(a + b for a, b in zip(passes, steps, strict=True))
        axis.set_xlim(0, whole[-1] * 1.05)
        axis.grid(axis="y", visible=False)
    figure.suptitle("Inside a NumPy training loop: forward + backward (light) and step (dark; fastadam red)")
    save(figure, folder, "loop")


def scaling(results, folder):
    """GB/s against size for each number of threads, with the limit; microseconds against arrays."""
    results = [row for row in results if "seconds" in row]
    counts = sorted({row["threads"] for row in results})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for place, count in enumerate(counts):
        colour = plt.cm.viridis(place / max(1, len(counts) - 1) * 0.8)
        rows = [row for row in results if row["threads"] == count and row["arrays"] == 1]
        x = [row["size"] for row in rows]
        for key, style in ("seconds", "-"), ("limit", "--"):
            y = [28 * row["size"] / statistics.median(row[key]) / 1e9 for row in rows]
            label = f"{count} thread{'s' * (count > 1)}" if key == "seconds" else None
            left.plot(x, y, style, marker="o", ms=3, color=colour, label=label)
        rows = [row for row in results if row["threads"] == count and row["size"] == 1_000_000]
        rows.sort(key=lambda row: row["arrays"])
        y = [statistics.median(row["seconds"]) * 1e3 for row in rows]
        right.plot([row["arrays"] for row in rows], y, marker="o", ms=3, color=colour, label=f"{count} threads")
    left.set(xscale="log", xlabel="parameters in one array", ylabel="GB/s", title="Dashed: the limit, as many threads")
    right.set(xscale="log", yscale="log", xlabel="arrays", ylabel="ms a step", title="10^6 parameters in all")
    left.legend()
    save(figure, folder, "scaling")


def draw_all(results, folder):
    for name, draw in ("versus", peers), ("versus", sizes), ("loop", loop), ("scaling", scaling):
        if name in results:
            draw(results[name], folder)
