"""The one format of results, and the one writer of tables.

A table is a list of rows, a row is {column: cell}, and a cell is a text, a number, None, or the quartiles of several
measurements: [lower, median, upper]. A file in bench/results/ holds tables by name, and machine, versions and date.
"""

import argparse
import importlib.util
import json
import operator
import platform
import re
import statistics
import sys
import time
from importlib.metadata import distributions
from pathlib import Path

import fastadam

from .low_peers import FOLDER as PEERS

FOLDER = Path(__file__).with_name("results")
PACKAGES = (
    "numpy",
    "numba",
    "scikit-learn",
    "thinc",
    "spacy",
    "autograd",
    "jax",
    "optax",
    "torch",
    "deepspeed",
    "ml_dtypes",
)
PACKAGES += ("bitsandbytes", "bitsandbytes-cpu-fork", "torchao")


def quartiles(samples):
    return statistics.quantiles(samples, n=4) if len(samples) > 1 else list(samples) * 3


def ratio(samples, base):
    """Quartiles of the rounds' ratios: a machine that is slower for a while slows both."""
    return quartiles([a / b for a, b in zip(samples, base, strict=False)])


def milliseconds(samples):
    return statistics.median(samples) * 1e3


def promise(what, bar, measured, verdict=None):
    """A row that says whether a measurement keeps a bar, as in ">= 0.95". Without a bar it is only reported."""
    if bar and not verdict:
        sign, limit = bar.split()[:2]
        middle = measured[1] if isinstance(measured, list) else measured
        met = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}[sign](middle, float(limit))
        verdict = "met" if met else "MISSED"
    return {**what, "bar": bar or "reported", "measured": measured, "verdict": verdict or ""}


def text(cell):
    if isinstance(cell, (list, tuple)):
        low, middle, high = (f"{x:.2f}" if 0.1 <= x < 10 else f"{x:.3g}" for x in cell)
        return f"{middle} ({low} to {high})"
    return "" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def lines(rows, head=True):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[text(row.get(column)) for column in columns] for row in rows]
    heads = [map(str, columns), ["---"] * len(columns)] if head else []
    return ["| " + " | ".join(line) + " |" for line in heads + cells]


def table(rows):
    """Markdown."""
    return "\n".join(lines(rows))


def pivot(rows, index, across, cell):
    """One row for each value of the columns `index`, and in it a column for each value of the column `across`."""
    cases, found = dict.fromkeys(row[across] for row in rows), {}
    for row in rows:
        key = {column: row[column] for column in index}
        found.setdefault(tuple(key.values()), key | cases)[row[across]] = cell(row)
    return list(found.values())


def machine():
    config, about = fastadam.config(), Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", about.read_text()) if about.exists() else None
    cpu, what = found[1] if found else platform.processor(), f"{config['version']} ({config['isa']})"
    system = f"{platform.system()} {platform.release().split('-')[0]}, {' '.join(platform.libc_ver())}"
    versions = f"fastadam {what}, NumPy {config['numpy']}, Python {config['python']}, {system}"
    return f"{cpu}, {config['threads']} threads; {versions}"


def write(name, about, tables):
    """One row a line, four digits of every float."""
    digits = {"parse_float": lambda number: float(f"{float(number):.4g}")}
    tables = {
        key: ",\n".join(f"  {json.dumps(json.loads(json.dumps(row), **digits))}" for row in rows)
        for key, rows in tables.items()
    }
    inside = ",\n".join(f' "{key}": [\n{rows}\n ]' for key, rows in tables.items())
    (FOLDER / f"{name}.json").write_text(f'{{"about": {json.dumps(about)},\n"tables": {{\n{inside}\n}}}}\n')


def load(name):
    """{"about": ..., "tables": ...}, or None."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def some_of(names):
    """A function that makes a list of a text: some of the names with commas between them, "all" or "none"."""

    def chosen(given):
        if given in ("all", "none"):
            return list(names) if given == "all" else []
        some = [name.strip() for name in given.split(",")]
        if unknown := set(some).difference(names):
            said = f"there is no {', '.join(sorted(unknown))}; choose from {', '.join(names)}; or all, or none"
            raise argparse.ArgumentTypeError(said)
        return some

    return chosen


def must_have(module, package):
    if importlib.util.find_spec(module) is None:
        raise SystemExit(f"{package} is not installed: python -m pip install {package}")


def options(command, doc, arguments, choices):
    """--quick, --save, and an option for each of the choices. `everything`: none of these was given."""
    lines_kept = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(f"python -m bench {command}", description=doc, formatter_class=lines_kept)
    parser.add_argument("--quick", action="store_true", help="small and few: shows that it runs, not how fast")
    parser.add_argument("--save", nargs="?", const=command, metavar="NAME", help="keep them in bench/results/NAME.json")
    for option, names in choices.items():
        said = f"only some of {', '.join(names)}; or none; default: all"
        parser.add_argument(f"--{option}", type=some_of(names), help=said)
    chosen = parser.parse_args(arguments)
    if chosen.quick and chosen.save:
        parser.error("--quick is no measurement to keep")
    given = {option: getattr(chosen, option) for option in choices}
    chosen.everything = all(some is None for some in given.values())
    for option, some in given.items():
        setattr(chosen, option, list(choices[option]) if some is None else some)
    return chosen


def run(command, module, arguments):
    """Print the tables that the module measures, row by row, and save them: `measure(options)` yields (name, rows)."""
    chosen = options(command, module.__doc__, arguments, getattr(module, "CHOICES", {}))
    print(f"{machine()}\nRatios are medians of rounds (lower to upper quartile); --help says of what.", flush=True)
    tables, printed = {}, None
    for name, rows in module.measure(chosen):
        for row in rows:
            head = printed != (name, list(row))
            print("\n" * head + "\n".join(lines([row], head)), flush=True)
            printed = name, list(row)
            tables.setdefault(name, []).append(row)
    if any(row["why"].startswith("FAILED") for row in tables.get("absent", ())):
        raise SystemExit("a contender failed")
    if chosen.save:
        path = [*sys.path, *map(str, PEERS.glob("*"))]
        installed = {found.name.lower(): found.version for found in distributions(path=path)}
        versions = {package: installed[package] for package in PACKAGES if package in installed}
        about = {"machine": machine(), "versions": versions, "date": time.strftime("%Y-%m-%d")}
        write(chosen.save, about, tables)
