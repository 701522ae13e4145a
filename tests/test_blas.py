"""One team for OpenBLAS and the optimizers: results, and every way in which a team can be missing."""

import os
import sys
import types

import numpy as np
import pytest
import threadpoolctl
from helpers import run_python

import fastadam
from fastadam import blas

OPENBLAS = [entry for entry in threadpoolctl.threadpool_info() if entry["internal_api"] == "openblas"]
can_share = pytest.mark.skipif(
    not fastadam.config()["openmp"] or not any(entry["threading_layer"] == "pthreads" for entry in OPENBLAS),
    reason="needs OpenMP and an OpenBLAS with threads of its own",
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
def test_the_whole_of_linear_algebra_computes_the_same():
    run_python("""
import numpy as np, fastadam
rng = np.random.default_rng(0)

def results(n, dtype):
    a = np.random.default_rng(n).standard_normal((n, n)).astype(dtype)
    spd, eye = a @ a.T + n * np.eye(n, dtype=dtype), np.eye(n, dtype=dtype)
    inverse, (q, r), (u, s, vt) = np.linalg.inv(spd), np.linalg.qr(a), np.linalg.svd(a)
    values, vectors = np.linalg.eigh(spd)
    factor = np.linalg.cholesky(spd)
    return {
        "gemm": (a @ a.T, None), "gemv": (a @ a[0], None), "dot": (np.dot(a[0], a[-1]), None),
        "inv": (inverse @ spd, eye), "solve": (spd @ np.linalg.solve(spd, a), a), "qr": (q @ r, a),
        "svd": ((u * s) @ vt, a), "eigh": ((vectors * values) @ vectors.T, spd), "cholesky": (factor @ factor.T, spd),
        "lstsq": (spd @ np.linalg.lstsq(spd, a, rcond=None)[0], a),
    }

for dtype, tolerance in (np.float32, 2e-2), (np.float64, 1e-8), (np.complex128, 1e-8):
    if dtype == np.complex128:
        def results_of(n):
            a = np.random.default_rng(n).standard_normal((n, n)) * (1 + 2j)
            return {"gemm": (a @ a.T, None), "gemv": (a @ a[0], None)}
    else:
        def results_of(n):
            return results(n, dtype)
    for n in 1, 2, 17, 100, 400:
        alone = results_of(n)
        with fastadam.share_threads_with_blas():
            together = results_of(n)
        for name, (value, exact) in together.items():
            other = alone[name][0] if exact is None else exact
            scale = np.abs(other).max()
            assert np.abs(value - other).max() <= tolerance * max(scale, 1), (name, n, dtype)
""")


@can_share
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_blas_computes_on_our_team():
    """Sharing makes the first large product start our workers; later steps find them there; undone, none is added."""
    run_python(f"""{START}
team = fastadam.get_num_threads()
before = threads()
with fastadam.share_threads_with_blas() as sharing:
    assert [entry["shared"] for entry in sharing.libraries] == [True] * len(sharing.libraries), sharing
    assert fastadam.config()["blas_shared"] == [entry["library"] for entry in sharing.libraries]
    check()
    assert threads() == before + team - 1
    fastadam.Adam(np.ones(1 << 20), threads=team).step(np.ones(1 << 20))
    assert threads() == before + team - 1
assert fastadam.config()["blas_shared"] == []
""")


@can_share
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_undone_blas_computes_on_its_own_threads():
    run_python(f"""{START}
before = threads()
with fastadam.share_threads_with_blas():
    pass
check()
assert threads() == before      # none of ours was ever started
""")


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
def test_python_threads_get_right_results(calls):
    """From four threads, which without taking turns would use one set of work buffers at once."""
    code = f"""{START}
a, x = rng.standard_normal((700, 700)), rng.standard_normal(700)
product, image, spd = a @ a, a @ x, a @ a.T + 700 * np.eye(700)
factor = np.linalg.cholesky(spd)
fastadam.share_threads_with_blas()
wrong = [0] * 4
def work(number):
    for call in range({calls // 4}):
        if call % 50 == 0:
            right = np.allclose(a @ a, product)
        elif call % 50 == 25:
            right = np.allclose(np.linalg.cholesky(spd), factor)
        else:
            right = np.allclose(a @ x, image)
        wrong[number] += not right
workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
for worker in workers: worker.start()
opt = fastadam.Adam(np.ones(1 << 20, np.float32), threads=2)
for _ in range(50): opt.step(np.ones(1 << 20, np.float32))
for worker in workers: worker.join()
assert wrong == [0] * 4, wrong
"""
    run_python(code, timeout=600)


@can_share
def test_a_team_that_comes_back_too_small_does_not_hang():
    """Jobs wait for each other, so they get threads of their own."""
    run_python(f"{START}\nfastadam.share_threads_with_blas()\ncheck(20)", OMP_THREAD_LIMIT="1")


@can_share
def test_inside_a_parallel_region_blas_does_not_hang_and_steps_are_serial():
    run_python(f"""{START}
import ctypes
from fastadam._load import openmp_runtimes
runtime = next(path for path in openmp_runtimes() if "libgomp" in path)
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
    run_python(f"""{START}
with fastadam.share_threads_with_blas():
    for limits in 1, {{"blas": 1}}, {{"openmp": 1}}, {{"blas": 2, "openmp": 1}}:
        with threadpoolctl.threadpool_limits(limits):
            check(5)
    check(5)
with threadpoolctl.threadpool_limits(1):
    with fastadam.share_threads_with_blas():
        check(5)
check(5)
""")


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
    def __init__(self, internal_api, version="0.3.20", threading_layer="pthreads"):
        self.filepath, self.internal_api, self.version = f"/lib/{internal_api}.so", internal_api, version
        self.threading_layer, self.dynlib = threading_layer, types.SimpleNamespace()


@pytest.mark.skipif(not fastadam.config()["openmp"], reason="a serial build has another reason")
@pytest.mark.parametrize(
    ("libraries", "why"),
    [
        ([Library("mkl")], "mkl has no interface"),
        ([Library("blis"), Library("openblas")], "blis has no interface.*OpenBLAS 0.3.20 has no interface.*newer"),
        ([Library("openblas", "0.3.31", "openmp")], "no threads of its own.*'openmp'"),
        ([Library("openblas", "0.3.31", "disabled")], "no threads of its own"),
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


def test_a_serial_build_has_nothing_to_share(monkeypatch):
    monkeypatch.setattr(blas._core, "has_openmp", lambda: False)
    assert blas.setter_of(Library("openblas")) == (
        0,
        "this build of fastadam has no OpenMP, so there is no team to share",
    )


def test_without_threadpoolctl_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(ImportError, match="pip install threadpoolctl"):
        fastadam.share_threads_with_blas()


@can_share
def test_training_has_the_same_bits_with_sharing():
    """The same number of jobs, so even the sums in the products are the same."""
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
