"""No step is left half done: Ctrl-C at any instant, memory that runs out. And no memory leaks.

All of this can hang or crash, so each test runs one of the functions here in a process of its own. They compare every
parameter and state array to the last bit, counters and hyper-parameters too, with a twin that was left in peace."""

import concurrent.futures
import copy
import ctypes
import dis
import functools
import gc
import itertools
import math
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import types
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits, run_python, snapshot

import fastadam
from fastadam import reference

slow = pytest.mark.slow
TESTS = str(Path(__file__).parent)


def run(call, module=__name__):
    return run_python(f"import {module} as t; t.{call}", timeout=3600, PYTHONPATH=TESTS).stdout


def few_or_many(few, many):
    """How often: a sample for every change, and the count that convinces."""
    return pytest.mark.parametrize("trials", [few, pytest.param(many, marks=slow)])


# ---- what is done, to the optimizer and to its twin

WRAPS = {
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


def some_rows(opt, count):
    """Rows of one element, of two arrays in three; some twice."""
    grads = gradients()[count % 3]
    rows = [np.arange(len(grad))[:: -1 - i % 2] % max(1, len(grad) - 2) for i, grad in enumerate(grads)]
    given = [fastadam.Rows(r, g[: len(r)]) for r, g in zip(rows, grads, strict=True)]
    opt.step(grouped([grads[i] if i % 3 == 0 else each for i, each in enumerate(given)]))


def step_one(opt, count):
    i = count % 40
    opt.step_one(i, gradients()[0][i])


def load(opt, count):
    opt.load_state_dict(saved_states()[count % 4])


def add_group(opt, count):
    opt.add_param_group({"params": {f"{name} {count}": np.ones(500) for name in "abcdefghij"}, "lr": float(count)})


def swap(opt, count):
    with opt.swap_ema():
        assert opt.param_groups


def rebind(opt, count):
    group, i = opt.param_groups[count % 2], count % 15
    opt.rebind(25 * (count % 2) + i, group["params"][i] + 1)


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
    """Do it again and again until Ctrl-C, so many times. How was the last found: whole, not done, torn?"""
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
    grads = [
        {name: param * 0.5 for name, param in zip(saved["param_names"], group["params"], strict=True)}
        for group, saved in zip(opt.param_groups, opt.state_dict()["param_groups"], strict=True)
    ]
    opt.step([grad if isinstance(next(iter(grad)), str) else list(grad.values()) for grad in grads])


def interrupt_steps(trials):
    outcomes = Counter()
    for wraps, threads in itertools.product(WRAPS.values(), (1, 2)):
        outcomes += interrupt(step, trials, threads=threads, **wraps)
    assert outcomes["wholly"] and not outcomes["torn"], outcomes


@few_or_many(2, 200)
def test_ctrl_c_does_not_tear_a_step(trials):
    """With 1 and 2 threads and every wrap, so many times each."""
    run(f"interrupt_steps({trials})")


@few_or_many(20, 200)
@pytest.mark.parametrize(
    "what",
    [
        "step_one, {}",
        "some_rows, {}",
        "some_rows, {}, threads=2, max_norm=0.1",
        "load, {}",
        "add_group, {}",
        "rebind, {}",
        "swap, {}, twins_act=t.nothing, ema_decay=0.9",
    ],
)
def test_ctrl_c_does_not_tear_what_else_changes_an_optimizer(what, trials):
    run(f"never_torn(t.{what.format(trials)})")


def never_torn(act, trials, **options):
    assert not interrupt(act, trials, **options)["torn"]


def ways_around_the_end_of_a_with(code):
    """Jumps inside a `with` that its exception table does not have: Ctrl-C at one of them does not end the `with`."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from ways_around_the_end_of_a_with(constant)
    instructions = list(dis.get_instructions(code))
    ends = [each.offset for each in instructions if each.opname == "WITH_EXCEPT_START"]
    begins = [each.offset for each in instructions if each.opname in ("BEFORE_WITH", "LOAD_SPECIAL")]
    covered = [range(entry.start, entry.end) for entry in dis.Bytecode(code).exception_entries]
    for each in instructions:
        inside = ends and begins and begins[0] < each.offset < ends[-1]
        if inside and "JUMP_BACKWARD" in each.opname and not any(each.offset in where for where in covered):
            yield code.co_name, each.offset


@pytest.mark.parametrize("module", ["optimizer", "saving", "threads", "persist/statefile", "_forks"])
def test_no_lock_is_held_around_a_loop_that_ctrl_c_may_leave(module):
    path = Path(fastadam.__file__).parent / f"{module}.py"
    assert list(ways_around_the_end_of_a_with(compile(path.read_text(), path, "exec"))) == []


def test_ctrl_c_would_tear_a_step_written_in_python():
    """So the tests above can fail."""
    run("some_torn(10)")


def some_torn(trials):
    assert interrupt(step_one_by_one, trials, twins_act=step)["torn"]


# ---- memory that runs out


def small_arrays(seed, *dtypes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(n).astype(dtype) for n, dtype in zip((3, 40, 200), dtypes, strict=True)]


@functools.cache
def folder():
    memory = "/dev/shm"
    return tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)


def small(state_file=False, **options):
    params = small_arrays(0, np.float32, np.float64, np.float32)
    if state_file:
        options["state_file"] = tempfile.mkstemp(dir=folder().name)[1]
    return fastadam.NAdam([{"params": params}, {"params": {"x": np.ones(5)}, "lr": 0.1}], **options)


@functools.cache
def small_saved_states():
    opt, saved = small(), []
    for lr in 0.2, 0.3:
        go_on(opt)
        opt.lr = lr
        saved.append(copy.deepcopy(opt.state_dict()))
    return saved


SMALL_GRADIENTS = [small_arrays(1, np.float32, np.float64, np.float32), {"x": np.ones(5)}]
OTHER_TYPES = [small_arrays(1, np.float64, np.float16, np.float32), {"x": np.ones(5, np.longdouble)}]


def add_small_group(opt, n):
    opt.add_param_group({"params": {f"{n}": np.ones(3), f"b{n}": np.ones(2)}})


def step_converting(opt, n):
    opt.step(OTHER_TYPES)


def rows_of(count, dtype):
    rows = fastadam.Rows(np.arange(count) % 3, np.ones(count, dtype))
    return [[rows, SMALL_GRADIENTS[0][1], rows], {"x": None}]


SOME_ROWS, MORE_ROWS = rows_of(100, np.float32), [rows_of(100 + 50 * i, np.float64) for i in range(50)]


def step_more_rows(opt, n):
    """Ever more, so that there must be more room to sort them."""
    opt.step(MORE_ROWS[0 if n == "first" else n % 50])


def reopen(opt, n):
    """What a failure leaves locked or damaged makes the next turn a ValueError."""
    params = small_arrays(0, np.float32, np.float64, np.float32)
    other = fastadam.NAdam(params, state_file=f"{folder().name}/reopened")
    assert all(entry["step"] == 0 for entry in other.state.values())


@functools.cache
def small_files():
    paths = []
    for i, state in enumerate(small_saved_states()):
        opt = small()
        opt.load_state_dict(state)
        paths.append(f"{folder().name}/{i}.npz")
        opt.save(paths[-1])
    return paths


# What is done to an optimizer when there is no memory, and how that optimizer is made.
WITHOUT_MEMORY = {
    "constructor": (lambda opt, n: fastadam.NAdam(opt.param_groups[0]["params"], ema_decay=0.9, accumulate=2), {}),
    "add_param_group": (add_small_group, {}),
    "rebind": (lambda opt, n: opt.rebind(1, opt.param_groups[0]["params"][1].copy()), {}),
    "step": (lambda opt, n: opt.step(SMALL_GRADIENTS), {}),
    "step, max_norm": (lambda opt, n: opt.step(SMALL_GRADIENTS), {"max_norm": 0.1, "nonfinite": "raise"}),
    "step, accumulate": (lambda opt, n: opt.step(SMALL_GRADIENTS), {"accumulate": 2, "ema_decay": 0.9}),
    "step, converting": (step_converting, {}),
    "step, clipping": (step_converting, {"max_norm": 0.1, "accumulate": 3, "threads": 2}),
    "step, rows": (lambda opt, n: opt.step(SOME_ROWS), {}),
    "step, rows, max_norm": (step_more_rows, {"max_norm": 0.1, "nonfinite": "raise", "threads": 2}),
    "step_one": (lambda opt, n: opt.step_one(1, SMALL_GRADIENTS[0][1]), {}),
    "state_dict": (lambda opt, n: opt.state_dict(), {}),
    "load_state_dict": (lambda opt, n: opt.load_state_dict(small_saved_states()[n != "first" and n % 2]), {}),
    "swap_ema": (swap, {"ema_decay": 0.9}),
    "constructor, state_file": (reopen, {}),
    "add_param_group, state_file": (add_small_group, {"state_file": True}),
    "step, state_file": (lambda opt, n: opt.step(SMALL_GRADIENTS), {"state_file": True}),
    "flush": (lambda opt, n: opt.flush(), {"state_file": True}),
    "our part of pickle": (lambda opt, n: fastadam.NAdam.__new__(type(opt)).__setstate__(opt.__getstate__()), {}),
    "pickle": (lambda opt, n: pickle.loads(pickle.dumps(opt)), {}),
    "deepcopy": (lambda opt, n: copy.deepcopy(opt), {}),
}

FILES = {
    "save": (lambda opt, n: opt.save(f"{folder().name}/saved.npz"), {}),
    "load": (lambda opt, n: opt.load(small_files()[n != "first" and n % 2]), {}),
}
WITHOUT_MEMORY |= FILES


class PythonsMemory:
    """CPython's own hook: of the allocations to come the n-th fails, and some after it."""

    def fail(self, n, count):
        import _testcapi  # a CPython without it cannot be tested in this way, which shall not go unnoticed

        self.stop = _testcapi.remove_mem_hooks
        _testcapi.set_nomemory(n, n + count)


class NumPysMemory:
    """The same for the data of arrays: NumPy's own handler (NEP 49), with two functions replaced."""

    POINTER, SIZE = ctypes.c_void_p, ctypes.c_size_t
    MALLOC = ctypes.PYFUNCTYPE(POINTER, POINTER, SIZE)
    CALLOC = ctypes.PYFUNCTYPE(POINTER, POINTER, SIZE, SIZE)
    GET_HANDLER, SET_HANDLER = 305, 304  # in NumPy's table of C functions

    class Handler(ctypes.Structure):
        pass

    def __init__(self):
        functions = [("malloc", self.MALLOC), ("calloc", self.CALLOC)]
        functions += [("realloc", self.POINTER), ("free", self.POINTER)]
        head = [("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("context", self.POINTER)]
        self.Handler._fields_ = [*head, *functions]
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (self.POINTER,) * 3
        content = ctypes.pythonapi.PyCapsule_GetPointer
        content.restype, content.argtypes = self.POINTER, (ctypes.py_object, self.POINTER)
        table = ctypes.cast(content(np._core._multiarray_umath._ARRAY_API, None), ctypes.POINTER(self.POINTER))
        self.kind = ctypes.create_string_buffer(b"mem_handler")
        usual = ctypes.PYFUNCTYPE(ctypes.py_object)(table[self.GET_HANDLER])()
        self.usual = self.Handler.from_address(content(usual, ctypes.addressof(self.kind)))
        self.ours = self.Handler.from_buffer_copy(self.usual)
        self.ours.malloc = self.MALLOC(lambda *arguments: self.usual.malloc(*arguments) if self.allows() else None)
        self.ours.calloc = self.CALLOC(lambda *arguments: self.usual.calloc(*arguments) if self.allows() else None)
        self.stop()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))  # arrays that outlive the interpreter go on using it
        capsule = new(ctypes.addressof(self.ours), ctypes.addressof(self.kind), None)
        ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[self.SET_HANDLER])(capsule)

    def fail(self, n, count):
        self.coming, self.failing = n, count

    def stop(self):
        self.coming, self.failing = math.inf, 0

    def allows(self):
        self.coming -= 1
        return not -self.failing <= self.coming < 0


hoard = []


def empty_free_lists(each):
    """CPython keeps freed objects for the next ones of their kind, which hides that memory has run out. Pairs are left
    to it: without one, its own iterators over dicts crash (3.11)."""
    hoard.append([[tuple(range(n)) for n in (1, *range(3, 21))] for _ in range(each)])
    hoard.append([[float(n), [n], {n: n}, slice(n), {}.get] for n in range(each)])
    _ = [(n, n) for n in range(100)]


SOME = {1: 7, 5: 11}  # {how many fail at once: the first of them is every such one}
EACH = {1: 1, 5: 1}


def starve(name, memory, turns):
    """Do it with ever more memory until there is enough; each time it fails, nothing has changed, and all goes on."""
    warnings.simplefilter("ignore")  # of conversions
    act, options = WITHOUT_MEMORY[name]
    act(small(**options), "first")  # what is made once; CPython and NumPy do not all survive a failure in there
    empty_free_lists(2100)
    other_thread = concurrent.futures.ThreadPoolExecutor(1)  # which notices locks that were not given back
    failures = 0
    # Not for ever: CPython waits until it has memory to unwind. np.errstate crashes CPython (3.11) if two fail.
    for count, every in turns.items():
        if count > 1 and act in (step_converting, step_more_rows) and isinstance(memory, PythonsMemory):
            continue
        opt, twin, successes = small(**options), small(**options), 0
        for n in itertools.count(step=every):
            before = snapshot(opt)
            empty_free_lists(30)
            try:
                memory.fail(n, count)
                act(opt, n)
                failed = False
            except (MemoryError, pickle.PicklingError):
                failed = True
            except (RuntimeError, SystemError) as error:  # how threading, NumPy, and CPython's warnings (3.11) put it
                failed = any(part in str(error) for part in ("can't allocate", "numpy.", "PerformanceWarning"))
                if not failed:
                    raise
            except (TypeError, ValueError, ImportError, OSError):  # how CPython puts it in what works with files
                failed = name in FILES
                if not failed:
                    raise
            finally:
                memory.stop()
            what = f"{name}, allocation {n} of those that fail, {count} in all"
            if failed:
                assert snapshot(opt) == before, what
            else:
                act(twin, n)
            other_thread.submit(go_on, opt).result(timeout=600)
            go_on(twin)
            assert snapshot(opt) == snapshot(twin), what
            failures += failed
            successes = 0 if failed else successes + 1
            if successes == 20:  # not 1: some allocations can be done without
                break
    print(f"{name}: {failures} failures")
    return failures


MAKES_NO_ARRAYS = {"step", "step, state_file", "step, max_norm", "step, accumulate", "step, rows", "step_one"}
MAKES_NO_ARRAYS |= {"flush", "state_dict", "swap_ema"}


# NumPy (2.4) crashes without Python's memory when it pickles a dtype, reads a structured scalar or compares.
NUMPY_CRASHES = {"pickle", "constructor, state_file", "add_param_group, state_file"}

# CPython 3.12 and 3.13 crash by themselves when memory runs out (in missing_arguments), before our code has a say.
MEMORIES = ["NumPysMemory"] if sys.version_info >= (3, 12) else ["PythonsMemory", "NumPysMemory"]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("turns", ["SOME", pytest.param("EACH", marks=slow)])
def test_an_allocation_that_fails_changes_nothing(memory, turns):
    """Whichever it is: each in its turn, alone and with some after it."""
    run(f"starve_all(t.{memory}(), t.{turns})")


def starve_all(memory, turns):
    pythons = isinstance(memory, PythonsMemory)
    left_out = NUMPY_CRASHES | FILES.keys() if pythons else set()
    failures = {name: starve(name, memory, turns) for name in WITHOUT_MEMORY if name not in left_out}
    assert {name for name, count in failures.items() if not count} == (set() if pythons else MAKES_NO_ARRAYS), failures


@pytest.mark.slow  # thousands of allocations each
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="such CPythons crash, as above")
@pytest.mark.parametrize("name", FILES)
def test_an_allocation_that_fails_in_a_file_changes_nothing(name):
    run(f"starve_file({name!r})")


def starve_file(name):
    assert starve(name, PythonsMemory(), {1: 1}) > 1000


# ---- memory that is not given back

NEED_MORE_EACH_TIME = {"constructor", "add_param_group", "add_param_group, state_file"}
LEAKY = [name for name in WITHOUT_MEMORY if name not in NEED_MORE_EACH_TIME]


def memory_in_use():
    """Blocks of Python's own allocator, bytes of malloc, bytes of the process."""
    gc.collect()
    libc = ctypes.CDLL(None)
    names = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]
    libc.mallinfo2.restype = type(
        "mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names]}
    )
    info = libc.mallinfo2()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return np.array([sys.getallocatedblocks(), info.uordblks + info.hblkhd, resident])


def leak(name, times):
    warnings.simplefilter("ignore")  # of conversions
    act, options = WITHOUT_MEMORY[name]
    opt = small(**options)
    memory_in_use()
    for n in range(min(times, 1000)):
        act(opt, n)
    grown = []
    for _ in range(2):  # what leaks does so both times; a table that CPython enlarges, once
        before = memory_in_use()
        for n in range(times // 2):
            act(opt, n)
        grown.append(memory_in_use() - before)
    print(name, *grown)
    # Less than a block a call (in four of many calls): what pickle and weak references keep comes and goes by hundreds.
    assert (np.min(grown, axis=0) < [max(250, times // 8), 100_000, 1_000_000]).all(), (name, grown)


def leak_all(times):
    for name in LEAKY:
        leak(name, times // 2 if name in FILES and times < 100_000 else times)


@few_or_many(600, 100_000)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and glibc's statistics")
def test_no_memory_is_lost(trials):
    run(f"leak_all({trials})")


# ---- more than 2**31 elements

LAST = 2**16 + 5  # elements that are compared; those before them are zeros in all arrays, which steps leave as they are
MANY = 2**31 + 3 * 4096 + 5
PIECE = 2**22


def huge(last, written):
    """A float32 array of MANY elements, mapped by hand, with next to no memory behind them. What is only read is the
    kernel's page of zeros; what is written is one small file of zeros again and again, except for the end."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 4)
    read_write, shared, private, fixed, anonymous, no_reserve = 3, 0x1, 0x2, 0x10, 0x20, 0x4000
    start = libc.mmap(None, 4 * MANY, read_write, private | anonymous | no_reserve, -1, 0)
    file = os.memfd_create("zeros")
    os.ftruncate(file, PIECE)
    for place in range(start, start + 4 * (MANY - LAST) - PIECE, PIECE) if written else ():
        assert libc.mmap(place, PIECE, read_write, shared | fixed, file, 0) == place
    os.close(file)
    array = np.frombuffer((ctypes.c_float * MANY).from_address(start), np.float32)
    array[-LAST:] = last
    return array


def step_huge(threads):
    p, g, m, v = (np.abs(a) for a in np.random.default_rng(0).standard_normal((4, LAST)).astype(np.float32))
    param, grad, exp_avg, exp_avg_sq = huge(p, True), huge(g, False), huge(m, True), huge(v, True)
    opt = fastadam.SGD(param, lr=0.1, max_norm=0.5, threads=threads)
    for step in 1, 2:
        fastadam.adam_update(param, grad, exp_avg, exp_avg_sq, step, threads=threads)
        reference.adam_update(p, g, m, v, step)
        opt.step(grad)
        norm = reference.grad_norm([g])
        assert opt.grad_norm == norm
        reference.sgd_update(p, g, step, lr=0.1, grad_scale=0.5 / (norm + 1e-6))
    for ours, twin in zip((param, exp_avg, exp_avg_sq), (p, m, v), strict=True):
        assert_same_bits(ours[-LAST:], twin)
        assert not ours[:PIECE].any() and not ours[-LAST - PIECE : -LAST].any()
    used = re.search(r"Pss: *(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    print(int(used[1]) // 1024, "MiB")
    assert int(used[1]) < 2**20  # the arrays would have 32 GiB


@slow
@pytest.mark.skipif(sys.platform != "linux", reason="maps one file many times")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_arrays_of_more_elements_than_fit_into_32_bits(threads):
    run(f"step_huge({threads})")
