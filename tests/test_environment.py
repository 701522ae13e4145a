"""Promise 5: nothing left behind. And what import says when it cannot work."""

import platform
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ISAS, LIBGOMP, LIBOMP, FloatingPointState, assert_same_bits, run_python, wild

import fastadam
from fastadam._load import openmp_runtimes

MXCSR_DEFAULT = 0x1F80
FTZ, DAZ, ROUND_UP, ROUND_TO_ZERO, STICKY = 0x8000, 0x40, 0x4000, 0x6000, 0x3D
UNMASKED = -0x680  # invalid, division by zero and overflow trap
x86_64_linux = pytest.mark.skipif(
    (platform.machine(), sys.platform) != ("x86_64", "linux"), reason="reads glibc's fenv_t for x86-64"
)


@x86_64_linux
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    "mxcsr",
    [
        MXCSR_DEFAULT,
        MXCSR_DEFAULT | FTZ | DAZ,
        MXCSR_DEFAULT | ROUND_UP,
        MXCSR_DEFAULT | ROUND_TO_ZERO | STICKY,
        MXCSR_DEFAULT + UNMASKED,
    ],
)
def test_floating_point_control_neither_changes_nor_matters(mxcsr, threads):
    fp = FloatingPointState()
    results = []
    for control in MXCSR_DEFAULT, mxcsr:
        rng = np.random.default_rng(0)
        params = [wild(rng, 1003, np.float32), rng.standard_normal(1003)]  # float64 shows the factors' last bit
        grads = [[wild(rng, 1003, dtype) for _ in params] for dtype in (np.float32, np.float64)]  # some converted
        opt = fastadam.Adam(params, lr=0.1, betas=(0.9, 0.99), eps_root=1e-3, threads=threads)
        for grad in grads:
            with pytest.warns(fastadam.PerformanceWarning):
                opt.step(grad)
        before = fp.get()
        try:
            fp.set(control)
            for grad in grads:
                opt.step(grad)
            after = fp.get()
        finally:
            fp.set(before)
        assert after == control
        results.append([*params, *(a for entry in opt.state.values() for a in list(entry.values())[1:])])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


@x86_64_linux
@pytest.mark.parametrize(
    "mxcsr",
    [
        MXCSR_DEFAULT,
        MXCSR_DEFAULT | FTZ | DAZ,
        MXCSR_DEFAULT | ROUND_UP,
        MXCSR_DEFAULT | ROUND_TO_ZERO | STICKY,
        MXCSR_DEFAULT + UNMASKED,
    ],
)
def test_floating_point_control_does_not_matter_to_the_norm(mxcsr):
    fp = FloatingPointState()
    results = []
    for control in MXCSR_DEFAULT, mxcsr:
        rng = np.random.default_rng(0)
        params = [rng.standard_normal(n) for n in (5, 5000)]
        grads = [rng.standard_normal(n) for n in (5, 5000)]
        opt = fastadam.Adam(params, lr=0.1, max_norm=0.1, nonfinite="raise", threads=2)
        before = fp.get()
        try:
            fp.set(control)
            opt.step(grads, grad_scale=0.3)
            after = fp.get()
        finally:
            fp.set(before)
        assert after == control
        results.append([*params, np.array([opt.grad_norm])])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


@x86_64_linux
@pytest.mark.parametrize("threads", ["None", "2"])
def test_choosing_threads_leaves_floating_point_control_alone(threads):
    """From the first step on, which looks for OpenBLAS's threads; clocks are read in double precision."""
    run_python(
        f"""
import sys
import numpy as np, fastadam
from helpers import FloatingPointState
fp = FloatingPointState()
p = np.zeros(1 << 18, np.float32)
opt, g = fastadam.Adam(p, threads={threads}), p.copy()
before = fp.get()
fp.set({MXCSR_DEFAULT | FTZ | DAZ})
left = []
for _ in range(100):
    opt.step(g)
    left.append(fp.get())
    fp.set({MXCSR_DEFAULT | FTZ | DAZ})
fp.set(before)
assert set(left) == {{{MXCSR_DEFAULT | FTZ | DAZ}}}, set(left)
""",
        PYTHONPATH=str(Path(__file__).parent),
    )


@x86_64_linux
@pytest.mark.filterwarnings("ignore::fastadam.PerformanceWarning")
@pytest.mark.parametrize("kind", [np.longdouble, np.float64, np.float16])
def test_rounding_mode_does_not_matter_to_conversions(kind):
    """long double is rounded by the x87 unit, which has a control register of its own."""
    libm = FloatingPointState().libm
    results = []
    for mode in 0, 0x800:  # FE_TONEAREST, FE_UPWARD
        rng = np.random.default_rng(0)
        p = rng.standard_normal(1000).astype(np.float32)
        grad = (rng.standard_normal(1000) / 3).astype(kind) / kind(3)
        opt = fastadam.Adam(p)
        libm.fesetround(mode)
        try:
            opt.step(grad)
            assert libm.fegetround() == mode
        finally:
            libm.fesetround(0)
        results.append([p, *list(opt.state[0].values())[1:]])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


@x86_64_linux
def test_import_leaves_the_floating_point_state_alone():
    run_python(
        """
from helpers import FloatingPointState
import numpy
fp = FloatingPointState()
fp.set(0x1F80 | 0x8000 | 0x40)
import fastadam
assert fp.get() == 0x1F80 | 0x8000 | 0x40
""",
        PYTHONPATH=str(Path(__file__).parent),
    )


def test_import_and_step_leave_the_process_as_it_was():
    run_python("""
import ctypes, os, signal, sys, threading, warnings
import numpy as np

libgomp = None
if sys.platform == "linux":
    try:
        libgomp = ctypes.CDLL("libgomp.so.1")
    except OSError:
        pass

def everything():
    openmp = [getattr(libgomp, f"omp_get_{name}")() for name in
              ("max_threads", "dynamic", "max_active_levels", "thread_limit")] if libgomp else None
    return (dict(os.environ), [signal.getsignal(s) for s in signal.valid_signals()], openmp, os.getcwd(),
            list(warnings.filters), sys.getswitchinterval(), threading.active_count(), np.geterr(),
            os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None)

before = everything()
import fastadam
assert everything() == before
p = np.ones(100_000, np.float32)
opt = fastadam.Adam(p, threads=3)
opt.step(p.copy())
fastadam.set_num_threads(1)
opt.step(p.copy())
assert everything() == before
""")


@pytest.mark.parametrize("isa", ISAS)
def test_a_path_can_be_forced(isa):
    code = "import os, fastadam; print(fastadam.config()['isa'], os.environ['FASTADAM_ISA'])"
    assert run_python(code, FASTADAM_ISA=isa).stdout.split() == [isa, isa]


def test_the_widest_path_is_the_default():
    code = "import fastadam; print(fastadam.config()['isa'])"
    assert run_python(code, FASTADAM_ISA="").stdout.strip() == ISAS[-1]


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "none"])
def test_a_path_that_is_not_there_is_an_import_error_that_lists_the_choices(isa):
    result = run_python("import fastadam", check=False, FASTADAM_ISA=isa)
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith(f"ImportError: FASTADAM_ISA={isa!r}: choose one of {', '.join(ISAS)}")


def test_import_without_the_compiled_part_says_what_to_do(tmp_path):
    package = Path(fastadam.__file__).parent
    shutil.copytree(package, tmp_path / "fastadam", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    code = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in finder.__module__]
import fastadam
"""
    result = run_python(code, check=False, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: fastadam's compiled part cannot be loaded") and "reinstall" in message


def test_config_is_complete(capsys):
    config = fastadam.config()
    assert config["version"] == fastadam.__version__
    assert config["isa"] in config["isa_available"] and isinstance(config["openmp"], bool)
    assert config["threads"] == fastadam.get_num_threads()
    fastadam.show_config()
    printed = capsys.readouterr().out
    assert all(f"{name}:" in printed for name in config)


@pytest.mark.skipif(not fastadam.config()["openmp"], reason="a serial build has no workers")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("before", "env", "policy"),
    [
        ("", {}, "passive"),
        ("", {"OMP_WAIT_POLICY": "active"}, "environment"),
        ("", {"GOMP_SPINCOUNT": "0"}, "environment"),
        (f"import ctypes; ctypes.CDLL({min(openmp_runtimes(), default=None)!r})", {}, "loaded before fastadam"),
    ],
)
def test_the_wait_policy_is_ours_only_if_nobody_else_decided(before, env, policy):
    unset = dict.fromkeys(("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"), "")
    code = f"""
import os
for name in {list(unset)}:
    if not os.environ[name]:
        del os.environ[name]
{before}
env = dict(os.environ)
import fastadam
print(fastadam.config()["openmp_waits"])
assert os.environ == env
"""
    assert run_python(code, **{**unset, **env}).stdout.strip() == policy


@pytest.mark.skipif(not fastadam.config()["openmp"], reason="a serial build has no workers")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_runtime_takes_our_wait_policy():
    """The runtime's own report of what it read when it was loaded: workers that soon sleep."""
    code = """
import os
for name in "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME":
    os.environ.pop(name, None)
import fastadam
"""
    report = run_python(code, OMP_DISPLAY_ENV="verbose").stderr.replace(" ", "")
    assert "OMP_WAIT_POLICY='PASSIVE'" in report
    assert "GOMP_SPINCOUNT='2000'" in report or not LIBGOMP
    assert "KMP_BLOCKTIME='0'" in report or not LIBOMP  # passive is its default, as is 200
