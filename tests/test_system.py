"""The system fails, call by call: strace makes its calls fail, a small tmpfs fills up. Needs strace and unshare."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

import fastadam

pytestmark = pytest.mark.system

CHECKPOINT = """
import sys, numpy as np, fastadam
w = {"a": np.full(3000, 1.0), "b": np.full(7, 1.0, np.float32)}
fastadam.save(sys.argv[1], params=w, optimizer=fastadam.Adam(w))
"""

STATE_FILE = """
import sys, numpy as np, fastadam
W = np.lib.format.open_memmap(sys.argv[1] + ".npy", "w+", np.float32, (3000,))
opt = fastadam.Adam(W, state_file=sys.argv[1])
for _ in range(2):
    opt.step(np.ones(3000, np.float32))
    opt.flush()
try:
    opt.add_param_group({"params": {"b": np.ones(3)}})
except OSError as error:
    try:
        opt.step([np.ones(3000, np.float32)])
        opt.flush()
        assert "no room" in str(error), "a disk that failed is believed again"
    except OSError:
        pass
    raise
"""


def tool(name):
    found = shutil.which(name)
    assert found, f"this test needs {name}: apt-get install {'strace' if name == 'strace' else 'util-linux'}"
    return found


def run_failing(code, path, call, error, n):
    """The process's end and what it said, and whether its n-th such call was made to fail."""
    log = path.with_name("strace.log")
    command = [tool("strace"), "-f", "-qq", "--seccomp-bpf", "-o", log]
    command += ["-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={n}"]
    command += [sys.executable, "-P", "-c", code, path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    injected = "(INJECTED)" in log.read_text()
    log.unlink()
    return result, injected


def calls_that_fail(code, path, call, error):
    """Make the first call fail, then only the second, and so on until there is none."""
    for n in range(1, 100):
        result, injected = run_failing(code, path, call, error, n)
        if not injected:
            assert result.returncode == 0, result.stderr
            assert n > 1, f"there is no {call} to fail"
            return
        yield n, result
    pytest.fail(f"more than 100 times {call}")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize(
    ("call", "error"),
    [("write", "ENOSPC"), ("write", "EIO"), ("fsync", "EIO"), ("rename", "EACCES"), ("chmod", "EPERM")],
)
def test_checkpoint_is_the_old_one_or_the_new_one_whatever_fails(tmp_path, suffix, call, error):
    path = tmp_path / f"model.{suffix}"
    for n, result in calls_that_fail(CHECKPOINT, path, call, error):
        w = {"a": np.zeros(3000), "b": np.zeros(7, np.float32)}
        opt = fastadam.Adam(w)
        if path.exists():
            fastadam.load(path, params=w, optimizer=opt)
            assert {x for array in w.values() for x in array} in ({1.0}, {5.0})
        if result.returncode != 0:
            assert "Error" in result.stderr.splitlines()[-1] and "Segmentation" not in result.stderr, n
        else:
            assert w["a"][0] == 1.0  # what failed did not matter
        if call == "chmod":  # never does
            assert result.returncode == 0, result.stderr
        assert [file.name for file in tmp_path.iterdir() if file != path] == [], n
        old = {"a": np.full(3000, 5.0), "b": np.full(7, 5.0, np.float32)}
        fastadam.save(path, params=old, optimizer=fastadam.Adam(old))


@pytest.mark.parametrize(
    ("call", "error"),
    [("fallocate", "ENOSPC"), ("pwrite64", "EIO"), ("fsync", "EIO"), ("msync", "EIO"), ("flock", "EINTR")],
)
def test_state_file_is_refused_or_right_whatever_fails(tmp_path, call, error):
    path = tmp_path / "state"
    for n, result in calls_that_fail(STATE_FILE, path, call, error):
        if result.returncode != 0:
            assert "Error" in result.stderr.splitlines()[-1], n
        if path.exists():
            W = np.load(tmp_path / "state.npy")
            try:
                opt = fastadam.Adam(W, state_file=path)
            except ValueError as refused:
                assert "delete it, and load a checkpoint" in str(refused)  # noqa: PT017
            else:
                own = np.zeros(1, np.float32)
                replay = fastadam.Adam(own)
                for _ in range(opt.state[0]["step"]):
                    replay.step(np.ones(1, np.float32))
                assert (own == W).all() and (opt.state[0]["exp_avg"] == replay.state[0]["exp_avg"]).all()
                del opt
        for file in tmp_path.iterdir():
            file.unlink()


FULL = """
import os, sys, numpy as np, fastadam
folder = sys.argv[1]
w = {"a": np.ones(3000)}
for suffix in "npz", "safetensors":
    path = os.path.join(folder, "model." + suffix)
    fastadam.save(path, params=w)
    before = open(path, "rb").read()
    for size in range(3000, 60_000, 3000):
        try:
            fastadam.save(path, params={"a": np.zeros(size)})
        except OSError as error:
            assert error.errno == 28 or "No space left" in str(error), error
            assert open(path, "rb").read() == before
            assert os.listdir(folder) == ["model." + suffix]
            break
        before = open(path, "rb").read()
    else:
        raise SystemExit("it is never full")
    os.unlink(path)
state = os.path.join(folder, "state")
try:
    fastadam.Adam(np.ones(100_000), state_file=state)
except OSError as error:
    assert error.errno == 28 and "no room" in str(error), error
else:
    raise SystemExit("it fitted")
assert os.listdir(folder) == []
opt = fastadam.Adam(np.ones(1000), state_file=state)
open(os.path.join(folder, "filler"), "wb", buffering=0).write(bytes(1_000_000))
for _ in range(3):
    opt.step(np.ones(1000))     # its room is its own
    opt.flush()
print("as it should be")
"""


def test_full_disk_leaves_what_there_was(tmp_path):
    script = f'mount -t tmpfs -o size=300k none {tmp_path} && exec "$@"'
    command = [tool("unshare"), "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    command += [sys.executable, "-P", "-c", FULL, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout == "as it should be\n", result.stdout + result.stderr
