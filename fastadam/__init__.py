"""Adam and its family for NumPy arrays on CPUs: fused, in place, multi-core, the same bits everywhere.

>>> import numpy as np, fastadam
>>> weights = [np.ones((3, 2), np.float32), np.zeros(2, np.float32)]
>>> opt = fastadam.Adam(weights, lr=0.1)
>>> opt.step([np.full((3, 2), 0.5, np.float32), np.ones(2, np.float32)])
>>> weights[1]
array([-0.1, -0.1], dtype=float32)
"""

from typing import TYPE_CHECKING

from fastadam import _load

_wait_policy = _load.load()

from fastadam._core import (
    PerformanceWarning,
    Rows,
    adagrad_update,
    adam_update,
    adamax_update,
    get_num_threads,
    nadam_update,
    radam_update,
    rmsprop_update,
    rowadagrad_update,
    set_num_threads,
    sgd_update,
)
from fastadam.optimizer import Optimizer
from fastadam.rules import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, RowAdagrad

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "Optimizer", "PerformanceWarning", "RAdam", "RMSprop"]
__all__ += ["RowAdagrad", "Rows", "Trace", "__version__", "adagrad_update", "adam_update", "adamax_update", "config"]
__all__ += ["get_include", "get_num_threads", "inspect", "load", "nadam_update", "radam_update", "reference"]
__all__ += ["rmsprop_update", "rowadagrad_update", "save", "schedules", "set_num_threads", "sgd_update"]
__all__ += ["share_threads_with_blas", "show_config", "trace"]


if TYPE_CHECKING:  # with a __getattr__, mypy would take any name
    from fastadam import reference, schedules
    from fastadam._config import __version__, config, get_include, show_config
    from fastadam.persist.checkpoint import inspect, load, save
    from fastadam.threads import share_threads_with_blas
    from fastadam.tracing import Trace, trace
else:
    # Names that not every program needs, and their modules, which are loaded when a name is first used.
    _LATER = {"Trace": "tracing", "trace": "tracing", "share_threads_with_blas": "threads"}
    _LATER |= {"reference": "reference", "schedules": "schedules"}
    _LATER |= dict.fromkeys(["__version__", "config", "get_include", "show_config"], "_config")
    _LATER |= dict.fromkeys(["inspect", "load", "save"], "persist.checkpoint")

    def __getattr__(name: str) -> object:
        if name in _LATER:
            from importlib import import_module

            module = import_module(f"fastadam.{_LATER[name]}")
            globals()[name] = module if name == _LATER[name] else getattr(module, name)
            return globals()[name]
        if name in ("mpi", "sklearn", "thinc", "torch"):  # each needs another package, and may take seconds
            raise AttributeError(f"fastadam.{name} is not imported with fastadam: write import fastadam.{name} first")
        from fastadam._names import did_you_mean

        raise AttributeError(f"module 'fastadam' has no attribute {name!r}{did_you_mean(name, __all__)}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
