"""Nothing torn: Ctrl-C at any instant, memory that runs out, several threads at once.

All of this can hang or crash, so each test runs one of the functions here in a process of its own. They compare every
parameter and state array to the last bit, counters and hyper-parameters too, with a twin that was left in peace."""

import copy
import functools
import itertools
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import run_python, snapshot

import fastadam

TESTS = str(Path(__file__).parent)


def run(call, timeout=120):
    return run_python(f"import test_anomalies as t; t.{call}", timeout=timeout, PYTHONPATH=TESTS).stdout


def few_or_many(few, many):
    """How often: a sample for every change, and the count that convinces."""
    return pytest.mark.parametrize("trials", [few, pytest.param(many, marks=pytest.mark.slow)])


# ---- what is done, to the optimizer and to its twin

AROUND = {
    "plain": {},
    "max_norm": {"max_norm": 0.1},
    "accumulate": {"accumulate": 3},
    "ema": {"ema_decay": 0.9},
    "all": {"max_norm": 0.1, "accumulate": 2, "ema_decay": 0.9, "nonfinite": "raise"},
}


def arrays(seed):
    rng = np.random.default_rng(seed)
    sizes = [1, 17, 1000, 9001] * 10
    return [rng.standard_normal(n).astype(np.float32 if i % 3 else np.float64) for i, n in enumerate(sizes)]


def grouped(them):
    return [them[:25], them[25:]]


def make(**options):
    first, second = grouped(arrays(0))
    groups = [{"params": first}, {"params": second, "lr": 0.1, "weight_decay": 0.1}]
    return fastadam.Adam(groups, lr=0.01, amsgrad=True, **options)


@functools.cache
def gradients():
    return [arrays(seed) for seed in (1, 2, 3)]


@functools.cache
def saved_states():
    opt, saved = make(), []
    for count in range(4):
        step(opt, count)
        opt.lr = float(count)
        saved.append(copy.deepcopy(opt.state_dict()))
    return saved


def step(opt, count):
    opt.step(grouped(gradients()[count % 3]))


def step_one_by_one(opt, count):
    for i, grad in enumerate(gradients()[count % 3]):
        opt.step_one(i, grad)


def step_one(opt, count):
    i = count % 40
    opt.step_one(i, gradients()[0][i])


def load(opt, count):
    opt.load_state_dict(saved_states()[count % 4])


def add_group(opt, count):
    opt.add_param_group({"params": {f"{name} {count}": np.ones(500) for name in "abcdefghij"}, "lr": float(count)})


def swap(opt, count):
    with opt.swap_ema():
        opt.param_groups[0]["params"][0].sum()


def nothing(opt, count):
    pass


# ---- Ctrl-C

PRESS = """
import os, signal, sys, time
for line in sys.stdin:
    time.sleep(float(line))
    os.kill(int(sys.argv[1]), signal.SIGINT)
"""


def interrupt(act, trials, *, twins_act=None, **options):
    """Do it again and again until Ctrl-C, so many times. What was done last must have happened wholly, or not."""
    twins_act = twins_act or act
    presser = subprocess.Popen([sys.executable, "-c", PRESS, str(os.getpid())], stdin=subprocess.PIPE, text=True)
    rng, outcomes = random.Random(0), Counter()
    act(make(**options), 0)  # whatever is made once
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for trial in range(trials):
        if trial % 10 == 0:  # an optimizer does not need a thousand groups
            opt, twin, count, twins_count = make(**options), make(**{**options, "threads": 1}), 0, 0
        try:
            print(rng.uniform(0, 4e-3), file=presser.stdin, flush=True)
            while True:
                act(opt, count)
                count += 1
        except KeyboardInterrupt:
            pass
        while twins_count < count:
            twins_act(twin, twins_count)
            twins_count += 1
        outcome = "not at all"
        if snapshot(opt) != snapshot(twin):
            twins_act(twin, count)
            count, twins_count = count + 1, twins_count + 1
            outcome = "wholly" if snapshot(opt) == snapshot(twin) else "torn"
        outcomes[outcome] += 1
        if outcome == "torn":
            opt, twin, count, twins_count = make(**options), make(**{**options, "threads": 1}), 0, 0
    for each in opt, twin:
        go_on(each)
    assert snapshot(opt) == snapshot(twin), "it does not go on as its twin does"
    presser.stdin.close()
    presser.wait()
    print(dict(outcomes))
    return outcomes


def go_on(opt):
    """One more step, whatever groups there are."""
    groups = zip(opt.param_groups, opt.state_dict()["param_groups"], strict=True)
    grads = [
        {n: p * 0.5 for n, p in zip(saved["param_names"], group["params"], strict=True)} for group, saved in groups
    ]
    opt.step([list(grad.values()) if i < 2 else grad for i, grad in enumerate(grads)])


def interrupt_steps(trials):
    outcomes = Counter()
    for around, threads in itertools.product(AROUND.values(), (1, 2)):
        outcomes += interrupt(step, trials, threads=threads, **around)
    assert outcomes["wholly"] and not outcomes["torn"], outcomes


@few_or_many(2, 200)
def test_ctrl_c_does_not_tear_a_step(trials):
    """With 1 and 2 threads and everything around the rule, so many times each."""
    run(f"interrupt_steps({trials})", timeout=600)


@few_or_many(20, 200)
@pytest.mark.parametrize(
    "what", ["step_one, {}", "load, {}", "add_group, {}", "swap, {}, twins_act=t.nothing, ema_decay=0.9"]
)
def test_ctrl_c_does_not_tear_what_else_changes_an_optimizer(what, trials):
    run(f"never_torn(t.{what.format(trials)})", timeout=600)


def never_torn(act, trials, **options):
    assert not interrupt(act, trials, **options)["torn"]


def test_ctrl_c_would_tear_a_step_written_in_python():
    """So the tests above can fail."""
    run("some_torn(10)")


def some_torn(trials):
    assert interrupt(step_one_by_one, trials, twins_act=step)["torn"]
