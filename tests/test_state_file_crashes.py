"""State in a file after a crash: what is whole goes on, what is not is refused; disks that fail or are full."""

import copy
import errno
import os
import resource
import signal
import stat
import threading
import time

import numpy as np
import pytest
from files import change_header, condition
from helpers import run_python, snapshot

import fastadam
from fastadam.persist import statefile
from fastadam.persist.statefile import FLUSHED, HEADER, TORN, WRITTEN


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


# ---- what is whole, and what is not


def test_condition_around_steps_and_flushes(path):
    w = np.ones(3)
    opt = fastadam.Adam(w, state_file=path, ema_decay=0.5)
    assert condition(path) == WRITTEN
    opt.flush()
    assert condition(path) == FLUSHED
    opt.step(np.ones(3))
    assert condition(path) == WRITTEN
    with opt.swap_ema():
        assert condition(path) == TORN
        with pytest.raises(RuntimeError, match="averages"):
            opt.flush()
    assert condition(path) == WRITTEN
    opt.flush()
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert condition(path) == WRITTEN
    del opt
    assert condition(path) == FLUSHED


def test_machine_that_went_down_is_noticed_unless_all_was_flushed(path):
    w = np.ones(3)
    opt = fastadam.Adam(w, state_file=path)
    opt.step(np.ones(3))
    change_header(path, boot=b"before")
    copied = path.with_name("as it was")
    copied.write_bytes(path.read_bytes())
    opt.flush()
    del opt
    change_header(path, boot=b"before")
    assert fastadam.Adam(w, state_file=path).state[0]["step"] == 1
    for boot in b"before", b"":
        change_header(copied, boot=boot)
        with pytest.raises(ValueError, match="had not been flushed when the machine that wrote it went down"):
            fastadam.Adam(w, state_file=copied)


def test_step_after_the_machine_went_down_is_of_this_boot(path):
    w = np.ones(3)
    fastadam.Adam(w, state_file=path).step(np.ones(3))
    change_header(path, boot=b"before")  # flushed, so what it says of the boot does not matter
    opt = fastadam.Adam(w, state_file=path)
    opt.step(np.ones(3))
    killed = path.with_name("killed")
    killed.write_bytes(path.read_bytes())  # as a kill would leave it
    assert condition(killed) == WRITTEN
    assert fastadam.Adam(w, state_file=killed).state[0]["step"] == 2


def test_where_the_system_does_not_say_only_flushed_files_are_trusted(path, monkeypatch):
    monkeypatch.setattr(statefile, "BOOT", path.with_name("missing"))
    w = np.ones(3)
    opt = fastadam.Adam(w, state_file=path)
    opt.step(np.ones(3))
    unflushed = path.with_name("unflushed")
    unflushed.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="had not been flushed"):
        fastadam.Adam(w, state_file=unflushed)
    del opt
    assert fastadam.Adam(w, state_file=path).state[0]["step"] == 1


def fail(mapped):
    raise OSError(5, "Input/output error")


def test_first_change_after_a_flush_is_announced_on_the_disk_before(path, monkeypatch):
    changes = [
        lambda opt: opt.step(np.ones(3)),
        lambda opt: opt.step_one(0, np.ones(3)),
        lambda opt: opt.load_state_dict(copy.deepcopy(opt.state_dict())),
        lambda opt: opt.swap_ema().__enter__(),
        lambda opt: opt.add_param_group({"params": np.ones(2)}),
    ]
    for i, change in enumerate(changes):
        opt = fastadam.Adam(np.ones(3), state_file=path, ema_decay=0.5)
        opt.flush()
        before = snapshot(opt), path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(np.memmap, "flush", fail)
            with pytest.raises(OSError, match="Input/output"):
                change(opt)
        assert (snapshot(opt), path.read_bytes()) == before, i
        with pytest.raises(OSError, match="writing to disk failed"):  # and may never say so again
            change(opt)
        del opt


def test_flush_that_failed_is_the_end_of_a_file_but_not_of_the_optimizer(path, monkeypatch):
    opt = fastadam.Adam(np.ones(3), state_file=path)
    opt.step(np.ones(3))
    with monkeypatch.context() as patch:
        patch.setattr(np.memmap, "flush", fail)
        with pytest.raises(OSError, match="Input/output"):
            opt.flush()
    for change in opt.flush, lambda: opt.step(np.ones(3)):
        with pytest.raises(OSError, match="nothing in the file can be trusted; save a checkpoint elsewhere"):
            change()
    assert copy.deepcopy(opt).state[0]["step"] == 1
    assert condition(path) == TORN


def test_ctrl_c_in_a_flush_hides_nothing(path, monkeypatch):
    opt = fastadam.Adam(np.ones(3), state_file=path)
    on_disk = []

    class Watched(np.memmap):
        def flush(self):
            super().flush()
            if self.dtype == HEADER:
                on_disk.append(condition(path))
                if on_disk == [FLUSHED]:
                    raise KeyboardInterrupt

    opt._engine.store.header = opt._engine.store.header.view(Watched)
    with pytest.raises(KeyboardInterrupt):
        opt.flush()
    opt.step(np.ones(3))
    assert on_disk == [FLUSHED, WRITTEN]


def test_nothing_flushes_inside_a_step(path):
    opt = fastadam.Adam(np.ones(3), lr=lambda count: opt.flush() or 0.1, state_file=path)
    with pytest.raises(RuntimeError, match="from inside its own step"):
        opt.step(np.ones(3))


def test_only_all_of_a_file_is_flushed(path):
    memory, second = np.ones(6), np.ones(4)
    first = memory[:3]
    run_python(f"""
import os, numpy as np, fastadam
opt = fastadam.Adam([{{"params": np.ones(3)}}, {{"params": {{1: np.ones(4)}}}}], state_file={str(path)!r})
opt.step([np.ones(3), {{1: np.ones(4)}}])
os._exit(0)
""")
    with pytest.raises(ValueError, match="something else"):
        fastadam.Adam(second, state_file=path)
    assert condition(path) == WRITTEN
    opt = fastadam.Adam(first, state_file=path)
    with pytest.raises(ValueError, match="has the state of 2 groups, the optimizer has 1"):
        opt.flush()
    with pytest.raises(ValueError, match="overlap"):
        opt.add_param_group({"params": {1: memory[2:]}})  # like the second group, but refused
    with pytest.raises(ValueError, match="has the state of 2 groups, the optimizer has 1"):
        opt.flush()
    del opt
    assert condition(path) == WRITTEN
    opt = fastadam.Adam([{"params": first}, {"params": {1: second}}], state_file=path)
    assert [entry["step"] for entry in opt.state.values()] == [1, 1]
    opt.flush()
    with pytest.raises(ValueError, match="overlap"):
        opt.add_param_group({"params": {2: memory[2:]}})  # a third one, which is not to be
    opt.step([np.ones(3), {1: np.ones(4)}])
    del opt
    assert condition(path) == FLUSHED


def test_end_of_python_leaves_a_step_in_another_thread_alone(path):
    opt = fastadam.Adam(np.ones(3), state_file=path)
    opt.step(np.ones(3))
    store = opt._engine.store
    with opt._engine:  # as if in a step
        thread = threading.Thread(target=store.close, args=(opt._engine.lock,))
        thread.start()
        thread.join()
        assert condition(path) == WRITTEN


def test_signal_while_a_step_is_announced_may_resize_the_gradient(path):
    run_python(f"""
import numpy as np, fastadam
g = np.ones(1_000_000)
opt = fastadam.Adam(np.ones(1_000_000), state_file={str(path)!r})
opt.flush()
class Header(np.memmap):
    def flush(self):
        super().flush()
        g.resize(3, refcheck=False)     # a signal handler could
opt._engine.store.header = opt._engine.store.header.view(Header)
try:
    opt.step(g)
except ValueError as error:
    assert "shape" in str(error)
else:
    raise SystemExit(1)
""")


def test_what_is_written_into_the_state_is_flushed_too(path):
    opt = fastadam.Adam(np.ones(3), state_file=path)
    opt.flush()
    synced = []

    class Watched(np.memmap):
        def flush(self):
            synced.append(self.nbytes)

    store = opt._engine.store
    store.maps[0] = store.maps[0].view(Watched)
    opt.state[0]["exp_avg"][:] = 1
    opt.flush()
    assert synced == [path.stat().st_size - 4096]


def test_flush_syncs_parameters_and_state_before_it_says_so(tmp_path, monkeypatch):
    import mmap

    synced = []

    class Watched(mmap.mmap):
        def flush(self, *where):
            synced.append((len(self), condition(path) if path.exists() else None))
            return super().flush(*where)

    monkeypatch.setattr(mmap, "mmap", Watched)
    path = tmp_path / "state"
    a = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.float32, (5000,))
    b = np.memmap(tmp_path / "b", np.float64, "w+", shape=(2000,))
    plain = np.ones(3)
    opt = fastadam.SGD([a, b[:1000], b[1000:], plain], lr=1.0, momentum=0.5, state_file=path)
    opt.step([np.ones(5000, np.float32), np.ones(1000), np.ones(1000), np.ones(3)])
    synced.clear()
    opt.flush()
    parameters, state, header = synced[:2], synced[2:-1], synced[-1]
    assert parameters == [(20128, WRITTEN), (16000, WRITTEN)]
    assert state == [(path.stat().st_size - 4096, WRITTEN)]
    assert header == (HEADER.itemsize, FLUSHED)
    synced.clear()
    fastadam.Adam([a, b]).flush()  # without a state file: the parameters
    assert len(synced) == 2


def step_for_ever(folder):
    W = np.lib.format.open_memmap(folder / "W.npy", "r+")
    opt = fastadam.NAdam(W, state_file=folder / "state", accumulate=2)
    gradient = np.ones_like(W)
    while True:
        opt.step(gradient)


def check_kills(folder, trials):
    seen = {"whole": 0, "torn": 0}
    rng = np.random.default_rng(0)
    done = 0
    while done < trials or (done < 20 * trials and not all(seen.values())):
        done += 1
        if not (folder / "state").exists():
            np.save(folder / "W.npy", np.zeros(30_000, np.float32))
        stepper = os.fork()
        if stepper == 0:
            try:
                step_for_ever(folder)
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(stepper, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(stepper, 0)[1]) == signal.SIGKILL
        if (folder / "state").exists() and condition(folder / "state") == TORN:
            seen["torn"] += 1
            with pytest.raises(ValueError, match="was left in the middle of a step"):
                fastadam.NAdam(np.load(folder / "W.npy"), state_file=folder / "state", accumulate=2)
            (folder / "state").unlink()
            continue
        W = np.lib.format.open_memmap(folder / "W.npy", "r+")
        opt = fastadam.NAdam(W, state_file=folder / "state", accumulate=2)
        entry = opt.state[0]
        seen["whole"] += entry["step"] > 0
        one = np.zeros(1, np.float32)
        replay = fastadam.NAdam(one, accumulate=2)
        for _ in range(2 * entry["step"] + entry["grad_count"]):
            replay.step(np.ones(1, np.float32))
        assert (one == W).all()
        for name, value in replay.state[0].items():
            if name != "grad_sum" or entry["grad_count"]:
                assert np.all(value == entry[name]), name
        opt = entry = None  # and with them the lock on the file, which the next child would have, too
    print(done, "kills:", seen)
    assert all(seen.values()), f"{seen}: this test no longer tests anything"


def test_a_kill_at_any_instant_is_survived_or_noticed(tmp_path):
    check_kills(tmp_path, 20)


@pytest.mark.slow
def test_two_hundred_kills_are_survived_or_noticed(tmp_path):
    check_kills(tmp_path, 200)


def test_end_inside_swap_ema_is_noticed(path):
    run_python(f"""
import os, numpy as np, fastadam
opt = fastadam.Adam(np.ones(3), state_file={str(path)!r}, ema_decay=0.5)
with opt.swap_ema():
    os._exit(0)
""")
    with pytest.raises(ValueError, match="was left in the middle of a step .*delete it, and load a checkpoint"):
        fastadam.Adam(np.ones(3), state_file=path, ema_decay=0.5)


def test_way_out_that_the_message_names_works(tmp_path):
    path, checkpoint = tmp_path / "state", tmp_path / "checkpoint.npz"
    w = {"w": np.ones(3)}
    opt = fastadam.Adam(w, state_file=path)
    opt.step({"w": np.ones(3)})
    fastadam.save(checkpoint, params=w, optimizer=opt)
    before = snapshot(opt)
    opt.step({"w": np.ones(3)})
    del opt
    change_header(path, condition=TORN)
    with pytest.raises(ValueError, match="delete it, and load a checkpoint into a new one"):
        fastadam.Adam(w, state_file=path)
    path.unlink()
    opt = fastadam.Adam(w, state_file=path)
    fastadam.load(checkpoint, params=w, optimizer=opt)
    assert snapshot(opt) == before
    del opt
    assert snapshot(fastadam.Adam(w, state_file=path)) == before


# ---- the disk


def test_full_disk_is_an_error_at_the_beginning_and_leaves_nothing(path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(OSError, match="no room for .* bytes of state"):
            fastadam.Adam(np.ones(10_000), state_file=path)
        assert not path.exists()
        opt = fastadam.Adam(np.ones(1000), state_file=path)
        opt.step(np.ones(1000))
        size, before = path.stat().st_size, snapshot(opt)
        with pytest.raises(OSError, match="no room for .* bytes of state"):
            opt.add_param_group({"params": np.ones(10_000)})
        assert path.stat().st_size == size and snapshot(opt) == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    opt.add_param_group({"params": np.ones(10_000)})
    opt.step([np.ones(1000), np.ones(10_000)])


def test_room_on_the_disk_is_reserved(path):
    fastadam.Adam(np.ones(1_000_000), state_file=path)
    assert path.stat().st_blocks * 512 >= 16_000_000


def watch_syncs(monkeypatch):
    """What is synced: the number of a folder, or the size of a file."""
    synced, fsync = [], os.fsync

    def watched(descriptor):
        descriptor = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        about = os.fstat(descriptor)
        synced.append(("folder", about.st_ino) if stat.S_ISDIR(about.st_mode) else ("file", about.st_size))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    return synced


def test_room_and_its_name_are_on_the_disk_before_anything_is_written_into_it(path, monkeypatch):
    synced = watch_syncs(monkeypatch)
    opt = fastadam.Adam(np.ones(1000), state_file=path)
    folder, size = ("folder", path.parent.stat().st_ino), path.stat().st_size
    assert synced == [("file", 4096), folder, ("file", size), folder]
    synced.clear()
    opt.add_param_group({"params": np.ones(2000)})
    assert synced == [("file", path.stat().st_size), folder] and path.stat().st_size > size


def test_folder_of_what_a_link_leads_to_is_synced(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "state")
    synced = watch_syncs(monkeypatch)
    fastadam.Adam(np.ones(3), state_file=tmp_path / "link")
    folders = {number for kind, number in synced if kind == "folder"}
    assert folders == {(tmp_path / "elsewhere").stat().st_ino}


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM])
def test_room_is_written_where_it_cannot_be_reserved(path, monkeypatch, error):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    opt = fastadam.Adam(np.ones(10_000), state_file=path)
    assert path.stat().st_blocks * 512 >= path.stat().st_size >= 160_000
    opt.step(np.ones(10_000))
    assert opt.state[0]["step"] == 1
