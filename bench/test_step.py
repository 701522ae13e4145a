"""Steps of every contender on --workloads. Compare with --benchmark-group-by=param:workload.

Each result is checked against float64 after timing."""

import pytest

import fastadam
from bench.peers import CONTENDERS, check
from bench.workloads import WORKLOADS

pytestmark = pytest.mark.filterwarnings("default")  # the peers' warnings are not ours to mend


def pytest_generate_tests(metafunc):
    metafunc.parametrize("workload", metafunc.config.getoption("workloads"))
    metafunc.parametrize("contender", CONTENDERS)


def test_step(benchmark, contender, workload):
    chosen = WORKLOADS[workload]
    if chosen.rule not in CONTENDERS[contender].rules:
        pytest.skip(f"{contender}: it has no {chosen.rule}")
    params, grads = chosen.make()
    try:
        stepper = CONTENDERS[contender](params, grads, fastadam.config()["threads"], chosen.rule)
    except (ImportError, NotImplementedError) as error:
        pytest.skip(f"{contender}: {error}")
    steps = stepper.warm_up
    stepper.run(steps)

    def step():
        nonlocal steps
        stepper.run(1)
        steps += 1

    benchmark.extra_info["isa"] = fastadam.config()["isa"]
    benchmark(step)
    check(stepper, params, grads, steps)
