"""Threads, locks and signals: what runs at the same time, and what cannot be torn."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import threadpoolctl
from helpers import LIBOMP, ROOT, run_python

import fastadam

OPENMP = fastadam.config()["openmp"]

ONE_CPU = "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
WORKERS = """
import os, numpy as np, fastadam

def threads_started(n, threads):
    p = np.ones(n, np.float32)
    before = len(os.listdir("/proc/self/task"))
    fastadam.Adam(p, threads=threads).step(p.copy())
    return len(os.listdir("/proc/self/task")) - before
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.skipif(not OPENMP, reason="a serial build starts none")
@pytest.mark.parametrize(
    ("n", "threads", "started"),
    [(16 * 4, 4, 3), (16 * 3, 8, 2), (16 * 3 + 1, 8, 3), (16, 8, 0), (1 << 20, 1, 0), (1000, None, 0)],
)
def test_threads_is_an_exact_order_up_to_one_per_cache_line(n, threads, started):
    run_python(f"{WORKERS}\nassert threads_started({n}, {threads}) == {started}")


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize(
    ("before", "limit"),
    [
        (f"import os; {ONE_CPU}", ""),
        pytest.param("", ONE_CPU, marks=pytest.mark.skipif(LIBOMP, reason="LLVM's runtime looks once")),
        ("", "fastadam.set_num_threads(1)"),
    ],
)
def test_the_automatic_choice_is_bounded(before, limit):
    run_python(f"""{before}
{WORKERS}
{limit}
assert threads_started(1 << 22, None) == 0
assert fastadam.get_num_threads() == 1
""")


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_the_automatic_choice_respects_omp_num_threads():
    code = f"{WORKERS}\nassert threads_started(1 << 22, None) == 0\nassert fastadam.get_num_threads() == 1"
    run_python(code, OMP_NUM_THREADS="1")


CHOICES = """
import os, numpy as np, fastadam

def choices(n, steps=100, **options):
    p = np.ones(n, np.float32)
    opt = fastadam.Adam(p, **options)
    assert opt.threads_used == 0
    grad, used = p.copy(), set()
    for _ in range(steps):
        opt.step(grad)
        used.add(opt.threads_used)
    return used
"""


def test_the_automatic_choice_tries_what_has_enough_to_do_and_no_more():
    code = f"""{CHOICES}
from fastadam._cpus import cgroup_cpus
if hasattr(os, "sched_getaffinity"):
    most = min(len(os.sched_getaffinity(0)), cgroup_cpus() or 1024) if {OPENMP} else 1
    assert fastadam.get_num_threads() == most
few = min(2, fastadam.get_num_threads())
assert choices(2 * 2048 * 16 - 16) == {{1}}         # less than 128 KiB of parameters for each of two
assert choices(2 * 2048 * 16) == {{1, few}}
fastadam.set_num_threads(1)
assert choices(2 * 2048 * 16) == {{1}}
assert choices(2 * 2048 * 16, threads=2) == {{2 if {OPENMP} else 1}}
"""
    run_python(code, OMP_NUM_THREADS=None)


@pytest.mark.skipif(not OPENMP, reason="a serial build has no runtime to limit")
def test_threadpoolctl_limits_the_calling_thread():
    before = fastadam.get_num_threads()
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        assert fastadam.get_num_threads() == 1
    assert fastadam.get_num_threads() == before


CC = ["cc", "-std=c11", "-O1", *(["-fopenmp"] if OPENMP else []), f"-I{ROOT / 'csrc'}"]


@pytest.fixture(scope="session")
def kernel_objects(tmp_path_factory):
    """csrc/, compiled once for all the programs here, with OpenMP if the extension has it."""
    if shutil.which("cc") is None:  # only where a wheel is tested
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("objects")
    subprocess.run([*CC, "-c", *(ROOT / "csrc").glob("*.c")], cwd=folder, check=True)
    return list(folder.glob("*.o"))


@pytest.fixture
def run_program(kernel_objects, tmp_path):
    """What a C program that is linked with the kernel says of itself."""

    def run(source):
        program = tmp_path / "program"
        subprocess.run([*CC, ROOT / "tests" / source, *kernel_objects, "-o", program, "-lm"], check=True)
        # Nothing is preloaded: with AddressSanitizer's allocator, forked children that allocate may wait for ever.
        plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        return subprocess.run([program], env=plain, capture_output=True, text=True, check=False, timeout=600)

    return run


def test_shares_are_equal_whole_lines_and_cover_everything_once(run_program):
    """tests/shares.c records who got what, for many mixtures of tasks and numbers of threads."""
    result = run_program("shares.c")
    assert result.returncode == 0, result.stdout
    assert re.fullmatch(r"\d{3,} mixtures\n", result.stdout)


def test_the_jobs_of_a_call_run_once_and_at_the_same_time_beside_steps(run_program):
    """tests/team.c: an imagined OpenBLAS's threads callback, steps, forks."""
    result = run_program("team.c")
    assert (result.returncode, result.stdout) == (0, "900 calls, 20 forks\n")


def test_calls_from_c_have_the_bits_of_one_thread_and_forks_wait_for_them(run_program):
    """tests/c_calls.c: four threads that call the public C interface, beside forks."""
    result = run_program("c_calls.c")
    assert (result.returncode, result.stdout) == (0, "960 steps, and forks\n")


def test_the_choice_of_threads_finds_what_is_best_and_follows_changes(run_program):
    """tests/tuner.c: imagined programs on an imagined clock, with noise and breaks."""
    result = run_program("tuner.c")
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("astray") >= 10


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (1025, ValueError), (1.0, TypeError), ("1", TypeError)])
def test_bad_bounds_are_refused(n, error):
    before = fastadam.get_num_threads()
    with pytest.raises(error, match="^n must be"):
        fastadam.set_num_threads(n)
    assert fastadam.get_num_threads() == before


def test_two_threads_on_one_optimizer_take_turns():
    params = [np.ones(n) for n in (3, 1000, 50_000)]
    twins = [p.copy() for p in params]
    grads = [np.full_like(p, 0.5) for p in params]
    opt, twin = fastadam.Adam(params, threads=2), fastadam.Adam(twins)
    workers = [threading.Thread(target=lambda: [opt.step(grads) for _ in range(50)]) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for _ in range(200):
        twin.step(grads)
    assert [e["step"] for e in opt.state.values()] == [200] * 3
    assert all(np.array_equal(a, b) for a, b in zip(params, twins, strict=True))


def test_a_locked_optimizer_does_not_stop_another():
    a, b = np.ones(4), np.ones(4)
    first, second = fastadam.Adam(a), fastadam.Adam(b)
    with first._engine.lock:
        worker = threading.Thread(target=first.step, args=(np.ones(4),))
        worker.start()
        other = threading.Thread(target=second.step, args=(np.ones(4),))
        other.start()
        other.join(timeout=600)
        assert not other.is_alive() and second.state[0]["step"] == 1
        assert first.state[0]["step"] == 0
    worker.join(timeout=600)
    assert first.state[0]["step"] == 1


def test_steps_fit_on_a_small_stack():
    """Every rule with every wrap, and gradients that are copied, on a Python thread of 32 KiB."""
    run_python("""
import itertools, threading, warnings
import numpy as np, fastadam
from fastadam import Adam, AdamW, SGD, RMSprop, Adagrad, NAdam, RAdam, Adamax, RowAdagrad, PerformanceWarning
warnings.simplefilter("ignore", PerformanceWarning)
rules = [
    (Adam, {"amsgrad": True}), (AdamW, {}), (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (RMSprop, {"momentum": 0.9, "centered": True}), (Adagrad, {}), (NAdam, {}), (RAdam, {}), (Adamax, {}),
    (RowAdagrad, {}),
]
clips = [{}, {"max_norm": 1.0}, {"max_value": 0.1, "nonfinite": "skip"}]
kinds = [lambda g: g, np.asfortranarray, lambda g: g.astype(np.float16), lambda g: g.astype(np.longdouble)]

def apart_by(distance, dtype):
    '''Two arrays large enough for huge pages, in a distance that the hardware does not like (csrc/blocks.c).'''
    memory = np.zeros(5 << 20, np.uint8)
    start = -memory.ctypes.data % 64
    return [memory[at : at + (1 << 20)].view(dtype).reshape(512, -1) for at in (start + distance, start + (3 << 20))]

def steps(p, g, rule, options, threads, clip, ema_decay, accumulate):
    opt = rule(p, threads=threads, ema_decay=ema_decay, accumulate=accumulate, **clip, **options)
    for _ in range(3):
        opt.step(g)
    if ema_decay:
        with opt.swap_ema():
            pass

def all_steps():
    wraps = list(itertools.product((1, 2), clips, (None, 0.9), (1, 2)))
    for dtype in np.float32, np.float64:
        g = np.full((40, 50), 0.1, dtype)
        for (rule, options), kind, others in itertools.product(rules, kinds, wraps):
            steps(np.ones_like(g), kind(g), rule, options, *others)
        for others in wraps:
            p, g = apart_by(64, dtype)
            steps(p, g, Adam, {}, *others)
        p, g, m, v = np.zeros((4, 40, 50), dtype)
        fastadam.adam_update(p, g.T.copy().T, m, v, 1, threads=2)
    done.append(True)

done = []
threading.stack_size(32768)     # the least that Python takes
thread = threading.Thread(target=all_steps)
thread.start()
thread.join()
assert done
""")


def test_the_gil_is_released_during_the_update():
    """With a switch interval of an hour, this thread runs before the other one has ended only if a step lets it."""
    p = np.ones(1 << 20, np.float32)
    opt, grad = fastadam.Adam(p, threads=1), p.copy()
    started, let = threading.Event(), threading.Event()

    def work():
        started.set()
        for _ in range(2000):
            opt.step(grad)
            if let.is_set():
                return

    before = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        worker = threading.Thread(target=work)
        worker.start()
        started.wait()
        alive = worker.is_alive()
        let.set()
        worker.join()
    finally:
        sys.setswitchinterval(before)
    assert alive


class InterruptError(Exception):
    pass


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_a_signal_cannot_tear_a_step():
    """An exception from a signal handler at any instant finds all arrays and counters before or after the step."""
    params = [np.ones(n) for n in [1000] * 40]
    grads = [np.full_like(p, 0.5) for p in params]
    opt = fastadam.Adam(params, threads=2)
    rng = np.random.default_rng(0)

    def interrupt(*_):
        raise InterruptError

    previous = signal.signal(signal.SIGALRM, interrupt)
    interrupted = 0
    try:
        for _ in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-3))
                while True:
                    opt.step(grads)
            except InterruptError:
                interrupted += 1
            counters = {e["step"] for e in opt.state.values()}
            assert len(counters) == 1
            assert all(np.array_equal(p, params[0]) for p in params)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupted == 200
    twin = np.ones(1000)
    twin_opt = fastadam.Adam(twin)
    for _ in range(counters.pop()):
        twin_opt.step(grads[0])
    assert np.array_equal(params[0], twin)
