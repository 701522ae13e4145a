"""A fork waits for the steps that other threads are taking: no child sees half a step, or a lock that nobody holds."""

import os
import threading
import weakref
from typing import Any

engines: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
of_thread = threading.local()


def watch(engine: Any) -> None:
    engines[id(engine)] = engine


def hold_all() -> None:
    """Take every engine's lock; while one is not to be had, hold none, or two threads could wait for each other."""
    while True:
        taken, busy = [], None
        for ref in engines.valuerefs():
            engine = ref()
            if engine is None:
                continue
            if not engine.lock.acquire(blocking=False):
                busy = engine.lock
                break
            taken.append(engine.lock)
        if busy is None:
            of_thread.held = taken
            return
        release(taken)
        with busy:
            pass


def release(locks: list[Any]) -> None:
    for lock in locks:
        lock.release()


def release_all() -> None:
    release(of_thread.held)
    of_thread.held = []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=hold_all, after_in_parent=release_all, after_in_child=release_all)
