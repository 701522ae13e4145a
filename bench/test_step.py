"""pytest-benchmark suites: pytest bench/ (every contender that is installed; the others are listed as absent)

Compare with --benchmark-group-by=param:workload. Each result is checked against float64 after timing."""

from importlib.util import find_spec

import pytest

import fastadam
from bench.peers import CONTENDERS, check
from bench.workloads import WORKLOADS

QUICK = ["1 x 1 K", "1 x 100 K", "1 x 1 M", "1000 x 1 K", "MLP 64-512-512-10"]
NEEDS = {"numba": "numba", "scikit": "sklearn", "thinc": "thinc", "autograd": "autograd", "optax": "optax",
         "torch": "torch", "DeepSpeed": "deepspeed"}  # fmt: skip


def missing(name):
    module = next((module for prefix, module in NEEDS.items() if name.startswith(prefix)), None)
    return module if module and find_spec(module) is None else None


PRESENT = [name for name in CONTENDERS if not missing(name)]
ABSENT = [name for name in CONTENDERS if missing(name)]


@pytest.mark.parametrize("workload", QUICK)
@pytest.mark.parametrize("name", PRESENT)
def test_step(benchmark, name, workload):
    params, grads = WORKLOADS[workload].make()
    contender = CONTENDERS[name](params, grads, fastadam.config()["threads"])
    contender.run(1)
    steps = 1

    def step():
        nonlocal steps
        contender.run(1)
        steps += 1

    benchmark.extra_info["isa"] = fastadam.config()["isa"]
    benchmark(step)
    check(contender, params, grads, steps)
