"""Promise 5: nothing left behind. And what import says when it cannot work."""

import ast
import io
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from floating_point import FloatingPointState
from helpers import ISAS, LIBGOMP, LIBOMP, ROOT, assert_same_bits, copy_libraries, run_python, wild

import fastadam
from fastadam import _core
from fastadam._load import openmp_runtimes

MXCSR_DEFAULT = 0x1F80
FTZ, DAZ, ROUND_UP, ROUND_TO_ZERO, STICKY = 0x8000, 0x40, 0x4000, 0x6000, 0x3D
UNMASKED = -0x680  # invalid, division by zero and overflow trap
x86_64_linux = pytest.mark.skipif(
    (platform.machine(), sys.platform) != ("x86_64", "linux"), reason="reads glibc's fenv_t for x86-64"
)
any_control = pytest.mark.parametrize(
    "mxcsr", [MXCSR_DEFAULT + bits for bits in (0, FTZ | DAZ, ROUND_UP, ROUND_TO_ZERO | STICKY, UNMASKED)]
)


@x86_64_linux
@pytest.mark.parametrize("threads", [1, 4])
@any_control
def test_floating_point_control_neither_changes_nor_matters(mxcsr, threads):
    fp = FloatingPointState()
    results = []
    for control in MXCSR_DEFAULT, mxcsr:
        rng = np.random.default_rng(0)
        params = [wild(rng, 1003, np.float32), rng.standard_normal(1003)]  # float64 shows the coefficients' last bit
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
@any_control
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
    """From the first step on; clocks are read in double precision."""
    code = f"""
import sys
import numpy as np, fastadam
from floating_point import FloatingPointState
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
"""
    run_python(code, PYTHONPATH=str(Path(__file__).parent))


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
    code = """
from floating_point import FloatingPointState
import sys, numpy
fp = FloatingPointState()
assert "fastadam" not in sys.modules
fp.set(0x1F80 | 0x8000 | 0x40)
import fastadam
assert fp.get() & ~0x3F == 0x1F80 | 0x8000 | 0x40  # but for the flags that any arithmetic of Python's raises
"""
    run_python(code, PYTHONPATH=str(Path(__file__).parent))


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or len(os.sched_getaffinity(0)) < 2, reason="nobody moves")
@pytest.mark.skipif(not (LIBGOMP or LIBOMP), reason="no worker")
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
@pytest.mark.parametrize("refuses", [0, 1])
def test_a_worker_on_its_callers_cpu_moves_and_keeps_the_cpus_that_it_may_use(tmp_path, refuses):
    shim = tmp_path / "one_cpu.so"
    source = Path(__file__).with_name("one_cpu.c")
    subprocess.run(["cc", "-std=c11", "-O1", "-shared", "-fPIC", source, "-o", shim, "-ldl"], check=True)
    code = f"""
import ctypes
from pathlib import Path
import numpy as np, fastadam

shim = ctypes.CDLL({str(shim)!r})
changes, refuses = (ctypes.c_int.in_dll(shim, name) for name in ("changes", "refuses"))
refuses.value = {refuses}
p, q = np.ones((2, 100_000), np.float32)
moving, alone = fastadam.Adam(p, threads=2), fastadam.Adam(q, threads=1)
for step in range(20):
    moving.step(0.1 * q)
    alone.step(0.1 * q)
    if step == 0:
        assert changes.value == (1 if refuses.value else 2)
assert changes.value < 20 or not refuses.value  # for a second nobody tries again
assert p.tobytes() == q.tobytes()
status = [task.joinpath("status").read_text() for task in Path("/proc/self/task").iterdir()]
assert len(status) > 1
assert len({{line for text in status for line in text.splitlines() if line.startswith("Cpus_allowed:")}}) == 1
"""
    preloaded = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), str(shim)]))
    run_python(code, LD_PRELOAD=preloaded, OPENBLAS_NUM_THREADS="1")


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


WITHOUT_EDITABLE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in finder.__module__]
"""


def failed_import(folder, spoil=lambda binary: None, before=""):
    """The last words of an import of a copy of the package, the compiled part of which is replaced by spoil(binary)."""
    package, compiled = Path(fastadam.__file__).parent, Path(_core.__file__)
    shutil.copytree(package, folder / "fastadam", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    copy_libraries(folder)
    spoilt = spoil(compiled.read_bytes())
    if spoilt is not None:
        (folder / "fastadam" / compiled.name).write_bytes(spoilt)
    result = run_python(f"{WITHOUT_EDITABLE}{before}\nimport fastadam", check=False, PYTHONPATH=str(folder))
    assert result.returncode == 1
    return result.stderr.strip()


OTHER_PYTHON, BUILD_IT = "another Python version", "run 'python -m pip install -e .' in a clone"


def test_import_without_the_compiled_part_says_what_to_do(tmp_path):
    installed, clone = tmp_path / "installed", tmp_path / "clone"
    message = failed_import(installed).splitlines()[-1]
    assert message.startswith("ImportError: fastadam's compiled part is not here, or is for another Python version")
    assert BUILD_IT in message and "the source" not in message
    clone.mkdir()
    (clone / "setup.py").touch()
    assert f"start Python in another folder: it has taken {clone / 'fastadam'}, the source" in failed_import(clone)


def test_a_compiled_part_that_does_not_load_keeps_the_systems_words(tmp_path):
    *_, error, way_out = failed_import(tmp_path, lambda binary: b"not a library").splitlines()
    assert error.startswith("ImportError: ") and f"{Path(_core.__file__).name}" in error
    assert OTHER_PYTHON not in error + way_out and BUILD_IT in way_out


@pytest.mark.skipif(
    not (LIBGOMP or LIBOMP) or sys.platform != "linux", reason="renames OpenMP's library in an ELF file"
)
def test_a_missing_library_is_named(tmp_path):
    words = failed_import(tmp_path, lambda binary: re.sub(rb"\0lib(g?omp\d?[-\w]*\.so)", rb"\0bil\1", binary))
    *_, error, way_out = words.splitlines()
    assert re.match(r"ImportError: bilg?omp\d?[-\w]*\.so[.\d]*: cannot open shared object file", error)
    assert OTHER_PYTHON not in words and "install that (libgomp.so.1 is in Debian's package libgomp1" in way_out


@pytest.mark.parametrize(
    ("before", "error"),
    [
        ("sys.modules['numpy'] = None", "ModuleNotFoundError: import of numpy halted"),
        ("import numpy._core._multiarray_umath as m; m._ARRAY_API = None", "ImportError: numpy.* failed to import"),
    ],
    ids=["missing", "another ABI"],
)
def test_a_numpy_that_does_not_fit_keeps_its_words(tmp_path, before, error):
    words = failed_import(tmp_path, lambda binary: binary, before)
    assert re.search(f"^{error}", words, re.MULTILINE)
    assert OTHER_PYTHON not in words and words.endswith("'python -m pip install -U numpy'.")


REFUSED = """
import os, sys
environment = dict(os.environ)
try:
    import fastadam
except ImportError as error:
    assert "main interpreter only, and this is a subinterpreter" in str(error), error
else:
    raise AssertionError("imported")
assert dict(os.environ) == environment
assert not {"numpy", "fastadam", "fastadam._core", "fastadam._forks"} & sys.modules.keys()
"""


@pytest.mark.parametrize("isolated", [True, False])
def test_a_subinterpreter_is_refused_and_the_process_goes_on(isolated):
    """CPython 3.11 would import it there, and hang when the process ends; later ones do so if it is not isolated."""
    code = f"""
import sys
if sys.version_info < (3, 13):
    import _xxsubinterpreters as interpreters
    interpreter, execute = interpreters.create(isolated={isolated}), interpreters.run_string
else:
    import _interpreters as interpreters
    interpreter, execute = interpreters.create("isolated" if {isolated} else "legacy"), interpreters.exec
assert execute(interpreter, {REFUSED!r}) is None  # 3.13 returns what was raised
assert sys.platform != "linux" or "/_core." not in open("/proc/self/maps").read()
import numpy as np, fastadam
w = np.ones(100_000, np.float32)
fastadam.Adam(w, threads=2).step(w.copy())
assert execute(interpreter, {REFUSED!r}) is None
fastadam.Adam(w, threads=2).step(w.copy())
print("whole", bool(w[0] < 1))
"""
    assert run_python(code).stdout == "whole True\n"


def test_what_the_compiled_part_imports_is_imported_by_python_code_too():
    """Programs that freeze others, such as PyInstaller, look for imports in .py files only."""
    package = ROOT / "fastadam"
    by_cython = set()
    for path in package.glob("*.p[yx][xi]"):
        for line in path.read_text().splitlines():
            if found := re.match(r"\s*from (fastadam[\w.]*) import ([\w, ]+)", line):
                by_cython |= modules_of(found[1], found[2].replace(" ", "").split(","))
            elif re.match(r"\s*import .*\bfastadam\b", line):
                by_cython |= set(re.findall(r"\bfastadam[\w.]*", line))
    by_python = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                by_python |= modules_of(node.module, [alias.name for alias in node.names])
            elif isinstance(node, ast.Import):
                by_python |= {alias.name for alias in node.names}
    assert by_cython, "no import was found"
    assert by_cython <= by_python


def modules_of(module, names):
    """That of `from module import names`, and those that are named."""
    below = {f"{module}.{name}" for name in names}
    return {module} | {name for name in below if (ROOT / name.replace(".", "/")).with_suffix(".py").exists()}


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


def test_openmp_runtimes_are_found_in_folders_with_spaces(monkeypatch):
    maps = """7f1-7f2 r-xp 00000000 08:01 17    /home/u/my env/libgomp.so.1.0.0
7f2-7f3 r-xp 00000000 08:01 18    /usr/lib/libomp.so.5
7f3-7f4 r-xp 00000000 08:01 19    /usr/lib/libgomp/other.so
7f4-7f5 rw-p 00000000 00:00 0 """
    monkeypatch.setattr("builtins.open", lambda name: io.StringIO(maps))
    assert openmp_runtimes() == {"/home/u/my env/libgomp.so.1.0.0", "/usr/lib/libomp.so.5"}
