"""Processes that go on together, or not at all: what they agree on before any of them changes anything.

A communicator is mpi4py's, or has its Allgather.
"""

import json
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np

Result = TypeVar("Result")
LONGEST = 2000  # characters of an error that another rank shows, or of a value


class RankError(RuntimeError):
    """Another rank failed, or differs. Nothing has changed on any."""

    __module__ = "fastadam.mpi"  # where it is public
    _all_meet = False  # each rank waits for the others, in another place


class Ranks:
    """The ranks of a communicator."""

    def __init__(self, comm: Any) -> None:
        self.comm, self.rank, self.size = comm, comm.Get_rank(), comm.Get_size()

    def gather(self, numbers: list[int]) -> np.ndarray:
        """Of each rank a row of numbers."""
        mine = np.array(numbers, np.int64)
        rows = np.empty((self.size, len(mine)), np.int64)
        self.comm.Allgather(mine, rows)
        return rows

    def texts(self, text: str) -> list[str]:
        """Of each rank a text."""
        mine = text.encode(errors="replace")
        longest = int(self.gather([len(mine)]).max())
        rows = np.empty((self.size, longest), np.uint8)
        self.comm.Allgather(np.frombuffer(mine.ljust(longest, b"\0"), np.uint8), rows)
        return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]

    def together(
        self,
        call: str,
        work: Callable[[], Result],
        same: Callable[[Result], Mapping[str, Any]] | None = None,
        *,
        meets: bool = False,
    ) -> Result:
        """What `work` returns. If it raises on one rank, it raises on all.

        So it does if ranks are in different calls, or differ in what must be the `same`: values by their names, or in
        mappings of these. Their repr is compared."""
        error: BaseException | None = None
        values: Mapping[str, Any] = {}
        result: Any = None
        try:
            result = work()
            values = {"the call": call, **(same(result) if same else {})}
        except BaseException as raised:  # Ctrl-C, too, is for all
            error = raised
        seen = int.from_bytes(blake2b(repr(values).encode(), digest_size=8).digest(), "little", signed=True)
        rows = self.gather([error is not None, seen, meets])
        if rows[:, 0].any():
            texts = self.texts(f"{type(error).__name__}: {error}"[:LONGEST] if error is not None else "")
            if error is not None:
                raise error
            failed = int(np.argmax(rows[:, 0]))
            raise RankError(f"nothing has changed on any rank, because rank {failed} raised {texts[failed]}")
        if (rows[:, 1] != rows[0, 1]).any():
            raise self.difference(values, bool(rows[:, 2].all()))
        return result

    def meet(self, where: str) -> None:
        """Wait here for all. What the others call before is refused, on them alone."""
        while True:
            try:
                self.together(where, lambda: None, meets=True)
                return
            except RankError as error:
                if error._all_meet:
                    raise

    def difference(self, values: Mapping[str, Any], all_meet: bool) -> RankError:
        """Names the first value that differs."""
        first, *others = (json.loads(text) for text in self.texts(json.dumps(texts_of(values))))
        names = [(name, rank) for rank, other in enumerate(others, 1) for name in {**first, **other}]
        what = "the order of values"
        for name, rank in reversed(names):
            ours, theirs = first.get(name, "nothing"), others[rank - 1].get(name, "nothing")
            if ours != theirs:
                what = f"{name}: {ours[:LONGEST]} on rank 0, {theirs[:LONGEST]} on rank {rank}"
        error = RankError(
            f"the ranks differ in {what}; nothing has changed on any. Give all ranks the same, and let all make the "
            "same calls in the same order"
        )
        error._all_meet = all_meet
        return error


def texts_of(values: Mapping[str, Any], whose: str = "") -> dict[str, str]:
    """The repr of each value by its name, such as "lr of group 0"."""
    texts: dict[str, str] = {}
    for name, value in values.items():
        full = f"{name} of {whose}" if whose else name
        texts |= texts_of(value, full) if isinstance(value, Mapping) and value else {full: repr(value)}
    return texts


class CtrlCWaits(ExitStack):
    """In its `with` block Ctrl-C waits for the end: the other ranks are waiting for this one."""

    def __enter__(self) -> "CtrlCWaits":
        self.came, self.before = False, None
        if threading.current_thread() is threading.main_thread():
            self.before = signal.getsignal(signal.SIGINT)
            if self.before is not None:  # else it was not set from Python
                signal.signal(signal.SIGINT, self.note)
        return self

    def note(self, *_: Any) -> None:
        self.came = True

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
            if self.came:
                signal.raise_signal(signal.SIGINT)
