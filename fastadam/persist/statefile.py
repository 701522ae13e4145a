"""State in a memory-mapped file: it may be larger than memory, and a later process resumes from it.

The first page says in what condition the file is. Then follow, for each group, a text (what the state is of), the
counters, and the block that holds the state's arrays. The engine writes the condition around every change:

* FLUSHED: all of it is on the disk.
* WRITTEN: changed since, by whole steps. It is whole unless the machine went down since: what a process wrote stays
  with the operating system, however the process ends.
* TORN: in the middle of a change.

While the page in memory says FLUSHED, the page on the disk may, too. So the first change after that syncs the page.
"""

import errno
import json
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastadam._checks import maps_of
from fastadam._layout import CODE, FLUSHED, HEAD, HEADER, LOW, PAGE, RECORD, TORN, WRITTEN
from fastadam.persist.atomic import as_path, folder_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

VERSION = 3
LONGEST = 1 << 26  # bytes: what may describe a group
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Section:
    """The part of a file that belongs to a group."""

    records: np.ndarray
    block: np.ndarray
    fresh: bool  # no state is in it yet


class StateFile:
    """A file that an engine keeps its state in. Locked, until the last array in it is gone."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = as_path(path, "state_file")
        if fcntl is None:
            raise RuntimeError(
                "state_file needs file locks (fcntl), which this system does not have; leave it out, and keep the "
                "state with fastadam.save"
            )
        self.owner = os.getpid()
        self.broken = False  # writing to disk failed once; the system may have forgotten that it did
        self.maps: list[np.memmap] = []  # of the groups that an engine has
        self.params: list[list[mmap.mmap]] = []  # and what their parameters are mapped from, if they are
        self.existed = os.path.exists(self.path)
        if self.existed and not os.path.isfile(self.path):
            raise ValueError(f"state_file {self.path!r} is not a regular file")
        self.file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
        try:
            self.open()
        except BaseException:
            self.unlock()
            raise

    def open(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"state_file {self.path!r} is in use: by another process, or by an optimizer of this one, or by an "
                "array of its state; end or delete that, or take another path"
            ) from None
        except OSError as error:  # without a lock, two processes could step in one file
            self.remove()
            why = f"its file system gives no lock ({error.strerror}); put state_file on another"
            raise OSError(error.errno, why, self.path) from error
        if not self.is_in_place():
            raise ValueError(f"state_file {self.path!r} was replaced at this moment; try again")
        self.new = self.size() <= PAGE and not any(os.pread(self.file.fileno(), PAGE, 0))  # or never begun
        if self.new:
            try:
                self.reserve(0, PAGE)
                header = np.array((b"fastadam", VERSION, WRITTEN, 0, this_boot()), HEADER)
                os.pwrite(self.file.fileno(), header.tobytes(), 0)  # in one call, which no kill divides
            except BaseException:
                self.remove()
                raise
        raw = os.pread(self.file.fileno(), HEADER.itemsize, 0).ljust(HEADER.itemsize)
        self.found = np.frombuffer(raw, HEADER)[0]
        if not self.new:
            self.check_condition(*self.found.item())
        self.header = np.memmap(self.file, HEADER, "r+", shape=())

    def is_in_place(self) -> bool:
        """Is it still this file that the path names?"""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path))
        return False

    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def groups(self) -> int:
        return int(self.header["groups"]) // CODE

    def check_condition(self, magic: bytes, version: int, condition: int, groups: int, boot: bytes) -> None:
        known = magic == b"fastadam" and condition in (FLUSHED, WRITTEN, TORN)
        if not known or groups < 0 or groups % CODE or self.size() < PAGE:
            raise ValueError(f"state_file {self.path!r} holds no state of fastadam; take another path")
        if version != VERSION:
            raise ValueError(
                f"state_file {self.path!r} has the version {version}, and this fastadam reads {VERSION}: save a "
                "checkpoint with the fastadam that wrote it, and load that into a new file"
            )
        if condition == TORN:
            why = "was left in the middle of a step (or of loading, or of swap_ema), so only a part of it is new"
        elif condition == WRITTEN and (boot != this_boot() or not boot):
            why = "had not been flushed when the machine that wrote it went down, so parts of it may be older"
        else:
            return
        raise ValueError(
            f"state_file {self.path!r} {why}; parameters in files of their own may be so, too; delete it, and load a "
            "checkpoint into a new one"
        )

    def reserve(self, start: int, nbytes: int) -> None:
        """Room on the disk, so that there is an error now and not a SIGBUS in the middle of a step."""
        before = self.size()
        try:
            # What an attempt that failed has left is not cut off: a traceback may show arrays in it.
            write_zeros(self.file.fileno(), start, min(before, start + nbytes))
            allocate(self.file.fileno(), start, nbytes)
            os.fsync(self.file.fileno())
        except OSError as error:
            with suppress(OSError):  # which would hide what went wrong
                os.ftruncate(self.file.fileno(), before)
            if error.errno not in FULL:
                self.broken = True
                raise
            raise OSError(error.errno, f"no room for {nbytes} bytes of state: {error.strerror}", self.path) from error
        with folder_of(self.path) as sync_folder:
            sync_folder()

    def abandon(self) -> None:
        """After an optimizer could not be made: leave the file as it was, or no file where there was none."""
        if self.file.closed:
            return
        try:
            if self.new:
                self.remove()
            self.header["groups"] = self.found["groups"]
            if self.found["condition"] == FLUSHED and self.header["condition"] == WRITTEN and not self.broken:
                self.header["condition"] = FLUSHED
                self.header.flush()
        finally:
            self.unlock()

    def remove(self) -> None:
        """Unless the file was there before, empty; then an empty state file stays."""
        with suppress(OSError):  # which would hide what went wrong
            if not self.existed and self.is_in_place():
                os.unlink(os.path.realpath(self.path))

    def unlock(self) -> None:
        """At once: an error keeps arrays alive, and they would keep the lock."""
        with self.file, suppress(OSError):  # which would hide what went wrong
            fcntl.flock(self.file, fcntl.LOCK_UN)

    def section(self, group: int, about: dict[str, Any], params: Sequence[np.ndarray], nbytes: int) -> Section:
        """For the next group: what the file has, if its text is `about`, or a fresh section."""
        self.check_owner()
        start, fresh = PAGE + sum(mapped.nbytes for mapped in self.maps), group >= self.groups()
        text = json.dumps(about).encode()
        if len(text) > LONGEST:
            raise ValueError(
                f"the names and shapes of a group's arrays take {len(text)} bytes in a state_file, at most {LONGEST} "
                "are allowed; make fewer and larger arrays, or several groups"
            )
        records = HEAD.itemsize + -(-len(text) // 64) * 64
        block = -(-(records + len(params) * RECORD.itemsize) // PAGE) * PAGE
        whole = block + -(-nbytes // PAGE) * PAGE
        if fresh:
            if self.header["condition"] == FLUSHED:
                self.begin()
            self.reserve(start, whole)
        else:
            self.check_section(f"group {group} in state_file {self.path!r}", start, whole, about)
        try:
            mapped = np.memmap(self.file, np.uint8, "r+", start, (whole,))
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            raise MemoryError(
                f"state_file {self.path!r} takes {whole} bytes of address space; raise the limit on it (ulimit -v)"
            ) from error
        data = np.asarray(mapped)
        section = Section(data[records:][: len(params) * RECORD.itemsize].view(RECORD), data[block:][:nbytes], fresh)
        if fresh:
            data[: HEAD.itemsize].view(HEAD)[0] = whole, len(text)
            data[HEAD.itemsize :][: len(text)] = np.frombuffer(text, np.uint8)
            section.records["product"] = 1.0
        self.check_records(section.records, "grad_sum" in about["state"])
        self.maps.append(mapped)
        self.params.append(maps_of(params))
        return section

    def forget(self, group: int) -> None:
        """It could not be added after all."""
        del self.maps[group:], self.params[group:]

    def check_section(self, group: str, start: int, whole: int, about: dict[str, Any]) -> None:
        raw = os.pread(self.file.fileno(), HEAD.itemsize, start).ljust(HEAD.itemsize, b"\0")
        nbytes, text_nbytes = np.frombuffer(raw, HEAD)[0].item()
        damaged = ValueError(
            f"{group} is damaged, or the file is cut off; delete it, and load a checkpoint into a new one"
        )
        if not 0 < text_nbytes < nbytes <= self.size() - start or text_nbytes > LONGEST:
            raise damaged
        try:
            saved = json.loads(os.pread(self.file.fileno(), text_nbytes, start + HEAD.itemsize))
            differs = difference(saved, about)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise damaged from None
        if differs:
            raise ValueError(f"{group} is the state of something else: {differs}; take another path")
        if nbytes != whole:
            raise damaged

    def check_records(self, records: np.ndarray, sums: bool) -> None:
        fine = (records["step"] >= 0) & (records["product"] >= 0) & (records["product"] <= 1)
        fine &= (records["pending"] >= 0) & (records["pending"] < (2**31 if sums else 1))
        if not fine.all():
            raise ValueError(
                f"state_file {self.path!r} is damaged: it has impossible counters; delete it, and load a checkpoint "
                "into a new one"
            )

    def check_groups(self) -> None:
        if len(self.maps) < self.groups():
            raise ValueError(
                f"state_file {self.path!r} has the state of {self.groups()} groups, the optimizer has "
                f"{len(self.maps)}: add the others with add_param_group first"
            )

    def check_owner(self) -> None:
        if self.owner != os.getpid():
            raise RuntimeError(
                f"state_file {self.path!r} belongs to the process that this one was forked from, which goes on writing "
                "into it; make a copy.deepcopy before forking"
            )

    def check_broken(self) -> None:
        if self.broken:
            raise OSError(
                errno.EIO,
                "writing to disk failed, so nothing in the file can be trusted; save a checkpoint elsewhere",
                self.path,
            )

    def begin(self) -> None:
        """Before the first change since a flush: the file says on the disk that it is not flushed."""
        self.check_broken()
        self.header["boot"], self.header["condition"] = this_boot(), WRITTEN
        try:
            self.header.flush()
        except BaseException as error:
            self.header["condition"] = FLUSHED
            self.broken = isinstance(error, OSError)
            raise

    def flush(self) -> None:
        """Put everything on the disk: the parameters that are mapped from files, the state, and that it is whole."""
        self.check_owner()
        self.check_broken()
        self.check_groups()
        try:
            for params in self.params:
                for mapped_params in params:
                    mapped_params.flush()
            for mapped in self.maps:
                mapped.flush()
            self.header["condition"] = FLUSHED
            self.header.flush()
        except OSError:  # after which Linux treats what it could not write as written
            self.broken = True
            self.header["condition"] = TORN
            raise

    def close(self, lock: Any) -> None:
        """At the end of an engine, or of Python, when other threads may still step."""
        if self.file.closed:
            return
        with self.file:
            whole = self.owner == os.getpid() and not self.broken and len(self.maps) == self.groups()
            if whole and lock.acquire(blocking=False):
                try:
                    if self.header["condition"] == WRITTEN:
                        self.flush()
                finally:
                    lock.release()


def write_zeros(descriptor: int, start: int, stop: int) -> None:
    for place in range(start, stop, PAGE):
        os.pwrite(descriptor, bytes(min(PAGE, stop - place)), place)


def allocate(descriptor: int, start: int, nbytes: int) -> None:
    try:
        os.posix_fallocate(descriptor, start, nbytes)
    except (AttributeError, OSError) as error:  # macOS has none; some file systems, C libraries and sandboxes cannot
        if isinstance(error, OSError) and error.errno in FULL | {errno.EIO}:
            raise
        write_zeros(descriptor, start, start + nbytes)


def difference(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    """The first difference, or nothing."""
    plain = [[name for name in about["state"] if "::" not in name] for about in (saved, wanted)]
    if saved["optimizer"] != wanted["optimizer"]:
        return f"optimizer: {saved['optimizer']} there, {wanted['optimizer']} here"
    if plain[0] != plain[1]:
        return f"state: {plain[0]} there, {plain[1]} here"
    if LOW in saved["state"] and LOW not in wanted["state"]:
        return "it is of bfloat16 parameters (open it with those, and go on from opt.master(key) and opt.state_dict())"
    if (saved["formats"], saved["state"]) != (wanted["formats"], wanted["state"]):
        return (
            f"its types are {saved['formats']} there, {wanted['formats']} here (to convert it, open it with the "
            "options that it was made with, save a checkpoint, and load that into an optimizer with a new file)"
        )
    if len(saved["arrays"]) != len(wanted["arrays"]):
        return f"{len(saved['arrays'])} arrays there, {len(wanted['arrays'])} here"
    for there, here in zip(saved["arrays"], wanted["arrays"], strict=True):
        if there != here:
            return f"array {there} there, {here} here"
    return ""


def this_boot() -> bytes:
    """Differs after each start of the machine; empty where the system does not say."""
    try:
        return BOOT.read_bytes().strip()
    except OSError:
        return b""
