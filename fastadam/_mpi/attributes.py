"""The attributes of an optimizer that ranks share: of the whole, of this rank's part, and errors for all others."""

from itertools import accumulate, pairwise
from typing import Any, NoReturn

from fastadam._mpi.parts import Parts
from fastadam._mpi.ranks import Ranks
from fastadam._mpi.step import Steps
from fastadam._names import did_you_mean
from fastadam.optimizer import Optimizer
from fastadam.options import as_table

OF_ALL = ("max_norm", "max_norm_each", "nonfinite", "accumulate")  # options that parts do not decide about
OF_PARTS = ("max_value", "ema_decay", "threads")
READ = ("param_groups", "last_values", "steps", "threads_used", "seed", "lr")


class Attributes:
    """Those that `fastadam.mpi.Sharded` has as an `Optimizer` has them."""

    _ranks: Ranks
    _whole: Optimizer
    _local: Optimizer
    _parts: Parts
    _steps: Steps

    @property
    def grad_norm(self) -> float | None:
        """The norm of the mean of the last step's gradients, before clipping; None if nothing asked for it."""
        return self._steps.norm

    @property
    def skipped_steps(self) -> int:
        """How many calls ``nonfinite="skip"`` has left out."""
        return self._steps.skipped

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # as before the constructor has come to its end
            raise AttributeError(name)
        if name in OF_ALL:
            return getattr(self._whole, name)
        if name in (*OF_PARTS, *READ, *self._local._defaults):
            return getattr(self._local, name)
        if name in ("state", "ema", "master", "rebind", "step_one", "step_rows"):
            way = {"rebind": "opt.params[name][...] = new", "step_one": "step", "step_rows": "step"}
            raise AttributeError(f"Sharded has no {name}; use {way.get(name, 'state_dict()')}, on all ranks alike")
        known = [*OF_ALL, *OF_PARTS, *READ, *(each for each in dir(type(self)) if not each.startswith("_"))]
        raise AttributeError(f"Sharded has no attribute {name!r}{did_you_mean(name, known)}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        elif name in (*OF_ALL, *OF_PARTS):
            setattr(self._whole, name, value)  # which has all of them, to check that they fit together
            if name in OF_PARTS:
                setattr(self._local, name, value)
        elif name in ("lr", "param_groups"):
            setattr(self._local, name, value)
        else:
            raise AttributeError(f"Sharded.{name} cannot be set; hyper-parameters are in opt.param_groups[i]")

    def __reduce__(self) -> NoReturn:
        raise TypeError("this rank has only a part of the state, so there are no copies; use save and load")

    def __repr__(self) -> str:
        """That of one process, but for its first line."""
        sizes = [leaf.size for leaf in self._parts.leaves]
        of_groups = [sizes[a:b] for a, b in pairwise([0, *accumulate(self._parts.counts)])]
        title = f"Sharded, rank {self._ranks.rank} of {self._ranks.size}: {type(self._local).__name__}"
        return f"{title}\n{as_table(self, self._local._defaults, of_groups)}"
