"""State in a file that is mapped into memory: for state larger than memory, and to go on where a process ended.

A file holds a page that says in what condition it is, and then for each group a text (what the state is of), the
counters, and the block that the state's arrays are cut from. The engine writes the condition around every change:

* FLUSHED: all of it is on the disk.
* WRITTEN: changed since, by whole steps. It is whole as long as the machine has not gone down: a process that ends,
  however it does, leaves what it wrote to the operating system.
* TORN: in the middle of a change.
"""

import errno
import json
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FLUSHED, WRITTEN, TORN = 1, 2, 4  # more than a flipped bit apart; the engine writes the last two
VERSION = 1
PAGE = 4096
HEADER = np.dtype(
    [("magic", "S8"), ("version", "i8"), ("condition", "i8"), ("groups", "i8"), ("inverse", "i8"), ("boot", "S64")]
)
HEAD = np.dtype([("nbytes", "i8"), ("text_nbytes", "i8")])  # of a group, before its text
RECORD = np.dtype([("step", "i8"), ("product", "f8"), ("summed", "i8")])  # of an array; the engine's struct Record
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
        self.path = os.fspath(path)
        self.owner = os.getpid()
        self.maps: list[np.memmap] = []  # of the groups that an engine has
        self.params: list[Iterable[np.ndarray]] = []  # and what they are the state of
        self.file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
        try:
            self.open()
        except BaseException:
            self.file.close()
            raise

    def open(self) -> None:
        import fcntl  # not on Windows

        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{self.path!r} is in use, by another process, or by an optimizer of this one or an array of its state "
                "that is still there"
            ) from None
        if not any(os.pread(self.file.fileno(), PAGE + 1, 0)) and self.size() <= PAGE:  # new, or never begun
            self.reserve(0, PAGE)
            header = np.array((b"fastadam", VERSION, WRITTEN, 0, ~0, this_boot()), HEADER)
            os.pwrite(self.file.fileno(), header.tobytes(), 0)  # in one call, which no kill divides
            self.header = self.map_header()
        else:
            self.header = self.map_header()
            self.check_condition()

    def size(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def map_header(self) -> np.memmap:
        if self.size() < PAGE:
            raise ValueError(f"{self.path!r} holds no state of fastadam: it is too short")
        return np.memmap(self.file, HEADER, "r+", shape=())

    def check_condition(self) -> None:
        magic, version, condition, groups, inverse, boot = self.header.item()
        if magic != b"fastadam" or groups < 0 or inverse != ~groups or condition not in (FLUSHED, WRITTEN, TORN):
            raise ValueError(f"{self.path!r} holds no state of fastadam")
        if version != VERSION:
            raise ValueError(f"{self.path!r} has the version {version}; this fastadam reads {VERSION}: use a newer one")
        if condition == TORN:
            why = "was left in the middle of a step (or while it was loaded, or in swap_ema): some of it is of the step"
        elif condition == WRITTEN and (boot != this_boot() or not boot):
            why = "had not been flushed when the machine that wrote it went down: some of it may be of older steps"
        else:
            return
        raise ValueError(
            f"{self.path!r} {why}, and so are parameters that are in files of their own; delete it, and load a "
            "checkpoint into a new one"
        )

    def reserve(self, start: int, nbytes: int) -> None:
        """Room on the disk, so that there is an error now and not a SIGBUS in the middle of a step."""
        os.ftruncate(self.file.fileno(), start)  # what an attempt that failed has left
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.file.fileno(), start, nbytes)
            else:
                for offset in range(start, start + nbytes, PAGE):
                    os.pwrite(self.file.fileno(), bytes(min(PAGE, start + nbytes - offset)), offset)
            os.fsync(self.file.fileno())
        except OSError as error:
            os.ftruncate(self.file.fileno(), start)
            if start == 0 or self.header["groups"] == 0:
                os.unlink(self.path)
            raise OSError(error.errno, f"no room for {nbytes} bytes of state: {error.strerror}", self.path) from error
        folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync a folder
                raise
        finally:
            os.close(folder)

    def section(self, group: int, about: dict[str, Any], params: Sequence[np.ndarray], nbytes: int) -> Section:
        """For a group, the last one: what is there, if it is what the state would be `about`, or made."""
        self.check_owner()
        del self.maps[group:], self.params[group:]  # what could not be added in the end
        start, fresh = PAGE + sum(mapped.nbytes for mapped in self.maps), bool(group >= self.header["groups"])
        text = json.dumps(about).encode()
        records = HEAD.itemsize + -(-len(text) // 64) * 64
        block = -(-(records + len(params) * RECORD.itemsize) // PAGE) * PAGE
        whole = block + -(-nbytes // PAGE) * PAGE
        if fresh:
            if self.header["condition"] == FLUSHED:
                self.begin()
            self.reserve(start, whole)
        else:
            self.check_section(f"group {group} in {self.path!r}", start, whole, about)
        mapped = np.memmap(self.file, np.uint8, "r+", start, (whole,))
        data = np.asarray(mapped)
        section = Section(data[records:][: len(params) * RECORD.itemsize].view(RECORD), data[block:][:nbytes], fresh)
        if fresh:
            data[: HEAD.itemsize].view(HEAD)[0] = whole, len(text)
            data[HEAD.itemsize :][: len(text)] = np.frombuffer(text, np.uint8)
            section.records["product"] = 1.0
        self.check_records(section.records)
        self.maps.append(mapped)
        self.params.append(params)
        return section

    def check_section(self, group: str, start: int, whole: int, about: dict[str, Any]) -> None:
        head = np.zeros((), HEAD)
        raw = os.pread(self.file.fileno(), HEAD.itemsize, start)
        if len(raw) == HEAD.itemsize:
            head = np.frombuffer(raw, HEAD)[0]
        nbytes, text_nbytes = (int(n) for n in head.tolist())
        if not 0 < text_nbytes < nbytes <= self.size() - start:
            raise ValueError(
                f"{group} is damaged, or the file is cut off; delete it, and load a checkpoint into a new one"
            )
        saved = {}
        try:
            saved = json.loads(os.pread(self.file.fileno(), text_nbytes, start + HEAD.itemsize))
            differences = [
                f"{name}: {saved[name]} there, {about[name]} here" for name in about if saved[name] != about[name]
            ]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{group} is damaged; delete the file, and load a checkpoint into a new one") from None
        if differences:
            raise ValueError(f"{group} is the state of something else: {'; '.join(differences)[:2000]}")
        if nbytes != whole:
            raise ValueError(f"{group} is damaged; delete the file, and load a checkpoint into a new one")

    def check_records(self, records: np.ndarray) -> None:
        fine = (records["step"] >= 0) & (records["product"] >= 0) & (records["product"] <= 1)
        fine &= (records["summed"] >= 0) & (records["summed"] < 2**31)
        if not fine.all():
            raise ValueError(
                f"{self.path!r} is damaged: it has impossible counters; delete it, and load a checkpoint into a new one"
            )

    def check_owner(self) -> None:
        if self.owner != os.getpid():
            raise RuntimeError(
                f"{self.path!r} belongs to the process that this one was forked from; use copy.deepcopy(opt)"
            )

    def begin(self) -> None:
        """Before the first change since a flush: the file says that it is not flushed, whatever happens."""
        self.header["boot"], self.header["condition"] = this_boot(), WRITTEN
        try:
            self.header.flush()
        except BaseException:
            self.header["condition"] = FLUSHED
            raise

    def flush(self) -> None:
        """Put everything on the disk: the parameters that are mapped from files, the state, and that it is whole."""
        self.check_owner()
        flush_maps(array for params in self.params for array in params)
        if self.header["condition"] == FLUSHED:
            return
        for mapped in self.maps:
            mapped.flush()
        self.header["condition"] = FLUSHED
        try:
            self.header.flush()
        except BaseException:
            self.header["condition"] = WRITTEN
            raise

    def close(self) -> None:
        """At the end of an engine, or of Python. The lock stays until the last array is gone."""
        with self.file:
            if self.owner == os.getpid() and self.header["condition"] == WRITTEN:
                self.flush()


def flush_maps(arrays: Iterable[np.ndarray]) -> None:
    """Put the files that arrays are mapped from on the disk."""
    maps = {}
    for array in arrays:
        base: Any = array
        while base is not None and not isinstance(base, mmap.mmap):
            base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
        if base is not None:
            maps[id(base)] = base
    for base in maps.values():
        base.flush()


def this_boot() -> bytes:
    """What tells that the machine has not gone down since; empty where the system does not say."""
    try:
        return BOOT.read_bytes().strip()
    except OSError:
        return b""
