"""Builds as users make them: wheel, sdist, and without OpenMP. Each needs the network for its build requirements."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers import run_python

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

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


def pip(*arguments, **env):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def install(what, folder, **env):
    return pip("install", "-v", "--no-deps", "--no-cache-dir", f"--target={folder}", str(what), **env)


def check(folder):
    """Import it from there, without any other installation in the way, and step."""
    code = f"""
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in finder.__module__]
sys.path.insert(0, {str(folder)!r})
{CHECK}
"""
    where, openmp = run_python(code).stdout.split()
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


def test_wheel_and_sdist(tmp_path):
    tree = copy_of_tree(tmp_path / "tree")
    pip("install", f"--target={tmp_path / 'tools'}", "build")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "tools")}
    subprocess.run([sys.executable, "-P", "-m", "build", str(tree)], env=env, check=True, capture_output=True)
    (wheel,) = (tree / "dist").glob("*.whl")
    (sdist,) = (tree / "dist").glob("*.tar.gz")

    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {"fastadam/py.typed", "fastadam/_core.pyi", "fastadam/reference.py", "fastadam/compare/page.js"} <= inside
    assert not [name for name in inside if name.endswith((".c", ".pyx", ".pxi", ".h"))]
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"csrc/rules.inc", "csrc/fastadam.h", "fastadam/_engine.pxi", "tests/helpers.py", "LICENSE"} <= packed
    assert "fastadam/_core.c" not in packed

    for package in wheel, sdist:  # python -m build makes the wheel from the sdist; both are installed all the same
        folder = tmp_path / package.name
        install(package, folder)
        check(folder)


def test_build_without_openmp_is_serial_and_gives_the_same_bits(tmp_path):
    tree = copy_of_tree(tmp_path / "tree")
    log = install(tree, tmp_path / "serial", FASTADAM_OPENMP="0")
    assert "OpenMP switched off" in log
    assert check(tmp_path / "serial") is False


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
