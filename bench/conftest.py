"""Which workloads pytest bench/ runs, and which contenders are not there to be measured."""

from importlib.util import find_spec

from bench.peers import COMPILER, CONTENDERS
from bench.workloads import WORKLOADS

QUICK = ["1 x 1 K", "1 x 100 K", "1 x 1 M", "1000 x 1 K", "MLP 64-512-512-10"]
QUICK += [f"1 x 1 M {rule}" for rule in ("AdamW", "AMSGrad", "clipped")]
NEEDS = {"numba": "numba", "scikit": "sklearn", "thinc": "thinc", "autograd": "autograd", "optax": "optax",
         "torch": "torch", "DeepSpeed": "deepspeed", "fastadam.sklearn": "sklearn", "fastadam.thinc": "thinc",
         "fastadam.torch": "torch"}  # fmt: skip


def missing(name):
    if name == "torch compiled" and not COMPILER:
        return True
    module = next((module for prefix, module in NEEDS.items() if name.startswith(prefix)), None)
    return module is not None and find_spec(module) is None


PRESENT = [name for name in CONTENDERS if not missing(name)]


def pytest_addoption(parser):
    parser.addoption("--workloads", help="comma-separated names from bench/workloads.py, or 'all'; default: quick ones")


def chosen_workloads(config):
    names = config.getoption("--workloads", default=None)
    if names == "all":
        return list(WORKLOADS)
    return names.split(",") if names else QUICK


def pytest_generate_tests(metafunc):
    if {"contender", "workload"} <= set(metafunc.fixturenames):
        pairs = [
            (name, workload)
            for workload in chosen_workloads(metafunc.config)
            for name in PRESENT
            if WORKLOADS[workload].rule in CONTENDERS[name].rules
        ]
        metafunc.parametrize(("contender", "workload"), pairs, ids=[f"{w}-{name}" for name, w in pairs])


def pytest_terminal_summary(terminalreporter, config):
    absent = [name for name in CONTENDERS if missing(name)]
    if absent:
        terminalreporter.write_line(f"absent, not measured: {', '.join(absent)} (bench/requirements.txt)")
    rules = {WORKLOADS[workload].rule for workload in chosen_workloads(config)}
    for rule in sorted(rules):
        without = [name for name in PRESENT if rule not in CONTENDERS[name].rules]
        if without:
            terminalreporter.write_line(f"no {rule}, not measured with it: {', '.join(without)}")
