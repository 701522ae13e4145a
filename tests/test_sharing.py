"""One team for OpenBLAS and steps: when, what they compute, and every way in which the threads can be missing."""

import ctypes
import functools
import os
import sys
import types

import pytest
import threadpoolctl
from helpers import FORK, LIBGOMP, LIBOMP, run_python

import fastadam
from fastadam import threads

OPENBLAS = [e for e in threadpoolctl.threadpool_info() if e["internal_api"] == "openblas" and e["num_threads"] > 1]
FEW = not OPENBLAS or fastadam.get_num_threads() < 2
NEW = [library for library in threads.blas_libraries() if (library.version or "") >= "0.3.29"]
can_share = pytest.mark.skipif(  # looked up here, so that no wrong refusal skips a test
    FEW or not any(threads.address_of(library, "openblas_set_threads_callback_function") for library in NEW),
    reason="needs two threads, and an OpenBLAS that takes threads from outside",
)
# After a product OpenBLAS's threads look for work for 2**16 ticks, not for 2**28, which is a tenth of a second.
SOON_ASLEEP = {"OPENBLAS_THREAD_TIMEOUT": "16"}
run_asleep = functools.partial(run_python, **SOON_ASLEEP)

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

def alive():
    return len(os.listdir("/proc/self/task"))
"""


@can_share
@pytest.mark.parametrize("sizes", [(1, 2, 17, 250), pytest.param((400,), marks=pytest.mark.slow)])
def test_the_whole_of_linear_algebra_computes_the_same(sizes):
    run_asleep(f"""{START}
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
""")


@can_share
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("make", ["fastadam.Adam(p)", "fastadam.Adam(p, threads=2)", "fastadam.Adam(p, max_norm=1.0)"])
def test_shared_steps_run_on_the_threads_that_products_run_on(make):
    """No thread of OpenMP's is started."""
    run_asleep(f"""{START}
before = alive()
p = np.ones(1 << 20)
opt = {make}
with fastadam.share_threads_with_blas() as sharing:
    shared = [entry["library"] for entry in sharing.libraries if entry["shared"]]
    assert fastadam.config()["blas_shared"] == sorted(shared) != [], sharing
    check()
    workers = alive() - before
    assert workers > 0
    for _ in range(40):
        opt.step(p.copy())
        assert fastadam.config()["steps_on"] == "fastadam"
    check()
    assert alive() == before + workers
assert fastadam.config()["blas_shared"] == []
for _ in range(50):
    opt.step(p.copy())
    assert fastadam.config()["steps_on"] == "OpenMP"
""")


@can_share
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_undone_openblas_computes_on_its_own_threads():
    """Ours, which were made when sharing was ordered, fall asleep, and none is woken again."""
    run_python(f"""{START}
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


@pytest.mark.skipif(not fastadam.config()["openmp"], reason="a serial build has nothing to share")
def test_an_interrupted_order_leaves_nothing_behind(monkeypatch):
    """Ctrl-C while it waits for a product, at the second of two libraries; and while it is undone."""
    calls, state = [], {"interrupt": 2}

    def share_with_blas(setter, share):
        calls.append((setter, share))
        if len(calls) == state["interrupt"]:
            raise KeyboardInterrupt

    libraries = [Library("openblas"), Library("openblas", path="/other")]
    libraries[1].dynlib.openblas_set_threads_callback_function = ctypes.c_void_p(2)
    monkeypatch.setattr(threads, "blas_libraries", lambda: libraries)
    monkeypatch.setattr(threads, "refusal", lambda library: "")
    monkeypatch.setattr(threads._core, "share_with_blas", share_with_blas)
    with pytest.raises(KeyboardInterrupt):
        threads.SharedThreads()
    assert calls == [(1, True), (2, True), (1, False), (2, False)] and threads.users == {}

    calls.clear()
    state["interrupt"] = 3
    first = threads.SharedThreads()
    with pytest.raises(KeyboardInterrupt):
        first.undo()
    second = threads.SharedThreads()
    first.undo()
    assert list(threads.users.values()) == [{second}, {second}]
    second.undo()
    assert threads.users == {} and calls[-2:] == [(1, False), (2, False)]
    count = len(calls)
    second.undo()
    assert len(calls) == count  # a callback that somebody else has set since stays

    with second:
        assert list(threads.users.values()) == [{second}, {second}]
        assert "ended" not in repr(second)
    assert "ended" in repr(second) and threads.users == {}
    assert calls[count:] == [(1, True), (2, True), (1, False), (2, False)]


@can_share
@pytest.mark.skipif(sys.platform != "linux", reason="reads the affinity of threads")
def test_our_team_is_not_bound_to_one_core_with_the_thread_that_starts_it():
    """libgomp binds the thread that loads it."""
    code = f"""
import os
everywhere, before = os.sched_getaffinity(0), set(os.listdir("/proc/self/task"))
{START}
assert os.sched_getaffinity(0) < everywhere, "it is not bound, so this tests nothing"
others = set(os.listdir("/proc/self/task"))
fastadam.share_threads_with_blas()
check()
ours = set(os.listdir("/proc/self/task")) - others
assert ours and all(os.sched_getaffinity(int(thread)) == everywhere for thread in ours)
"""
    run_python(code, OMP_PROC_BIND="true")


@can_share
def test_a_step_does_not_wait_for_the_product_of_another_thread():
    """Its team is taken: it takes OpenMP's."""
    run_python(f"""{START}
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


@can_share
def test_several_users_share_until_the_last_one_leaves():
    run_python(f"""{START}
p = np.ones(1 << 20)
opt = fastadam.Adam(p, threads=2)
def shared():
    opt.step(p.copy())
    steps, libraries = fastadam.config()["steps_on"] == "fastadam", bool(fastadam.config()["blas_shared"])
    assert steps == libraries
    return steps

first = fastadam.share_threads_with_blas()
with fastadam.share_threads_with_blas() as second:
    assert shared() and "shared, on fastadam's threads" in repr(second)
    assert any(entry["shared"] for entry in second.libraries)
    first.undo()
    first.undo()        # changes nothing
    assert shared() and "ended" in repr(first) and "ended" not in repr(second)
assert not fastadam.config()["blas_shared"]
assert not shared()
with second:            # once more
    assert shared()
""")


@can_share
@pytest.mark.parametrize(("calls", "n"), [(400, 400), pytest.param(10_000, 700, marks=pytest.mark.slow)])
def test_python_threads_get_right_results_from_blas_and_steps(calls, n):
    """Four multiply and factorise while two step, all on the same threads.

    LU gives jobs to OpenBLAS's own threads, past the callback: it hung when the callback's jobs bore their numbers.
    """
    code = f"""{START}
import time
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
        f"""{START}
import time, warnings
warnings.simplefilter("ignore")     # newer Pythons warn of forks in processes with threads
assert any(entry["shared"] for entry in fastadam.share_threads_with_blas().libraries)
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


@can_share
def test_inside_a_parallel_region_blas_does_not_hang_and_steps_are_serial():
    run_asleep(f"""{START}
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
""")


@can_share
def test_limits_of_threadpoolctl_inside_and_outside():
    """OpenMP's limit bounds what a step takes; products are right under any."""
    run_asleep(f"""{START}
p = np.ones(1 << 20, np.float32)
def step(threads=None):
    opt = fastadam.Adam(p, threads=threads)
    opt.step(p.copy())
    return fastadam.config()["steps_on"], opt.threads_used

with fastadam.share_threads_with_blas():
    assert step(2) == ("fastadam", 2)
    for limits in 1, {{"blas": 1}}, {{"openmp": 1}}, {{"blas": 2, "openmp": 1}}:
        with threadpoolctl.threadpool_limits(limits):
            check(5)
            assert step(2) == ("fastadam", 2)
            assert step()[1] == 1 or limits == {{"blas": 1}}
    check(5)
    assert step(2) == ("fastadam", 2)
with threadpoolctl.threadpool_limits(1):
    with fastadam.share_threads_with_blas():
        check(5)
        assert step(2) == ("fastadam", 2)
with threadpoolctl.threadpool_limits(2, "blas"), fastadam.share_threads_with_blas():
    assert step(3) == ("fastadam", 3)
check(5)
""")


@can_share
def test_a_limit_of_openmps_leaves_products_whole():
    """Their jobs wait for each other."""
    run_python(f"{START}\nfastadam.share_threads_with_blas()\ncheck(20)", OMP_THREAD_LIMIT="1")


@can_share
def test_a_program_ends_while_another_thread_steps():
    """OpenBLAS ends its threads at exit, and would wait for ever for one that has our work."""
    for _ in range(4):
        run_asleep(f"""{START}
import time
fastadam.share_threads_with_blas()
p = np.ones(1 << 20)
opt = fastadam.Adam(p, threads=2)
def train():
    while True:
        opt.step(p.copy())
threading.Thread(target=train, daemon=True).start()
time.sleep(0.05)
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.skipif(not fastadam.config()["openmp"], reason="needs OpenMP")
@pytest.mark.parametrize("sharing", [pytest.param(True, marks=can_share), False])
def test_forks_while_another_thread_steps(sharing):
    """Parent, children and grandchildren multiply and step on with whole teams."""
    run_asleep(f"""{START}
import warnings
warnings.simplefilter("ignore")     # newer Pythons warn of forks in processes with threads
grad = np.ones(1 << 18, np.float32)
mine, theirs = (fastadam.Adam(np.ones(1 << 18, np.float32), threads=2) for _ in range(2))

{FORK}
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
""")


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
    monkeypatch.setattr(threads, "blas_libraries", lambda: libraries)
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
    assert threads.refusal(new_openblas(num_threads=32, num_procs=64)) == ""


@pytest.mark.parametrize(
    ("has", "words"),
    [
        ("has_openmp", "has no OpenMP, so its steps are serial"),
        ("SHARED_TEAM", "has no threads to share (csrc/team_shared.c)"),
    ],
)
def test_a_build_without_threads_has_nothing_to_share(monkeypatch, has, words):
    monkeypatch.setattr(threads._core, "has_openmp", lambda: has != "has_openmp")
    monkeypatch.setattr(threads._core, "SHARED_TEAM", has != "SHARED_TEAM")
    assert threads.refusal(new_openblas()) == f"this build of fastadam {words}"


def test_without_threadpoolctl_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(ImportError, match="pip install threadpoolctl"):
        fastadam.share_threads_with_blas()
    assert fastadam.config()["advice"] == ""


def test_threadpoolctl_is_loaded_when_it_is_needed():
    run_python("""
import sys, numpy as np, fastadam
fastadam.Adam(np.ones(1 << 20), threads=2).step(np.ones(1 << 20))
assert "threadpoolctl" not in sys.modules
""")


@can_share
def test_config_advises_to_share_where_it_may_help():
    """Not if it is done, nor if OpenBLAS, or a step, has one thread anyway."""
    run_python(f"""{START}
advice = fastadam.config()["advice"]
assert "fastadam.share_threads_with_blas()" in advice
with fastadam.share_threads_with_blas():
    assert fastadam.config()["advice"] == ""
assert fastadam.config()["advice"] == advice
fastadam.set_num_threads(1)
assert fastadam.config()["advice"] == ""
""")
    run_python(f"{START}\nassert fastadam.config()['advice'] == ''", OPENBLAS_NUM_THREADS="1")


@pytest.mark.skipif(not fastadam.config()["openmp"], reason="a serial build has another reason")
def test_a_library_is_told_once_and_untold_once(monkeypatch):
    calls = []
    monkeypatch.setattr(threads, "blas_libraries", lambda: [new_openblas(), Library("mkl")])
    monkeypatch.setattr(threads._core, "share_with_blas", lambda setter, share: calls.append((setter, share)))
    sharing = threads.SharedThreads()
    with threads.SharedThreads():
        pass
    sharing.undo()
    assert [(entry["shared"], entry["threads"]) for entry in sharing.libraries] == [(True, "fastadam"), (False, "")]
    assert calls == [(1, True), (1, False)] and threads.users == {}


@can_share
def test_training_has_the_same_bits_with_sharing():
    """The same number of jobs, so even the sums in the products are the same."""
    run_asleep(f"""{START}
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
""")
