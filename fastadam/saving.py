"""The state of an optimizer: read, copied, saved, loaded, pickled."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Self

import numpy as np

from fastadam import _core, statedict
from fastadam._checks import maps_of
from fastadam._names import by_name
from fastadam.options import Options
from fastadam.statedict import LoadPlan, State


class Saving(Options):
    """What `Optimizer` does with its state."""

    @property
    def state(self) -> Mapping[Any, Mapping[str, Any]]:
        """For each key {"step": int, and the state of the rule by torch's names, "exp_avg": ndarray for example}.

        Keys are the running index in a sequence and the name in a mapping, joined by dots when nested. The arrays are
        live views: write into them. The mapping is read-only (`load_state_dict` sets counters).

        State in fewer bits is decoded when it is read: "exp_avg" is then a read-only float32 copy. What is stored is
        live in "exp_avg::codes" and "exp_avg::scale", and what bfloat16 parameters lack in "master::low", in the
        order of memory.
        """
        return State(self._engine)

    def state_dict(self, *, raw: bool = False) -> dict[str, Any]:
        """State and hyper-parameters in the layout of ``torch.optim.Optimizer.state_dict``.

        State is keyed by running index; our keys are in ``["param_groups"][i]["param_names"]``. The arrays are live: to
        keep a moment, use copy.deepcopy. Schedules are code and are left out.

        Parameters
        ----------
        raw : bool, default False
            State in fewer bits is given as float32 copies, and for bfloat16 parameters "master", the float32 numbers
            that they stand for. With True, as it is stored: live, smaller, and the same bytes once it is loaded.

        Examples
        --------
        >>> import numpy as np, fastadam
        >>> fastadam.Adam(np.ones(2)).state_dict()["state"]
        {0: {'step': 0, 'exp_avg': array([0., 0.]), 'exp_avg_sq': array([0., 0.])}}
        """
        with _core.Locked(self._engine):
            return statedict.state_dict(self._engine, self.param_groups, raw)

    def torch_state_dict(self) -> dict[str, Any]:
        """The state for ``load_state_dict`` of torch's optimizer of the same name (`load_state_dict` takes torch's).

        Tensors are copies. Averages of parameters are left out.

        Raises
        ------
        ValueError
            torch cannot go on from here: `RowAdagrad`, a schedule, eps_hat, eps_root, no bias correction, or pending
            gradients.
        ImportError
            torch is not installed.

        Examples
        --------
        >>> import numpy as np, fastadam
        >>> fastadam.Adam(np.ones(2), lr=lambda count: 0.1).torch_state_dict()
        Traceback (most recent call last):
        ...
        ValueError: param_groups[0] has the schedule lr, which torch does not take; set a number first
        """
        return as_torch(self.state_dict(), self.param_groups, self._family)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Copy state and hyper-parameters in, from a fastadam or torch (CPU) state_dict of the same groups.

        Parameters
        ----------
        state_dict : dict
            As from `state_dict`. Parameters without an entry start fresh, as in torch.

        Raises
        ------
        TypeError, ValueError
            Something does not match in number, name, shape or dtype; nothing has changed. Nothing is ever cast, but
            between float32 and state in fewer bits, which is rounded to nearest.
        RuntimeError
            Inside `swap_ema` or a step of this optimizer; or in a forked child, with a `state_file`.

        Examples
        --------
        >>> import copy, numpy as np, fastadam
        >>> w = np.ones(2)
        >>> opt = fastadam.Adam(w)
        >>> opt.step(np.ones(2))
        >>> saved = copy.deepcopy(opt.state_dict())
        >>> new = fastadam.Adam(w)
        >>> new.load_state_dict(saved)
        >>> new.state[0]["step"]
        1
        """
        self._load(state_dict)

    def _load(self, state_dict: Mapping[str, Any], others: Sequence[Any] = ()) -> None:
        """Copy in a state_dict, and for each of `others`, (target, source), the source into the target."""
        with self._engine:
            self._engine.load(self._plan_load(state_dict, others))

    def _plan_load(
        self, state_dict: Mapping[str, Any], others: Sequence[tuple[np.ndarray, np.ndarray]] = ()
    ) -> LoadPlan:
        return statedict.plan_load(self._engine, self.param_groups, state_dict, others)

    @by_name(
        "opt.save(path, metadata=..., progress=...), or fastadam.save(path, params=..., optimizer=opt), to save both"
    )
    def save(
        self, path: str | os.PathLike[str], *, metadata: dict[str, Any] | None = None, progress: bool | None = None
    ) -> None:
        """Write state, counters and hyper-parameters to a file: ``fastadam.save(path, optimizer=self)``.

        Parameters
        ----------
        path, metadata, progress
            As for `fastadam.save`, which raises the same, and takes the parameters as well.

        Examples
        --------
        >>> import numpy as np, fastadam, tempfile, os
        >>> opt = fastadam.Adam(np.ones(3))
        >>> opt.step(np.ones(3))
        >>> path = os.path.join(tempfile.mkdtemp(), "optimizer.npz")
        >>> opt.save(path, metadata={"epoch": 3})
        >>> opt.step(np.ones(3))
        >>> opt.load(path)
        {'epoch': 3}
        >>> opt.state[0]["step"]
        1
        """
        from fastadam.persist import checkpoint

        checkpoint.save(path, optimizer=self, metadata=metadata, progress=progress)

    @by_name("opt.load(path, mmap=..., progress=...), or fastadam.load(path, params=..., optimizer=opt), to load both")
    def load(self, path: str | os.PathLike[str], *, mmap: bool = True, progress: bool | None = None) -> dict[str, Any]:
        """Copy state, counters and hyper-parameters from a file: ``fastadam.load(path, optimizer=self)``.

        Parameters
        ----------
        path, mmap, progress
            As for `fastadam.load`, which returns and raises the same.

        Examples
        --------
        >>> import numpy as np, fastadam
        >>> fastadam.Adam(np.ones(3)).load("optimizer.pickle")
        Traceback (most recent call last):
        ...
        ValueError: path must end in .safetensors or .npz, got 'optimizer.pickle'
        """
        from fastadam.persist import checkpoint

        return checkpoint.load(path, optimizer=self, mmap=mmap, progress=progress)

    def flush(self) -> None:
        """Write memory-mapped arrays to disk: the `state_file`, and parameters. An optimizer does so when it ends, too.

        Until the next step, a crash of the machine then does no harm. After that it makes the state file unusable, so
        save checkpoints, too.

        Raises
        ------
        OSError
            Writing to disk failed.
        ValueError
            The `state_file` has groups that this optimizer has not added yet.
        RuntimeError
            In a forked child.

        Examples
        --------
        >>> import numpy as np, fastadam, tempfile, os
        >>> folder = tempfile.mkdtemp()
        >>> W = np.lib.format.open_memmap(os.path.join(folder, "W.npy"), "w+", np.float32, (1000,))
        >>> opt = fastadam.Adam(W, lr=0.5, state_file=os.path.join(folder, "state"))
        >>> opt.step(np.ones(1000, np.float32))
        >>> opt.flush()
        >>> del opt
        >>> opt = fastadam.Adam(W, lr=0.5, state_file=os.path.join(folder, "state"))
        >>> opt.state[0]["step"]
        1
        """
        with self._engine:
            if self._engine.store is not None:
                self._engine.store.flush()
            else:
                for mapped in maps_of(arrays[0] for arrays in self._engine.arrays):
                    mapped.flush()

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: all attributes, the engine as plain data. Do not step in another thread meanwhile."""
        with _core.Locked(self._engine):
            return {**self.__dict__, "_engine": statedict.plain_of(self._engine, self.param_groups)}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        engine = statedict.engine_of(attributes["_engine"], attributes["param_groups"])
        self.__dict__.update({**attributes, "_engine": engine})

    def __copy__(self) -> NoReturn:
        raise TypeError("a shallow copy would step the same arrays with counters of its own; use copy.deepcopy")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        import copy

        with _core.Locked(self._engine):  # no step in the middle
            copied = type(self).__new__(type(self))
            memo[id(self)] = copied
            copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied


def as_torch(state_dict: dict[str, Any], param_groups: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """A state_dict of ours as torch's optimizer of that name has it: with copies, as tensors."""
    if name == "RowAdagrad":
        raise ValueError("torch has no RowAdagrad; opt.save keeps its state in a file")
    for i, group in enumerate(param_groups):
        for option, value in group.items():
            if option != "params" and _core.has_schedule(value):
                raise ValueError(
                    f"param_groups[{i}] has the schedule {option}, which torch does not take; set a number first"
                )
    import torch

    groups = []
    for i, group in enumerate(state_dict["param_groups"]):
        group = {k: v for k, v in group.items() if k not in ("param_names", "state_dtype", "master_bits")}
        for ours, needed in ("bias_correction", True), ("eps_hat", False), ("eps_root", 0):
            value = group.pop(ours, needed)
            if value != needed:
                raise ValueError(f"torch has no {ours}: param_groups[{i}] must have {needed}, got {value!r}")
        groups.append(group)
    state = {}
    for index, entry in state_dict["state"].items():
        if entry.get("grad_count"):
            raise ValueError(
                "gradients wait for a step; call step until accumulate is reached, or make a new optimizer"
            )
        converted = {
            k: torch.from_numpy(v.copy("K")) if isinstance(v, np.ndarray) else torch.tensor(float(v))
            for k, v in entry.items()
            if k not in ("ema", "grad_sum", "grad_count", "seed", "master")
        }
        if name == "SGD":  # counts no steps, and has no buffer before the first
            converted = {k: v for k, v in converted.items() if k == "momentum_buffer" and entry["step"]}
        state[index] = converted
    return {"state": state, "param_groups": groups}
