"""State in a file: the same bits, gone on with after the process, and never trusted where it is not whole."""

import contextlib
import copy
import errno
import gc
import os
import pickle

import numpy as np
import pytest
from files import change_header, condition
from helpers import run_python, snapshot, tame

import fastadam
from fastadam.persist import statefile
from fastadam.persist.statefile import FLUSHED, HEADER, TORN, WRITTEN

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
    used = [*range(HEADER.itemsize + 1), *range(4096, whole.index(b"]]}") + 3)]
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
    monkeypatch.setattr(statefile, "LONGEST", 100)
    with pytest.raises(ValueError, match=r"take 2\d\d bytes in a state_file, at most 100 are allowed"):
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
        with pytest.raises(ValueError, match="state_file .* is not a regular file"):
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
    w, flock = np.ones(3), statefile.fcntl.flock
    fastadam.Adam(w, state_file=path).step(np.ones(3))
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    first = path.open("rb")
    before = path.read_bytes()

    def lock_too_late(*arguments):
        monkeypatch.undo()
        os.replace(other, path) if replaced else path.unlink()
        flock(*arguments)

    monkeypatch.setattr(statefile.fcntl, "flock", lock_too_late)
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

    monkeypatch.setattr(statefile.fcntl, "flock", no_lock)
    with pytest.raises(OSError, match=f"gives no lock .*; put state_file on another: '{path}'"):
        fastadam.Adam(np.ones(3), state_file=path)
    assert path.exists() == existed and (existed and path.read_bytes()) == before


# ---- whose it is


def test_one_optimizer_at_a_time(path):
    w = np.ones(3)
    opt = fastadam.Adam(w, state_file=path)
    opt.step(np.ones(3))
    with pytest.raises(ValueError, match="is in use"):
        fastadam.Adam(w, state_file=path)
    code = f"import numpy as np, fastadam; fastadam.Adam(np.ones(3), state_file={str(path)!r})"
    result = run_python(code, check=False)
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
assert opt._engine.store.header["condition"] == fastadam.persist.statefile.WRITTEN
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
    assert opt._engine.store.header["condition"] == fastadam.persist.statefile.TORN
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


@pytest.mark.parametrize("wrong", [3.5, b"state", "x\0y", object()])
def test_what_is_no_path_is_refused(wrong):
    with pytest.raises(
        (TypeError, ValueError), match="state_file must (be a path, a str or|not have a null character)"
    ):
        fastadam.Adam(np.ones(3), state_file=wrong)


def test_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        fastadam.Adam(np.ones(3), state_file=tmp_path / "missing" / "state")


def test_system_without_file_locks_says_what_to_do(path):
    run_python(f"""
import sys
sys.modules["fcntl"] = None     # as on Windows
import numpy as np, fastadam
fastadam.Adam(np.ones(3)).step(np.ones(3))
try:
    fastadam.Adam(np.ones(3), state_file={str(path)!r})
except RuntimeError as error:
    assert "state_file needs file locks" in str(error) and "fastadam.save" in str(error)
else:
    raise SystemExit(1)
""")
    assert not path.exists()
