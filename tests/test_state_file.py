"""State in a file: the same bits, gone on with after the process, and never trusted where it is not whole."""

import contextlib
import copy
import errno
import gc
import os
import pickle
import resource
import signal
import stat
import threading
import time

import numpy as np
import pytest
from helpers import run_python, snapshot, tame

import fastadam
from fastadam import state_file
from fastadam.state_file import FLUSHED, HEADER, TORN, WRITTEN

SETTINGS = {
    "Adam": (fastadam.Adam, {"amsgrad": True}),
    "AdamW": (fastadam.AdamW, {"ema_decay": 0.9, "accumulate": 3}),
    "SGD": (fastadam.SGD, {"lr": 0.1, "momentum": 0.5}),
    "SGD without state": (fastadam.SGD, {"lr": 0.1}),
    "RMSprop": (fastadam.RMSprop, {"momentum": 0.5, "centered": True}),
    "Adagrad": (fastadam.Adagrad, {"initial_accumulator_value": 0.5}),
    "NAdam": (fastadam.NAdam, {}),
    "RAdam": (fastadam.RAdam, {}),
    "Adamax": (fastadam.Adamax, {"max_norm": 1.0}),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


def weights():
    rng = np.random.default_rng(0)
    return {
        "W": np.asfortranarray(tame(rng, 91, np.float32).reshape(7, 13)),
        "b": tame(rng, 5, np.float64),
        "s": np.array(1.0),
        "none": np.zeros((0, 3), np.float32),
    }


def gradients(params, step):
    rng = np.random.default_rng(step)
    return {key: tame(rng, p.size, p.dtype).reshape(p.shape) if (step + i) % 3 else None
            for i, (key, p) in enumerate(params.items())}  # fmt: skip


def condition(path):
    header = np.fromfile(path, HEADER, 1)
    return header[0]["condition"] if header.size else None  # killed before there was any


def change_header(path, **values):
    header = np.memmap(path, HEADER, "r+", shape=())
    for name, value in values.items():
        header[name] = value


@pytest.mark.filterwarnings("ignore::fastadam.PerformanceWarning")
@pytest.mark.parametrize("name", SETTINGS)
def test_same_bits_as_in_memory_over_any_number_of_processes(path, name):
    make, options = SETTINGS[name]
    plain, mapped = weights(), weights()
    in_memory = make(plain, **options)
    for step in range(12):
        if step % 4 == 0:  # as another process would find it
            opt = None
            opt = make(mapped, state_file=path, **options)
            assert snapshot(opt) == snapshot(in_memory)
        if step % 5 == 4:
            opt.flush()
        in_memory.step(gradients(plain, step))
        opt.step(gradients(mapped, step))
        assert snapshot(opt) == snapshot(in_memory)


def test_another_process_goes_on_where_one_ended(tmp_path):
    code = f"""
import os, numpy as np, fastadam
path = {str(tmp_path / "W.npy")!r}
new = not os.path.exists(path)
W = np.lib.format.open_memmap(path, "w+" if new else "r+", *([np.float32, (1000,)] if new else []))
opt = fastadam.NAdam(W, lr=0.5, state_file={str(tmp_path / "state")!r})
for _ in range(3):
    opt.step(np.sin(W + opt.state[0]["step"], dtype=np.float32))
os._exit(0)
"""
    run_python(code)
    run_python(code)
    W = np.zeros(1000, np.float32)
    opt = fastadam.NAdam(W, lr=0.5)
    for step in range(6):
        opt.step(np.sin(W + step, dtype=np.float32))
    assert np.load(tmp_path / "W.npy").tobytes() == W.tobytes()
    with pytest.raises(ValueError, match="is the state of something else: optimizer: NAdam there, Adam here"):
        fastadam.Adam(W, state_file=tmp_path / "state")
    assert snapshot(fastadam.NAdam(W, lr=0.5, state_file=tmp_path / "state")) == snapshot(opt)


def test_groups_are_found_again_and_none_may_be_missing(path):
    first, second = np.ones(3), np.ones(4)
    opt = fastadam.Adam({"a": first}, state_file=path)
    opt.flush()
    opt.add_param_group({"params": {"b": second}, "lr": 0.5})
    assert condition(path) == WRITTEN
    opt.step([{"a": np.ones(3)}, {"b": np.ones(4)}])
    before = snapshot(opt)
    del opt
    opt = fastadam.Adam({"a": first}, state_file=path)
    with pytest.raises(ValueError, match="the state of 2 groups, the optimizer has 1: add the others"):
        opt.step({"a": np.ones(3)})
    with pytest.raises(ValueError, match="is the state of something else: array "):
        opt.add_param_group({"params": {"c": second}, "lr": 0.5})
    opt.add_param_group({"params": {"b": second}, "lr": 0.5})
    assert snapshot(opt) == before
    opt.step([{"a": np.ones(3)}, {"b": np.ones(4)}])
    assert opt.state["b"]["step"] == 2


def test_group_that_is_refused_leaves_the_file_as_it_was(path):
    memory = np.ones(9)
    opt = fastadam.Adam({"a": memory[:5]}, state_file=path)
    opt.step({"a": np.ones(5)})
    before = snapshot(opt)
    with pytest.raises(ValueError, match="overlap"):
        opt.add_param_group({"params": {"b": memory[4:]}})
    opt.step_one("a", np.zeros(5))
    opt.add_param_group({"params": {"b": memory[5:]}})
    del opt
    opt = fastadam.Adam([{"params": {"a": memory[:5]}}, {"params": {"b": memory[5:]}}], state_file=path)
    assert opt.state["a"]["step"] == 2 and opt.state["b"]["step"] == 0
    assert before[0][0][1]["step"] == 1


WRONG = {
    "key": lambda w: ({"V": w.pop("W"), **w}, {}),
    "shape": lambda w: (w | {"b": np.zeros(6)}, {}),
    "dtype": lambda w: (w | {"b": np.zeros(5, np.float32)}, {}),
    "order": lambda w: (w | {"W": np.ascontiguousarray(w["W"])}, {}),
    "more": lambda w: (w | {"more": np.zeros(5)}, {}),
    "amsgrad": lambda w: (w, {"amsgrad": True}),
    "ema": lambda w: (w, {"ema_decay": 0.5}),
}


@pytest.mark.parametrize("what", WRONG)
def test_file_of_something_else_is_refused_and_stays(path, what):
    fastadam.Adam(weights(), state_file=path)
    before = path.read_bytes()
    params, options = WRONG[what](weights())
    with pytest.raises(ValueError, match="is the state of something else: .* there, .* here; take another"):
        fastadam.Adam(params, state_file=path, **options)
    assert path.read_bytes() == before


def test_damaged_files_are_refused(path):
    w = np.ones(3)
    fastadam.Adam(w, state_file=path).step(np.ones(3))
    whole = path.read_bytes()
    for size in [*range(1, 300), *range(300, len(whole), 512)]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="holds no state of fastadam|is damaged|cut off"):
            fastadam.Adam(w, state_file=path)
    used = [*range(HEADER.fields["condition"][1]), *range(4096, whole.index(b"]]}") + 3)]
    for bit in (8 * byte + i for byte in used for i in range(8)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            opt = fastadam.Adam(w, state_file=path)
            assert opt.state[0]["step"] == 1  # a bit that says nothing
            del opt


@pytest.mark.parametrize("size", [0, 1, 4096])
def test_file_that_was_never_begun_is_begun(path, size):
    path.write_bytes(bytes(size))
    fastadam.Adam(np.ones(3), state_file=path).step(np.ones(3))
    assert fastadam.Adam(np.ones(3), state_file=path).state[0]["step"] == 1


@pytest.mark.parametrize("content", [b"x", b"\x93NUMPY" + bytes(9000), bytes(8192)])
def test_other_files_are_refused_and_stay(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds no state of fastadam"):
        fastadam.Adam(np.ones(3), state_file=path)
    assert path.read_bytes() == content


def test_impossible_counters_are_refused(path):
    w = np.ones(3)
    fastadam.Adam(w, state_file=path).step(np.ones(3))
    data = path.read_bytes()
    records = data.index((1).to_bytes(8, "little") + np.float64(1).tobytes())
    for field, value in (0, -1), (16, -1), (16, 2**31):
        path.write_bytes(data[: records + field] + np.int64(value).tobytes() + data[records + field + 8 :])
        with pytest.raises(ValueError, match="impossible counters"):
            fastadam.Adam(w, state_file=path)
    path.write_bytes(data[: records + 8] + np.float64("nan").tobytes() + data[records + 16 :])
    with pytest.raises(ValueError, match="impossible counters"):
        fastadam.Adam(w, state_file=path)
    path.write_bytes(data[: records + 16] + np.int64(1).tobytes() + data[records + 24 :])
    with pytest.raises(ValueError, match="impossible counters"):  # there is no sum that a gradient could be in
        fastadam.Adam(w, state_file=path)
    with pytest.raises(ValueError, match="has the version 7"):
        path.write_bytes(data)
        change_header(path, version=7)
        fastadam.Adam(w, state_file=path)


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize(
    "wrong", [[], np.ones(3, np.int32), [np.ones(3), "x"], [{"params": np.ones(3)}, {"params": np.ones(2), "lr": -1.0}]]
)
def test_optimizer_that_could_not_be_made_leaves_the_file_as_it_was(path, existed, wrong):
    if existed:
        path.touch()
    with pytest.raises((ValueError, TypeError)) as error:  # which keeps its arrays, as a notebook does
        fastadam.Adam(wrong, state_file=path)
    assert path.exists() == existed
    w = np.ones(3)
    opt = fastadam.Adam(w, state_file=path)
    opt.step(np.ones(3))
    del opt
    with pytest.raises((ValueError, TypeError)) as another:
        fastadam.Adam([{"params": w}, {"params": w}], state_file=path)
    opt = fastadam.Adam([{"params": w}, {"params": np.ones(2)}], state_file=path)
    assert [entry["step"] for entry in opt.state.values()] == [1, 0]
    assert error and another


def test_failed_constructor_leaves_a_flushed_file_flushed_and_arrays_alive(path):
    w = np.ones(3)
    fastadam.Adam(w, state_file=path).step(np.ones(3))
    assert condition(path) == FLUSHED
    with pytest.raises(ValueError, match="lr") as error:
        fastadam.Adam([{"params": w}, {"params": np.ones(10_000)}, {"params": np.ones(2), "lr": -1.0}], state_file=path)
    assert condition(path) == FLUSHED
    failed = next(entry.frame.f_locals["self"] for entry in error.traceback if "self" in entry.frame.f_locals)
    opt = fastadam.Adam([{"params": w}, {"params": np.ones(2)}], state_file=path)
    assert failed._engine.arrays[1][1].sum() == 0  # no SIGBUS
    assert [entry["step"] for entry in opt.state.values()] == [1, 0]
    opt.step([np.ones(3), np.ones(2)])
    del opt
    opt = fastadam.Adam([{"params": w}, {"params": np.ones(2)}], state_file=path)
    assert [entry["step"] for entry in opt.state.values()] == [2, 1]


def test_links_and_modes_are_left_alone(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.touch(0o600)
    link.symlink_to(target)
    with pytest.raises(ValueError, match="no arrays"):
        fastadam.Adam([], state_file=link)
    assert link.is_symlink() and target.stat().st_mode & 0o777 == 0o600
    fastadam.Adam(np.ones(3), state_file=link).step(np.ones(3))
    target.unlink()
    with pytest.raises(ValueError, match="no arrays"):
        fastadam.Adam([], state_file=link)
    assert link.is_symlink() and not target.exists()


def test_refused_file_is_not_locked_by_the_error(path):
    fastadam.Adam(np.ones(3), state_file=path)
    good = path.read_bytes()
    change_header(path, condition=TORN)
    with pytest.raises(ValueError, match="was left in the middle") as error:
        fastadam.Adam(np.ones(3), state_file=path)
    path.write_bytes(good)
    fastadam.Adam(np.ones(3), state_file=path)
    assert error


def test_path_that_is_gone_does_not_hide_what_went_wrong(path, monkeypatch):
    def gone(*_):
        path.unlink()
        raise ValueError("what went wrong")

    monkeypatch.setattr(fastadam.Adam, "_add", gone)
    with pytest.raises(ValueError, match="what went wrong"):
        fastadam.Adam(np.ones(3), state_file=path)


def test_too_long_a_description_is_refused_at_once(path, monkeypatch):
    monkeypatch.setattr(state_file, "LONGEST", 100)
    with pytest.raises(ValueError, match=r"take 1\d\d bytes in a state_file, at most 100 are allowed"):
        fastadam.Adam({"a" * 100: np.ones(3)}, state_file=path)
    assert not path.exists()


def test_optimizer_that_its_own_array_refers_to_is_freed(path):
    class Weights(np.ndarray):
        pass

    w = Weights(3)
    w[:] = 1
    w.opt = fastadam.Adam(w, state_file=path)
    del w
    gc.collect()
    fastadam.Adam(np.ones(3), state_file=path)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for wrong in tmp_path / "fifo", tmp_path, "/dev/null":
        with pytest.raises(ValueError, match="state_file .* is no regular file"):
            fastadam.Adam(np.ones(3), state_file=wrong)


@pytest.mark.parametrize("nbytes", [100, 50_000])
def test_what_lies_behind_the_last_group_is_not_taken_for_state(path, nbytes):
    """A kill, or an attempt that failed, may leave something there."""
    params, plain = [{"params": [np.ones(3)]} for _ in range(2)], [{"params": [np.ones(3)]} for _ in range(2)]
    fastadam.Adam(params[:1], state_file=path).step([[np.ones(3)]])
    with path.open("ab") as file:
        file.write(b"\1" * nbytes)
    in_memory = fastadam.Adam(plain[:1])
    in_memory.step([[np.ones(3)]])
    for _ in range(2):  # made, and found again
        opt = fastadam.Adam(params, state_file=path)
        if len(in_memory.param_groups) == 1:
            in_memory.add_param_group(plain[1])
        assert snapshot(opt) == snapshot(in_memory)
        for each in opt, in_memory:
            each.step([[np.ones(3)], [np.ones(3)]])
        assert snapshot(opt) == snapshot(in_memory)
        del opt


@pytest.mark.parametrize("replaced", [False, True])
def test_file_that_is_replaced_before_it_is_locked_is_not_written(path, monkeypatch, replaced):
    """Two optimizers with a lock each, on files of one name, would each believe that it is theirs."""
    w, flock = np.ones(3), state_file.fcntl.flock
    fastadam.Adam(w, state_file=path).step(np.ones(3))
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    first = path.open("rb")
    before = path.read_bytes()

    def lock_too_late(*arguments):
        monkeypatch.undo()
        os.replace(other, path) if replaced else path.unlink()
        flock(*arguments)

    monkeypatch.setattr(state_file.fcntl, "flock", lock_too_late)
    with pytest.raises(ValueError, match="was replaced at this moment; try again"):
        fastadam.Adam(w, state_file=path)
    with first:
        assert first.read() == before
    assert path.exists() == replaced
    assert fastadam.Adam(w, state_file=path).state[0]["step"] == replaced


@pytest.mark.parametrize("existed", [False, True])
def test_file_system_without_locks_is_refused(path, monkeypatch, existed):
    if existed:
        fastadam.Adam(np.ones(3), state_file=path)
    before = existed and path.read_bytes()

    def no_lock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(state_file.fcntl, "flock", no_lock)
    with pytest.raises(OSError, match=f"gives no lock .*; put state_file on another: '{path}'"):
        fastadam.Adam(np.ones(3), state_file=path)
    assert path.exists() == existed and (existed and path.read_bytes()) == before


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
    monkeypatch.setattr(state_file, "BOOT", path.with_name("missing"))
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
        with pytest.raises(OSError, match="the disk did not take what was flushed"):  # and may never say so again
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
        with pytest.raises(OSError, match="may be believed; save a checkpoint elsewhere"):
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


# ---- whose it is


def test_one_optimizer_at_a_time(path):
    w = np.ones(3)
    opt = fastadam.Adam(w, state_file=path)
    opt.step(np.ones(3))
    with pytest.raises(ValueError, match="is in use"):
        fastadam.Adam(w, state_file=path)
    result = run_python(
        f"import numpy as np, fastadam; fastadam.Adam(np.ones(3), state_file={str(path)!r})", check=False
    )
    assert "is in use" in result.stderr
    array = opt.state[0]["exp_avg"]
    del opt
    with pytest.raises(ValueError, match="is in use"):
        fastadam.Adam(w, state_file=path)
    assert array.tolist() == pytest.approx([0.1] * 3)  # still there
    del array
    assert fastadam.Adam(w, state_file=path).state[0]["step"] == 1


def test_forked_child_may_look_but_neither_step_nor_copy(path):
    code = f"""
import copy, os, sys, numpy as np, fastadam
w = np.ones(3)
opt = fastadam.Adam(w, state_file={str(path)!r}, ema_decay=0.5)
opt.step(np.ones(3))
before = copy.deepcopy(opt)
state = before.state_dict()
child = os.fork()
if child == 0:
    for change in (lambda: opt.step(np.ones(3)), lambda: opt.swap_ema().__enter__(), lambda: opt.flush(),
                   lambda: opt.load_state_dict(state), opt.state_dict, lambda: copy.deepcopy(opt),
                   lambda: opt.add_param_group({{"params": np.ones(2)}})):
        try:
            change()
        except RuntimeError as error:
            assert "belongs to the process that this one was forked from" in str(error)
        else:
            os._exit(1)
    assert opt.state[0]["step"] == 1
    before.step(np.ones(3))
    sys.exit(0)     # with the finalizers, which must leave the file alone
assert os.waitpid(child, 0)[1] == 0
assert opt._engine.store.header["condition"] == fastadam.state_file.WRITTEN
opt.step(np.ones(3))
assert opt.state[0]["step"] == 2
"""
    run_python(code)
    assert condition(path) == FLUSHED
    opt = fastadam.Adam(np.ones(3), state_file=path, ema_decay=0.5)
    assert opt.state[0]["step"] == 2


def test_fork_that_python_does_not_know_of_is_noticed(path):
    run_python(f"""
import ctypes, os, numpy as np, fastadam
opt = fastadam.Adam(np.ones(3), state_file={str(path)!r})
opt.step(np.ones(3))
child = ctypes.PyDLL(None).fork()
if child == 0:
    try:
        opt.step(np.ones(3))
    except RuntimeError:
        os._exit(7)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
""")


def test_forked_child_leaves_swapped_averages_alone(path):
    run_python(f"""
import os, sys, numpy as np, fastadam
w = np.ones(3)
opt = fastadam.Adam(w, lr=0.5, state_file={str(path)!r}, ema_decay=0.5)
opt.step(np.ones(3))
before = w.copy()
with opt.swap_ema():
    child = os.fork()
    if child == 0:
        sys.stderr.close()
        sys.exit(0)     # leaves the `with`
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1      # an error says why
    assert opt._engine.store.header["condition"] == fastadam.state_file.TORN
assert (w == before).all() and not (opt.ema[0] == before).any()
""")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_have_their_state_in_memory(path, copied):
    opt = fastadam.NAdam(np.ones(3), state_file=path)
    opt.step(np.ones(3))
    new = copied(opt)
    assert snapshot(new) == snapshot(opt)
    new.step(np.ones(3))
    assert (opt.state[0]["step"], new.state[0]["step"]) == (1, 2)


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


@pytest.mark.parametrize("wrong", [3.5, b"state", "x\0y", object()])
def test_what_is_no_path_is_refused(wrong):
    with pytest.raises(
        (TypeError, ValueError), match="state_file must (be a path, a str or|not have a null character)"
    ):
        fastadam.Adam(np.ones(3), state_file=wrong)


def test_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        fastadam.Adam(np.ones(3), state_file=tmp_path / "missing" / "state")
