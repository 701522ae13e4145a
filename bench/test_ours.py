"""What fastadam has beside steps of Adam: rows, training, formats, clipping, groups, functions.

Each result is checked after timing."""

import numpy as np
import pytest

import fastadam
from bench.formats import FORMATS, Ours
from bench.row_peers import ON_ROWS, Shared
from bench.runner import Training
from bench.workloads import TABLES, WORKLOADS
from fastadam import reference

pytestmark = pytest.mark.filterwarnings("default")  # the peers' warnings are not ours to mend


@pytest.mark.parametrize("table", ["512 rows of 100 K x 64", "300 rows repeated to 4096 of 200 K x 128"])
@pytest.mark.parametrize("on_rows", ON_ROWS)
def test_rows(benchmark, on_rows, table):
    """Some rows of a table. Compare with --benchmark-group-by=param:table."""
    ((rows, grads),), others = TABLES[table].make()
    try:
        contender = ON_ROWS[on_rows](Shared(TABLES[table].height, TABLES[table].width))
        given = contender.given(rows, grads)
    except (ImportError, NotImplementedError) as error:
        pytest.skip(f"{on_rows}: {error}")
    contender.prepare()
    benchmark(contender.step, *given)
    contender.check(rows, grads, others)


@pytest.mark.parametrize("optimizer", ["no optimizer", "fastadam default", "fastadam 1 thread", "NumPy tutorial"])
def test_training_iteration(benchmark, optimizer):
    """Forward, backward and step of a NumPy MLP of width 256."""
    training = Training(optimizer, 256, 32, fastadam.config()["threads"])
    training.iterate(1)
    first = training.loss
    benchmark(training.iterate, 50)
    assert optimizer == "no optimizer" or training.loss < first
    assert np.isfinite(first)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("size", [1 << 14, 1 << 24])
def test_gradients_of_16_bits(benchmark, size, kind):
    """One array of float32, whose gradient has half as many bytes."""
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if kind == "bfloat16" else kind
    param = np.ones(size, np.float32)
    twin, grad = param.copy(), np.random.default_rng(0).standard_normal(size, np.float32).astype(dtype)
    opt, checked = fastadam.Adam(param), fastadam.Adam(twin)
    benchmark(opt.step, grad)
    for _ in range(opt.steps):
        checked.step(grad.astype(np.float32))
    assert np.array_equal(param, twin)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [1 << 14, 1 << 24])
def test_formats(benchmark, size, name):
    """One array, whose state or itself has fewer bits. Compare with --benchmark-group-by=param:size."""
    pytest.importorskip("ml_dtypes")
    ours = Ours(name, size, fastadam.config()["threads"])
    benchmark(ours.step)
    ours.check()


@pytest.mark.parametrize("clip", [{}, {"max_norm": 1.0}, {"max_norm_each": 1.0}], ids=str)
@pytest.mark.parametrize("workload", ["1000 x 1 K", "1 x 10 M"])
def test_clipping(benchmark, workload, clip):
    """By the norm of all arrays, or of each. Compare with --benchmark-group-by=param:workload."""
    params, grads = WORKLOADS[workload].make()
    first = params[0].copy()
    opt = fastadam.SGD(params, lr=0.01, **clip)
    benchmark(opt.step, grads)
    scale = 1.0
    for name, limit in clip.items():
        scale = reference.clip_scale(grads if name == "max_norm" else grads[:1], limit)
    for _ in range(opt.steps):
        reference.sgd_update(first, grads[0], 0, lr=0.01, grad_scale=scale)
    assert np.array_equal(params[0], first)


@pytest.mark.parametrize("given", ["overrides", "groups by hand"])
def test_two_groups(benchmark, given):
    """500 layers of 64 x 16, no decay of their biases: a pattern instead of two containers costs next to nothing."""
    values = {"weight_decay": 0.0}
    shapes = {f"{i}.{name}": shape for i in range(500) for name, shape in (("W", (64, 16)), ("bias", (16,)))}

    def arrays(seed):
        rng = np.random.default_rng(seed)
        return {key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}

    def by_hand(tree):
        return [{key: array for key, array in tree.items() if key.endswith(name)} for name in ("W", "bias")]

    weights, twin, grads = arrays(0), arrays(0), arrays(1)
    if given == "overrides":
        opt, given_grads = fastadam.AdamW(weights, overrides={"*.bias": values}), grads
    else:
        (w, b), given_grads = by_hand(weights), by_hand(grads)
        opt = fastadam.AdamW([{"params": w}, {"params": b, **values}])
    benchmark(opt.step, given_grads)
    checked = fastadam.AdamW(twin, overrides={"*.bias": values})
    for _ in range(opt.steps):
        checked.step(grads)
    assert all(np.array_equal(weights[key], twin[key]) for key in twin)


@pytest.mark.parametrize("call", ["step", "function", "function, one by one"])
@pytest.mark.parametrize("rule", ["Adam", "SGD"])
def test_functions(benchmark, rule, call):
    """1000 x 1 K by an optimizer, by one call of its function, and by one for each array."""
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(1024, np.float32) for _ in range(1000)] for _ in range(2))
    twins, threads, step = [param.copy() for param in params], fastadam.config()["threads"], 0
    state = [[np.zeros_like(param) for param in params] for _ in range(2 if rule == "Adam" else 0)]
    opt, update = getattr(fastadam, rule)(params, threads=threads), getattr(fastadam, f"{rule.lower()}_update")
    checked = getattr(fastadam, rule)(twins, threads=threads)

    def run():
        nonlocal step
        step += 1
        if call == "step":
            opt.step(grads)
        elif call == "function":
            update(params, grads, *state, step, threads=threads)
        else:
            for param, grad, *its in zip(params, grads, *state, strict=True):
                update(param, grad, *its, step, threads=threads)

    benchmark(run)
    for _ in range(step):
        checked.step(grads)
    assert all(map(np.array_equal, params, twins))
