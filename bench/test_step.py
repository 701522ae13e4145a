"""pytest-benchmark suites: pytest bench/ (every contender that is installed; the others are listed as absent)

Compare with --benchmark-group-by=param:workload. Each result is checked against float64 after timing."""

import numpy as np
import pytest

import fastadam
from bench.peers import CONTENDERS, check
from bench.runner import Training
from bench.workloads import WORKLOADS

pytestmark = pytest.mark.filterwarnings("default")  # the peers' warnings are not ours to mend


def test_step(benchmark, contender, workload):
    chosen = WORKLOADS[workload]
    params, grads = chosen.make()
    try:
        stepper = CONTENDERS[contender](params, grads, fastadam.config()["threads"], chosen.rule)
    except NotImplementedError as error:
        pytest.skip(f"{contender}: {error}")
    stepper.run(1)
    steps = 1

    def step():
        nonlocal steps
        stepper.run(1)
        steps += 1

    benchmark.extra_info["isa"] = fastadam.config()["isa"]
    benchmark(step)
    check(stepper, params, grads, steps)


@pytest.mark.parametrize("optimizer", ["no optimizer", "fastadam default", "fastadam 1 thread", "NumPy tutorial"])
def test_training_iteration(benchmark, optimizer):
    """Forward, backward and step of a NumPy MLP of width 256."""
    training = Training(optimizer, 256, 32, fastadam.config()["threads"])
    training.iterate(1)
    first = training.loss
    benchmark(training.iterate, 50)
    assert optimizer == "no optimizer" or training.loss < first
    assert np.isfinite(first)
