"""Forked children: what they find of the threads and of the steps that others were taking."""

import os

import pytest
from helpers import FORK, LIBGOMP, LIBOMP, run_python

import fastadam

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
WHOLE = LIBGOMP or LIBOMP  # else children step serially

START = f"""
import multiprocessing, os, threading, warnings
import concurrent.futures
import numpy as np, fastadam
warnings.simplefilter("ignore")     # newer Pythons warn of forks in processes with threads
TEAM = {2 if WHOLE and fastadam.config()["openmp"] else 1}
params = [np.ones(1 << 17, np.float32) for _ in range(4)]
grads = [np.full_like(p, 0.5) for p in params]
opt = fastadam.Adam(params, threads=2)
opt.step(grads)

def check(where):
    '''One more step, and everything is as if a new optimizer had taken all steps alone.'''
    opt.step(grads)
    assert opt.threads_used == TEAM, (where, opt.threads_used)
    steps = {{entry["step"] for entry in opt.state.values()}}
    assert len(steps) == 1, (where, "counters are torn", steps)
    twin = np.ones(64, np.float32)
    twin_opt = fastadam.Adam(twin)
    for _ in range(steps.pop()):
        twin_opt.step(grads[0][:64])
    for p in params:
        assert (p.reshape(-1, 64) == twin).all(), (where, "arrays are torn")

{FORK}"""


def test_parent_children_and_grandchildren_go_on_with_whole_teams():
    """On OpenMP's threads, which would be missing in the child."""
    run_python(
        START
        + """
def check_there(where):
    check(where)
    assert fastadam.config()["steps_on"] == "OpenMP"
fork(lambda: (check_there("child"), fork(lambda: check_there("grandchild")), check_there("child")))
check_there("parent")
"""
    )


def test_forks_wait_for_the_steps_of_other_threads_and_not_for_ever():
    """Children see whole steps and free locks, whatever the other threads were doing; and forks get their turn."""
    run_python(
        START
        + """
stop = threading.Event()
large = [[np.ones(1 << 20, np.float32)] for _ in range(2)]
large.append([np.ones((1 << 14, 64), np.float32)])
others = [(opt, params), *((fastadam.Adam(p, threads=2), p) for p in large)]
def train(its_opt, its_params):
    its_grads = [np.full_like(p, 0.5) for p in its_params]
    if its_params[0].ndim == 2:
        its_grads = [fastadam.Rows(np.arange(1 << 14)[::-1].copy(), its_grads[0])]
    while not stop.is_set():
        its_opt.step(its_grads)
def all_whole():
    check("child")
    for _, its_params in others:
        for p in its_params:
            assert (p == p.flat[0]).all(), "torn"
threads = [threading.Thread(target=train, args=pair) for pair in others]
for thread in threads: thread.start()
for _ in range(20):
    fork(all_whole)
stop.set()
for thread in threads: thread.join()
check("parent")
"""
    )


def test_forks_wait_for_adam_update_and_for_loading():
    run_python(
        START
        + """
import copy
p, g, m, v = (np.full(1 << 20, x, np.float32) for x in (1, 0.5, 0, 0))
stop = threading.Event()
def update():
    step = 0
    while not stop.is_set():
        step += 1
        fastadam.adam_update(p, g, m, v, step, threads=2)
saved = [copy.deepcopy(opt.state_dict())]
opt.step(grads)
opt.lr = 0.5
saved.append(copy.deepcopy(opt.state_dict()))
def load():
    while not stop.is_set():
        for state in saved: opt.load_state_dict(state)
def whole():
    for array in p, m, v:
        assert (array == array[0]).all(), "torn"
    which = opt.state[0]["step"] - 1
    assert opt.lr == saved[which]["param_groups"][0]["lr"]
    for key, entry in opt.state.items():
        expected = saved[which]["state"][key]
        assert entry["step"] == expected["step"]
        assert (entry["exp_avg"] == expected["exp_avg"]).all() and (entry["exp_avg_sq"] == expected["exp_avg_sq"]).all()
    opt.step(grads)
threads = [threading.Thread(target=update), threading.Thread(target=load)]
for thread in threads: thread.start()
for _ in range(20):
    fork(whole)
stop.set()
for thread in threads: thread.join()
"""
    )


def test_forks_wait_for_what_is_around_a_step_and_for_averages_that_are_exchanged():
    run_python(
        START
        + """
def make(n, threads=None):
    params = [np.ones(n, np.float32) for _ in range(4)]
    return fastadam.Adam(params, threads=threads, max_value=0.4, accumulate=2, ema_decay=0.9, nonfinite="raise")
opt, stop = make(1 << 17, threads=2), threading.Event()
def train():
    while not stop.is_set():
        for _ in range(5): opt.step(grads)
        with opt.swap_ema(): pass
def arrays(some):
    state = [x for entry in some.state.values() for x in entry.values() if isinstance(x, np.ndarray)]
    return [*some.param_groups[0]["params"], *state]
def same(twin):
    assert all((a.reshape(-1, 64) == b).all() for a, b in zip(arrays(opt), arrays(twin), strict=True)), "torn"
def whole():
    twin, entry = make(64), opt.state[0]
    for _ in range(2 * entry["step"] + entry["grad_count"]): twin.step([g[:64] for g in grads])
    if opt._engine.swapped:
        with twin.swap_ema(): same(twin)
    else:
        same(twin)
        opt.step(grads)
        twin.step([g[:64] for g in grads])
        same(twin)
other = threading.Thread(target=train)
other.start()
for _ in range(15):
    fork(whole)
stop.set()
other.join()
"""
    )


@pytest.mark.skipif(not LIBGOMP, reason="needs libgomp")
@pytest.mark.parametrize("sharing", [True, False])
def test_a_child_that_cannot_have_a_team_steps_serially(sharing):
    """Forked inside a parallel region, where the workers cannot be handed back."""
    run_python(
        START
        + f"""
import ctypes, fastadam._load
sharing = fastadam.share_threads_with_blas() if {sharing} else None
a = np.random.default_rng(0).standard_normal((300, 300))
product = a @ a
path = next(path for path in fastadam._load.openmp_runtimes() if "libgomp" in path)
def alone(where):
    global TEAM
    TEAM = 1
    assert fastadam.get_num_threads() == 1
    assert np.allclose(a @ a, product)
    check(where)
def in_a_thread_outside_the_region(where):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(alone, where).result()
def child():
    in_a_thread_outside_the_region("child")
    fork(lambda: in_a_thread_outside_the_region("grandchild"))
@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def region(_):
    if omp.omp_get_thread_num() == 0:
        fork(child)
        went_well.append(True)      # an error in here would be printed, no more
omp, went_well = ctypes.CDLL(path), []
omp.GOMP_parallel(region, None, 2, 0)
assert went_well
check("parent")
"""
    )


def test_two_threads_that_fork_do_not_wait_for_each_other():
    run_python(
        START
        + """
def forks():
    for _ in range(20):
        fork(lambda: check("child"))
threads = [threading.Thread(target=forks) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    )


def test_a_schedule_may_fork():
    """Inside a step: the child must not wait for its own step, and cannot step in the middle of one."""
    run_python(
        START
        + """
def schedule(step):
    if step == 1:
        def child():
            try:
                inner.step(grads[0])
            except RuntimeError as error:
                assert "inside its own step" in str(error)
            check("another optimizer")
        fork(child)
    return 0.1
inner = fastadam.Adam(np.ones(1 << 17, np.float32), lr=schedule, threads=2)
inner.step(grads[0])
inner.step(grads[0])
"""
    )


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("kind", ["pool", "executor", "process"])
def test_workers_made_by_fork_while_another_thread_steps(kind, sharing):
    run_python(
        START
        + f"""
if {sharing}:
    fastadam.share_threads_with_blas()
stop = threading.Event()
def train():
    while not stop.is_set():
        opt.step(grads)
other = threading.Thread(target=train)
other.start()
def job(i):
    check(f"worker {{i}}")
    return i
context = multiprocessing.get_context("fork")
if {kind!r} == "pool":
    with context.Pool(2) as pool:
        assert pool.map(job, range(6)) == list(range(6))
elif {kind!r} == "executor":
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        assert list(pool.map(job, range(6))) == list(range(6))
else:
    process = context.Process(target=job, args=(0,))
    process.start()
    process.join()
    assert process.exitcode == 0
stop.set()
other.join()
check("parent")
"""
    )


def test_optimizers_die_although_forks_watch_them():
    run_python(
        START
        + """
import gc, weakref
from fastadam import _forks
before = len(_forks.engines)
some = [fastadam.Adam(np.ones(3)) for _ in range(10)]
assert len(_forks.engines) == before + 10
del some
gc.collect()
assert len(_forks.engines) == before
fork(lambda: check("child"))
"""
    )
