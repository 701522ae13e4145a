"""Steps on OpenBLAS's threads: when, what they compute, and every way in which the threads can be missing."""

import os
import sys
import types

import numpy as np
import pytest
import threadpoolctl
from helpers import run_python

import fastadam
from fastadam import blas

OPENBLAS = [e for e in threadpoolctl.threadpool_info() if e["filepath"] == blas.lender and e["num_threads"] > 1]
can_share = pytest.mark.skipif(
    not blas.lender or fastadam.get_num_threads() < 2 or not OPENBLAS,
    reason="needs two threads of an OpenBLAS that lends them",
)

START = """
import os, threading
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


@can_share
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("make", ["fastadam.Adam(p)", "fastadam.Adam(p, threads=2)", "fastadam.Adam(p, max_norm=1.0)"])
def test_shared_steps_run_on_openblas_threads(make):
    """No thread of OpenMP's is started. Undone, steps leave them alone where no products keep them awake."""
    run_python(f"""{START}
before = threads()
p = np.ones(1 << 20)
opt = {make}
with fastadam.share_threads_with_blas() as sharing:
    assert fastadam.config()["blas_shared"] == [e["library"] for e in sharing.libraries if e["shared"]] != [], sharing
    for _ in range(40):
        opt.step(p.copy())
        assert fastadam.config()["steps_on"] == "OpenBLAS"
    check()
    assert threads() == before
assert fastadam.config()["blas_shared"] == []
for _ in range(50):
    opt.step(p.copy())
    assert fastadam.config()["steps_on"] == "OpenMP"
""")


@can_share
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the clocks of other threads are not to be had")
def test_by_default_steps_run_on_openblas_threads_while_products_keep_them_awake():
    """And on OpenMP's in a program that computes no products, or computes elsewhere; again and again."""
    run_python(
        f"""{START}
import time
p = np.ones(1 << 20, np.float32)
grad, opt = p.copy(), fastadam.Adam(p)

def train(until, work):
    limit = time.monotonic() + 60       # on a busy machine OpenBLAS's threads may be kept from being awake
    while fastadam.config()["steps_on"] != until:
        work()
        opt.step(grad)
        assert time.monotonic() < limit, until

b = np.ones((512, 512), np.float32)
for _ in range(2):
    train("OpenBLAS", lambda: b @ b)
    train("OpenMP", lambda: time.sleep(0.002))
    for _ in range(200):                # while they sleep it stays like that
        time.sleep(0.002)
        opt.step(grad)
        assert fastadam.config()["steps_on"] == "OpenMP"
""",
        timeout=240,
    )


@can_share
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


@can_share
def test_several_users_share_until_the_last_one_leaves():
    def shared():
        return bool(fastadam.config()["blas_shared"])

    first = fastadam.share_threads_with_blas()
    with fastadam.share_threads_with_blas() as second:
        assert shared() and "shared" in repr(second)
        first.undo()
        first.undo()  # changes nothing
        assert shared()
    assert not shared()


@can_share
@pytest.mark.parametrize("calls", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sharing", [True, False])
def test_python_threads_get_right_results_from_blas_and_steps(calls, sharing):
    """Four multiply, factorise and solve while two step, all on the same threads."""
    code = f"""{START}
import time
if {sharing}:
    fastadam.share_threads_with_blas()
a, x = rng.standard_normal((700, 700)), rng.standard_normal(700)
product, image, spd = a @ a, a @ x, a @ a.T + 700 * np.eye(700)
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
    run_python(code, timeout=600)


@can_share
def test_inside_a_parallel_region_steps_are_serial():
    run_python(f"""{START}
import ctypes
from fastadam._load import openmp_runtimes
runtime = next(path for path in openmp_runtimes() if "libgomp" in path)
fastadam.share_threads_with_blas()
p, used, wrong = np.ones(1 << 20, np.float32), [], []
@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def region(_):
    try:
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
    """BLAS's limit bounds what OpenBLAS lends, OpenMP's what a step takes."""
    run_python(f"""{START}
p = np.ones(1 << 20, np.float32)
def step(threads=None):
    opt = fastadam.Adam(p, threads=threads)
    opt.step(p.copy())
    return fastadam.config()["steps_on"], opt.threads_used

with fastadam.share_threads_with_blas():
    assert step(2) == ("OpenBLAS", 2)
    for limits in 1, {{"blas": 1}}, {{"openmp": 1}}, {{"blas": 2, "openmp": 1}}:
        with threadpoolctl.threadpool_limits(limits):
            check(5)
            few = limits == 1 or limits.get("blas") == 1
            assert step(2) == ("OpenMP" if few else "OpenBLAS", 2)
            assert step()[1] == 1 or limits == {{"blas": 1}}
    check(5)
    assert step(2) == ("OpenBLAS", 2)
with threadpoolctl.threadpool_limits(1):
    with fastadam.share_threads_with_blas():
        assert step(2) == ("OpenMP", 2)
with threadpoolctl.threadpool_limits(2, "blas"), fastadam.share_threads_with_blas():
    assert step(3) == ("OpenMP", 3)
""")


@can_share
def test_a_program_ends_while_another_thread_steps():
    """OpenBLAS ends its threads at exit, and would wait for ever for one that has our work."""
    for _ in range(10):
        run_python(
            f"""{START}
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
            timeout=20,
        )


@can_share
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("sharing", [True, False])
def test_forks_while_another_thread_steps(sharing):
    """Parent, children and grandchildren multiply and step on with whole teams."""
    run_python(f"""{START}
import warnings
from fastadam._load import openmp_runtimes
warnings.simplefilter("ignore")     # newer Pythons warn of forks in processes with threads
whole = any("libgomp" in path or "libomp" in path for path in openmp_runtimes())
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
        assert opt.threads_used == (2 if whole else 1)

stop = threading.Event()
def train():
    while not stop.is_set():
        theirs.step(grad)
sharing = fastadam.share_threads_with_blas() if {sharing} else None
other = threading.Thread(target=train)
other.start()
for _ in range(20):
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


class Library:
    def __init__(self, internal_api, threading_layer="pthreads", path="/lib"):
        self.filepath, self.internal_api, self.version = f"{path}/{internal_api}.so", internal_api, "0.3.20"
        self.threading_layer, self.dynlib = threading_layer, types.SimpleNamespace()


@pytest.mark.skipif(not fastadam.config()["openmp"], reason="a serial build has another reason")
@pytest.mark.parametrize(
    ("libraries", "why"),
    [
        ([Library("mkl")], "mkl does not lend"),
        ([Library("blis"), Library("openblas")], "blis does not lend.*OpenBLAS 0.3.20 does not lend"),
        ([Library("openblas", "openmp")], "no threads of its own.*'openmp'"),
        ([Library("openblas", "disabled")], "no threads of its own"),
        ([Library("openblas", path="/site-packages/scipy.libs")], "NumPy does not compute with it"),
        ([], "no BLAS was found"),
    ],
)
def test_a_blas_that_cannot_share_is_named_and_nothing_changes(monkeypatch, libraries, why):
    monkeypatch.setattr(blas, "blas_libraries", lambda: libraries)
    with pytest.warns(RuntimeWarning, match=f"changed nothing: .*{why}"):
        sharing = fastadam.share_threads_with_blas()
    assert [entry["shared"] for entry in sharing.libraries] == [False] * len(libraries)
    assert fastadam.config()["blas_shared"] == []
    sharing.undo()


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
    assert blas.lending(Library("openblas")) == (None, "this build of fastadam has no OpenMP, so its steps are serial")


def test_without_threadpoolctl_the_error_says_what_to_install_and_import_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(ImportError, match="pip install threadpoolctl"):
        fastadam.share_threads_with_blas()
    blas.find_lender()


@can_share
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
""".replace("import os", "import contextlib, os", 1),
        FASTADAM_BORROW="0",
    )


@can_share
def test_training_has_the_same_bits_with_sharing():
    from fastadam.demo import MLP

    def train():
        rng = np.random.default_rng(0)
        x, labels = rng.standard_normal((64, 64)).astype(np.float32), rng.integers(0, 10, 64)
        model = MLP([64, 256, 10], np.random.default_rng(1))
        opt = fastadam.Adam({"weights": model.weights, "biases": model.biases})
        for _ in range(20):
            opt.step(model.loss_and_gradients(x, labels)[1])
        return model.weights

    apart = train()
    with fastadam.share_threads_with_blas():
        together = train()
    for a, b in zip(apart, together, strict=True):
        assert np.array_equal(a, b)
