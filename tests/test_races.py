"""Two Python threads on one optimizer: the result is that of some order. Each test is a process of its own."""

import concurrent.futures
import copy
import threading

import pytest
from helpers import snapshot
from test_anomalies import WRAPS, add_group, few_or_many, go_on, make, run, saved_states, some_rows, step


def together(*calls):
    barrier = threading.Barrier(len(calls))

    def begin(call):
        barrier.wait()
        return call()

    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(begin, call) for call in calls]]


def same_step(opt, times=1):
    for _ in range(times):
        step(opt, 0)


def counter(state):
    (count,) = {entry["step"] for entry in state.values()}  # one for all, or it is torn
    return count


def race_with_steps(trials):
    for wraps in WRAPS.values():
        opt, twin = make(threads=2, **wraps), make(**wraps)
        together(lambda opt=opt: same_step(opt, trials), lambda opt=opt: same_step(opt, trials))
        same_step(twin, 2 * trials)
        assert snapshot(opt) == snapshot(twin)


def race_with_rows(trials):
    opt, twin = make(threads=2, max_norm=0.1), make(max_norm=0.1)
    work = [lambda: [some_rows(opt, 0) for _ in range(trials)]] * 2
    together(*work)
    for _ in range(2 * trials):
        some_rows(twin, 0)
    assert snapshot(opt) == snapshot(twin)


def race_with_reading(trials):
    opt, twin = make(threads=2), make()

    def read():
        copies = [copy.deepcopy(opt)]
        while counter(opt.state_dict()["state"]) < trials:
            copies.append(copy.deepcopy(opt))
        return copies

    _, copies = together(lambda: same_step(opt, trials), read)
    for copied in copies:
        same_step(twin, counter(copied.state) - counter(twin.state))
        assert snapshot(copied) == snapshot(twin)


def race_with_loading(trials):
    saved = saved_states()[0]
    for _ in range(trials):
        opt, twin = make(threads=2), make()
        together(lambda opt=opt: same_step(opt, 6), lambda opt=opt: opt.load_state_dict(saved))
        after = counter(opt.state) - 1  # it had taken one step when it was saved
        same_step(twin, 6 - after)
        twin.load_state_dict(saved)
        same_step(twin, after)
        assert snapshot(opt) == snapshot(twin)


def race_with_adding(trials):
    def steps(opt):
        """Six, with gradients for the groups that there are, or that there were a moment ago: how many with two?"""
        with_two = with_three = 0
        while with_two + with_three < 6:
            groups = len(opt.param_groups)
            try:
                if groups == 2:
                    step(opt, 0)
                    with_two += 1
                else:
                    go_on(opt)
                    with_three += 1
            except (TypeError, ValueError):
                assert groups == 2 and len(opt.param_groups) == 3
        return with_two

    for _ in range(trials):
        opt, twin = make(threads=2), make()
        with_two, _ = together(lambda opt=opt: steps(opt), lambda opt=opt: add_group(opt, 0))
        same_step(twin, with_two)
        add_group(twin, 0)
        for _ in range(6 - with_two):
            go_on(twin)
        assert snapshot(opt) == snapshot(twin)


@few_or_many(20, 500)
@pytest.mark.parametrize("what", ["steps", "rows", "reading", "loading", "adding"])
def test_two_threads_on_one_optimizer_act_in_some_order(what, trials):
    run(f"race_with_{what}({trials})", __name__)
