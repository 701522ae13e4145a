"""The option --workloads, what could not be measured, and what pytest-benchmark has to be helped with."""

import re
import warnings
from importlib import import_module

import pytest

from bench.results import some_of
from bench.workloads import WORKLOADS

QUICK = ["1 x 1 K", "1 x 100 K", "1 x 1 M", "1000 x 1 K", "MLP 64-512-512-10"]
QUICK += [f"1 x 1 M {rule}" for rule in ("AdamW", "AMSGrad", "clipped")]


def pytest_addoption(parser):
    said = "names from bench/workloads.py with commas between them, or 'all'; default: quick ones"
    parser.addoption("--workloads", type=some_of(WORKLOADS), default=QUICK, help=said)


def pytest_configure(config):
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("bench needs pytest-benchmark: python -m pip install -e '.[bench]'")
    if not config.getoption("--workloads", default=QUICK):
        raise pytest.UsageError("--workloads=none leaves nothing to measure; choose some, or all")
    # Its warnings are no errors, as that there is nothing to compare with yet. Now, and when pytest sets filters again:
    warnings.simplefilter("default", import_module("pytest_benchmark.logger").PytestBenchmarkWarning)
    config.addinivalue_line("filterwarnings", "default::pytest_benchmark.logger.PytestBenchmarkWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_group_stats(benchmarks, group_by):
    """By param:NAME, tests without that parameter are one more group: pytest-benchmark's own would fail."""
    for name in re.findall(r"param:(\w+)", group_by):
        for each in benchmarks:
            each["params"] = {name: None, **(each["params"] or {})}


def pytest_terminal_summary(terminalreporter):
    """A test that cannot measure something skips itself, saying "what: why"."""
    found = {}
    for report in terminalreporter.getreports("skipped"):
        what, _, why = report.longrepr[2].removeprefix("Skipped: ").partition(": ")
        found.setdefault(why, {})[what] = None
    for why, names in found.items():
        terminalreporter.write_line(f"not measured: {', '.join(names)} ({why})")
