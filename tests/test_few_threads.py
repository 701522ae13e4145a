"""A system that has no threads to give: steps take those that there are, and the process goes on.

OpenMP's runtimes end the process where a thread of a team cannot be made. tests/few_threads.c, preloaded, is such a
system; the slow tests meet real limits.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import FORK, LIBGOMP, run_python
from test_sharing import START as SHARING
from test_sharing import can_share

import fastadam

pytestmark = [
    pytest.mark.skipif(not fastadam.config()["openmp"], reason="a serial build makes no threads"),
    pytest.mark.skipif(sys.platform != "linux", reason="preloads, and counts in /proc"),
]

START = (
    f"""
LIBGOMP = {LIBGOMP}     # ends threads that have nothing to do; LLVM's runtime keeps them
"""
    + """
import ctypes, os, threading, time, warnings
import numpy as np, fastadam
warnings.simplefilter("error")

def give(n):
    '''So many threads beside those that are alive.'''
    os.environ["MOST_THREADS"] = str(count("alive") + n)
    time.sleep(0.15)        # what was found before is believed for 0.1 s

def count(what):
    return ctypes.c_int.in_dll(ctypes.CDLL(None), f"threads_{what}").value

def wait_for_threads(n):
    while LIBGOMP and count("alive") != n: pass

N = 1 << 16
grad = np.linspace(-1, 1, N, dtype=np.float32)

class Pair:
    '''An optimizer and one that steps alone, which must have the same bits.'''
    def __init__(self, **options):
        self.params = [np.ones(N, np.float32) for _ in range(2)]
        self.opt = fastadam.Adam(self.params[0], **options)
        self.alone = fastadam.Adam(self.params[1], **{**options, "threads": 1})

    def step(self, threads=None):
        self.opt.step(grad)
        self.alone.step(grad)
        assert np.array_equal(*self.params)
        assert threads in (None, self.opt.threads_used), (threads, self.opt.threads_used)

def warns(function, *arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*arguments)
    return [str(w.message) for w in caught]

def in_thread(function):
    errors = []
    def work():
        try: function()
        except BaseException as error: errors.append(error)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    while os.path.exists(f"/proc/self/task/{thread.native_id}"): pass      # join returns a little earlier
    if errors: raise errors[0]

"""
    + FORK
)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Runs code where threads can be limited and counted."""
    shim = tmp_path_factory.mktemp("few") / "few_threads.so"
    source = Path(__file__).with_name("few_threads.c")
    subprocess.run(["cc", "-std=c11", "-O1", "-shared", "-fPIC", source, "-o", shim, "-ldl", "-lpthread"], check=True)
    preloaded = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), str(shim)]))

    def run(code, start=START, **env):
        return run_python(start + code, LD_PRELOAD=preloaded, **{"OPENBLAS_NUM_THREADS": "1", **env})

    return run


def test_steps_that_choose_their_threads_take_what_there_is(few):
    code = """
def steps():
    for options in {}, {"max_norm": 1.0}:
        pair = Pair(**options)
        for _ in range(40):     # beyond the first trial of the tuner
            pair.step(threads=1)
    p, g, m, v = (np.full(1 << 22, x, np.float32) for x in (1, 0.5, 0, 0))
    fastadam.adam_update(p, g, m, v, 1)
    assert (p == p[0]).all()

give(0)
steps()
assert fastadam.config()["threads"] == fastadam.get_num_threads() == 1
give(1)         # the Python thread itself
in_thread(steps)
give(0)
fork(lambda: (steps(), steps()))
steps()
assert count("refused") > 0 or os.cpu_count() == 1
give(9)
pair, used = Pair(), set()
for _ in range(2000):
    pair.opt.step(grad)
    used.add(pair.opt.threads_used)
    if len(used) > 1: break
assert used == {1, 2} or fastadam.get_num_threads() == 1    # they come when there are some
"""
    few(code, OMP_NUM_THREADS=None)


def test_an_order_that_cannot_be_given_warns_once_and_takes_what_there_is(few):
    few("""
def order(there, given):
    give(given)
    pair = Pair(threads=4, max_norm=1.0)
    before = pair.params[0].copy()
    for _ in range(2):
        try:
            pair.opt.step(grad)     # warnings are errors here
        except RuntimeWarning as error:
            words = str(error)
        else:
            raise AssertionError("no warning")
        assert np.array_equal(pair.params[0], before) and pair.opt.state[0]["step"] == 0
    assert f"asks for 4 threads, and the system has room for {there}: " in words and f"threads={there}" in words
    assert warns(pair.step, there) == [words]
    assert fastadam.get_num_threads() <= there
    for _ in range(3): pair.step(there)         # and no more words
    state = [np.zeros_like(grad) for _ in range(3)]
    update = lambda: fastadam.adam_update(state[0], grad, *state[1:], 1, threads=4)
    assert warns(update) == [words]
    fresh = Pair(threads=there)                 # the way out
    fresh.step(there)
    pair.opt.threads = there
    pair.step(there)
    pair.opt.threads = 3
    assert len(warns(pair.step, there)) == (there < 3)

def orders():
    alive = count("alive")
    for there, given in (1, 0), (1, 1), (2, 2), (3, 3):     # one is left, for what the runtime needs itself
        os.environ["MOST_THREADS"] = "1000"
        # LLVM's runtime would keep the workers of a thread that has ended, and have more room for the next.
        (in_thread if LIBGOMP else fork)(lambda: order(there, given))
        wait_for_threads(alive)
    give(9)
    Pair(threads=4).step(4)

orders()
fork(orders)
""")


def test_two_python_threads_that_begin_together_do_not_count_on_the_same_room(few):
    few("""
warnings.simplefilter("ignore")
def both():
    together, used = threading.Barrier(2), []
    def work():
        opt = fastadam.SGD(np.ones(N, np.float32), threads=4)
        together.wait()
        opt.step(grad)
        used.append(opt.threads_used)
        together.wait()         # both have their teams
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return used

alive = count("alive")
for _ in range(10):
    give(2 + 5)                 # themselves, and a thread less than both ask for
    used = both()
    assert max(used) == 4 and 1 <= min(used) < 4, used
    if not LIBGOMP: break       # which keeps the threads
    wait_for_threads(alive)
""")


def test_threads_that_a_smaller_team_has_ended_are_not_taken_for_granted(few):
    few(
        """
pairs = [Pair(threads=n) for n in (4, 2)]
pairs[0].step(4)
pairs[1].step(2)
wait_for_threads(1)
give(1)
assert len(warns(pairs[0].step)) == LIBGOMP
assert pairs[0].opt.threads_used == (2 if LIBGOMP else 4)
""".replace("LIBGOMP", str(LIBGOMP))
    )


@pytest.mark.skipif(not LIBGOMP, reason="calls libgomp's own function")
def test_threads_that_another_region_has_ended_are_not_taken_for_granted(few):
    few("""
import fastadam._load
path = next(path for path in fastadam._load.openmp_runtimes() if "libgomp" in path)
pair = Pair(threads=4)
pair.step(4)
ctypes.CDLL(path).GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None), None, 2, 0)
wait_for_threads(1)
give(0)
assert len(warns(pair.step, 2)) == 1
""")


def test_no_thread_is_made_twice(few):
    """Once a team is there, steps ask nothing; nor does the norm of an array with fewer blocks than threads."""
    few("""
pairs = [Pair(threads=4, max_norm=1.0), Pair(threads=4)]
small = fastadam.Adam(np.ones(5000, np.float32), threads=4, max_norm=1.0)
for pair in pairs: pair.step(4)
made = count("made")
assert made == 4 + 3    # made to see, and then by the runtime
give(0)
for _ in range(20):
    for pair in pairs: pair.step(4)
    small.step(grad[:5000])
    assert small.threads_used == 4
assert (count("made"), count("refused")) == (made, 0)
""")


@can_share
def test_sharing_is_refused_if_there_are_no_threads_for_openblas(few):
    code = """
give(0)
def share():
    global sharing
    sharing = fastadam.share_threads_with_blas()
[words] = warns(share)
assert "sharing needs 2 threads for it, and the system has 1" in words and "OPENBLAS_NUM_THREADS=1" in words
assert fastadam.config()["blas_shared"] == [] == [e for e in sharing.libraries if e["shared"]]
a = np.ones((200, 200))
assert (a @ a == 200).all()
give(1)
with fastadam.share_threads_with_blas() as sharing:
    give(0)
    assert (a @ a == 200).all()
    Pair(threads=2).step(2)
    assert fastadam.config()["steps_on"] == "fastadam"
    pair = Pair(threads=4, max_norm=1.0)
    [words] = warns(pair.step, 2)
    assert "asks for 4 threads, and the system has room for 2" in words
    for _ in range(3): pair.step(2)
"""
    few(code, start=START + SHARING, OPENBLAS_NUM_THREADS="2")


LIMITED = (
    START
    + """
import resource     # here, because another user may not read it
for threads in 1, 2: Pair(threads=threads).step()
warnings.simplefilter("ignore", RuntimeWarning)

def steps():
    used = set()
    for options in {}, {"threads": 4, "max_norm": 1.0}, {"threads": 3}:
        pair = Pair(**options)
        for _ in range(30):
            pair.step()
            used.add(pair.opt.threads_used)
    return max(used)
"""
)


@pytest.mark.slow
def test_a_limit_on_the_threads_of_a_user():
    """Once for each number of threads that are left, many times: a limit counts threads that are about to end, too."""
    run_python(
        LIMITED
        + """
root = os.getuid() == 0
def limited(left):
    if root:
        os.setuid(30000 + os.getpid() % 30000)      # a user of its own
    resource.setrlimit(resource.RLIMIT_NPROC, (1 + left, 1 + left) if root else (1, 1))
    if left == 0 or not root:
        try:
            threading.Thread(target=int).start()
        except RuntimeError:
            pass
        else:
            raise AssertionError("the limit does not hold")
    most = steps()
    assert most == (max(1, min(left, 4)) if root else 1), (left, most)      # one is left to the runtime
for left in (0, 1, 2, 3, 4, 9) * 5 if root else (0,):
    fork(lambda: limited(left))
""",
        timeout=600,
        OPENBLAS_NUM_THREADS="1",
    )


@pytest.mark.slow
@pytest.mark.parametrize("stack", [None, "512K", "64M", "1 g"])
def test_a_limit_on_memory(stack):
    """Of addresses, which stacks take. From a little more than what there is upwards."""
    run_python(
        LIMITED
        + """
def limited(more):
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))
    try:
        steps()
    except MemoryError:     # NumPy's
        pass
for more in range(2 << 20, 40 << 20, 1 << 20):
    fork(lambda: limited(more))
""",
        timeout=600,
        OMP_STACKSIZE=stack,
        OPENBLAS_NUM_THREADS="1",  # its own threads would end a child, too
    )
