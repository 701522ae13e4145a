"""From committed JSON to docs/benchmarks.md and its picture: python -m bench report"""

import json
from pathlib import Path

from .versus import RESULTS
from .workloads import WORKLOADS

DOCS = Path(__file__).parent.parent / "docs"


def milliseconds(seconds):
    return f"{seconds * 1e3:.3g}"


def table(results):
    """A row per workload, a column per peer: how many times as long as fastadam it takes."""
    peers = list(dict.fromkeys(r["peer"] for r in results))
    cells = {(r["workload"], r["peer"]): r for r in results if "ratio" in r}
    shown = [peer for peer in peers if any(peer == p for _, p in cells)]
    lines = ["| workload | fastadam, ms | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for name in WORKLOADS:
        row = {peer: cells.get((name, peer)) for peer in shown}
        if not any(row.values()):
            continue
        ours = sorted(r["fastadam_s"] for r in row.values() if r)
        low, high = milliseconds(ours[0]), milliseconds(ours[-1])
        texts = [f"{r['ratio'][1]:.2f} ({r['ratio'][0]:.2f} to {r['ratio'][2]:.2f})" if r else "" for r in row.values()]
        lines.append(f"| {name} | {low} to {high} | " + " | ".join(texts) + " |")
    absent = [f"{r['peer']}: {r.get('absent') or 'failed'}" for r in results if "ratio" not in r]
    if absent:
        lines += ["", "Not measured: " + "; ".join(absent) + "."]
    return "\n".join(lines)


def draw(results, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    peers = ["NumPy tutorial", "scikit-learn", "optax jit", "torch fused", "DeepSpeed CPUAdam", "numba prange"]
    names = ["1 x 1 K", "1 x 100 K", "1 x 1 M", "1000 x 1 K", "GPT-2 124M", "1 x 64 Mi"]
    cells = {(r["workload"], r["peer"]): r["ratio"] for r in results if "ratio" in r}
    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    width = 0.8 / len(peers)
    for i, peer in enumerate(peers):
        at = [x for x, name in enumerate(names) if (name, peer) in cells]
        quartiles = [cells[names[x], peer] for x in at]
        middle = [q[1] for q in quartiles]
        spread = [[q[1] - q[0] for q in quartiles], [q[2] - q[1] for q in quartiles]]
        axes.bar([x + (i - 2.5) * width for x in at], middle, width, yerr=spread, label=peer, error_kw={"lw": 0.8})
    axes.axhline(1, color="black", lw=1)
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), names)
    axes.set(
        ylabel="time / time of fastadam",
        title="An Adam step, float32, all cores: how many times as long (1 = fastadam)",
    )
    axes.legend(ncols=3, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    data = json.loads(RESULTS.read_text())
    about, results = data["about"], data["results"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    text = f"""# Benchmarks

{about["machine"]}; {about["date"]}; {versions}.

How many times as long as fastadam each contender takes for one step (medians of alternating rounds, quartiles in
brackets; below 1 the peer is faster). fastadam and all peers that take an order are given all cores; "fastadam default"
is what you get without one. Parameters and gradients are the same for all, and each contender's result is compared with
float64 after timing. Made by `python -m bench versus --json bench/results.json` and `python -m bench report`;
`python -m bench bars` measures the promises against the memory limit, `python -m bench loop` threads next to BLAS.

![The same as a picture](benchmarks.png)

{table(results)}
"""
    (DOCS / "benchmarks.md").write_text(text)
    draw(results, DOCS / "benchmarks.png")
    print(f"wrote {DOCS / 'benchmarks.md'} and its picture")
