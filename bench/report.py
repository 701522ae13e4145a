"""Write the pages of benchmarks, their pictures and the README's figures: python -m bench report [--measure]

They come from bench/results/. --measure takes their measurements anew first: hours, with nothing else running.
"""

import argparse
import importlib
import re
import subprocess
import sys
from pathlib import Path

from .limits import LIMITS
from .pictures import DRAWN, SHOWN, draw_all, file_name
from .quality_formats import FLOAT32
from .quality_tasks import TASKS
from .results import load, pivot, table, text
from .workloads import FAMILY, WORKLOADS

ROOT = Path(__file__).parent.parent
DOCS, README = ROOT / "docs", ROOT / "README.md"
IN_README = {
    "fastadam default": "threads by default",
    "torch fused": "torch fused",
    "numba prange": "numba, parallel",
    "NumPy tutorial": "NumPy",
}
PAGES = {
    "benchmarks.md": ("Benchmarks", ("versus", "loop", "busy", "scaling", "rows")),
    "benchmarks-adapters.md": ("Benchmarks inside other libraries", ("torch", "sklearn_fit", "spacy_fit")),
    "benchmarks-memory.md": ("Benchmarks of less memory", ("formats", "quality", "large")),
}
COMMANDS = [command for _, commands in PAGES.values() for command in commands]
HEAD = """# {}

Written by `python -m bench report` from `bench/results/*.json`, which have every ratio with its quartiles. `--measure`
takes the measurements anew. A bar is what was promised before it was measured."""
OWN = ("fastadam", *LIMITS)
ALONE = [name for name, workload in WORKLOADS.items() if workload.rule in FAMILY]  # no peer has it
NEWER = "-numpy-2.5"  # taken apart: --save loop-numpy-2.5


def times(ratio):
    """A ratio as it is read: what is below 1 is a loss, in bold."""
    short = f"{ratio[1]:.2g}" if ratio[1] < 9.95 else f"{ratio[1]:.0f}"
    return short if ratio[1] >= 1 else f"**{ratio[1]:.2f}**"


def both(first, second):
    return lambda row: f"{row[first][1]:.3g} ({row[second][1]:.2f})"


def spacy_cell(row):
    of_steps = row["speed-up of the steps"]
    return both("speed-up", "share")(row) + (f"; {of_steps[1]:.3g}" if of_steps else "")


def kept(row):
    return text(row["measured"]) + (" **MISSED**" if row["verdict"] == "MISSED" else "")


def versus_tables(tables):
    own = {row["workload"]: row for row in tables["steps"] if row["contender"] == "fastadam"}
    rows = [row for row in tables["steps"] if row["workload"] not in ALONE and row["contender"] not in OWN]
    ratios = pivot(rows, ("workload",), "contender", lambda row: times(row["against fastadam"]))
    for i, ratio in enumerate(ratios):
        row = own[ratio["workload"]]
        limits = {limit: (share := row[f"share of the {limit}"]) and f"{share[1]:.2f}" for limit in LIMITS}
        ratios[i] = {"workload": "", "fastadam, ms": row["ms"], "GB/s": round(row["GB/s"], 1), **limits, **ratio}
    yield table(ratios)
    yield (
        "What was promised:\n\n"
        "* *measured*: the other's time over ours, with its quartiles;\n"
        "* *bar*: how large that had to be. A bar of 1 is met if the upper quartile reaches it;\n"
        "* *a step at the limit*: the same if our step were as fast as the limits allow, where that is faster."
    )
    yield table([row for row in tables["promises"] if row["verdict"] != "not measured"])
    if "own promises" in tables:
        yield table(tables["own promises"])
    absent = {row["contender"]: [] for row in tables["absent"]}
    for row in tables["absent"]:
        absent[row["contender"]].append(row["why"])
    yield "Not measured: " + "; ".join(f"{name} ({', '.join(why)})" for name, why in absent.items()) + "."


def scaling_cell(row):
    ms, speed, (_, share, _), efficiency = (row[c] for c in ("ms a step", "GB/s", "share of the limit", "efficiency"))
    return f"{ms:.3g} ms, {speed:.1f} GB/s, {share:.2f}, {efficiency:.2f}"


def rows_cell(row):
    """Ours in milliseconds, parts of it as shares, others as multiples; in brackets with fresh rows."""
    if row["contender"] in ("fastadam", "fastadam 2 threads", "fastadam default"):
        same, fresh = (ms and f"{ms:.3g}" for ms in (row["ms"], row["fresh rows, ms"]))
    else:
        part = row["contender"].startswith(("bare loop", "sorting"))
        ratios = row["over ours"], row["fresh rows, over ours"]
        same, fresh = (found and (f"{found[1]:.2f}" if part else times(found)) for found in ratios)
    return f"{same} ({fresh})" if fresh else same


def rows_tables(tables):
    yield table(pivot(tables["steps"], ("table",), "contender", rows_cell))
    measured = [row for row in tables["promises"] if row["verdict"] != "not measured"]
    yield table(pivot(measured, ("what",), "table", lambda row: f"{kept(row)}; bar {row['bar']}"))
    if "absent" in tables:
        said = (f"{row.get('contender', 'all')} on {row['table']} ({row['why']})" for row in tables["absent"])
        yield f"Not measured: {'; '.join(dict.fromkeys(said))}."


def quality_cell(row):
    """float32's loss; for others the difference to it, in nats where the bar is."""
    if row["format"] == FLOAT32:
        return f"{row['loss']:.4g}"
    if row["diverged"]:
        return f"**diverged in {row['diverged']} of {row['seeds']}**"
    if TASKS[row["task"]].bars[0] == "nats":
        return f"{row['difference']:+.4f} ({row['error']:.4f})"
    return f"{row['difference, %']:+.1f} % ({row['error, %']:.1f})"


def quality_tables(tables):
    yield (
        "float32's loss, and the difference to it with its standard error, in nats for the transformer. Bytes "
        "are those of the last task. Peers keep small arrays in float32, so on other models they take more or less:"
    )
    kept = {
        row["format"]: {"format": row["format"], "bytes a parameter": row["bytes a parameter"]}
        for row in tables["losses"]
    }
    found = pivot(tables["losses"], ("format",), "task", quality_cell)
    yield table([kept[row["format"]] | row for row in found])
    if "promises" in tables:
        yield "What was promised: the most that the mean difference may be, and whether it was."
        yield table(
            pivot(tables["promises"], ("format",), "task", lambda row: f"{row['bar']} {row['unit']}: {row['verdict']}")
        )
    if "absent" in tables:
        said = (f"{row['format']} ({row['why']})" for row in tables["absent"])
        yield f"Not measured: {'; '.join(dict.fromkeys(said))}."


def formats_cell(row):
    """Its time over float32's, and the limit's over it."""
    over, limit = row["over float32"], row["limit over ours"]
    return f"{over[1]:.2f}" + (f" ({limit[1]:.2f})" if limit else "")


def formats_tables(tables):
    yield "Time over that of a step in float32; in brackets the limit over ours. By elements, threads, instruction set:"
    for row in tables["steps"]:
        row["case"] = f"{row['elements']:,}, {row['threads']}, {row['isa']}"
    for row in tables["peers"]:
        row["case"] = f"{row['elements']:,}, {row['threads']}"
    kept = {
        row["format"]: {"format": row["format"], "bytes kept": row["bytes kept"], "moved": row["bytes moved"]}
        for row in tables["steps"]
    }
    found = pivot(tables["steps"], ("format",), "case", formats_cell)
    yield table([kept[row["format"]] | row for row in found])
    yield "Milliseconds of one step, and in brackets over our step with 8-bit state:"
    yield table(pivot(tables["peers"], ("contender",), "case", both_ms("over our 8bit state")))
    yield "What was promised:"
    yield table(tables["promises"])


def both_ms(ratio):
    return lambda row: f"{row['ms']:.3g} ({row[ratio][1]:.2f})"


# command -> table, columns that stay, column whose values become columns, cell, what the table shows
PIVOTS = {
    "loop": ("iterations", ("optimizer",), "h, batch", both("total, ms", "against no optimizer"),
             "Milliseconds an iteration and, in brackets, times that of no optimizer, by h and batch:"),
    "sklearn_fit": ("fits", ("optimizer",), "hidden, batch", both("speed-up", "share"),
                    "Speed-up and, in brackets, share, by hidden layers and batch:"),
    "spacy_fit": ("fits", ("optimizer",), "batch", spacy_cell,
                  "Speed-up and, in brackets, share; then the speed-up of the steps alone. By sentences in a batch:"),
    "scaling": ("steps", ("parameters", "arrays"), "threads", scaling_cell,
                "For each number of threads: time, bytes a second, share of the limit, efficiency."),
}  # fmt: skip


def laid_out(command, tables):
    if command == "versus":
        yield from versus_tables(tables)
    elif command == "rows":
        yield from rows_tables(tables)
    elif command == "formats":
        yield from formats_tables(tables)
    elif command == "quality":
        yield from quality_tables(tables)
    elif command in PIVOTS:
        name, index, across, cell, said = PIVOTS[command]
        numpy = ("NumPy",) if "NumPy" in tables[name][0] else ()
        yield from (said, table(pivot(tables[name], (*numpy, *index), across, cell)))
        if "promises" in tables:
            yield from ("What was promised:", table(pivot(tables["promises"], (*numpy, "what", "bar"), across, kept)))
    else:
        yield from map(table, tables.values())


def section(command, found):
    """What the command says of itself, pictures, tables, and where and when it was measured."""
    names = [name for name in (command, command + NEWER) if name in found]
    tables, about = found[names[0]]["tables"], []
    if len(names) > 1:
        numpy = {name: {"NumPy": found[name]["about"]["versions"]["numpy"]} for name in names}
        shown = [key for key in tables if key != "absent"]
        tables = {key: [numpy[name] | row for name in names for row in found[name]["tables"][key]] for key in shown}
    for name in names:
        versions = ", ".join(f"{package} {version}" for package, version in found[name]["about"]["versions"].items())
        run = f"`python -m bench {command}{f' --save {name}' if name != command else ''}`"
        about.append(f"*{run}, {found[name]['about']['date']}: {found[name]['about']['machine']}. {versions}.*")
    title, _, intro = importlib.import_module(f"bench.{command}").__doc__.strip().partition("\n\n")
    pictures = [f"![{what}]({file_name(name)})" for name, what in DRAWN.get(command, {}).items()]
    parts = [f"## {title.rstrip('.')}", intro, *pictures, *laid_out(command, tables), "\\\n".join(about)]
    return "\n\n".join(parts)


def range_of(rows, contender):
    """How many times as long iterations take as with fastadam, from the least to the most, over the models."""
    total = {(row["optimizer"], row["h, batch"]): row["total, ms"][1] for row in rows}
    ratios = [ms / total["fastadam shared team", case] for (name, case), ms in total.items() if name == contender]
    return f"{min(ratios):.2g}", f"{max(ratios):.2g}"


def readme(text, found):
    """The README with the figures of its first paragraph and of its table of steps."""
    loop, steps = found["loop"]["tables"]["iterations"], found["versus"]["tables"]["steps"]
    for of, contender in (("Adam written in NumPy", "NumPy tutorial"), ("torch's fused Adam", "torch fused")):
        words = r"\s".join(f"times as long with {of}".split())  # wherever the lines end
        low, high = range_of(loop, contender)
        text, count = re.subn(rf"[\d.]+(\sto\s)[\d.]+(\s{words})", rf"{low}\g<1>{high}\g<2>", text)
        assert count == 1, f"README.md does not say how long an iteration takes with {of}"
    found = {(row["workload"], row["contender"]): row for row in steps}
    rows = [
        {"arrays": workload, "fastadam, ms": found[workload, "fastadam"]["ms"]}
        | {head: times(found[workload, name]["against fastadam"]) for name, head in IN_README.items()}
        for workload in SHOWN
    ]
    text, count = re.subn(r"\| arrays \| fastadam, ms .*?\n\n", lambda _: f"{table(rows)}\n\n", text, flags=re.DOTALL)
    assert count == 1, "README.md has no table of steps"
    return text


def main(arguments):
    parser = argparse.ArgumentParser("python -m bench report", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="take the measurements of these pages anew first")
    if parser.parse_args(arguments).measure:
        for name in COMMANDS:
            subprocess.run([sys.executable, "-m", "bench", name, "--save"], check=True, cwd=ROOT)
    names = [name + numpy for name in COMMANDS for numpy in ("", NEWER)]
    found = {name: content for name in names if (content := load(name))}
    for page, (title, commands) in PAGES.items():
        sections = [section(name, found) for name in commands if name in found]
        (DOCS / page).write_text("\n\n".join([HEAD.format(title), *sections]) + "\n")
    draw_all({name: content["tables"] for name, content in found.items()}, DOCS)
    README.write_text(readme(README.read_text(), found))
    print(f"written: {', '.join(PAGES)} in {DOCS}, and figures in {README}")
