"""Draw docs/benchmarks.md and its pictures from bench/results/: python -m bench report [--measure]

--measure first takes every measurement anew, which takes about an hour with nothing else running.
"""

import argparse
import functools
import statistics
import subprocess
import sys
from pathlib import Path

from .harness import load
from .pictures import draw_all
from .runner import LIMITS
from .versus import base, quartiles
from .workloads import WORKLOADS

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
MEASUREMENTS = ("versus", "loop", "sklearn_fit", "busy", "scaling", "installing")
# Taken apart, with another NumPy: --save NAME
NEWER_NUMPY = ("loop-numpy-2.5", "sklearn_fit-numpy-2.5")
PARALLEL = ("torch fused", "DeepSpeed CPUAdam", "numba prange")  # the best of those that use all cores
CLASSES = ("torch fused", "DeepSpeed CPUAdam", "thinc", "scikit-learn")

# (against the best of these, workloads, at least this many times faster)
BARS = [
    (PARALLEL, ("1 x 64 Mi", "GPT-2 124M"), 1.0),
    (("torch fused", "numba prange"), ("1 x 1 M",), 1.2),
    (("DeepSpeed CPUAdam",), ("1 x 1 M",), 1.0),
    (PARALLEL, ("1 x 100 K",), 2.0),
    (PARALLEL, ("1000 x 1 K",), 15.0),
    (CLASSES, ("1 x 1 K",), 3.0),
    (("numba prange",), ("1 x 1 K",), 2.0),
    (("numba serial",), ("1 x 1 K",), 1.0),
    (("NumPy tutorial",), ("1 x 1 M", "1 x 64 Mi"), 20.0),
]


def table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def milliseconds(samples):
    return f"{statistics.median(samples) * 1e3:.3g}"


def times(ratio):
    """A ratio as it is read: what is below 1 is a loss, in bold."""
    text = f"{ratio:.2g}" if ratio < 9.95 else f"{ratio:.0f}"
    return text if ratio >= 1 else f"**{ratio:.2f}**"


class Versus:
    """Rounds of all results of one workload; large workloads meet one peer at a time."""

    def __init__(self, results):
        self.rounds = {}
        for result in results:
            self.rounds.setdefault(result["workload"], []).append(result)

    def names(self):
        return list(dict.fromkeys(name for results in self.rounds.values() for r in results for name in r["seconds"]))

    def samples(self, workload, name):
        return [sample for result in self.rounds[workload] for sample in result["seconds"].get(name, [])]

    def ratio(self, workload, name, to="fastadam"):
        """Quartiles of seconds of `name` / seconds of `to`, or None."""
        ours, theirs = [], []
        for result in self.rounds.get(workload, ()):
            seconds = result["seconds"]
            if name in seconds and to in seconds:
                ours += seconds[to]
                theirs += seconds[name]
        return quartiles(ours, theirs) if ours else None

    def bars(self):
        for contenders, workloads, bar in BARS:
            for workload in workloads:
                found = {}
                for name in contenders:
                    function = workload == "1 x 1 K" and contenders[0].startswith("numba")
                    ratio = self.ratio(workload, name, base(name) if function else "fastadam")
                    if ratio:
                        found[name] = ratio
                if not found:
                    yield [workload, "", ", ".join(contenders), f">= {bar:g}", "", "", "not measured"]
                else:
                    best = min(found, key=lambda name: found[name][1])
                    low, middle, high = found[best]
                    met = middle >= bar or (bar == 1 and high >= bar)  # a bar of 1: not behind by more than the spread
                    verdict = "met" if met else "MISSED"
                    ours = base(best) if function else "Adam"
                    if len(found) < len(contenders):
                        verdict += f" (not measured: {', '.join(set(contenders) - set(found))})"
                    spread = f"{middle:.2f} ({low:.2f} to {high:.2f})"
                    most = self.at_the_limit(workload, best)
                    yield [workload, ours, best, f">= {bar:g}", spread, f"{most:.2f}" if most > middle else "", verdict]

    def at_the_limit(self, workload, name):
        """What the ratio would be if our step took no longer than the slower limit; 0 at 1 K, where calls count."""
        ratios = [self.ratio(workload, name, limit) for limit in LIMITS if workload != "1 x 1 K"]
        return min((ratio[1] for ratio in ratios if ratio), default=0.0)


def versus_page(results):
    versus = Versus(results)
    peers = [name for name in versus.names() if name not in (*LIMITS, "fastadam")]
    rows = []
    for workload in versus.rounds:
        ratios = {name: versus.ratio(workload, name) for name in peers}
        shares = [versus.ratio(workload, limit) for limit in LIMITS]
        rows.append([
            workload, milliseconds(versus.samples(workload, "fastadam")),
            f"{1e-9 * WORKLOADS[workload].step_bytes / statistics.median(versus.samples(workload, 'fastadam')):.1f}",
            *(f"{share[1]:.2f}" if share else "" for share in shares),
            *(times(ratio[1]) if ratio else "" for ratio in ratios.values()),
        ])  # fmt: skip
    spread = [
        [workload, name, milliseconds(versus.samples(workload, name)), *(f"{q:.3g}" for q in ratio)]
        for workload in versus.rounds
        for name in peers
        if (ratio := versus.ratio(workload, name))
    ]
    absent = {(name, why) for found in versus.rounds.values() for r in found for name, why in r["absent"].items()}
    missing = "\n".join(f"* {name}: {why}" for name, why in sorted(absent) if name not in LIMITS)
    return f"""## Steps back to back

Every contender in its best mode, all threads, each in a process of its own, taking turns. Milliseconds a step of
`fastadam.Adam(threads=all)`; then how many times as long the others take: medians of the rounds' ratios, losses in
bold. No step can be faster than the same bytes are read and written (where they do not fit in the cache: memory limit),
or than one square root and one division an element are computed (arithmetic limit), both in C with all threads
(`bench/limits.c`): their columns are the limit's time over ours in the same rounds, 1 is the limit. "fastadam default"
is our Adam with nothing configured, after 24 steps, in which it has tried numbers of threads; each of its turns is at
least four steps, because it goes by the time from step to step. Rows were measured minutes apart, beside neighbours on
the same machine: compare within a row.

![Times as long as fastadam](benchmarks-peers.svg)

{table(["workload", "fastadam, ms", "GB/s", *LIMITS, *peers], rows)}

What was promised ("a step at the limit": the ratio if our step took no longer than the slower limit, where that is
faster than our step):

{table(["workload", "ours", "best of the others", "bar", "measured", "a step at the limit", ""], versus.bars())}

![Size sweep](benchmarks-sizes.svg)

<details><summary>Every ratio with its quartiles</summary>

{table(["workload", "contender", "ms a step", "lower quartile", "median ratio", "upper quartile"], spread)}

</details>

Not measured:

{missing or "* nothing"}
"""


# (against the best of these, contender, at most this many times the total) in training loops
LOOP_BARS = [
    (("fastadam 1 thread", "fastadam OpenMP threads"), "fastadam default", "total", 1.05),
    (("fastadam 1 thread",), "fastadam default", "forward + backward", 1.05),
    (("fastadam default",), "fastadam shared team", "total", 1.0),
]


def loop_bars(result):
    """Rows of the promises that the result was measured for."""
    seconds, case = result["seconds"], f"{result['width']}, {result['batch']}"
    for others, name, what, bar in LOOP_BARS:
        if name not in seconds or not set(others) <= seconds.keys():
            continue
        parts = slice(2) if what == "total" else slice(1)
        own = [sum(sample[parts]) for sample in seconds[name]]
        best = min(others, key=lambda other: statistics.median(sum(sample[parts]) for sample in seconds[other]))
        low, middle, high = quartiles([sum(sample[parts]) for sample in seconds[best]], own)
        verdict = "met" if middle <= bar else "MISSED"
        yield [case, f"{name}, {what}", best, f"<= {bar:g}", f"{middle:.2f} ({low:.2f} to {high:.2f})", verdict]
    name = "fastadam shared team"
    if name in seconds:
        low, middle, high = quartiles(result["alone"][name], [step for _, step in seconds[name]])
        verdict = "met" if middle <= 1.3 else "MISSED"
        yield [
            case,
            f"{name}, step",
            "its step back to back",
            "<= 1.3",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            verdict,
        ]
        low, middle, high = quartiles(result["touched"][name], [step for _, step in seconds[name]])
        measured = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        yield [case, f"{name}, step", "its step after touching, without BLAS", "", measured, ""]


LOOP_INTRO = """## Inside a NumPy training loop

A float32 MLP 64-h-h-10 in plain NumPy: milliseconds an iteration, the same arrays' steps back to back, steps
after NumPy alone has read the parameters and written new gradients, as forward and backward do (which brings these
into the caches, and pushes other arrays out), and the whole iteration against one without any optimizer. What counts is
the whole: threads that wait for work slow the BLAS calls of the forward and backward pass. "OpenMP threads" never takes
OpenBLAS's, "spinning" is with workers that wait as OpenMP's do if nobody says otherwise, and "shared team" is after
`fastadam.share_threads_with_blas()`, which the default finds out by itself.
Every round of every contender is a new process; other libraries take part in three rounds, our variants in more.
Ratios are medians of the rounds' ratios, because the machine is faster and slower for minutes at a time.

![Where an iteration's time goes](benchmarks-loop.svg)"""

NEWER_LOOP_INTRO = """## Inside a NumPy training loop, newer NumPy

NumPy's wheels from 2.5 on do not lend their OpenBLAS's threads. By default steps run on OpenMP's, then; "shared team"
is after `fastadam.share_threads_with_blas()`, which makes OpenBLAS compute on fastadam's."""


def loop_page(results, intro=LOOP_INTRO):
    rows = []
    for result in results:
        for name, samples in result["seconds"].items():
            forward_backward, step = zip(*samples, strict=True)
            total = [sum(sample) for sample in samples]
            against = ""
            if "no optimizer" in result["seconds"]:
                nothing = [sum(sample) for sample in result["seconds"]["no optimizer"]]
                low, middle, high = quartiles(nothing[: len(total)], total)
                against = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            rows.append([
                f"{result['width']}, {result['batch']}", name, milliseconds(forward_backward), milliseconds(step),
                milliseconds(result["alone"][name]), milliseconds(result["touched"][name]), milliseconds(total),
                against,
            ])  # fmt: skip
    columns = [
        "h, batch", "optimizer", "forward + backward", "step", "step back to back", "step after touching", "total",
        "against no optimizer",
    ]  # fmt: skip
    promised = [bar for result in results for bar in loop_bars(result)]
    return f"""{intro}

{table(columns, rows)}

What was promised:

{table(["h, batch", "what", "against", "bar", "measured", ""], promised)}
"""


def busy_page(results):
    rows = [[r["name"], milliseconds(r["median"]), milliseconds(r["p95"]), milliseconds(r["cpu"])] for r in results]
    serial = next(r for r in results if r["name"] == "fastadam 1 thread")
    default = next(r for r in results if r["name"] == "fastadam default")
    promised = []
    for key, what, bar in ("p95", "95th percentile beside a busy neighbour", 2.0), ("cpu", "CPU of rare steps", 1.5):
        ratio = statistics.median(default[key]) / statistics.median(serial[key])
        promised.append([what, f"<= {bar:g}", f"{ratio:.2f}", "met" if ratio <= bar else "MISSED"])
    columns = ["optimizer", "median, ms", "95th percentile, ms", "CPU of 100 rare steps, ms"]
    return f"""## With others on the machine

A step of 1 Mi float32 while another process keeps one core busy; and the CPU time of 100 steps of 10 000 parameters,
5 ms apart. Medians of {len(serial["cpu"])} rounds, each in a new process.

{table(columns, rows)}

The default against one thread:

{table(["what", "bar", "measured", ""], promised)}
"""


SKLEARN_INTRO = """## scikit-learn's MLPClassifier, its Adam swapped

`examples/sklearn_mlp.py` shows how. Seconds of a whole `fit()`, how many times faster than with scikit-learn's own
Adam, and the share of the speed-up that an optimizer which does nothing would give (the ceiling is 1)."""

NEWER_SKLEARN_INTRO = """## scikit-learn's MLPClassifier, newer NumPy

With the wheels from 2.5 on, as above. Under "shared team" scikit-learn's products, too, run on fastadam's threads."""


def sklearn_page(results, intro=SKLEARN_INTRO):
    rows, promised = [], []
    for result in results:
        own, nothing = result["seconds"]["scikit-learn's Adam"], result["seconds"]["no optimizer"]
        for name, samples in result["seconds"].items():
            low, middle, high = quartiles(samples, own)
            share = quartiles(samples, nothing)[1]
            rows.append([
                f"{result['hidden']}, {result['batch']}", name, f"{statistics.median(samples):.2f}",
                f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{share:.2f}",
            ])  # fmt: skip
            bar = {"fastadam default": 0.9 if result["batch"] == 200 else 0.8}.get(name)
            if bar:
                verdict = "met" if share >= bar else "MISSED"
                promised.append([f"{result['hidden']}, {result['batch']}", name, f">= {bar}", f"{share:.2f}", verdict])
            if name == "fastadam shared team":
                other = quartiles(result["seconds"]["fastadam default"], nothing)[1]
                verdict = "met" if share > other else "MISSED"
                case = f"{result['hidden']}, {result['batch']}"
                promised.append([case, name, f"> default's {other:.2f}", f"{share:.2f}", verdict])
    return f"""{intro}

{table(["hidden, batch", "optimizer", "fit, s", "speed-up", "share of the ceiling"], rows)}

What was promised of the share:

{table(["hidden, batch", "optimizer", "bar", "measured", ""], promised)}
"""


def scaling_page(results):
    present = [row for row in results if "seconds" in row]
    alone = {}
    rows = []
    for row in present:
        seconds = statistics.median(row["seconds"])
        case = (row["size"], row["arrays"])
        alone.setdefault(case, seconds)
        rows.append([
            f"{row['size']:.0e}", row["arrays"], row["threads"], milliseconds(row["seconds"]),
            f"{28 * row['size'] / seconds / 1e9:.1f}", f"{quartiles(row['seconds'], row['limit'])[1]:.2f}",
            f"{alone[case] / seconds / row['threads']:.2f}",
        ])  # fmt: skip
    absent = "".join(f"\n* {row['size']:.0e} parameters: {row['absent']}" for row in results if "absent" in row)
    return f"""## Scaling

Against threads (ordered with `threads=`), parameters in one array, and number of arrays of 10^6 parameters in all.
Efficiency is the speed-up over one thread divided by the threads. The limit's bytes move with as many threads.

![Scaling](benchmarks-scaling.svg)

{table(["parameters", "arrays", "threads", "ms a step", "GB/s", "share of limit", "efficiency"], rows)}
{absent}
"""


def installing_page(results):
    rows = [
        [r["package"], f"{r['install']:.0f}", f"{r['first']:.1f}", f"{r['second']:.1f}", f"{r['megabytes']:.0f}"]
        for r in results
    ]
    columns = ["package", "pip install, s", "first step, s", "in the next process, s", "MB installed, with NumPy"]
    return f"""## From nothing to the first step

`pip install` into a new environment (the network's part included; fastadam is compiled from source), then Python's
start, import and one step of 1000 parameters. DeepSpeed compiles its kernel at the first step.

{table(columns, rows)}
"""


PAGES = {
    "versus": versus_page, "loop": loop_page, "sklearn_fit": sklearn_page, "busy": busy_page, "scaling": scaling_page,
    "installing": installing_page, "loop-numpy-2.5": functools.partial(loop_page, intro=NEWER_LOOP_INTRO),
    "sklearn_fit-numpy-2.5": functools.partial(sklearn_page, intro=NEWER_SKLEARN_INTRO),
}  # fmt: skip


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="take every measurement anew first")
    if parser.parse_args(arguments).measure:
        for name in MEASUREMENTS:
            subprocess.run([sys.executable, "-m", "bench", name, "--save"], check=True, cwd=PAGE.parent.parent)
    found = {name: load(name) for name in (*MEASUREMENTS, *NEWER_NUMPY)}
    text = [
        "# Benchmarks\n\nWritten by `python -m bench report` from `bench/results/*.json`; `--measure` takes the "
        "measurements anew. Losses are in the tables like everything else.\n"
    ]
    for name, content in found.items():
        if content is None:
            continue
        versions = ", ".join(f"{package} {version}" for package, version in content["about"]["versions"].items())
        command, _, numpy = name.partition("-")
        run = f"`python -m bench {command}{f' --save {name}' if numpy else ''}`"
        about = f"{run}, {content['about']['date']}: {content['about']['machine']}. {versions}."
        text.append(f"{PAGES[name](content['results'])}\n*{about}*\n")
    PAGE.write_text("\n".join(text))
    draw_all({name: content["results"] for name, content in found.items() if content}, PAGE.parent)
    print(f"written: {PAGE}")
