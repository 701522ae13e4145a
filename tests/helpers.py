"""What several test files need."""

import ast
import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import fastadam
from fastadam import _core
from fastadam._load import openmp_runtimes

ISAS = _core.isas_available()
DTYPES = [np.float32, np.float64]
DECAYS = ["none", "l2", "decoupled"]
ROOT = Path(__file__).parent.parent
LIBGOMP, LIBOMP = (any(name in path for path in openmp_runtimes()) for name in ("libgomp", "libomp"))


def assert_same_bits(ours, theirs, what=""):
    """Equal to the last bit; every NaN counts as one value."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, what
    nan = np.isnan(ours)
    assert np.array_equal(nan, np.isnan(theirs)), f"NaN in other places {what}"
    integers = f"u{ours.dtype.itemsize}"
    a, b = np.where(nan, 0, ours).view(integers), np.where(nan, 0, theirs).view(integers)
    different = np.flatnonzero(a.ravel() != b.ravel())
    assert different.size == 0, (
        f"{different.size} of {a.size} differ {what}; first at {different[0]}: "
        f"{ours.ravel()[different[0]]!r} != {theirs.ravel()[different[0]]!r}"
    )


def wild(rng, n, dtype):
    """Numbers of every magnitude from subnormal to 1e30, both signs, zeros, infinities and NaN among them."""
    tiny = np.finfo(dtype).tiny
    x = (10.0 ** rng.uniform(-38, 30, n)) * rng.choice([-1.0, 1.0], n)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, tiny, -tiny, tiny / 2, tiny * 1e-3, 1.0]
    where = rng.random(n) < 0.2
    x[where] = rng.choice(special, where.sum())
    with np.errstate(over="ignore"):
        return x.astype(dtype)


def tame(rng, n, dtype):
    return rng.standard_normal(n).astype(dtype)


def at_offset(array, offset):
    """A copy that begins `offset` elements after the start of its memory."""
    memory = np.empty(array.size + offset, array.dtype)
    view = memory[offset:]
    view[...] = array
    return view


def snapshot(opt):
    """Everything that a refused call must leave as it was."""
    return (
        [
            (key, {k: v.tobytes() if isinstance(v, np.ndarray) else v for k, v in entry.items()})
            for key, entry in opt.state.items()
        ],
        [[p.tobytes() for p in group["params"]] for group in opt.param_groups],
        [{k: v for k, v in group.items() if k != "params"} for group in opt.param_groups],
    )


@contextlib.contextmanager
def unchanged(opt):
    before = snapshot(opt)
    yield
    assert snapshot(opt) == before


def copy_libraries(folder):
    """What a repaired wheel brings beside the package, for a copy of the package in that folder."""
    libraries = Path(fastadam.__file__).parent.with_name("fastadam.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / "fastadam.libs")


def run_python(code, timeout=600, check=True, **env):
    """Run code in a fresh interpreter, on the installed package; anything that could hang is tested this way.

    The time-out ends what hangs and asserts nothing, so it leaves a busy machine time.

    env is added to the environment; None takes a variable out of it.
    """
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={name: value for name, value in {**os.environ, **env}.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


FORK = """
import os, signal, traceback

def fork(work):
    '''Do it in a child. What it raises is printed, and fails here; a child that hangs is ended.'''
    pid = os.fork()
    if pid:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return
    signal.alarm(60)
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
"""


def compiler_flags():
    """FLAGS of setup.py."""
    assigned = [line for line in ast.parse((ROOT / "setup.py").read_text()).body if isinstance(line, ast.Assign)]
    (flags,) = (ast.literal_eval(line.value) for line in assigned if ast.unparse(line.targets[0]) == "FLAGS")
    return flags


def chromium():
    """Where the browser is."""
    names = "chromium", "chromium-browser", "google-chrome"
    found = next(filter(None, map(shutil.which, names)), None)
    assert found, f"this test needs one of {', '.join(names)}: apt-get install chromium"
    return found


# ---- arrays that are refused

N = 6


def ones(n=N, dtype=np.float32):
    return np.ones(n, dtype)


def misaligned(n=N, dtype=np.float32):
    return np.zeros(n * np.dtype(dtype).itemsize + 1, np.uint8)[1:].view(dtype)


def read_only():
    a = ones()
    a.flags.writeable = False
    return a


def strided():
    return ones(2 * N)[::2]


def swapped():
    return ones(N, np.dtype(np.float32).newbyteorder())


NOT_ARRAYS = [
    ("text", "must be a numpy.ndarray, got a str"),
    (b"bytes", "must be a numpy.ndarray, got a bytes"),
    (1.5, "must be a numpy.ndarray, got a float"),
    (np.float32(1), "must be a numpy.ndarray, got a float32"),
    (np.ma.masked_array(ones()), "must be a numpy.ndarray, got a masked array"),
]
WRONG_DTYPES = [np.int32, np.bool_, np.complex64, object]
BAD_LAYOUTS = [
    (read_only, "writeable"),
    (strided, "dense in memory"),
    (swapped, "native byte order"),
    (misaligned, "aligned"),
]
