"""pytest-benchmark: pytest bench/ [--benchmark-group-by=param:workload]. Contenders that are not installed are skipped.

Each result is checked against float64 after timing."""

import numpy as np
import pytest

import fastadam
from bench.peers import CONTENDERS, check
from bench.workloads import WORKLOADS

pytestmark = pytest.mark.filterwarnings("default")  # the peers' warnings are not ours to mend
QUICK = ["1 x 1 K", "1 x 100 K", "1 x 1 M", "1000 x 1 K", "MLP 64-512-512-10"]
QUICK += [f"1 x 1 M {rule}" for rule in ("AdamW", "AMSGrad", "clipped")]


@pytest.mark.parametrize("workload", QUICK)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_step(benchmark, contender, workload):
    chosen = WORKLOADS[workload]
    params, grads = chosen.make()
    try:
        stepper = CONTENDERS[contender](params, grads, fastadam.config()["threads"], chosen.rule)
    except (ImportError, NotImplementedError) as error:
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


@pytest.mark.parametrize("given", ["overrides", "groups by hand"])
def test_two_groups(benchmark, given):
    """500 layers of 64 x 16, no decay of their biases."""
    values = {"weight_decay": 0.0}
    shapes = {f"{i}.{name}": shape for i in range(500) for name, shape in (("W", (64, 16)), ("bias", (16,)))}
    rng = np.random.default_rng(0)
    weights, grads = ({key: rng.standard_normal(s, np.float32) for key, s in shapes.items()} for _ in range(2))
    twin = {key: w.copy() for key, w in weights.items()}
    checked = fastadam.AdamW(twin, overrides={"*.bias": values})
    if given == "overrides":
        opt, given_grads = fastadam.AdamW(weights, overrides={"*.bias": values}), grads
    else:
        (w, b), given_grads = (
            [{key: tree[key] for key in tree if key.endswith(name)} for name in ("W", "bias")]
            for tree in (weights, grads)
        )
        opt = fastadam.AdamW([{"params": w}, {"params": b, **values}])
    benchmark(opt.step, given_grads)
    for _ in range(opt.steps):
        checked.step(grads)
    assert all(np.array_equal(weights[key], twin[key]) for key in twin)
