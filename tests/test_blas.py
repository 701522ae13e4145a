"""One team for OpenBLAS and steps: when, what they compute, and every way in which the threads can be missing.

Where NumPy's OpenBLAS lends its threads, they are the team; there ours, and its callback, are tested as if it did not.
"""

import ctypes
import os
import sys
import types

import pytest
import threadpoolctl
from helpers import LIBGOMP, LIBOMP, run_python

import fastadam
from fastadam import blas

OPENBLAS = [e for e in threadpoolctl.threadpool_info() if e["internal_api"] == "openblas" and e["num_threads"] > 1]
FEW = not OPENBLAS or fastadam.get_num_threads() < 2
NEW = [library for library in blas.blas_libraries() if (library.version or "") >= "0.3.29"]
can_lend = pytest.mark.skipif(
    FEW or blas.lender not in [e["filepath"] for e in OPENBLAS],
    reason="needs two threads of an OpenBLAS that lends them",
)
can_share = pytest.mark.skipif(  # looked up here, so that no wrong refusal skips a test
    FEW or not any(blas.address_of(library, "openblas_set_threads_callback_function") for library in NEW),
    reason="needs two threads, and an OpenBLAS that takes threads from outside",
)
each_team = pytest.mark.parametrize(
    "team", [pytest.param("OpenBLAS", marks=can_lend), pytest.param("fastadam", marks=can_share)]
)

# After a product OpenBLAS's threads look for work for 2**16 ticks, not for 2**28, which is a tenth of a second.
SOON_ASLEEP = {"OPENBLAS_THREAD_TIMEOUT": "16"}

START = """
import contextlib, itertools, os, threading
import numpy as np, fastadam, threadpoolctl

rng = np.random.default_rng(0)
a, x = rng.standard_normal((128, 128)), rng.standard_normal(128)
product, image = a @ a, a @ x       # on OpenBLAS's own threads

def check(times=1):
    for _ in range(times):
        assert np.allclose(a @ a, product, rtol=1e-12, atol=1e-10)
        assert np.allclose(a @ x, image, rtol=1e-12, atol=1e-10)

def threads():
    return len(os.listdir("/proc/self/task"))
"""


def start(team):
    """Code to begin with, for either team; nothing is shared yet."""
    if team == "OpenBLAS":
        return START
    return f"""{START}
from fastadam import blas
blas._core.stop_borrowing()
blas.lender = ""        # as if NumPy's OpenBLAS did not lend its threads
"""


@each_team
@pytest.mark.parametrize("sizes", [(1, 2, 17, 250), pytest.param((400,), marks=pytest.mark.slow)])
def test_the_whole_of_linear_algebra_computes_the_same(team, sizes):
    run_python(
        f"""{start(team)}
def results(n, dtype):
    a = np.random.default_rng(n).standard_normal((n, n)).astype(dtype)
    if dtype == np.complex128:
        a = a * (1 + 2j)
    spd, eye = a @ a.T.conj() + n * np.eye(n, dtype=dtype), np.eye(n, dtype=dtype)
    inverse, (q, r), (u, s, vt) = np.linalg.inv(spd), np.linalg.qr(a), np.linalg.svd(a)
    values, vectors = np.linalg.eigh(spd)
    factor = np.linalg.cholesky(spd)
    return {{
        "gemm": (a @ a.T, None), "gemv": (a @ a[0], None), "dot": (np.dot(a[0], a[-1]), None),
        "inv": (inverse @ spd, eye), "solve": (spd @ np.linalg.solve(spd, a), a), "qr": (q @ r, a),
        "svd": ((u * s) @ vt, a), "eigh": ((vectors * values) @ vectors.T.conj(), spd),
        "cholesky": (factor @ factor.T.conj(), spd), "lstsq": (spd @ np.linalg.lstsq(spd, a, rcond=None)[0], a),
    }}

kinds = [(np.float32, 2e-2), (np.float64, 1e-8), (np.complex128, 1e-8)]
for n, (dtype, tolerance) in itertools.product({sizes}, kinds):
    alone = results(n, dtype)
    with fastadam.share_threads_with_blas():
        together = results(n, dtype)
    for name, (value, exact) in together.items():
        other = alone[name][0] if exact is None else exact
        assert np.abs(value - other).max() <= tolerance * max(np.abs(other).max(), 1), (name, n, dtype)
""",
        **SOON_ASLEEP,
    )


@each_team
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("make", ["fastadam.Adam(p)", "fastadam.Adam(p, threads=2)", "fastadam.Adam(p, max_norm=1.0)"])
def test_shared_steps_run_on_the_threads_that_products_run_on(team, make):
    """No thread of OpenMP's is started; OpenBLAS is lent ours if it does not lend its own."""
    run_python(
        f"""{start(team)}
before = threads()
p = np.ones(1 << 20)
opt = {make}
with fastadam.share_threads_with_blas() as sharing:
    shared = [entry["library"] for entry in sharing.libraries if entry["shared"]]
    assert fastadam.config()["blas_shared"] == sorted(shared) != [], sharing
    check()
    workers = threads() - before
    assert (workers > 0) == ({team!r} == "fastadam")
    for _ in range(40):
        opt.step(p.copy())
        assert fastadam.config()["steps_on"] == {team!r}
    check()
    assert threads() == before + workers
assert fastadam.config()["blas_shared"] == []
for _ in range(50):
    opt.step(p.copy())
    assert fastadam.config()["steps_on"] == "OpenMP"
""",
        **SOON_ASLEEP,
    )


@can_share
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_undone_openblas_computes_on_its_own_threads():
    """Ours, which were made when sharing was ordered, fall asleep, and none is woken again."""
    run_python(f"""{start("fastadam")}
import time
from pathlib import Path

def wakings():
    return {{task: [line for line in (task / "status").read_text().splitlines() if "ctxt_switches" in line]
            for task in ours}}

before = set(Path("/proc/self/task").iterdir())
with fastadam.share_threads_with_blas():
    ours = set(Path("/proc/self/task").iterdir()) - before
    check()
assert ours
asleep = None
while asleep != (asleep := wakings()):
    time.sleep(0.1)
check()
assert wakings() == asleep
""")


@can_lend
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the clocks of other threads are not to be had")
def test_by_default_a_program_begins_on_openblas_threads_and_leaves_them_if_it_computes_no_products():
    run_python(f"""{START}
import time
p = np.ones(1 << 20, np.float32)
grad, opt = p.copy(), fastadam.Adam(p, threads=2)
opt.step(grad)
assert fastadam.config()["steps_on"] == "OpenBLAS"
while fastadam.config()["steps_on"] == "OpenBLAS":
    time.sleep(0.02)
    opt.step(grad)
for _ in range(50):
    time.sleep(0.002)
    opt.step(grad)
    assert fastadam.config()["steps_on"] == "OpenMP"
""")


@pytest.mark.timing
@can_lend
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the clocks of other threads are not to be had")
def test_by_default_steps_run_on_openblas_threads_while_products_keep_them_awake():
    """And on OpenMP's in a program that computes no products, or computes elsewhere; again and again.

    Other programs that want the cores keep OpenBLAS's threads from being awake.
    """
    run_python(f"""{START}
import time
p = np.ones(1 << 20, np.float32)
grad, opt = p.copy(), fastadam.Adam(p)

def train(until, work):
    while fastadam.config()["steps_on"] != until:
        work()
        opt.step(grad)

b = np.ones((512, 512), np.float32)
for _ in range(2):
    train("OpenBLAS", lambda: b @ b)
    train("OpenMP", lambda: time.sleep(0.002))
    for _ in range(200):                # while they sleep it stays like that
        time.sleep(0.002)
        opt.step(grad)
        assert fastadam.config()["steps_on"] == "OpenMP"
""")


@can_lend
@pytest.mark.parametrize(
    "environment", [{"FASTADAM_BORROW": "0"}, {"OPENBLAS_NUM_THREADS": "1"}], ids=["forbidden", "it has one thread"]
)
def test_openblas_threads_are_left_alone_where(environment):
    run_python(
        f"""{START}
p = np.ones(1 << 20, np.float32)
opt = fastadam.Adam(p, threads=2)
for _ in range(100):
    check()
    opt.step(p.copy())
    assert (fastadam.config()["steps_on"], opt.threads_used) == ("OpenMP", 2)
""",
        **environment,
    )


@pytest.mark.skipif(not fastadam.config()["openmp"], reason="a serial build has nothing to share")
def test_an_interrupted_order_leaves_nothing_behind(monkeypatch):
    """Ctrl-C while it waits for a product, at the second of two libraries; and while it is undone."""
    calls, state = [], {"interrupt": 2}

    def share_with_blas(setter, share):
        calls.append((setter, share))
        if len(calls) == state["interrupt"]:
            raise KeyboardInterrupt

    libraries = [Library("openblas"), Library("openblas", path="/other")]
    monkeypatch.setattr(blas, "lender", "")
    monkeypatch.setattr(blas, "blas_libraries", lambda: libraries)
    monkeypatch.setattr(blas, "offer_of", lambda library: blas.Offer(takes=1 + libraries.index(library)))
    monkeypatch.setattr(blas._core, "share_with_blas", share_with_blas)
    with pytest.raises(KeyboardInterrupt):
        blas.SharedThreads()
    assert calls == [(1, True), (2, True), (1, False), (2, False)] and blas.users == {}

    calls.clear()
    state["interrupt"] = 3
    first = blas.SharedThreads()
    with pytest.raises(KeyboardInterrupt):
        first.undo()
    second = blas.SharedThreads()
    first.undo()
    assert list(blas.users.values()) == [{second}, {second}]
    second.undo()
    assert blas.users == {} and calls[-2:] == [(1, False), (2, False)]
    count = len(calls)
    second.undo()
    assert len(calls) == count  # a callback that somebody else has set since stays

    with second:
        assert list(blas.users.values()) == [{second}, {second}]
        assert "ended" not in repr(second)
    assert "ended" in repr(second) and blas.users == {}
    assert calls[count:] == [(1, True), (2, True), (1, False), (2, False)]


@can_share
@pytest.mark.skipif(sys.platform != "linux", reason="reads the affinity of threads")
def test_our_team_is_not_bound_to_one_core_with_the_thread_that_starts_it():
    """libgomp binds the thread that loads it."""
    run_python(
        f"""
import os
everywhere, before = os.sched_getaffinity(0), set(os.listdir("/proc/self/task"))
{start("fastadam")}
assert os.sched_getaffinity(0) < everywhere, "it is not bound, so this tests nothing"
others = set(os.listdir("/proc/self/task"))
fastadam.share_threads_with_blas()
check()
ours = set(os.listdir("/proc/self/task")) - others
assert ours and all(os.sched_getaffinity(int(thread)) == everywhere for thread in ours)
""",
        OMP_PROC_BIND="true",
    )


@can_share
def test_a_step_does_not_wait_for_the_product_of_another_thread():
    """Its team is taken: it takes OpenMP's."""
    run_python(f"""{start("fastadam")}
fastadam.share_threads_with_blas()
big, p = np.ones((2000, 2000)), np.ones(1 << 20, np.float32)
opt, seen = fastadam.Adam(p, threads=2), set()
done = threading.Event()
def multiply():
    while not done.is_set():
        big @ big
other = threading.Thread(target=multiply)
other.start()
while seen != {{"OpenMP"}}:
    opt.step(p.copy())
    seen = {{fastadam.config()["steps_on"]}}
done.set()
other.join()
opt.step(p.copy())
assert fastadam.config()["steps_on"] == "fastadam"
""")


@each_team
def test_several_users_share_until_the_last_one_leaves(team):
    run_python(f"""{start(team)}
p = np.ones(1 << 20)
opt = fastadam.Adam(p, threads=2)
def shared():
    opt.step(p.copy())
    steps, libraries = fastadam.config()["steps_on"] == {team!r}, bool(fastadam.config()["blas_shared"])
    assert steps == libraries
    return steps

import time
first = fastadam.share_threads_with_blas()
with fastadam.share_threads_with_blas() as second:
    assert shared() and "shared, on {team}'s threads" in repr(second)
    assert ("through its callback" in repr(second)) == any(entry["callback"] for entry in second.libraries)
    first.undo()
    first.undo()        # changes nothing
    assert shared() and "ended" in repr(first) and "ended" not in repr(second)
time.sleep(0.3)         # what products were there may keep OpenBLAS's threads awake no longer
assert not fastadam.config()["blas_shared"]
if {team!r} == "fastadam":
    assert not shared()
with second:            # once more
    assert shared()
""")


@pytest.mark.parametrize(("calls", "n"), [(400, 400), pytest.param(10_000, 700, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("team", "sharing"),
    [
        pytest.param("OpenBLAS", True, marks=can_lend),
        pytest.param("OpenBLAS", False, marks=can_lend),
        pytest.param("fastadam", True, marks=can_share),
    ],
)
def test_python_threads_get_right_results_from_blas_and_steps(team, calls, n, sharing):
    """Four multiply and factorise while two step, all on the same threads.

    LU gives jobs to OpenBLAS's own threads, past the callback: it hung when the callback's jobs bore their numbers.
    """
    code = f"""{start(team)}
import time
if {sharing}:
    fastadam.share_threads_with_blas()
a, x = rng.standard_normal(({n}, {n})), rng.standard_normal({n})
product, image, spd = a @ a, a @ x, a @ a.T + {n} * np.eye({n})
factor = np.linalg.cholesky(spd)
wrong, done = [0] * 4, threading.Event()
def work(number):
    for call in range({calls // 4}):
        if call % 50 == 0:
            right = np.allclose(a @ a, product)
        elif call % 50 == 20:
            right = np.allclose(np.linalg.cholesky(spd), factor)
        elif call % 50 == 40 and number < 2:
            right = np.allclose(spd @ np.linalg.solve(spd, x), x)
        else:
            right = np.allclose(a @ x, image)
        wrong[number] += not right
grads = [rng.standard_normal(1 << 18) for _ in range(10)]
def train():
    w = np.ones(1 << 18)
    opt, count = fastadam.Adam(w, threads=2), 0
    while count < 50 or not done.is_set():
        opt.step(grads[count % 10])
        count += 1
        time.sleep(0.005)       # ordered threads that never pause would keep BLAS's calls from the cores
    twin = np.ones(1 << 18)
    opt = fastadam.Adam(twin, threads=1)
    for i in range(count):
        opt.step(grads[i % 10])
    wrong.append(not np.array_equal(w, twin))
workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
trainers = [threading.Thread(target=train) for _ in range(2)]
for thread in workers + trainers: thread.start()
for thread in workers: thread.join()
done.set()
for thread in trainers: thread.join()
assert wrong == [0] * 6, wrong
"""
    run_python(code, timeout=3600, **SOON_ASLEEP)


@can_share
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_products_beside_forks_are_right():
    """Calls that come first after a fork make OpenBLAS's threads anew, and free all but their work buffers."""
    run_python(
        f"""{start("fastadam")}
import time, warnings
warnings.simplefilter("ignore")     # newer Pythons warn of forks in processes with threads
assert any(entry["callback"] for entry in fastadam.share_threads_with_blas().libraries)
arrays = [rng.standard_normal((n, n)) for n in (40, 90, 150, 300)]
products, wrong, right, stop = [a @ a for a in arrays], [], [], threading.Event()
def multiply():
    while not stop.is_set():
        for a, product in zip(arrays, products):
            (right if np.allclose(a @ a, product) else wrong).append(len(a))
others = [threading.Thread(target=multiply, daemon=True) for _ in range(4)]
for thread in others: thread.start()
for _ in range(2500):
    pid = os.fork()
    if not pid: os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    time.sleep(0.002)
stop.set()
for thread in others: thread.join()
assert not wrong and len(right) > 2500, wrong
""",
    )


@each_team
def test_inside_a_parallel_region_blas_does_not_hang_and_steps_are_serial(team):
    run_python(
        f"""{start(team)}
import ctypes
from fastadam._load import openmp_runtimes
runtime, = openmp_runtimes()        # LLVM's has this function of libgomp's, too
fastadam.share_threads_with_blas()
p, used, wrong = np.ones(1 << 20, np.float32), [], []
@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def region(_):
    try:
        check(5)
        assert fastadam.get_num_threads() == 1
        opt = fastadam.Adam(np.ones(1 << 20, np.float32), threads=2)
        opt.step(p)
        used.append(opt.threads_used)
    except BaseException as error:
        wrong.append(error)
ctypes.CDLL(runtime).GOMP_parallel(region, None, 2, 0)
assert used == [1, 1] and not wrong, (used, wrong)
""",
        **SOON_ASLEEP,
    )


@each_team
def test_limits_of_threadpoolctl_inside_and_outside(team):
    """BLAS's limit bounds what OpenBLAS lends, OpenMP's what a step takes; products are right under any."""
    run_python(
        f"""{start(team)}
p = np.ones(1 << 20, np.float32)
lent = {team!r} == "OpenBLAS"
def step(threads=None):
    opt = fastadam.Adam(p, threads=threads)
    opt.step(p.copy())
    return fastadam.config()["steps_on"], opt.threads_used

with fastadam.share_threads_with_blas():
    assert step(2) == ({team!r}, 2)
    for limits in 1, {{"blas": 1}}, {{"openmp": 1}}, {{"blas": 2, "openmp": 1}}:
        with threadpoolctl.threadpool_limits(limits):
            check(5)
            few = lent and (limits == 1 or limits.get("blas") == 1)
            assert step(2) == ("OpenMP" if few else {team!r}, 2)
            assert step()[1] == 1 or limits == {{"blas": 1}}
    check(5)
    assert step(2) == ({team!r}, 2)
with threadpoolctl.threadpool_limits(1):
    with fastadam.share_threads_with_blas():
        check(5)
        assert step(2) == ("OpenMP" if lent else {team!r}, 2)
with threadpoolctl.threadpool_limits(2, "blas"), fastadam.share_threads_with_blas():
    assert step(3) == ("OpenMP" if lent else {team!r}, 3)
check(5)
""",
        **SOON_ASLEEP,
    )


@can_share
def test_a_limit_of_openmps_leaves_products_whole():
    """Their jobs wait for each other."""
    run_python(f"{start('fastadam')}\nfastadam.share_threads_with_blas()\ncheck(20)", OMP_THREAD_LIMIT="1")


@each_team
def test_a_program_ends_while_another_thread_steps(team):
    """OpenBLAS ends its threads at exit, and would wait for ever for one that has our work."""
    for _ in range(4):
        run_python(
            f"""{start(team)}
import time
fastadam.share_threads_with_blas()
p = np.ones(1 << 20)
opt = fastadam.Adam(p, threads=2)
def train():
    while True:
        opt.step(p.copy())
threading.Thread(target=train, daemon=True).start()
time.sleep(0.05)
""",
            **SOON_ASLEEP,
        )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif(not fastadam.config()["openmp"], reason="needs OpenMP")
@pytest.mark.parametrize(
    ("team", "sharing"),
    [
        pytest.param("OpenBLAS", True, marks=can_lend),
        pytest.param("fastadam", True, marks=can_share),
        ("OpenBLAS", False),
    ],
)
def test_forks_while_another_thread_steps(team, sharing):
    """Parent, children and grandchildren multiply and step on with whole teams."""
    run_python(
        f"""{start(team)}
import warnings
warnings.simplefilter("ignore")     # newer Pythons warn of forks in processes with threads
grad = np.ones(1 << 18, np.float32)
mine, theirs = (fastadam.Adam(np.ones(1 << 18, np.float32), threads=2) for _ in range(2))

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

def work():
    check()
    for opt in mine, theirs:
        opt.step(grad)
        assert opt.threads_used == {2 if LIBGOMP or LIBOMP else 1}

stop = threading.Event()
def train():
    while not stop.is_set():
        theirs.step(grad)
sharing = fastadam.share_threads_with_blas() if {sharing} else None
other = threading.Thread(target=train)
other.start()
for _ in range(6):
    work()
    fork(work)
    fork(lambda: (work(), fork(work), work()))
stop.set()
other.join()
if sharing:
    sharing.undo()
fork(work)
work()
""",
        **SOON_ASLEEP,
    )


def c_function(result):
    text = ctypes.create_string_buffer(result) if isinstance(result, bytes) else None
    return ctypes.CFUNCTYPE(ctypes.c_void_p)(lambda: ctypes.addressof(text) if text else result)


class Library:
    def __init__(
        self, internal_api, threading_layer="pthreads", path="/lib", version="0.3.28.dev", num_threads=2, **answers
    ):
        self.filepath, self.internal_api, self.version = f"{path}/{internal_api}.so", internal_api, version
        self.threading_layer, self.num_threads = threading_layer, num_threads
        functions = {f"openblas_get_{name}": c_function(result) for name, result in answers.items()}
        self.dynlib = types.SimpleNamespace(openblas_set_threads_callback_function=ctypes.c_void_p(1), **functions)


def new_openblas(**other):
    return Library("openblas", **{"version": "0.3.29", "config": b"OpenBLAS ZEN MAX_THREADS=64", **other})


@pytest.mark.skipif(not fastadam.config()["openmp"], reason="a serial build has another reason")
@pytest.mark.parametrize(
    ("libraries", "why"),
    [
        ([Library("mkl")], "mkl has no interface"),
        ([Library("blis"), Library("openblas")], "blis has no interface.*OpenBLAS 0.3.28.dev has no interface.*0.3.29"),
        ([Library("openblas", version=None)], "OpenBLAS None has no interface"),
        ([new_openblas(num_threads=33)], "has 33 threads.*OPENBLAS_NUM_THREADS=32"),
        ([new_openblas(num_procs=33)], "has 33 threads.*OPENBLAS_NUM_THREADS=32"),  # 2 is a limit that may be lifted
        ([new_openblas(config=b"MAX_THREADS=63")], "built for 63 threads.*needs 64"),
        ([new_openblas(config=b"ZEN")], "does not say for how many threads.*needs 64"),
        ([Library("openblas", version="0.4")], "does not say for how many threads.*needs 64"),
        ([new_openblas(num_threads=None)], "built without its interface"),
        ([Library("openblas", "openmp")], "no threads of its own.*'openmp'"),
        ([Library("openblas", "disabled")], "no threads of its own"),
        ([], "no BLAS was found"),
    ],
)
def test_a_blas_that_cannot_share_is_named_and_nothing_changes(monkeypatch, libraries, why):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(blas, "blas_libraries", lambda: libraries)
    with pytest.warns(RuntimeWarning, match=f"changed nothing: .*{why}"):
        sharing = fastadam.share_threads_with_blas()
    assert [entry["shared"] for entry in sharing.libraries] == [False] * len(libraries)
    assert fastadam.config()["blas_shared"] == []
    sharing.undo()


@pytest.mark.skipif(not fastadam.config()["openmp"], reason="a serial build shares nothing")
@pytest.mark.parametrize(
    "environment",
    [
        {"OPENBLAS_NUM_THREADS": "32"},
        {"OPENBLAS_NUM_THREADS": "0", "OMP_NUM_THREADS": "32,4"},
        {"GOTO_NUM_THREADS": "3"},
    ],
)
def test_an_openblas_that_just_can_share(monkeypatch, environment):
    for name in "OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS":
        monkeypatch.setenv(name, environment.get(name, ""))
    assert blas.offer_of(new_openblas(num_threads=32, num_procs=64)) == blas.Offer(takes=1)
    lends = {"gotoblas_pthread": ctypes.c_void_p(2), "openblas_get_num_threads": ctypes.c_void_p(3)}
    old = Library("openblas")
    vars(old.dynlib).update(lends)
    assert blas.offer_of(old) == blas.Offer(lends=(2, 3))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/env/site-packages/numpy.libs/libscipy_openblas64_-1.so", True),
        ("/env/site-packages/numpy/.dylibs/libscipy_openblas64_.dylib", True),
        ("/opt/conda/lib/libopenblasp-r0.3.31.so", True),
        ("/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3", True),
        ("/env/site-packages/scipy.libs/libscipy_openblas-1.so", False),
        ("/env/site-packages/scipy/.dylibs/libscipy_openblas.dylib", False),
        ("/env/site-packages/opencv_python.libs/libopenblas-1.so", False),
    ],
)
def test_whose_openblas_it_is(path, expected):
    assert blas.is_numpys(path) == expected


def test_a_serial_build_has_nothing_to_share(monkeypatch):
    monkeypatch.setattr(blas._core, "has_openmp", lambda: False)
    assert blas.offer_of(Library("openblas")).why == "this build of fastadam has no OpenMP, so its steps are serial"


def test_without_threadpoolctl_the_error_says_what_to_install_and_import_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(ImportError, match="pip install threadpoolctl"):
        fastadam.share_threads_with_blas()
    blas.find_lender()


@can_lend
def test_forbidden_threads_can_still_be_ordered():
    run_python(
        f"""{START}
opt = fastadam.Adam(np.ones(1 << 20), threads=2)
for expected in "OpenMP", "OpenBLAS", "OpenMP":
    with fastadam.share_threads_with_blas() if expected == "OpenBLAS" else contextlib.nullcontext():
        for _ in range(20):
            check()
            opt.step(np.ones(1 << 20))
            assert fastadam.config()["steps_on"] == expected
""",
        FASTADAM_BORROW="0",
    )


@pytest.mark.skipif(not fastadam.config()["openmp"], reason="a serial build has another reason")
@pytest.mark.parametrize(
    ("offer", "shared", "why"),
    [
        (blas.Offer(lends=(1, 1)), False, "it was loaded after fastadam"),
        (blas.Offer(lends=(1, 1)), False, "steps take the threads of /lib/other.so"),
        (blas.Offer(takes=1), True, ""),
    ],
)
def test_an_openblas_that_is_not_the_lender_takes_threads_if_it_can(monkeypatch, offer, shared, why):
    calls = []
    monkeypatch.setattr(blas, "lender", "/lib/other.so" if "other" in why else "")
    monkeypatch.setattr(blas, "blas_libraries", lambda: [Library("openblas")])
    monkeypatch.setattr(blas, "offer_of", lambda library: offer)
    monkeypatch.setattr(blas._core, "share_with_blas", lambda setter, share: calls.append((setter, share)))
    sharing = blas.SharedThreads()
    with blas.SharedThreads():
        pass
    entry = sharing.libraries[0]
    sharing.undo()
    assert (entry["shared"], bool(entry["threads"])) == (shared, shared) and entry["why"].startswith(why)
    assert calls == ([(1, True), (1, False)] if shared else [])
    assert blas.users == {}


@each_team
def test_training_has_the_same_bits_with_sharing(team):
    """The same number of jobs, so even the sums in the products are the same."""
    run_python(
        f"""{start(team)}
from fastadam.gallery.demo import MLP

def train():
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((64, 64)).astype(np.float32), rng.integers(0, 10, 64)
    model = MLP([64, 256, 10], np.random.default_rng(1))
    opt = fastadam.Adam({{"weights": model.weights, "biases": model.biases}})
    for _ in range(20):
        opt.step(model.loss_and_gradients(x, labels)[1])
    return model.weights

apart = train()
with fastadam.share_threads_with_blas():
    together = train()
for a, b in zip(apart, together, strict=True):
    assert np.array_equal(a, b)
""",
        **SOON_ASLEEP,
    )
