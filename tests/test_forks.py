"""Forked children: what they find of the threads and of the steps that others were taking."""

import os

import pytest
from helpers import run_python

import fastadam
from fastadam._load import openmp_runtimes

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
WHOLE = any("libgomp" in path or "libomp" in path for path in openmp_runtimes())  # else children step serially

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

def fork(work):
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return
    try:
        work()
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
"""


def test_parent_children_and_grandchildren_go_on_with_whole_teams():
    run_python(
        START + "fork(lambda: (check('child'), fork(lambda: check('grandchild')), check('child')))\ncheck('parent')"
    )


def test_a_fork_waits_for_the_steps_of_other_threads():
    """Children see whole steps and free locks, whatever the other thread was doing."""
    run_python(
        START
        + """
stop = threading.Event()
def train():
    while not stop.is_set():
        opt.step(grads)
other = threading.Thread(target=train)
other.start()
for _ in range(40):
    fork(lambda: check("child"))
stop.set()
other.join()
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


@pytest.mark.parametrize("kind", ["pool", "executor", "process"])
def test_workers_made_by_fork(kind):
    run_python(
        START
        + f"""
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
