"""Builds as users make them: wheel, sdist, without OpenMP, with flags of their own. The slow ones need the network."""

import ast
import ctypes
import os
import platform
import re
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import pytest
from floating_point import FloatingPointState
from helpers import ROOT, compiler_flags, run_python

slow = pytest.mark.slow

CHECK = """
import numpy as np, fastadam
from fastadam import reference
print(fastadam.__file__)
print(fastadam.config()["openmp"])
a, b = np.ones(100_003, np.float32), np.ones(100_003, np.float32)
g, m, v = a * 0.3, np.zeros_like(a), np.zeros_like(a)
fastadam.Adam(a, threads=4).step(g)
reference.adam_update(b, g, m, v, 1)
assert np.array_equal(a, b)
"""


def pip(*arguments, fails=False, **env):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    env = {**os.environ, **env}
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert (result.returncode != 0) == fails, result.stdout + result.stderr
    return result.stdout + result.stderr


def install(what, folder, **env):
    return pip("install", "-v", "--no-deps", "--no-cache-dir", f"--target={folder}", str(what), **env)


def run_from(folder, code, **env):
    """Without any other installation in the way."""
    code = f"""
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in finder.__module__]
sys.path.insert(0, {str(folder)!r})
{code}
"""
    return run_python(code, **env).stdout


def check(folder):
    """Import it from there, and step."""
    where, openmp = run_from(folder, CHECK).split()
    assert Path(where).is_relative_to(folder)
    return openmp == "True"


def copy_of_tree(folder):
    """What is in version control, or would be: not what lies about."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return folder


@slow
def test_wheel_and_sdist(tmp_path):
    tree = copy_of_tree(tmp_path / "tree")
    pip("install", f"--target={tmp_path / 'tools'}", "build")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "tools")}
    subprocess.run([sys.executable, "-P", "-m", "build", str(tree)], env=env, check=True, capture_output=True)
    (wheel,) = (tree / "dist").glob("*.whl")
    (sdist,) = (tree / "dist").glob("*.tar.gz")

    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {"fastadam/py.typed", "fastadam/_core.pyi", "fastadam/reference/rules.py"} <= inside
    assert {f"fastadam/gallery/compare/{name}" for name in ("page.html", "numbers.js", "page.js")} <= inside
    others = {name for name in inside if name.endswith((".c", ".pyx", ".pxd", ".pxi", ".h"))}
    headers = {f"fastadam/include/fastadam_{name}.h" for name in ("api", "import")}
    assert others == {"fastadam/__init__.pxd", *headers}
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {
        "csrc/rules.inc",
        "csrc/fastadam.h",
        "fastadam/_engine.pxi",
        "tests/helpers.py",
        "LICENSE",
    } | others <= packed
    assert "fastadam/_core.c" not in packed

    for package in wheel, sdist:  # python -m build makes the wheel from the sdist; both are installed all the same
        folder = tmp_path / package.name
        install(package, folder)
        check(folder)


@slow
def test_build_without_openmp_is_serial_and_gives_the_same_bits(tmp_path):
    tree = copy_of_tree(tmp_path / "tree")
    log = install(tree, tmp_path / "serial", FASTADAM_OPENMP="0")
    assert "OpenMP switched off" in log
    assert check(tmp_path / "serial") is False


@slow
def test_compiler_without_openmp_gives_a_serial_build(tmp_path):
    """A compiler driver that knows no -fopenmp, as Apple's clang: the probe must notice."""
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\ncase " $* " in *fopenmp*|*lomp*) echo "unknown option" >&2; exit 1;; esac\nexec cc "$@"\n'
    )
    compiler.chmod(0o755)
    tree = copy_of_tree(tmp_path / "tree")
    log = install(tree, tmp_path / "serial", CC=str(compiler), LDSHARED=f"{compiler} -shared")
    assert "this compiler has no OpenMP; the build is serial" in log
    assert check(tmp_path / "serial") is False


@slow
def test_the_serial_build_passes_the_tests(tmp_path):
    install(copy_of_tree(tmp_path / "tree"), tmp_path / "serial", FASTADAM_OPENMP="0")
    code = f"""
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in finder.__module__]
sys.path.insert(0, {str(tmp_path / "serial")!r})
import fastadam, pytest
assert fastadam.config()["openmp"] is False
names = ["bits", "arrays", "adam_update", "state", "threads", "vectorised"]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *(f"{ROOT}/tests/test_{{name}}.py" for name in names)]))
"""
    assert " passed" in run_python(code, timeout=600, PYTHONPATH=str(tmp_path / "serial")).stdout


@slow
def test_a_build_without_threads_of_its_own_works_and_says_so(tmp_path):
    tree = copy_of_tree(tmp_path / "tree")
    (tree / "csrc" / "team_shared.c").unlink()
    install(tree, tmp_path / "built")
    assert check(tmp_path / "built") is True
    run_from(
        tmp_path / "built",
        """
import warnings, numpy as np, fastadam
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    fastadam.share_threads_with_blas()
assert "this build of fastadam has no threads to share (csrc/team_shared.c)" in str(caught[0].message)
assert fastadam.config()["blas_shared"] == [] and fastadam.config()["advice"] == ""
opt = fastadam.Adam(np.ones(1 << 20), threads=2)
opt.step(np.ones(1 << 20))
assert (fastadam.config()["steps_on"], opt.threads_used) == ("OpenMP", 2)
""",
    )


def test_microsofts_compiler_is_refused_with_words():
    tree = ast.parse((ROOT / "setup.py").read_text())
    tree.body = [part for part in tree.body if isinstance(part, ast.ClassDef)]
    names = {"build_ext": object, "CompileError": RuntimeError}  # setuptools need not be installed
    exec(compile(tree, "setup.py", "exec"), names)
    command = types.SimpleNamespace(compiler=types.SimpleNamespace(compiler_type="msvc"))
    with pytest.raises(RuntimeError, match="only gcc and clang"):
        names["BuildExt"].build_extensions(command)


def test_only_one_file_asks_which_compiler_processor_or_system_it_is():
    asks = re.compile(r"__(x86_64|aarch64|clang|GNUC|GLIBC|linux|ELF|APPLE)_*\b|\b_(WIN32|MSC_VER)\b")
    files = [file for file in (ROOT / "csrc").iterdir() if file.suffix in (".c", ".h", ".inc")]
    assert [file.name for file in files if asks.search(file.read_text())] == ["platform.h"]


# ---- flags of the user's that change the arithmetic, or that of the whole process

TAKEN_BACK = [
    "-Ofast",
    "-ffast-math",
    "-funsafe-math-optimizations",
    "-fassociative-math -fno-signed-zeros -fno-trapping-math",  # gcc ignores the first without the others
    "-freciprocal-math",
    "-ffinite-math-only",
]

ARITHMETIC = """
#include <math.h>
float sum(float *x, const float *y, float z, int n)
{
    float s = 0;
    for (int i = 0; i < n; i++) {
        s += x[i];
        x[i] = isnan(x[i]) ? z : x[i] / 3.0f + (y[i] + 0.0f) - x[i] * y[i];
    }
    return s;
}
"""


@pytest.mark.parametrize("flags", TAKEN_BACK)
def test_flags_that_change_the_arithmetic_are_taken_back(flags, tmp_path):
    """What is compiled with them and ours behind them is what is compiled with ours."""
    (tmp_path / "sum.c").write_text(ARITHMETIC)

    def assembly(*options):
        command = ["cc", "-O3", "-std=c11", *options, "-S", "sum.c", "-o", "-"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    ours = compiler_flags()
    assert assembly(*flags.split(), *ours) == assembly(*ours)
    assert assembly(*flags.split()) != assembly()  # it would have been another


@pytest.mark.skipif((platform.machine(), sys.platform) != ("x86_64", "linux"), reason="reads glibc's fenv_t for x86-64")
@pytest.mark.parametrize("flags", TAKEN_BACK)
def test_flags_that_change_the_process_are_taken_back(flags, tmp_path):
    """setuptools links with CFLAGS, too, which makes compilers add a start-up that flushes subnormal numbers."""
    assert "extra_link_args=list(FLAGS)" in (ROOT / "setup.py").read_text()
    (tmp_path / "sum.c").write_text(ARITHMETIC)
    command = ["cc", *flags.split(), "-shared", "-fPIC", "sum.c", "-o", "sum.so", *compiler_flags()]
    subprocess.run(command, cwd=tmp_path, check=True)
    fp = FloatingPointState()
    before = fp.get()
    try:
        ctypes.CDLL(str(tmp_path / "sum.so"))
        assert fp.get() == before
    finally:
        fp.set(before)


@pytest.mark.parametrize("flag", ["-ffast-math", "-ffinite-math-only", "-fsingle-precision-constant", "-mfpmath=387"])
def test_other_arithmetic_does_not_compile(flag):
    """Where the flags of setup.py are not used, or do not take it back."""
    compile_ = ["cc", "-std=c11", "-fsyntax-only", "-c", str(ROOT / "csrc" / "coefficients.c")]
    subprocess.run(compile_, check=True)
    version = subprocess.run(["cc", "-v"], capture_output=True, text=True, check=True).stderr
    if flag in ("-fsingle-precision-constant", "-mfpmath=387") and not (
        "gcc version" in version and platform.machine() == "x86_64"
    ):
        pytest.skip("a flag of gcc's for x86-64")
    result = subprocess.run([*compile_, flag], capture_output=True, text=True, check=False)
    assert result.returncode != 0 and "fastadam promises bits that" in result.stderr


@slow
@pytest.mark.skipif((platform.machine(), sys.platform) != ("x86_64", "linux"), reason="reads glibc's fenv_t for x86-64")
@pytest.mark.parametrize("flags", TAKEN_BACK)
def test_a_build_with_such_flags_is_like_any_other(flags, tmp_path):
    install(copy_of_tree(tmp_path / "tree"), tmp_path / "built", CFLAGS=flags)
    run_from(
        tmp_path / "built",
        """
import numpy as np, threadpoolctl
from floating_point import FloatingPointState
fp = FloatingPointState()
fp.set(0x1F80)
import fastadam
assert fp.get() & ~0x3F == 0x1F80, hex(fp.get())  # but for the flags that any arithmetic of Python's raises
assert np.float32(1e-38) / np.float32(4) > 0

import helpers
from fastadam import reference
for dtype in np.float32, np.float64:
    rng = np.random.default_rng(0)
    ours = [helpers.wild(rng, 10_007, dtype), np.zeros(10_007, dtype), np.zeros(10_007, dtype)]
    theirs = [array.copy() for array in ours]
    for step in 1, 2, 3:
        grad = helpers.wild(rng, 10_007, dtype)
        for arrays, update in (ours, fastadam.adam_update), (theirs, reference.adam_update):
            update(arrays[0], grad, arrays[1], arrays[2], step, lr=0.1, weight_decay=0.1)
        for a, b in zip(ours, theirs):
            helpers.assert_same_bits(a, b)
    w, grad = np.ones(10_007, dtype), helpers.tame(rng, 10_007, dtype)
    opt = fastadam.NAdam(w, max_norm=1.0, threads=2)
    opt.step(grad)
    assert opt.grad_norm == reference.grad_norm([grad])
""",
        PYTHONPATH=str(ROOT / "tests"),
    )


@slow
def test_flags_that_cannot_be_taken_back_are_refused(tmp_path):
    tree = copy_of_tree(tmp_path / "tree")
    log = pip("install", "--no-deps", f"--target={tmp_path / 'built'}", str(tree), fails=True, CFLAGS="-O2 -mpc32")
    assert "fastadam: -mpc32 would change floating point in every process that imports fastadam: remove it" in log
