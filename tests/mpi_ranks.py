"""What ranks run, one function for each test in test_mpi.py: python -m mpi4py tests/mpi_ranks.py NAME ARGUMENTS."""

import contextlib
import os
import resource
import signal
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
from helpers import assert_same_bits
from mpi4py import MPI

import fastadam
import fastadam.mpi

COMM = MPI.COMM_WORLD
RANK, RANKS = COMM.rank, COMM.size
LAST = RANK + 1 == RANKS
SMALL = {"a": (37, 1001), "b": (13,), "c": (), "d": (0, 3), "e": (12301,), "f": (125, 77), "g": (61, 3, 37)}

RULES = {
    "Adam": [{}, {"amsgrad": True, "weight_decay": 0.1}, {"max_value": 0.5}, {"ema_decay": 0.9}],
    "AdamW": [{"weight_decay": 0.1}, {"maximize": True, "lr": fastadam.schedules.exponential(0.1, 0.5)}],
    "NAdam": [{}],
    "RAdam": [{}],
    "Adamax": [{}],
    "SGD": [{"lr": 0.1, "max_norm_each": 0.5}, {"lr": 0.1, "momentum": 0.9, "nesterov": True}],
    "RMSprop": [{"centered": True, "momentum": 0.5, "overrides": {"[bf]": {"lr": 0.5}, "a": {"alpha": 0.5}}}],
    "Adagrad": [{"initial_accumulator_value": 0.1}],
}


def model(kind="float32", seed=0):
    rng = np.random.default_rng(seed)
    params = {key: np.array(rng.standard_normal(shape), np.float32) for key, shape in SMALL.items()}
    if kind == "mixed":
        params["e"], params["b"] = params["e"].astype(np.float64), params["b"].astype(np.float64)
    elif kind == "bfloat16":
        params["e"], params["f"] = params["e"].astype(ml_dtypes.bfloat16), params["f"].astype(ml_dtypes.bfloat16)
    elif kind == "float64":
        params = {key: p.astype(np.float64) for key, p in params.items()}
    params["f"] = np.asfortranarray(params["f"])
    params["g"] = params["g"].transpose(2, 0, 1)  # channels last
    return params


def gradients(params, step, rank, size=1.0):
    """Of float32 for bfloat16."""
    rng = np.random.default_rng([step, rank])
    grads = {}
    for key, p in params.items():
        grad = np.asarray(rng.standard_normal(p.shape) * size, np.float32 if p.dtype.itemsize == 2 else p.dtype)
        grads[key] = np.empty_like(p, grad.dtype)  # in the order of its memory
        grads[key][...] = grad
    return grads


def assert_same_arrays(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in ours:
        a, b = (x.view(np.uint16) if x.dtype.itemsize == 2 else x for x in (ours[key], theirs[key]))
        assert_same_bits(a, b, key)


def assert_same_states(ours, theirs):
    """Of state_dicts; a process with `accumulate` also has sums."""
    assert ours["param_groups"] == theirs["param_groups"]
    for i, entry in ours["state"].items():
        other = {name: value for name, value in theirs["state"][i].items() if name not in ("grad_sum", "grad_count")}
        assert entry.keys() == other.keys()
        arrays = {name for name, value in entry.items() if isinstance(value, np.ndarray)}
        assert_same_arrays({name: entry[name] for name in arrays}, {name: other[name] for name in arrays})
        assert all(entry[name] == other[name] for name in entry.keys() - arrays)


@contextlib.contextmanager
def raises(kind, words=""):
    """On this rank."""
    try:
        yield
    except kind as error:
        said = str(error)
    else:
        said = f"nothing: no {kind}"
    assert words in said and not said.startswith("nothing: "), (RANK, said)


@contextlib.contextmanager
def unchanged(opt):
    before = {key: p.tobytes() for key, p in opt.params.items()}, repr(opt.state_dict(raw=True))
    yield
    assert before == ({key: p.tobytes() for key, p in opt.params.items()}, repr(opt.state_dict(raw=True)))
    opt.step(gradients(opt.params, 99, RANK))  # and all go on


# ---- the same bits as one process


def check_bits(rule, kind="float32", bucket_mb=0.0625, count=3, **options):
    """`count` steps, and the state after them."""
    one_params = model(kind)
    one = getattr(fastadam, rule)(one_params, accumulate=RANKS, **options)
    given = model(kind, seed=RANK)  # only rank 0's are taken
    opt = fastadam.mpi.Sharded(getattr(fastadam, rule), given, bucket_mb=bucket_mb, **options)
    for step in range(count):
        for rank in range(RANKS):
            one.step(gradients(one_params, step, rank))
        opt.step(gradients(one_params, step, RANK))
        assert_same_arrays(opt.params, one_params)
        assert opt.grad_norm == one.grad_norm
        assert opt.last_values == one.last_values
    assert_same_states(opt.state_dict(raw=True), one.state_dict(raw=True))
    return opt, one, one_params


def bits(sample):
    """All rules, with and without clipping, of float32, float64 and both."""
    number = 0
    for rule, choices in RULES.items():
        for options in choices:
            for kind in "float32", "float64", "mixed":
                for max_norm in None, 1.0:
                    number += 1
                    if number % int(sample) == 0 and not (max_norm and {"max_value", "max_norm_each"} & options.keys()):
                        check_bits(rule, kind, max_norm=max_norm, **options)
    check_bits("AdamW", "mixed", bucket_mb=4)
    check_bits("Adam", nonfinite="raise")
    check_bits("Adam", "mixed", max_norm_each=0.5, nonfinite="skip")


def formats():
    """Random bits are those of whole arrays."""
    for kind, state_dtype in ("float32", "8bit"), ("bfloat16", "bfloat16"), ("bfloat16", "8bit"):
        check_bits("Adam", kind, state_dtype=state_dtype, seed=5, max_norm=1.0)
    check_bits("SGD", "bfloat16", momentum=0.9, lr=0.1, master_bits=24)


def gradients_of_other_types():
    """float16 and bfloat16 are converted on the way; others, and other memory orders, are copied."""
    import warnings

    one_params = model()
    one = fastadam.Adam(one_params, accumulate=RANKS)
    opt = fastadam.mpi.Sharded(fastadam.Adam, model())

    def other(rank):
        grads = gradients(one_params, 1, rank)
        types = {"a": np.float16, "b": np.float64, "e": ml_dtypes.bfloat16}
        return {
            key: np.ascontiguousarray(g.astype(types.get(key, g.dtype))) if g.ndim else g for key, g in grads.items()
        }

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for rank in range(RANKS):
            one.step(other(rank), grad_scale=rank + 0.5)
        alone = len(caught)
        opt.step(other(RANK), grad_scale=RANK + 0.5)
    assert alone == len(caught) - alone == 3
    assert all(each.category is fastadam.PerformanceWarning for each in caught)
    assert {each.filename for each in caught} == {__file__}
    assert_same_arrays(opt.params, one_params)


def accumulate():
    """Each rank adds up its own gradients, then ranks are added in order; here is what that is."""
    opt = fastadam.mpi.Sharded(fastadam.SGD, model(), lr=1.0, accumulate=3, max_norm=1e9)
    params = model()
    for step in range(2):
        for k in range(3):
            before = {key: p.copy() for key, p in opt.params.items()}
            opt.step(gradients(params, 3 * step + k, RANK), grad_scale=0.3)
            if k < 2:
                assert_same_arrays(opt.params, before)
        for key, p in params.items():
            total = None
            for rank in range(RANKS):
                first, *rest = (np.float32(0.3) * gradients(params, 3 * step + k, rank)[key] for k in range(3))
                total = sum(rest, first) if total is None else total + sum(rest, first)
            p -= total * np.float32(1 / (3 * RANKS))
        assert_same_arrays(opt.params, params)
    assert opt.steps == 2


def groups():
    """None for an array, and another learning rate set on the way."""
    one_params = model("mixed")

    def given(p):
        last = {"params": (p["e"], p["f"]), "weight_decay": 0.5}
        return [{"params": [p["a"]]}, {"params": {"b": p["b"]}, "lr": 0.5}, last]

    one = fastadam.AdamW(given(one_params), accumulate=RANKS)
    opt = fastadam.mpi.Sharded(fastadam.AdamW, given(model("mixed")))
    for step in range(4):
        if step == 2:
            one.param_groups[2]["lr"] = opt.param_groups[2]["lr"] = 0.25
        for k in [*range(RANKS), None]:
            g = gradients(one_params, step, RANK if k is None else k)
            grads = [[g["a"]], {"b": None if step == 1 else g["b"]}, (g["e"], g["f"])]
            (opt if k is None else one).step(grads)
    (a,), b, (e, f) = opt.params
    assert_same_arrays({"a": a, **b, "e": e, "f": f}, {key: one_params[key] for key in "abef"})
    assert_same_states(opt.state_dict(), one.state_dict())
    assert opt.steps == 4 and isinstance(opt.params[2], tuple)


def grown(kind, at, **options):
    """An optimizer of ranks, and one of one process with its parameters. A group comes to both before step `at`."""

    def first(p):
        return {key: p[key] for key in "abcdg"}

    def last(p):
        return {"params": [p["f"], (p["e"],)], "lr": 0.05}

    one_params, given = model(kind), model(kind, seed=RANK)
    one = fastadam.Adam(first(one_params), accumulate=RANKS, **options)
    opt = fastadam.mpi.Sharded(fastadam.Adam, first(given), bucket_mb=0.0625, **options)
    saved = fastadam.Adam(first(model(kind)), **{**options, "seed": 7}).state_dict()  # its seeds stay those of its own
    one.load_state_dict(saved)
    opt.load_state_dict(saved)
    net = opt.params
    for step in range(at + 2):
        if step == at:
            one.add_param_group(last(one_params))
            opt.add_param_group(last(given))
            assert opt.params[0] is net and isinstance(opt.params[1][1], tuple)
        for rank in [*range(RANKS), None]:
            g = gradients(one_params, step, RANK if rank is None else rank)
            grads = first(g) if step < at else [first(g), [g["f"], (g["e"],)]]
            (opt if rank is None else one).step(grads)
        assert opt.grad_norm == one.grad_norm and opt.last_values == one.last_values
    return opt, one, one_params


def added_group(folder):
    """The bits of one process that adds it at the same step; files, too, and what is loaded from them."""
    for kind, options in ("mixed", {"max_norm": 1.0, "ema_decay": 0.9}), ("bfloat16", {"state_dtype": "8bit"}):
        opt, one, one_params = grown(kind, 2, **options)
        net, (f, (e,)) = opt.params
        assert_same_arrays({**net, "e": e, "f": f}, one_params)
        assert_same_states(opt.state_dict(raw=True), one.state_dict(raw=True))
        path, again = Path(folder, f"{kind}.safetensors"), Path(folder, f"{kind}-{RANK}.safetensors")
        opt.save(path)
        params = [{key: one_params[key] for key in "abcdg"}, [one_params["f"], (one_params["e"],)]]
        alone = fastadam.Adam([{"params": each} for each in params], **options)
        fastadam.load(path, params=[{"params": each} for each in params], optimizer=alone)
        fastadam.save(again, params=[{"params": each} for each in params], optimizer=alone)
        assert again.read_bytes() == path.read_bytes()
        opt.step([{key: np.ones_like(p, np.float32) for key, p in net.items()}, [None, (None,)]])
        opt.load(path)
        assert_same_states(opt.state_dict(raw=True), one.state_dict(raw=True))


def group_in_vain():
    """What one rank refuses is added on none; nor is anything while gradients wait, or in a block of swap_ema."""
    opt = fastadam.mpi.Sharded(fastadam.Adam, model(), ema_decay=0.5, accumulate=2)
    new = np.ones(3, np.float32)
    good = {"params": {"z": new}}
    bad = [
        ({"params": {"a": new}}, "two parameters"),
        ({"params": {"z": new}, "lrr": 1.0}, "lrr"),
        ({"params": {"z": new}, "lr": -1.0}, "lr"),
        ({"params": {"z": np.arange(3)}}, "int64"),
        ({"params": {"z": new, "y": new[1:]}}, "overlap"),
        ({"z": new}, "'params'"),
        (new, "dict"),
    ]
    for group, words in bad:
        with raises((TypeError, ValueError) if LAST else fastadam.mpi.RankError, words):
            opt.add_param_group(group if LAST else good)
    for group, words in ({"params": {"z": new[1:]}}, "(2,)"), ({"params": {"z": new}, "lr": 0.5}, "0.5"):
        with raises(fastadam.mpi.RankError, words):
            opt.add_param_group(group if LAST else good)
    with opt.swap_ema(), raises(RuntimeError, "leave"):
        opt.add_param_group(good)
    opt.step(gradients(opt.params, 0, RANK))
    with raises(ValueError, "wait for a step"):
        opt.add_param_group(good)
    opt.step(gradients(opt.params, 0, RANK))  # of the container, which has not grown
    assert len(opt.param_groups) == 1 and "z" not in opt.params
    opt.add_param_group(good)
    assert len(opt.param_groups) == 2 and opt.params[1]["z"].tolist() == [1, 1, 1]


def other_sums():
    """mean=False steps on the sum; MPI's own sum is near."""
    one_params = model()
    one = fastadam.SGD(one_params, lr=1.0, accumulate=RANKS)
    opt = fastadam.mpi.Sharded(fastadam.SGD, model(), lr=1.0 / RANKS, mean=False)
    near = fastadam.mpi.Sharded(fastadam.SGD, model(), lr=1.0, reduce="mpi", bucket_mb=0.0625)
    for rank in range(RANKS):
        one.step(gradients(one_params, 0, rank))
    opt.step(gradients(one_params, 0, RANK))
    near.step(gradients(one_params, 0, RANK))
    for key, p in one_params.items():
        np.testing.assert_allclose(opt.params[key], p, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(near.params[key], p, rtol=1e-5, atol=1e-5)
    everywhere = np.empty((RANKS, 37 * 1001), np.float32)
    COMM.Allgather(near.params["a"].reshape(-1), everywhere)
    assert (everywhere == everywhere[0]).all()


def averages():
    opt, one, one_params = check_bits("Adam", ema_decay=0.5)
    with one.swap_ema():
        averages = {key: p.copy() for key, p in one_params.items()}
    with opt.swap_ema():
        assert_same_arrays(opt.params, averages)
        with raises(RuntimeError, "leave"):
            opt.step(gradients(one_params, 0, RANK))
    assert_same_arrays(opt.params, one_params)
    with raises(ArithmeticError), opt.swap_ema():
        raise ArithmeticError
    assert_same_arrays(opt.params, one_params)
    for raised in ArithmeticError, RuntimeError:  # in one rank alone: of its own, or by a step where the others leave
        try:
            with opt.swap_ema():
                if LAST and raised is RuntimeError:
                    opt.step(gradients(one_params, 9, RANK))
                elif LAST:
                    raise ArithmeticError
        except raised:
            assert LAST
        assert_same_arrays(opt.params, one_params)
    good = gradients(one_params, 9, RANK)
    for grads in good, None:  # one takes a step, or cannot, where the others enter a block: then none is in it
        with raises(TypeError if LAST and grads is None else fastadam.mpi.RankError):
            if LAST:
                opt.step(grads)
            else:
                with opt.swap_ema():
                    raise AssertionError
        assert_same_arrays(opt.params, one_params)
    for rank in range(RANKS):
        one.step(gradients(one_params, 9, rank))
    opt.step(good)
    assert_same_arrays(opt.params, one_params)
    assert_same_states(opt.state_dict(), one.state_dict())


def state_in_parts():
    """Gathered on one rank or all; a part is about its share, and there are few buffers."""
    opt, one, _ = check_bits("Adam", count=1)
    for raw in False, True:
        for rank in range(RANKS):
            found = opt.state_dict(raw=raw, rank=rank)
            assert (found is None) == (rank != RANK)
            if found is not None:
                assert_same_states(found, one.state_dict(raw=raw))
    with raises(ValueError, "rank"):
        opt.state_dict(rank=RANKS)
    lr = opt.lr
    opt.param_groups[0]["lr"] = -1.0 if LAST else lr
    with raises(ValueError if LAST else fastadam.mpi.RankError, "lr must be"):
        opt.state_dict()
    opt.lr = lr
    held = opt.rank_bytes
    assert held["params"] == sum(p.nbytes for p in model().values())
    assert abs(held["state"] - 2 * held["params"] / RANKS) < 2 * 4096 * 8 * 7
    assert held["buckets"] <= 4 * (0.0625 * 2**20 + 4096 * 4 * RANKS) and held["gradients"] == 0
    other = fastadam.mpi.Sharded(fastadam.Adam, model(seed=RANK + 1))
    other.load_state_dict(one.state_dict())
    assert_same_states(other.state_dict(), one.state_dict())


# ---- faults


def faults():
    opt = fastadam.mpi.Sharded(fastadam.AdamW, model(), lr=0.1, max_norm=1.0)
    good = gradients(opt.params, 0, RANK)
    opt.step(good)
    # a gradient that one rank refuses
    bad = {**good, "a": good["a"][1:]} if LAST else good
    with unchanged(opt), raises(ValueError if LAST else fastadam.mpi.RankError, "shape"):
        opt.step(bad)
    with unchanged(opt), raises(TypeError if LAST else fastadam.mpi.RankError, "grads"):
        opt.step(None if LAST else good)
    rows = fastadam.Rows(np.array([1]), np.ones((1, 1001), np.float32))
    with unchanged(opt), raises(ValueError if LAST else fastadam.mpi.RankError, "Rows"):
        opt.step({**good, "a": rows} if LAST else good)
    with unchanged(opt), raises(ValueError if LAST else fastadam.mpi.RankError, "overlap"):
        opt.step({**good, "a": opt.params["a"]} if LAST else good)
    # another learning rate, another option, another None
    for name, value in ("lr", 0.2), ("max_norm", 2.0):
        before = getattr(opt, name)
        if LAST:
            setattr(opt, name, value)
        words = f"{name}{' of group 0' if name == 'lr' else ''}: {before} on rank 0, {value}"
        with unchanged_after(opt, name, before), raises(fastadam.mpi.RankError, words):
            opt.step(good)
    words = "in the arrays without a gradient: [] on rank 0, ['b'] on rank"
    with unchanged(opt), raises(fastadam.mpi.RankError, words):
        opt.step({**good, "b": None} if LAST else good)
    words = f"in the call: 'state_dict' on rank 0, 'step' on rank {RANKS - 1}"
    with unchanged(opt), raises(fastadam.mpi.RankError, words):
        opt.step(good) if LAST else opt.state_dict()
    # what raises in a schedule or a container of one rank
    opt.lr = schedule_that_raises
    with raises(ZeroDivisionError if LAST else fastadam.mpi.RankError, "division"):
        opt.step(good)
    opt.lr = 0.1
    with unchanged(opt):
        pass


@contextlib.contextmanager
def unchanged_after(opt, name, value):
    """With an option set back."""
    before = {key: p.tobytes() for key, p in opt.params.items()}
    yield
    assert before == {key: p.tobytes() for key, p in opt.params.items()}
    setattr(opt, name, value)
    opt.step(gradients(opt.params, 98, RANK))


def schedule_that_raises(count):
    return 1 / (0 if LAST else 1)


def nonfinite():
    for limit in None, 1.0:
        opt = fastadam.mpi.Sharded(fastadam.Adam, model(), nonfinite="raise", max_norm=limit)
        good = gradients(opt.params, 0, RANK)
        bad = gradients(opt.params, 0, RANK)
        if LAST:
            bad["e"][12300] = np.nan
        with unchanged(opt), raises(FloatingPointError, f"'e' has NaN or infinity in it on rank {RANKS - 1}"):
            opt.step(bad)
        with unchanged(opt), raises(FloatingPointError, "is finite on each rank"):
            opt.step({**good, "e": np.full(12301, 3e38, np.float32)}, grad_scale=2.0)
        opt.nonfinite = "skip"
        with unchanged(opt):
            opt.step(bad)
        assert opt.skipped_steps == 1
        if limit is None:
            opt.step(bad)
            assert np.isnan(opt.grad_norm)  # of the last gradients, as in one process
            opt.step(good)
    # in sums that wait for a step
    opt = fastadam.mpi.Sharded(fastadam.SGD, model(), lr=1.0, nonfinite="skip", accumulate=2)
    same = fastadam.mpi.Sharded(fastadam.SGD, model(), lr=1.0, accumulate=2)
    for grads in good, bad, good, bad:
        opt.step(grads)
    for grads in good, good:
        same.step(grads)
    assert_same_arrays(opt.params, same.params)
    assert opt.skipped_steps == 2


def constructors():
    """What one rank refuses is made on none; what differs, too."""
    wrong = model()
    wrong["a"] = wrong["a"][:-1]
    for params, words in (wrong, "(36, 1001)"), ({**model(), "a": np.arange(3)}, "int64"), ([], "no arrays"):
        with raises((fastadam.mpi.RankError, TypeError, ValueError), words):
            fastadam.mpi.Sharded(fastadam.Adam, params if LAST else model())
    with raises(fastadam.mpi.RankError, "in parameter 0: ('a', 'float32', (37, 1001), 'C') on rank 0, ('a', 'float64'"):
        fastadam.mpi.Sharded(fastadam.Adam, model("float64" if LAST else "float32"))
    one_less = {key: p for key, p in model().items() if key != "g"}
    with raises(fastadam.mpi.RankError, "in parameter 6: ('g'"):
        fastadam.mpi.Sharded(fastadam.Adam, one_less if LAST else model())
    with raises(fastadam.mpi.RankError, "in the class: 'Adam' on rank 0, 'AdamW'"):
        fastadam.mpi.Sharded(fastadam.AdamW if LAST else fastadam.Adam, model())
    with raises(TypeError, "MPI.COMM_WORLD, got 4"):
        fastadam.mpi.Sharded(fastadam.Adam, model(), 4)
    with raises(fastadam.mpi.RankError, "in lr of group 0: 0.25 on rank 0, 0.5 on rank"):
        fastadam.mpi.Sharded(fastadam.Adam, model(), lr=0.5 if LAST else 0.25)
    with raises(fastadam.mpi.RankError, "in max_norm: 0.25 on rank 0, 0.5"):
        fastadam.mpi.Sharded(fastadam.Adam, model(), max_norm=0.5 if LAST else 0.25)
    with raises(ValueError, "RowAdagrad"):
        fastadam.mpi.Sharded(fastadam.RowAdagrad, model())
    with raises(ValueError, "state_file"):
        fastadam.mpi.Sharded(fastadam.Adam, model(), state_file="state")
    with raises(ValueError, "reduce"):
        fastadam.mpi.Sharded(fastadam.Adam, model(), reduce="sum")
    with raises(ValueError, "bucket_mb"):
        fastadam.mpi.Sharded(fastadam.Adam, model(), bucket_mb=0)
    with raises(TypeError, "class"):
        fastadam.mpi.Sharded("Adam", model())
    twice = model()["a"]
    with raises(ValueError, "overlap"):
        fastadam.mpi.Sharded(fastadam.Adam, [twice, twice[1:]])

    class Own(np.ndarray):  # as np.memmap is
        pass

    opt = fastadam.mpi.Sharded(fastadam.Adam, {key: p.view(Own) for key, p in model().items()})
    assert_same_arrays(opt.params, model())
    assert type(opt.params["a"]) is np.ndarray
    opt.lr = np.float64(opt.lr) if LAST else opt.lr  # equal
    for name, words in ("state", "use state_dict(), on all ranks"), ("rebind", "use opt.params[name][...] = new"):
        with raises(AttributeError, words):
            getattr(opt, name)
    with raises(AttributeError, "did you mean lr"):
        _ = opt.learning_rate
    with raises(AttributeError, "param_groups"):
        opt.betas = (0.5, 0.5)
    with raises(TypeError, "save and load"):
        import copy

        copy.deepcopy(opt)
    options = {"max_norm": 1.0, "accumulate": 2, "nonfinite": "skip", "overrides": {"[bf]": {"lr": 0.5}}}
    title, table = repr(fastadam.mpi.Sharded(fastadam.Adam, model(), bucket_mb=0.0625, **options)).split("\n", 1)
    assert title == f"Sharded, rank {RANK} of {RANKS}: Adam"
    assert table == repr(fastadam.Adam(model(), **options)).split("\n", 1)[1]  # of whole arrays
    with unchanged(opt):
        pass


# ---- checkpoints


def train(opt, begin, end, params):
    """The same whatever the number of ranks: all gradients are those of the first, times one."""
    for step in range(begin, end):
        opt.step(gradients(params, step, 0))


CASES = [("mixed", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "8bit")]


def new(kind, state_dtype, seed=0):
    options = {"lr": 0.01, "state_dtype": state_dtype, "ema_decay": 0.9, "overrides": {"[be]": {"lr": 0.1}}}
    return fastadam.mpi.Sharded(fastadam.AdamW, model(kind, seed), bucket_mb=0.0625, **options), options


def save(folder):
    """As one process would, to the byte."""
    for kind, state_dtype in CASES:
        opt, options = new(kind, state_dtype)
        train(opt, 0, 2, opt.params)
        path = Path(folder, f"{kind}-{state_dtype}.safetensors")
        opt.save(path, metadata={"epoch": 3})
        params = model(kind, 1)
        one = fastadam.AdamW(params, **options)
        assert fastadam.load(path, params=params, optimizer=one) == {"epoch": 3}
        assert_same_arrays(params, opt.params)
        assert_same_states(opt.state_dict(raw=True), one.state_dict(raw=True))
        again = Path(folder, f"again-{RANK}.safetensors")
        fastadam.save(again, params=params, optimizer=one, metadata={"epoch": 3})
        assert again.read_bytes() == path.read_bytes()
        train(opt, 2, 4, opt.params)
        opt.save(Path(folder, f"{kind}-{state_dtype}-later-{RANKS}.safetensors"))


def load(folder):
    """What any number of ranks has saved, and go on as that number would."""
    for kind, state_dtype in CASES:
        for path in Path(folder).glob(f"{kind}-{state_dtype}.safetensors"):
            opt, options = new(kind, state_dtype, seed=1)
            assert opt.load(path) == {"epoch": 3}
            later = Path(folder, f"loaded-{RANKS}.safetensors")
            opt.save(later, metadata={"epoch": 3})
            assert later.read_bytes() == path.read_bytes()
            train(opt, 2, 4, opt.params)
            params = model(kind, 1)
            one = fastadam.AdamW(params, **options)
            fastadam.load(path, params=params, optimizer=one)
            train(one, 2, 4, params)
            if RANKS in (1, 2, 4):  # the mean of as many equal gradients is one of them, exactly
                assert_same_arrays(opt.params, params)
                assert_same_states(opt.state_dict(raw=True), one.state_dict(raw=True))


def save_in_vain(folder):
    """A disk that is full for one rank, no folder, other metadata: the old file stays, and no other."""
    opt, _ = new("mixed", "float32")
    path = Path(folder, "model.safetensors")
    opt.save(path)
    before = path.read_bytes()
    train(opt, 0, 1, opt.params)
    for full in range(RANKS):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if full == RANK:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with raises(OSError if full == RANK else fastadam.mpi.RankError, "File too large"):
            opt.save(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with raises(OSError if RANK == 0 else fastadam.mpi.RankError, "No such file"):
        opt.save(Path(folder, "nowhere", "model.safetensors"))
    with raises(ValueError, "safetensors"):
        opt.save(Path(folder, "model.npz"))
    nested = [{"a": {"b": 1}}, {"b of a": 1}]
    for kinds, words in (
        ([{"rank": 0}, {"rank": 1}], "rank of metadata: 0"),
        ([{}, {"a": {}}], "metadata: {}"),
        (nested, ""),
    ):
        with raises(fastadam.mpi.RankError, f"the ranks differ in {words}"):
            opt.save(path, metadata=kinds[LAST])
    COMM.Barrier()
    assert path.read_bytes() == before and len(list(Path(folder).iterdir())) == 1
    with raises((FileNotFoundError, fastadam.mpi.RankError), "No such file"):
        opt.load(path if RANK else Path(folder, "no such file.safetensors"))
    damaged = bytearray(before)
    damaged[-1] ^= 1
    if RANK == 0:
        Path(folder, "damaged.safetensors").write_bytes(damaged)
    COMM.Barrier()
    with unchanged_values(opt), raises((ValueError, fastadam.mpi.RankError), "not what was saved"):
        opt.load(path if RANK else Path(folder, "damaged.safetensors"))
    opt.load(path)
    opt.save(path)
    assert path.read_bytes() == before


@contextlib.contextmanager
def unchanged_values(opt):
    before = {key: p.tobytes() for key, p in opt.params.items()}
    yield
    assert before == {key: p.tobytes() for key, p in opt.params.items()}


def waiting_gradients(folder):
    opt = fastadam.mpi.Sharded(fastadam.Adam, model(), accumulate=2)
    opt.step(gradients(opt.params, 0, RANK))
    for refused in lambda: opt.save(Path(folder, "x.safetensors")), opt.state_dict:
        with raises(ValueError, "wait for a step"):
            refused()
    opt.step(gradients(opt.params, 0, RANK))
    opt.save(Path(folder, "x.safetensors"))


def save_for_ever(folder):
    """Until one rank is killed; each file says how many steps were taken, and has as many."""
    opt, _ = new("mixed", "float32")
    while True:
        train(opt, opt.steps, opt.steps + 1, opt.params)
        opt.save(Path(folder, "model.safetensors"), metadata={"steps": opt.steps})
        if RANK == 0:
            print(opt.steps, *(COMM.allgather(os.getpid())), flush=True)
        else:
            COMM.allgather(os.getpid())


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
