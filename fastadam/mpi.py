"""One optimizer for all ranks of an MPI job: each keeps its part of the state, and takes its part of the step (ZeRO-1).

Run programs as ``mpiexec -n 2 python -m mpi4py train.py``: then an exception in one rank ends the job at once.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

try:
    from mpi4py import MPI
except ImportError as error:
    error.add_note("fastadam.mpi needs mpi4py and an MPI library: pip install mpi4py mpich")
    raise

import numpy as np

from fastadam import _core, _numbers
from fastadam._mpi.attributes import OF_ALL, Attributes
from fastadam._mpi.ending import meet_at_end
from fastadam._mpi.parts import Given, Parts
from fastadam._mpi.ranks import CtrlCWaits, RankError, Ranks
from fastadam._mpi.state import Whole, steps_of
from fastadam._mpi.step import HALF_CHANGED, Steps
from fastadam.optimizer import Optimizer
from fastadam.persist import checkpoint
from fastadam.persist.atomic import as_path
from fastadam.persist.model import add_optimizer, add_params, leaves_of
from fastadam.persist.strict_json import as_metadata
from fastadam.statedict import LoadPlan

if TYPE_CHECKING:
    from fastadam.options import Gradients

__all__ = ["RankError", "Sharded"]


class Sharded(Attributes):
    """An optimizer whose state and steps are shared by the ranks of an MPI job.

    .. math:: p = rule(p, \\frac{1}{n} \\sum_{r=0}^{n-1} grad\\_scale_r \\cdot g_r)

    Each of n ranks computes gradients of its share of the batch. They are added in the order of ranks, so that the bits
    are those of one process with ``accumulate=n`` that is given them in this order. Each rank updates its part of the
    parameters, and all ranks get all of them.

    Parameters
    ----------
    optimizer : class
        `AdamW`, or another of fastadam; not `RowAdagrad`.
    params : ndarray, iterable, mapping, these nested, or a list of groups
        As for `optimizer`. The arrays are read once, and those of rank 0 count. From then on the parameters are those
        in `params`, the attribute: drop the arrays that were given.
    comm : mpi4py communicator or None, default None
        The ranks; None for ``MPI.COMM_WORLD``.
    bucket_mb : float > 0, default 4
        Gradients are exchanged in buckets of so many MiB. Four of them are kept.
    reduce : "ordered" or "mpi", default "ordered"
        Add gradients in the order of ranks, or as MPI's reduce-scatter does: then the last bits depend on the number
        of ranks, and on the MPI library.
    mean : bool, default True
        False steps on the sum instead of the mean.
    **options
        Those of `optimizer`, the same on all ranks but for `threads`; not `state_file`. With ``accumulate=k`` each rank
        first adds up k gradients of its own, and only every k-th call exchanges anything. `max_norm` and `nonfinite`
        go by the mean of all ranks, and need memory for a gradient of this rank's part.

    Attributes
    ----------
    params : the container of the parameters
        The arrays that are updated: views of memory that all ranks keep alike.
    param_groups : list of dict
        As of `optimizer`, with this rank's parts as "params". Set hyper-parameters on all ranks alike.
    rank_bytes : dict
        What this rank holds.
    grad_norm, skipped_steps, steps, last_values, lr, max_norm, nonfinite, ...
        As of `optimizer`.

    Raises
    ------
    TypeError, ValueError
        As `optimizer`; the rank's own arguments are wrong.
    RankError
        Another rank raised, or has other parameters or options. Nothing has been made on any.

    Examples
    --------
    On one rank; ``mpiexec -n 2 python -m mpi4py`` runs the same on two.

    >>> import numpy as np, fastadam, fastadam.mpi
    >>> opt = fastadam.mpi.Sharded(fastadam.SGD, {"W": np.ones(3)}, lr=0.5)
    >>> opt.step({"W": np.ones(3)})
    >>> opt.params["W"]
    array([0.5, 0.5, 0.5])

    References
    ----------
    Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020: stage 1.
    """

    def __init__(
        self,
        optimizer: type[Optimizer],
        params: Any,
        comm: Any = None,
        *,
        bucket_mb: float = 4,
        reduce: str = "ordered",
        mean: bool = True,
        **options: Any,
    ) -> None:
        if comm is not None and not hasattr(comm, "Allgather"):
            raise TypeError(f"comm must be None or a communicator of mpi4py, such as MPI.COMM_WORLD, got {comm!r}")
        ranks = self._ranks = Ranks(MPI.COMM_WORLD if comm is None else comm)

        def read() -> tuple[Optimizer, Parts, dict[str, Any]]:
            if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
                raise TypeError(f"optimizer must be a class of fastadam, such as fastadam.AdamW, got {optimizer!r}")
            if optimizer._family == "RowAdagrad":
                raise ValueError("RowAdagrad keeps a number for each row, and arrays are cut anywhere; use Adagrad")
            if options.get("state_file") is not None:
                raise ValueError("state_file is for one process; leave it out: each rank has its part in memory")
            if reduce not in ("ordered", "mpi"):
                raise ValueError(f"reduce must be 'ordered' or 'mpi', got {reduce!r}")
            megabytes = _numbers.as_number(bucket_mb, "bucket_mb")
            if not 0 < megabytes <= 1024:
                raise ValueError(f"bucket_mb must be > 0 and at most 1024, got {bucket_mb!r}")
            _numbers.as_flag(mean, "mean")
            given = Given(params)
            whole = optimizer(given.stands(), **options)
            self._parts = Parts(int(megabytes * 2**20), ranks.rank, ranks.size)
            parts = self._parts.joined_by(whole, given)
            settings = {name: value for name, value in whole._engine.settings.items() if name != "threads"}
            settings |= {"bucket_mb": megabytes, "reduce": reduce, "mean": bool(mean)}
            return whole, parts, {"the class": optimizer.__name__, **parts.same, **settings}

        with CtrlCWaits():
            self._whole, parts, _ = ranks.together("Sharded", read, lambda found: found[2])
            self._share(parts)
            own = {name: value for name, value in options.items() if name not in (*OF_ALL, "overrides")}
            self._local = ranks.together("Sharded", lambda: optimizer(parts.groups, **own))
            meet_at_end(ranks, MPI)
            self._steps = Steps(ranks, parts, self._whole, self._local, reduce=reduce, mean=mean)
            self._take_parts(parts)

    def _share(self, parts: Parts) -> None:
        """Their new parameters are those of rank 0."""
        before = self._parts
        if self._ranks.rank == 0:
            for view, array in zip(parts.views[len(before.views) :], parts.sources, strict=True):
                view[...] = array
        parts.sources.clear()
        for bucket in parts.buckets[len(before.buckets) :]:
            self._ranks.comm.Bcast(bucket.words, root=0)

    def _take_parts(self, parts: Parts) -> None:
        first = len(self._parts.pieces)
        new = parts.pieces[first:]
        _core.place_parts(self._local._engine, first, [p.array for p in new], [p.begin for p in new])
        self._parts = parts

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters, with fresh state, and hyper-parameters of their own. All ranks call it.

        From then on `params` is a list of containers, one for each group, and `step` takes such a list.

        Parameters
        ----------
        group : dict
            As for `fastadam.Optimizer.add_param_group`. The arrays are read once, and those of rank 0 count.

        Raises
        ------
        TypeError, ValueError
            As `fastadam.Optimizer.add_param_group`; or gradients wait for a step. Nothing has changed on any rank.
        RuntimeError
            Inside `swap_ema`, or a call before has ended in the middle.
        RankError
            Another rank raised, or has another group.
        """

        def read() -> tuple[Optimizer, Parts, dict[str, Any]]:
            self._check_between_steps()
            given, whole = Given([group]), copy.deepcopy(self._whole)
            whole.add_param_group(given.stands()[0])
            return whole, self._parts.joined_by(whole, given), given.groups[0]

        with CtrlCWaits():
            whole, parts, new = self._ranks.together("add_param_group", read, lambda found: found[1].same)
            self._share(parts)
            self._steps.refusal = "adding a group ended in the middle: make a new optimizer, and load a checkpoint"
            new = {**new, "params": parts.groups[-1]["params"]}
            self._ranks.together("add_param_group", lambda: self._local.add_param_group(new))
            self._whole = whole
            self._steps.take(parts, whole)
            self._take_parts(parts)
            self._steps.refusal = ""

    @property
    def params(self) -> Any:
        """The container of the parameters, with the arrays that are updated, the same on all ranks.

        If they were given as groups, or one was added: a list of containers, one for each group.
        """
        containers = self._parts.containers
        is_grouped = self._whole._engine.structure.began_grouped or len(containers) > 1
        return list(containers) if is_grouped else containers[0]

    @property
    def _as_groups(self) -> Any:
        """The parameters as files take them."""
        return [{"params": each} for each in self._parts.containers]

    @property
    def rank_bytes(self) -> dict[str, int]:
        """The bytes that this rank holds: all parameters, its part of the state, sums of gradients, and buffers."""
        params = sum(view.nbytes for view in self._parts.views)
        return {"params": params, "state": self._local.nbytes, **self._steps.nbytes}

    # -- steps

    def step(self, grads: "Gradients" = None, *, grad_scale: float = 1.0) -> None:
        """Update the parameters with the gradients of all ranks. All ranks call it.

        Parameters
        ----------
        grads : the container of the parameters, with this rank's gradients in it
            As for `fastadam.Optimizer.step`, but no `Rows`. None for an array must come from all ranks.
        grad_scale : float, default 1, finite
            Multiplies this rank's gradients. Ranks may differ in it, to weigh unequal shares of a batch.

        Raises
        ------
        TypeError, ValueError, FloatingPointError
            As `fastadam.Optimizer.step`.
        RuntimeError
            Inside `swap_ema`, or a call before has ended in the middle: load a checkpoint.
        RankError
            Another rank raised, or the ranks differ in a hyper-parameter, an option, or which gradients are None.

        Notes
        -----
        If one rank raises, all do, and nothing has changed on any.
        """
        with CtrlCWaits() as held:
            read = partial(self._steps.read, grads, grad_scale, held)
            self._steps.run(self._ranks.together("step", read, lambda call: call.same))

    @contextmanager
    def swap_ema(self) -> Iterator[None]:
        """A context manager in which the parameters hold their averages, as `fastadam.Optimizer.swap_ema`.

        All ranks enter and leave it together. One in which something raises waits at the end for the others.

        Raises
        ------
        ValueError
            As `fastadam.Optimizer.swap_ema`. Then none is in the block.
        RuntimeError
            Inside another `swap_ema`, or a call before has ended in the middle.
        RankError
            Another rank raised, or made another call: then none is in the block. Or, at its end, another rank waits
            elsewhere.
        """
        averages = ExitStack()

        def begin() -> None:
            self._steps.check()
            averages.enter_context(self._local.swap_ema())

        def leave() -> None:
            with CtrlCWaits():
                self._ranks.meet("the end of a block of swap_ema")
                self._steps.refusal = HALF_CHANGED.format("a block of swap_ema")
                self._ranks.together("the end of a block of swap_ema", averages.close)
                self._steps.share_all()
                self._steps.refusal = ""

        with ExitStack() as block:
            with CtrlCWaits():
                try:
                    self._ranks.together("swap_ema", begin)
                except BaseException:
                    averages.close()  # this rank may have begun where another could not, or was in another call
                    raise
                block.callback(leave)  # now: Ctrl-C that has waited comes before the yield
                self._steps.refusal = "leave the block of swap_ema first"
                self._steps.share_all()
            yield

    # -- state, and files

    @property
    def _state(self) -> Whole:
        return Whole(self._ranks, self._local, self._parts)

    def state_dict(self, *, raw: bool = False, rank: int | None = None) -> dict[str, Any] | None:
        """The state of all ranks, as `fastadam.Optimizer.state_dict` of one process has it: copies. All ranks call it.

        Parameters
        ----------
        raw : bool, default False
            As for `fastadam.Optimizer.state_dict`.
        rank : int or None, default None
            The rank that gets it, the others None; None for all, each of which then needs the memory.

        Raises
        ------
        TypeError, ValueError
            `rank` is none of the ranks; a hyper-parameter is wrong; or gradients wait for a step.
        RuntimeError
            Inside `swap_ema`, or a call before has ended in the middle.
        RankError
            Another rank raised, or gave another `raw` or `rank`.
        """

        def check() -> None:
            if rank not in (None, *range(self._ranks.size)):
                raise ValueError(f"rank must be None, or from 0 to {self._ranks.size - 1}, got {rank!r}")
            self._check_between_steps()

        with CtrlCWaits():
            self._ranks.together("state_dict", check, lambda _: {"raw": raw, "rank": rank})
            state = self._state
            whole = state.state_dict(raw=raw, whole_of=partial(state.gathered, rank))
            return whole if rank in (None, self._ranks.rank) else None

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take our part of a state_dict of one process or of all ranks. All ranks call it, each with all of it.

        Parameters
        ----------
        state_dict : dict
            As for `fastadam.Optimizer.load_state_dict`, of the same groups.

        Raises
        ------
        TypeError, ValueError
            As `fastadam.Optimizer.load_state_dict`; or it was made with ``raw=True``, and an array lies in another
            memory order. Nothing has changed on any rank.
        RuntimeError
            Inside `swap_ema`.
        RankError
            Another rank raised, or its state_dict has taken another number of steps.
        """
        with CtrlCWaits() as held:

            def plan() -> LoadPlan:
                held.enter_context(self._local._engine)
                return self._state._plan_load(state_dict)

            self._take(self._ranks.together("load_state_dict", plan, steps_of))

    def _take(self, plan: LoadPlan, pairs: Any = ()) -> None:
        self._steps.refusal = HALF_CHANGED.format("loading")
        self._local._engine.load(plan)
        _core.copy_arrays(list(pairs))
        self._steps.counts = [0] * len(self._parts.leaves)
        self._steps.refusal = ""

    def save(self, path: str | os.PathLike[str], *, metadata: dict[str, Any] | None = None) -> None:
        """Write parameters, state and hyper-parameters to one file, as `fastadam.save` of one process would.

        All ranks call it, and each writes its part. `fastadam.load` reads it in one process, and `load` on any number
        of ranks. Whatever happens, the old file or the new one is there, whole.

        Parameters
        ----------
        path : str or path, ending in .safetensors
            In a folder that all ranks see. All give the same, and the same `metadata`.
        metadata : dict or None, default None
            As for `fastadam.save`.

        Raises
        ------
        ValueError, TypeError, OSError
            As `fastadam.save`; or gradients wait for a step. The old file is kept.
        RuntimeError
            Inside `swap_ema`, or a call before has ended in the middle.
        RankError
            Another rank raised, or gave something else. The old file is kept.
        """
        with CtrlCWaits() as held:
            arrays: dict[str, np.ndarray] = {}
            text: dict[str, Any] = {"format": checkpoint.FORMAT}

            def read() -> str:
                self._check_between_steps()
                held.enter_context(_core.Locked(self._local._engine))
                if metadata is not None:
                    text["metadata"] = as_metadata(metadata)
                text["params"] = add_params(arrays, leaves_of(self._as_groups))
                text["optimizer"] = add_optimizer(arrays, self._state)
                name = as_path(path, "path")
                if not name.endswith(".safetensors"):
                    raise ValueError(f"path must end in .safetensors, which several ranks can write, got {name!r}")
                return name

            state = self._state
            name = self._ranks.together("save", read, lambda name: state.same_text(name, text))
            state.save(name, arrays, text)

    def load(self, path: str | os.PathLike[str], *, mmap: bool = True) -> dict[str, Any]:
        """Load parameters, state and hyper-parameters, whether one process has saved them or any number of ranks.

        All ranks call it. Each reads the file, and checks all of it.

        Parameters
        ----------
        path, mmap
            As for `fastadam.load`.

        Returns
        -------
        dict
            The metadata that was saved; {} if there is none.

        Raises
        ------
        ValueError, TypeError, OSError
            As `fastadam.load`. Nothing has changed on any rank.
        RuntimeError
            Inside `swap_ema`.
        RankError
            Another rank raised, or has read other metadata or another number of steps.
        """
        with CtrlCWaits() as held:

            def read() -> tuple[dict[str, Any], LoadPlan, Any]:
                whole = self._state
                metadata = checkpoint.load(path, params=self._as_groups, optimizer=whole, mmap=mmap, progress=False)
                held.enter_context(self._local._engine)
                return metadata, whole._plan_load(*whole.loaded), whole.loaded[1]

            found = self._ranks.together("load", read, lambda found: {"metadata": found[0], **steps_of(found[1])})
            self._take(*found[1:])
        return found[0]

    def _check_between_steps(self) -> None:
        self._steps.check()
        self._local._engine.check_readable()
        self._local._engine.check_groups(self._local.param_groups)
        if any(self._steps.counts):
            raise ValueError("gradients wait for a step, and each rank has others; step until accumulate is reached")
