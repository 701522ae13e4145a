"""Writing files: whole or not at all.

What concerns the data must succeed. The file's mode, and syncing a folder where that cannot be done, may fail.
"""

import errno
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastadam._checks import level_of_caller

# Some systems cannot open or sync folders, and a folder may be closed to readers. Without the sync a new name in it may
# be lost in a power failure; what it names is whole in any case.
NO_FOLDER_SYNC = {errno.EACCES, errno.EPERM, errno.EISDIR, errno.EBADF, errno.EINVAL, errno.ENOSYS}
NO_FOLDER_SYNC |= {errno.ENOTSUP, errno.EOPNOTSUPP}


def as_path(path: Any, name: str) -> str:
    """A path that an argument of this name gives."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        way_out = f"; use os.fsdecode({name})" if isinstance(text, bytes) else ""
        raise TypeError(f"{name} must be a path, a str or os.PathLike, got a {type(text).__name__}{way_out}")
    if "\0" in text:
        raise ValueError(f"{name} must not have a null character in it, got {text!r}")
    return text


def write_aside(target: Path, write: Callable[[Path], None]) -> None:
    """Write a file next to the target, and put it in the target's place when it is safely on the disk."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    aside = target.with_name(f".fastadam.{os.urandom(8).hex()}")
    with folder_of(target) as sync_folder:
        try:
            # As the file that is replaced, and until then for nobody else; or what the umask leaves of a new one.
            mode = mode_of(target)
            os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600))
            if mode is None:
                mode = mode_of(aside)
            write(aside)
            descriptor = os.open(aside, os.O_RDONLY)  # before the mode may forbid it
            try:
                set_mode(aside, mode, target)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(aside, target)
            sync_folder()
        except BaseException:
            with suppress(OSError):  # which would hide what went wrong
                aside.unlink()
            raise


@contextmanager
def folder_of(path: str | Path) -> Iterator[Callable[[], None]]:
    """A function that syncs the folder that a file is in, where that can be done."""
    folder = None
    with only_data_matters():
        folder = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY)

    def sync() -> None:
        if folder is not None:
            with only_data_matters():
                os.fsync(folder)

    try:
        yield sync
    finally:
        if folder is not None:
            os.close(folder)


@contextmanager
def only_data_matters() -> Iterator[None]:
    """A folder that this system cannot open or sync is passed over."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def mode_of(path: Path) -> int | None:
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        return None


def set_mode(path: Path, mode: int | None, target: Path) -> None:
    """Some file systems refuse or ignore modes (CIFS, NFSv4). The warning comes while nothing has changed."""
    if mode is None:
        return
    why = "the file system ignores it"
    try:
        os.chmod(path, mode)
    except OSError as error:
        why = error.strerror or str(error)
    has = mode_of(path)
    if has not in (mode, None):
        warnings.warn(
            f"{str(target)!r} is saved with the mode {has:o}: {mode:o} could not be set ({why}); set it, if it matters",
            RuntimeWarning,
            stacklevel=level_of_caller(),
        )
