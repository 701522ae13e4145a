"""fastadam.mpi on real ranks: the bits of one process, one checkpoint, and faults that are everybody's.

`-m "mpi and not slow"` is 1, 2 and 3 ranks and a few kills; `-m mpi` all of it, 4 ranks and 200 kills.
"""

import doctest
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastadam
from fastadam._mpi.state import crc_of_both

pytestmark = pytest.mark.mpi
TESTS = Path(__file__).parent
EXAMPLE = str(TESTS.parent / "examples/mpi_train.py")
MPIEXEC = Path(sys.executable).with_name("mpiexec")


def command(ranks, name, *arguments, file="mpi_ranks.py"):
    mpiexec = str(MPIEXEC) if MPIEXEC.exists() else shutil.which("mpiexec")
    program = [sys.executable, "-m", "mpi4py", TESTS / file, name, *map(str, arguments)]
    return [mpiexec, "-n", str(ranks), *map(str, program)]


def environment():
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }


def run(ranks, name, *arguments, file="mpi_ranks.py"):
    """The time-out ends what hangs."""
    line = command(ranks, name, *arguments, file=file)
    result = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_have_the_bits_of_one_process_that_accumulates(ranks):
    run(ranks, "bits", 9)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_have_the_bits_of_one_process_with_every_rule_and_type(ranks):
    run(ranks, "bits", 1)
    run(ranks, "formats")


SCENES = [
    "formats",
    "gradients_of_other_types",
    "accumulate",
    "groups",
    "group_in_vain",
    "other_sums",
    "averages",
    "state_in_parts",
    "faults",
    "nonfinite",
    "constructors",
]


@pytest.mark.parametrize("scene", SCENES)
def test_two_ranks(scene):
    run(2, scene)


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
def test_four_ranks(scene):
    run(4, scene)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scene", ["in_a_step", "in_the_constructor", "in_front_of_averages"])
def test_ctrl_c_comes_after_the_whole_call_on_all_ranks(scene, ranks):
    run(ranks, scene, file="mpi_ctrl_c.py")


def end(ranks, name, *, under_mpi4py=True):
    """What ranks say that come to their ends in different ways. The time-out ends what hangs."""
    line = command(ranks, name, file="mpi_ends.py")
    line = line if under_mpi4py else [word for word in line if word not in ("-m", "mpi4py")]
    return subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("scene", ["one_raises", "one_is_killed"])
def test_a_rank_that_ends_ends_the_job(scene):
    result = end(3, scene)
    assert result.returncode != 0
    assert scene == "one_is_killed" or "of one rank alone" in result.stderr


def test_a_rank_with_fewer_batches_leaves_none_waiting():
    result = end(3, "fewer_batches")
    assert result.returncode != 0
    assert "in the call: 'step' on rank 0, 'the end of the program' on rank 2" in result.stderr


def test_an_exception_without_mpi4py_in_front_leaves_none_waiting():
    result = end(3, "one_raises", under_mpi4py=False)
    assert result.returncode != 0
    assert "of one rank alone" in result.stderr and "'the end of the program' on rank 2" in result.stderr


def test_a_status_ends_the_job_under_mpi4py():
    assert end(2, "one_exits").returncode == 3


def test_ranks_that_wait_in_two_places_raise():
    said = end(2, "one_keeps_its_averages").stderr
    assert "'the end of a block of swap_ema' on rank 0, 'the end of the program' on rank 1" in said


@pytest.mark.parametrize("scene", ["save_in_vain", "waiting_gradients", "added_group"])
def test_files(scene, tmp_path):
    run(2, scene, tmp_path)


def test_any_number_of_ranks_goes_on_from_a_file(tmp_path):
    run(3, "save", tmp_path)
    for ranks in 1, 2:
        run(ranks, "load", tmp_path)


@pytest.mark.slow
def test_files_of_any_number_of_ranks_are_loaded_by_any_other(tmp_path):
    for saved_by in 1, 2, 4:
        folder = tmp_path / str(saved_by)
        folder.mkdir()
        run(saved_by, "save", folder)
        for loaded_by in 1, 2, 3, 4:
            run(loaded_by, "load", folder)


def kill_while_saving(folder, rng):
    """Kill one of two ranks at some instant; returns the steps that the file says it has."""
    job = subprocess.Popen(command(2, "save_for_ever", folder), env=environment(), stdout=subprocess.PIPE, text=True)
    first = job.stdout.readline()
    assert first, job.wait()
    victims = [int(word) for word in first.split()[1:]]
    time.sleep(rng.uniform(0, 0.1))
    os.kill(rng.choice(victims), signal.SIGKILL)
    rest = [line for line in job.communicate(timeout=300)[0].splitlines() if line[:1].isdigit()]  # mpiexec says more
    said = int([first, *rest][-1].split()[0])
    params = {key: np.zeros(shape, dtype) for key, (shape, dtype) in SHAPES.items()}
    params["f"], params["g"] = np.asfortranarray(params["f"]), np.zeros((61, 3, 37), np.float32).transpose(2, 0, 1)
    opt = fastadam.AdamW(params, lr=0.01, ema_decay=0.9, overrides={"[be]": {"lr": 0.1}})
    steps = fastadam.load(folder / "model.safetensors", params=params, optimizer=opt)["steps"]  # whole
    assert opt.steps == steps and said <= steps <= said + 1


SHAPES = {
    "a": ((37, 1001), np.float32),
    "b": ((13,), np.float64),
    "c": ((), np.float32),
    "d": ((0, 3), np.float32),
    "e": ((12301,), np.float64),
    "f": ((125, 77), np.float32),
    "g": ((61, 3, 37), np.float32),
}


@pytest.mark.parametrize("kills", [3, pytest.param(200, marks=pytest.mark.slow)])
def test_a_kill_while_saving_leaves_the_old_file_or_the_new_one(kills, tmp_path):
    rng = random.Random(kills)
    for number in range(kills):
        folder = tmp_path / str(number)
        folder.mkdir()
        kill_while_saving(folder, rng)


def test_the_example_trains_one_rank_and_two_alike():
    def train(ranks):
        mpiexec, _, _, python, *_ = command(ranks, "")
        program = [mpiexec, "-n", str(ranks), python, "-m", "mpi4py", EXAMPLE, "--steps", "40"]
        env = environment() | {"OPENBLAS_NUM_THREADS": "1"}
        out = subprocess.run(program, env=env, capture_output=True, text=True, timeout=300, check=True).stdout
        return dict(line.split(" ", 1) for line in out.splitlines())

    one, two = train(1), train(2)
    assert "CRC" in one["parameters:"] and one["parameters:"] == two["parameters:"]


def test_the_page_runs_on_two_ranks(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (TESTS.parent / "docs/mpi.md").read_text(), re.DOTALL)
    program = tmp_path / "train.py"
    program.write_text(code)
    mpiexec, _, _, python, *_ = command(2, "")
    line = [mpiexec, "-n", "2", python, "-m", "mpi4py", str(program)]
    subprocess.run(line, env=environment(), cwd=tmp_path, timeout=300, check=True)
    assert fastadam.inspect(tmp_path / "run.safetensors")["metadata"] == {"seed": 0}


def test_examples_in_docstrings():
    import fastadam.mpi

    result = doctest.testmod(fastadam.mpi)
    assert result.failed == 0 and result.attempted > 0


def test_crcs_of_parts_are_combined():
    import zlib

    data = np.random.default_rng(0).bytes(70001)
    for cut in 0, 1, 4096, 70000, 70001:
        assert crc_of_both(zlib.crc32(data[:cut]), zlib.crc32(data[cut:]), len(data) - cut) == zlib.crc32(data)
