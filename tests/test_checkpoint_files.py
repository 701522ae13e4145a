"""How checkpoints are written: a crash leaves the old file or the new one, and no great memory is needed."""

import errno
import itertools
import os
import resource
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from helpers import run_python

import fastadam
from fastadam.persist import checkpoint, pieces


def test_mode_and_links_are_as_users_expect(path):
    before = os.umask(0o027)
    try:
        fastadam.save(path, params=np.ones(1))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    link = path.with_name(f"latest{path.suffix}")
    link.symlink_to(path.name)
    fastadam.save(link, params=np.full(1, 2.0))
    assert link.is_symlink()
    new = np.zeros(1)
    fastadam.load(path, params=new)
    assert new[0] == 2.0


def test_a_private_file_stays_private_and_a_link_may_have_any_target(path):
    fastadam.save(path, params=np.ones(1))
    path.chmod(0o600)
    fastadam.save(path, params=np.ones(1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    blob = path.with_name("blob")
    path.rename(blob)
    path.symlink_to(blob.name)
    fastadam.save(path, params=np.full(1, 3.0))
    new = np.zeros(1)
    fastadam.load(path, params=new)
    assert new[0] == 3.0 and path.is_symlink()


def test_what_changes_while_it_is_saved_does_not_replace_what_was_saved(path, monkeypatch):
    array = np.zeros(1000)
    fastadam.save(path, params=array)
    before = path.read_bytes()
    entry = checkpoint.manifest_entry

    def change_after(stored, advance):
        made = entry(stored, advance)
        array[500] += 1
        return made

    monkeypatch.setattr(checkpoint, "manifest_entry", change_after)
    with pytest.raises(ValueError, match="is not what was saved: was it changed by another thread"):
        fastadam.save(path, params=array)
    monkeypatch.undo()
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_file_and_folder_are_synced_around_the_renaming(path, monkeypatch):
    calls = []
    replace, fsync = os.replace, os.fsync

    def watched_fsync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("replace"), replace(*names)))
    fastadam.save(path, params=np.ones(1))
    assert calls == ["file", "replace", "folder"]


@pytest.mark.parametrize(("function", "inside"), [(fastadam.save, "manifest_entry"), (fastadam.load, "verify")])
def test_no_other_thread_steps_while_a_file_is_written_or_read(path, monkeypatch, function, inside):
    weights = {"w": np.ones(3)}
    opt = fastadam.Adam(weights)
    fastadam.save(path, params=weights, optimizer=opt)
    original, free = getattr(checkpoint, inside), []

    def watched(*arguments):
        def try_lock():
            free.append(opt._engine.lock.acquire(blocking=False))

        other = threading.Thread(target=try_lock)
        other.start()
        other.join()
        return original(*arguments)

    monkeypatch.setattr(checkpoint, inside, watched)
    function(path, params=weights, optimizer=opt)
    assert free and not any(free)


def test_saving_and_loading_side_by_side_never_fails(path):
    """Each load reads one file, whatever a save puts in its place meanwhile."""
    params = {"a": np.zeros(1000), "b": np.zeros(10)}
    fastadam.save(path, params=params)
    saver = os.fork()
    if saver == 0:
        try:
            while True:
                for array in params.values():
                    array += 1
                fastadam.save(path, params=params)
        finally:
            os._exit(1)
    loaded, seen = {"a": np.zeros(1000), "b": np.zeros(10)}, set()
    try:
        end = time.monotonic() + 600
        for n in itertools.count():
            fastadam.load(path, params=loaded)
            assert (loaded["a"] == loaded["b"][0]).all()
            seen.add(loaded["b"][0])
            if (n >= 200 and len(seen) > 3) or time.monotonic() > end:
                break
    finally:
        os.kill(saver, signal.SIGKILL)
        _, status = os.waitpid(saver, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL and len(seen) > 3


def test_what_save_writes_load_takes(path):
    """Or save says that it would not, and leaves what is there."""
    fastadam.save(path, params={"a": np.ones(1)})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="shorten names"):
        fastadam.save(path, params={f"{i:050000}": np.ones(1) for i in range(400)})
    assert path.read_bytes() == before


def test_nobody_else_reads_a_private_file_while_it_is_written(path, monkeypatch):
    fastadam.save(path, params=np.ones(1))
    path.chmod(0o600)
    modes, chmod = [], os.chmod
    monkeypatch.setattr(
        os, "chmod", lambda aside, mode: (modes.append(os.stat(aside).st_mode & 0o777), chmod(aside, mode))
    )
    fastadam.save(path, params=np.ones(1))
    assert modes == [0o600] and path.stat().st_mode & 0o777 == 0o600


def test_parameters_side_by_side_in_one_buffer_are_loaded(path):
    def views(buffer):
        return [buffer[:3], buffer[3:5], buffer[5:5], buffer[5:]]

    saved, buffer = np.arange(9.0), np.zeros(9)
    fastadam.save(path, params=views(saved), optimizer=fastadam.Adam(views(saved)))
    opt = fastadam.Adam(views(buffer))
    fastadam.load(path, params=views(buffer), optimizer=opt)
    assert (buffer == saved).all()
    buffer[:] = 0
    fastadam.load(path, params=views(buffer))
    assert (buffer == saved).all()


def test_params_are_read_once_and_must_not_be_empty_or_overlap(path):
    fastadam.save(path, params=[np.arange(3.0), np.arange(3.0) + 5])
    a, b = np.zeros(3), np.zeros(3)
    fastadam.load(path, params=(x for x in (a, b)))
    assert a.tolist() == [0, 1, 2] and b.tolist() == [5, 6, 7]
    for nothing in [], {}, [[]]:
        with pytest.raises(ValueError, match="params holds no arrays"):
            fastadam.load(path, params=nothing)
    memory = np.zeros(4)
    with pytest.raises(ValueError, match="parameter 0 and parameter 1 overlap in memory"):
        fastadam.load(path, params=[memory[:3], memory[1:]])
    with pytest.raises(TypeError, match="got a masked array"):
        fastadam.load(path, params=[np.ma.masked_array(np.zeros(3)), b])
    assert not memory.any()


def test_averages_that_were_not_saved_begin_with_the_loaded_parameters(path):
    w = {"w": np.arange(3.0)}
    fastadam.save(path, params=w, optimizer=fastadam.Adam(w))
    other = {"w": np.full(3, 9.0)}
    opt = fastadam.Adam(other, ema_decay=0.9)
    fastadam.load(path, params=other, optimizer=opt)
    assert opt.ema["w"].tolist() == other["w"].tolist() == [0, 1, 2]


STAGES = ["open", "write", "fsync", "replace"]
ERRORS = OSError(28, "No space left on device"), KeyboardInterrupt()
FAILURES = [(stage, error) for stage in STAGES for error in ERRORS]


@pytest.mark.parametrize(("stage", "error"), [*FAILURES, ("chmod", KeyboardInterrupt())])
def test_a_failure_at_any_stage_leaves_the_old_file_and_no_other(path, monkeypatch, stage, error):
    params = {"a": np.ones(100)}
    fastadam.save(path, params=params)
    before = path.read_bytes()

    def fail(*_, **__):
        raise error

    if stage == "write":
        monkeypatch.setattr(checkpoint.FORMATS[path.suffix], "write", fail)
    else:
        monkeypatch.setattr(os, stage, fail)
    params["a"] += 1
    with pytest.raises(type(error)):
        fastadam.save(path, params=params)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(sys.platform != "linux", reason="sets limits of Linux")
def test_a_full_disk_leaves_the_old_file(path):
    """A limit on the size of files fails writes in the middle, in whatever library they happen."""
    fastadam.save(path, params=np.ones(10))
    before = path.read_bytes()
    code = f"""
import resource, signal, numpy as np, fastadam
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    fastadam.save({str(path)!r}, params=np.ones(1_000_000))
except Exception as error:
    print(type(error).__name__)
else:
    raise AssertionError("it fitted?")
"""
    run_python(code)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def save_for_ever(path, weights, opt):
    while True:
        for array in weights.values():
            array += 1
        fastadam.save(path, params=weights, optimizer=opt)


def check_kills(path, trials):
    weights = {"a": np.zeros((300, 300)), "b": np.zeros(7, np.float32)}
    opt = fastadam.SGD(weights, lr=1.0, momentum=0.5)
    begin = time.perf_counter()
    fastadam.save(path, params=weights, optimizer=opt)
    one_save = time.perf_counter() - begin
    rng = np.random.default_rng(0)
    last, leftovers, done = 0.0, 0, 0
    while done < trials or (done < 20 * trials and not (last and leftovers)):
        done += 1
        begun, begin_saving = os.pipe()
        saver = os.fork()
        if saver == 0:
            try:
                os.write(begin_saving, b".")
                save_for_ever(path, weights, opt)
            finally:
                os._exit(1)
        os.read(begun, 1)  # on a busy machine it may take long until the child runs
        os.close(begun)
        os.close(begin_saving)
        time.sleep(rng.uniform(0, 4 * one_save))
        os.kill(saver, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(saver, 0)[1]) == signal.SIGKILL
        fastadam.load(path, params=weights, optimizer=opt)  # verified, or an error
        now = weights["a"][0, 0]
        assert (weights["a"] == now).all() and (weights["b"] == now).all() and now >= last
        last = now
        left = [name for name in os.listdir(path.parent) if name != path.name]
        leftovers += len(left)
        for name in left:
            (path.parent / name).unlink()
    assert last > 0 and leftovers > 0, "no kill came in the middle: this test no longer tests anything"


def test_a_kill_at_any_instant_leaves_a_whole_file(path):
    check_kills(path, 20)


@pytest.mark.slow
def test_two_hundred_kills_leave_whole_files(path):
    check_kills(path, 200)


# ---- what is in a file


def of_every_type():
    rng = np.random.default_rng(0)
    names = ["bool", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
    arrays = {f"{name} é\n": rng.integers(0, 100, (3, 5)).astype(name) for name in names}
    return {
        **arrays,
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "Fortran": np.asfortranarray(rng.standard_normal((7, 5))),
        "transposed": rng.standard_normal((4, 3, 5)).transpose(1, 2, 0),
        "reversed": np.arange(20, dtype=np.int16)[::-2],
        "misaligned": np.arange(41, dtype=np.uint8)[1:].view(np.float32),
    }


@pytest.mark.parametrize("piece", [16, 100, 1 << 24])
def test_files_are_those_that_the_formats_own_packages_write(path, monkeypatch, piece):
    """To the byte, in whatever pieces; and those that the packages write are loaded."""
    monkeypatch.setattr(pieces, "PIECE", piece)
    params = of_every_type()
    opt = fastadam.Adam({"w": np.ones((9, 7))})
    fastadam.save(path, params=params, optimizer=opt, metadata={"é": "\n"})
    written = path.read_bytes()
    if path.suffix == ".npz":
        loaded = dict(np.load(path))
        np.savez(path, **loaded)
    else:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata()
        loaded = safetensors.numpy.load_file(path)
        safetensors.numpy.save_file(loaded, path, metadata)
    assert path.read_bytes() == written
    for name, array in params.items():
        found = loaded[f"params/{name}"]
        assert (found.dtype, found.tobytes()) == (array.dtype, array.tobytes()), name
    new = {name: np.zeros(array.shape, array.dtype) for name, array in params.items()}
    fastadam.load(path, params=new, optimizer=opt)
    assert all((new[name] == array).all() for name, array in params.items())


# ---- memory


def check_memory(path, mebibytes):
    """With 32 MiB to spare, saving and loading need no more; a copy of the arrays would not fit."""

    def status(what):
        return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(what))

    def model(n):
        w = {"w": np.ones((n, 1 << 17), np.float32), "f": np.ones((1 << 17, n), np.float32)}
        opt = fastadam.SGD(w, lr=0.5, momentum=0.5)
        opt.step({"w": np.ones_like(w["w"]), "f": np.ones_like(w["f"])})
        return {"params": w, "optimizer": opt}

    small, large = model(1), model(mebibytes)  # so many MiB of state
    for options in small, {**small, "mmap": False}:  # which imports what is needed
        fastadam.save(path, **small)
        fastadam.load(path, **options)
    Path("/proc/self/clear_refs").write_text("5")
    before, spare = status("VmRSS"), 32 << 20
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + spare, resource.RLIM_INFINITY))
    fastadam.save(path, **large)
    print("saving:", status("VmHWM") - before >> 20, "MiB")
    assert status("VmHWM") - before < spare
    for w in large["params"].values():
        w[...] = 0
    with pytest.raises(MemoryError):
        fastadam.load(path, **large, mmap=False)
    assert not large["params"]["w"].any()
    fastadam.load(path, **large)
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (large["params"]["w"] == 0.5).all() and large["optimizer"].state["f"]["momentum_buffer"].all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("mebibytes", [64, pytest.param(256, marks=pytest.mark.slow)])
def test_saving_and_loading_need_little_memory(path, mebibytes):
    tests = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_checkpoint_files as t"
    print(run_python(f"{tests}; t.check_memory(t.Path({str(path)!r}), {mebibytes})").stdout)


def test_file_that_cannot_be_mapped_is_read(path, monkeypatch):
    def no_map(*_, **__):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    fastadam.save(path, params=np.arange(5.0))
    monkeypatch.setattr(np, "memmap", no_map)
    w = np.zeros(5)
    fastadam.load(path, params=w)
    assert w.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 100), lambda path: os.utime(path, (1, 1))])
def test_file_that_is_written_into_while_it_is_loaded_is_refused_or_read_before(path, monkeypatch, change):
    fastadam.save(path, params=np.arange(5.0))
    whole, verify, w = path.read_bytes(), checkpoint.verify, np.zeros(5)
    monkeypatch.setattr(checkpoint, "verify", lambda *arguments: (verify(*arguments), change(path)))
    with pytest.raises(ValueError, match="is damaged: it was written into while it was read"):
        fastadam.load(path, params=w)
    assert not w.any()
    path.write_bytes(whole)
    fastadam.load(path, params=w, mmap=False)
    assert w.tolist() == [0, 1, 2, 3, 4]


def test_importing_loads_nothing_that_only_files_need():
    code = """
import sys, numpy
before = set(sys.modules)
import fastadam
new = set(sys.modules) - before
assert not new & {"fastadam.persist", "json", "mmap", "fcntl", "hashlib", "secrets"}, new
assert {"save", "load", "inspect"} <= set(dir(fastadam))
from fastadam import save
assert "fastadam.persist.checkpoint" in sys.modules and fastadam.save is save
"""
    run_python(code)
