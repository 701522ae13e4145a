"""Files are written whole or not at all; what the system refuses that is not about the data fails nothing."""

import errno
import os
import stat
import warnings

import numpy as np
import pytest

import fastadam


def loaded(path):
    new = np.zeros(1)
    fastadam.load(path, params=new)
    return new[0]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def refuse_modes(monkeypatch, error):
    def chmod(*_, **__):
        if error is not None:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "chmod", chmod)


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOTSUP, errno.EACCES, errno.EIO, None])
def test_a_mode_that_cannot_be_set_is_a_warning(path, monkeypatch, error):
    """Or is not set in silence (None)."""
    fastadam.save(path, params=np.ones(1))
    path.chmod(0o644)
    refuse_modes(monkeypatch, error)
    match = f"{path.name}' is saved with the mode 600: 644 could not be set .*"
    with pytest.warns(RuntimeWarning, match=match) as warned:
        fastadam.save(path, params=np.full(1, 2.0))
    assert [warning.filename for warning in warned] == [__file__]
    assert loaded(path) == 2.0 and os.listdir(path.parent) == [path.name] and mode(path) == 0o600
    fastadam.save(path, params=np.full(1, 3.0))  # which has the mode that it should have, and warns of nothing
    assert loaded(path) == 3.0 and mode(path) == 0o600


def test_the_warning_is_about_the_line_that_called_an_optimizer(path, monkeypatch):
    opt = fastadam.Adam(np.ones(1))
    opt.save(path)
    path.chmod(0o644)
    refuse_modes(monkeypatch, errno.EPERM)
    with pytest.warns(RuntimeWarning, match="could not be set") as warned:
        opt.save(path)
    assert [warning.filename for warning in warned] == [__file__]


def test_where_that_warning_is_an_error_nothing_has_changed(path, monkeypatch):
    weight = np.ones(1)
    opt = fastadam.Adam(weight)
    fastadam.save(path, params=weight, optimizer=opt)
    path.chmod(0o644)
    before = path.read_bytes()
    refuse_modes(monkeypatch, errno.EPERM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="could not be set"):
            weight[:] = 2.0
            fastadam.save(path, params=weight, optimizer=opt)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name] and mode(path) == 0o644
    opt.step(np.ones(1))  # nothing is locked any more


def test_a_new_file_needs_no_mode(tmp_path, monkeypatch):
    refuse_modes(monkeypatch, errno.EPERM)
    fastadam.save(tmp_path / "m.npz", params=np.ones(1))
    assert loaded(tmp_path / "m.npz") == 1.0


def test_a_mode_that_forbids_reading_is_kept(path, monkeypatch):
    fastadam.save(path, params=np.ones(1))
    path.chmod(0o200)
    original = os.open

    def as_for_others_than_root(what, *rest):
        if os.path.isfile(what) and not os.stat(what).st_mode & 0o400:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), what)
        return original(what, *rest)

    monkeypatch.setattr(os, "open", as_for_others_than_root)
    fastadam.save(path, params=np.full(1, 2.0))
    monkeypatch.undo()
    assert mode(path) == 0o200
    path.chmod(0o600)
    assert loaded(path) == 2.0


def save(folder):
    fastadam.save(folder / "m.npz", params=np.ones(1))
    return folder / "m.npz"


def make_state_file(folder):
    fastadam.Adam(np.ones(1), state_file=folder / "state").step(np.ones(1))
    return folder / "state"


def fail_for_folders(monkeypatch, call, error):
    """Make os.open or os.fsync fail, and count how often."""
    original, failed = getattr(os, call), []

    def failing(what, *rest):
        is_folder = os.path.isdir(what) if call == "open" else stat.S_ISDIR(os.fstat(what).st_mode)
        if not is_folder:
            return original(what, *rest)
        failed.append(what)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, call, failing)
    return failed


CANNOT = [("fsync", errno.EINVAL), ("fsync", errno.ENOTSUP), ("fsync", errno.EBADF), ("open", errno.EACCES)]


@pytest.mark.parametrize("write", [save, make_state_file])
@pytest.mark.parametrize(("call", "error"), CANNOT)
def test_a_folder_that_cannot_be_synced_fails_nothing(tmp_path, monkeypatch, write, call, error):
    failed = fail_for_folders(monkeypatch, call, error)
    assert write(tmp_path).exists() and failed
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("write", [save, make_state_file])
@pytest.mark.parametrize(("call", "error"), [("fsync", errno.EIO), ("fsync", errno.ENOSPC), ("open", errno.EMFILE)])
def test_a_folder_that_should_have_been_synced_is_an_error(tmp_path, monkeypatch, write, call, error):
    failed = fail_for_folders(monkeypatch, call, error)
    with pytest.raises(OSError, match=os.strerror(error)) as raised:
        write(tmp_path)
    assert raised.value.errno == error and failed


def test_cleaning_up_does_not_hide_what_went_wrong(path, monkeypatch):
    def fail(*_, **__):
        raise PermissionError(errno.EACCES, "must not be seen")

    monkeypatch.setattr(os, "unlink", fail)
    monkeypatch.setattr(type(path), "unlink", fail)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "what went wrong")))
    with pytest.raises(OSError, match="what went wrong"):
        fastadam.save(path, params=np.ones(1))


def test_a_folder_is_not_replaced(path, monkeypatch):
    path.mkdir()
    monkeypatch.setattr(os, "fsync", lambda *_: pytest.fail("all of it was written before"))
    with pytest.raises(IsADirectoryError, match=path.name):
        fastadam.save(path, params=np.ones(1))
    assert os.listdir(path.parent) == [path.name]
