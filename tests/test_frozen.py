"""Programs that PyInstaller has frozen, which looks for imports in .py files only: pytest -m frozen."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import copy_libraries

import fastadam

pytestmark = pytest.mark.frozen

PROGRAM = """
import sys
import numpy as np, fastadam
from fastadam import reference

w, twin = np.ones(100_000, np.float32), np.ones(100_000, np.float32)
grad, m, v = w * 0.3, np.zeros_like(w), np.zeros_like(w)
opt = fastadam.Adam(w, threads=2)
opt.step(grad)
reference.adam_update(twin, grad, m, v, 1)
assert np.array_equal(w, twin)

fastadam.save(sys.argv[1], params=w, optimizer=opt)
again = np.zeros_like(w)
other = fastadam.Adam(again)
fastadam.load(sys.argv[1], params=again, optimizer=other)
assert np.array_equal(again, w) and other.state[0]["step"] == 1
print(fastadam.config()["version"])
"""


def test_a_frozen_program_runs(tmp_path):
    package = tmp_path / "package"  # the compiled package, wherever it is installed, and however
    shutil.copytree(Path(fastadam.__file__).parent, package / "fastadam", ignore=shutil.ignore_patterns("__pycache__"))
    copy_libraries(package)
    (tmp_path / "program.py").write_text(PROGRAM)
    freeze = [sys.executable, "-P", "-m", "PyInstaller", "--log-level=WARN", "--noconfirm", "program.py"]
    subprocess.run(freeze, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(package)}, check=True, timeout=900)
    folder = tmp_path / "dist" / "program"
    (compiled,) = folder.rglob("fastadam/_core.*")

    def run():
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [folder / "program", tmp_path / "weights.npz"]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    assert compiled.is_file() and run() == fastadam.__version__
    for metadata in folder.rglob("fastadam-*.dist-info"):  # other freezers do not bring them along
        shutil.rmtree(metadata)
    assert run() == "unknown"
