"""In a forked child, make the locks anew that were held by threads which do not exist there."""

import os
from typing import Any
from weakref import WeakSet

engines: WeakSet[Any] = WeakSet()
watch = engines.add


def renew_locks() -> None:
    for engine in list(engines):
        engine.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_locks)
