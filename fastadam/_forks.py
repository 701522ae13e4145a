"""In a forked child: locks that threads held which do not exist there are made anew."""

import os
import weakref
from typing import Any

engines: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def watch(engine: Any) -> None:
    engines[id(engine)] = engine


def renew_locks() -> None:
    for ref in engines.valuerefs():
        engine = ref()
        if engine is not None:
            engine.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_locks)
