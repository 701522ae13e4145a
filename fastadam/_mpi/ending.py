"""The end of the program: a rank that comes there before the others says so, and leaves none waiting."""

import atexit
import os
from contextlib import suppress
from typing import Any

from fastadam._mpi.ranks import Ranks

known: list[Any] = []  # communicators
aborts: list[Any] = []  # statuses with which python -m mpi4py will end the job


def note_aborts(mpi: Any) -> None:
    """mpi4py ends all ranks after an exception, or sys.exit with a status, but only after what atexit runs."""
    if not hasattr(mpi, "_set_abort_status"):
        return
    set_status = mpi._set_abort_status

    def note(status: int) -> None:
        aborts.append(status)
        set_status(status)

    mpi._set_abort_status = note


def meet_at_end(ranks: Ranks, mpi: Any) -> None:
    """All ranks of a communicator call it, with mpi4py's module."""
    if not known:
        note_aborts(mpi)
    if not any(comm and comm == ranks.comm for comm in known):  # one that was freed is false
        known.append(ranks.comm)
        atexit.register(meet, ranks, mpi, os.getpid())


def meet(ranks: Ranks, mpi: Any, process: int) -> None:
    if ranks.comm and not aborts and os.getpid() == process and not mpi.Is_finalized():
        with suppress(mpi.Exception):  # it was freed by another handle
            ranks.meet("the end of the program")
