"""What all optimizers have in common: groups, state, steps. No arithmetic on arrays here: `_core.Engine` does it."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fastadam import _core
from fastadam._layout import LOW
from fastadam._names import did_you_mean
from fastadam.containers import Container, Structure, as_groups
from fastadam.options import CommonOptions, Gradients, with_own_betas
from fastadam.saving import Saving

# Inside a `with` that holds a lock there are calls only. Ctrl-C in a loop there can leave without the end of the `with`
# in CPython 3.12 and 3.13, whose exception table has no entry for the jump back.


class Optimizer(Saving):
    """The base class of all optimizers. Use one of its subclasses.

    Parameters
    ----------
    params : ndarray, iterable, mapping, these nested, or a list of groups
        Arrays of float32, float64 or ml_dtypes' bfloat16 of any shape: native byte order, aligned, writeable, not
        overlapping, and dense in memory, with their axes in any order. Groups are dicts with the key "params" and the
        hyper-parameters that differ from the optimizer's.
    defaults : dict
        The hyper-parameters of the rule. One that is a number may also be a callable. It is given the number of steps
        that the group has taken (0 first), and returns the value for the next. (The options below take no callables:
        set `opt.ema_decay` and the like between steps.)
    max_norm : float > 0 or None, default None
        Clip by the global norm, over all arrays and groups. As ``torch.nn.utils.clip_grad_norm_``, without changing
        the gradients: they are multiplied by min(1, max_norm / (norm + 1e-6)); if the norm is NaN, by NaN, as in torch,
        if it is infinite, by 0. May be set later.
    max_norm_each : float > 0 or None, default None
        Clip each array by its own norm instead, in the same way: Keras's clipnorm. Of `Rows` the norm is that of the
        summed rows, with `accumulate` that of the mean. May be set later.
    max_value : float > 0 or None, default None
        Clip each element of the gradients, grad_scale included, to [-max_value, max_value]. Only one of these three may
        be set. May be set later.
    nonfinite : "propagate", "raise" or "skip", default "propagate"
        What to do about NaN and infinity: in gradients, in gradients times grad_scale and the clip factor, or in the
        norm to clip by. Let them into the parameters; raise a FloatingPointError; or skip the step and count it in
        `skipped_steps`. This is decided before anything changes. With `accumulate`, a gradient that would spoil the sum
        is skipped, and another takes its place. A sum that "propagate" has spoilt stays so. May be set later.
    accumulate : int >= 1, default 1
        Step on the mean of this many gradients. `step` adds all but every accumulate-th gradient of an array to a sum,
        an array of the parameter's type and size. Not with `Rows`. May be set later, but not from 1.
    ema_decay : float from 0 to 1, or None, default None
        Keep a moving average of the parameters, in the same pass. It begins as a copy of them; after each step of an
        array ema = ema_decay * ema + (1 - ema_decay) * p. While an array takes no step (None), its average stays; to
        set it, copy: ``opt.ema[key][...] = p``. Not with `Rows`. See `ema` and `swap_ema`. May be set later, but not
        from None.
    threads : int, 1 to 1024, or None
        An order for exactly that many threads (at most one per cache line). None chooses by measuring now and then what
        makes the loop around the steps fastest. The bits of the result never depend on it. May be set later.
    state_file : path or None, default None
        Memory-map the state from this file, for state larger than memory, and resume from an existing file. A file left
        in the middle of a step or of `swap_ema`, or not flushed before a power failure, is rejected; the end of a
        process between steps does no harm. Saving in-memory parameters and hyper-parameters is up to you (AdamW resumes
        Adam's state). Parameters may be memory maps, too (``np.lib.format.open_memmap``). Forked children can neither
        step nor copy such an optimizer, and keep its file locked while they live.
    state_dtype : "float32", "bfloat16" or "8bit", default "float32"
        How state is kept: "float32" is the type of each array; the others take half and a quarter of the memory, and
        are rounded stochastically. For float32 and bfloat16 arrays; not with `amsgrad` or `centered`. A hyper-parameter
        of groups, chosen when one is made. See docs/memory.md.
    master_bits : None, 32 or 24, default None
        Precision of the float32 number that each bfloat16 parameter stands for: 32 bits (None), which is exact, or 24,
        which saves a byte each. The optimizer keeps the bits that bfloat16 lacks. It does nothing for other arrays. A
        hyper-parameter of groups, as above.
    seed : int, 0 to 2**63 - 1, default 0
        Seed of the stochastic rounding of state in fewer bits. Array number i (from 0) uses seed + i.
    overrides : dict of dict, or None, default None
        Other hyper-parameters for some arrays: ``{"*.bias": {"weight_decay": 0.0}, "head.*": {"lr": 1e-4}}``. Patterns
        are those of ``fnmatch.fnmatchcase``, matched against str(key). An array takes the values of the first pattern
        that matches it, and of no other. Each distinct set of values becomes a group, after that of the arrays that
        match nothing. `step` still takes the one container. Not together with `params` given as groups.

    Attributes
    ----------
    param_groups : list of dict
        Like torch's. Hyper-parameters may be changed between steps; "params", "amsgrad", "centered", "state_dtype" and
        "master_bits" may not.
    threads_used : int
        The threads that the last step took; 0 before the first.
    grad_norm : float or None
        The global norm of the last gradients (of `step_one`: of one), before clipping, if `max_norm`, `max_norm_each`
        or `nonfinite` asked for it.
    skipped_steps : int
        The calls that ``nonfinite="skip"`` has left out.
    steps : int
        The largest step counter.
    nbytes : int
        The bytes of all state, beside the parameters.
    last_values : list of dict
        For each group, the numbers that its last step took for the hyper-parameters.
    ema : dict
        The averages of the parameters by their keys. ValueError without `ema_decay`.

    Raises
    ------
    TypeError, ValueError
        Something is of the wrong kind, dtype, value or shape; the message says what is allowed. Or the state file is of
        something else, damaged, in use, or rejected as above.
    OSError
        The state file cannot be opened, or has no room on its disk.

    Notes
    -----
    pickle and copies keep all options but `state_file`; a `state_dict` has the hyper-parameters only.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> x = np.array([5.0])
    >>> opt = fastadam.SGD(x, lr=0.1, max_norm=1.0)
    >>> opt.step(2 * x)
    >>> x.round(4), opt.grad_norm
    (array([4.9]), 10.0)
    """

    def __init__(
        self,
        params: Container,
        defaults: dict[str, Any],
        *,
        max_norm: float | None = None,
        max_norm_each: float | None = None,
        max_value: float | None = None,
        nonfinite: str = "propagate",
        accumulate: int = 1,
        ema_decay: float | None = None,
        threads: int | None = None,
        state_file: str | os.PathLike[str] | None = None,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        state_dtype: str = "float32",
        master_bits: int | None = None,
        seed: int = 0,
        **unknown: Any,
    ) -> None:
        if unknown:
            known = ["params", *defaults, *CommonOptions.__annotations__]
            hint = did_you_mean(next(iter(unknown)), known)
            raise TypeError(f"{type(self).__name__} has no {', '.join(unknown)}{hint}; it has {', '.join(known)}")
        settings: dict[str, Any] = {"max_norm": max_norm, "max_norm_each": max_norm_each, "max_value": max_value}
        settings |= {"nonfinite": nonfinite, "accumulate": accumulate, "ema_decay": ema_decay}
        settings |= {"threads": threads, "seed": seed}
        defaults = {**defaults, "state_dtype": state_dtype, "master_bits": master_bits}
        self._engine = _core.Engine(self._family, list(defaults), settings)
        self._check_group(defaults)
        self._defaults = defaults
        groups, grouped = as_groups(params, defaults)
        if overrides is not None and grouped:
            raise ValueError("overrides go with params in one container; with groups, put the values into the groups")
        self._engine.structure = Structure([], None, grouped)
        self.param_groups = []
        store = None
        if state_file is not None:
            from fastadam.persist.statefile import StateFile

            store = StateFile(state_file)
        try:
            if store is not None:
                self._engine.keep_in(store)
            if overrides is None:
                for group in groups:
                    self.add_param_group(group)
            else:
                with self._engine:
                    self._add(groups[0], overrides)
            if not self._engine.keys:
                raise ValueError("params holds no arrays; there is nothing to optimize")
        except BaseException:
            if store is not None:
                store.abandon()
            raise

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters, with fresh state, and hyper-parameters of their own.

        From then on `step` takes a list: the container of the constructor, or its groups, then each added group.

        Parameters
        ----------
        group : dict
            "params" and, where they differ from the constructor's, hyper-parameters. `overrides` are not for it.

        Raises
        ------
        TypeError, ValueError
            As the constructor; nothing has been added then.
        RuntimeError
            Inside `swap_ema` or a step of this optimizer; or in a forked child, with a `state_file`.

        Examples
        --------
        >>> import numpy as np, fastadam
        >>> opt = fastadam.AdamW({"W": np.ones((2, 2))}, lr=0.1)
        >>> opt.add_param_group({"params": {"b": np.ones(2)}, "weight_decay": 0.0})
        >>> opt.step([{"W": np.ones((2, 2))}, {"b": np.ones(2)}])
        """
        with self._engine:
            self._add(group, {})

    def _add(self, group: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]]) -> None:
        if not isinstance(group, Mapping):
            raise TypeError(f"a parameter group must be a dict, got a {type(group).__name__}")
        if "params" not in group:
            raise ValueError("a parameter group needs the key 'params'")
        own = {name: value for name, value in group.items() if name != "params"}
        self._check_names(own, "a group")
        before = self._engine.structure
        tree, leaves = before.read(group["params"])
        taken = set(self._engine.keys)
        for key, _ in leaves:
            if key in taken:
                raise ValueError(f"two parameters have the key {key!r}; rename one")
            taken.add(key)
        parts = self._parts([key for key, _ in leaves], overrides)
        structure = before.joined_by(tree, [i for _, part in parts for i in part], len(self._engine.keys))
        for values, part in parts:
            keys, params = [leaves[i][0] for i in part], tuple(leaves[i][1] for i in part)
            full = {"params": params, **self._defaults, **own, **values}
            self._check_group(full)
            self._engine.add_group(keys, params, with_own_betas(full), self.param_groups, structure)

    def step(self, grads: Gradients = None, *, grad_scale: float = 1.0) -> None:
        """Update the parameters in place.

        Parameters
        ----------
        grads : the container of the parameters, with gradients in it
            Arrays with the shape of their parameters; only read. None for an array leaves it and its counter alone;
            `Rows` stand for an array few of whose rows have a gradient. float16 and bfloat16 are converted on the way
            if the parameter is float32. Any other dtype or memory order than the parameter's costs a copy and a
            `PerformanceWarning`.
        grad_scale : float, default 1, finite
            Multiplies the gradients. (torch's fused optimizers divide by theirs.)

        Raises
        ------
        TypeError, ValueError
            As the constructor.
        IndexError
            `Rows` with a row that the parameter does not have.
        FloatingPointError
            NaN or infinity in a gradient, with ``nonfinite="raise"``.
        RuntimeError
            Inside `swap_ema` or a step of this optimizer; or in a forked child, with a `state_file`.
        OSError
            An earlier `flush` failed, and the file may lack steps.

        Notes
        -----
        Whatever is raised, nothing has changed.

        Examples
        --------
        >>> import numpy as np, fastadam
        >>> weights = {"W": np.ones((2, 2)), "b": np.ones(2)}
        >>> opt = fastadam.Adam(weights, lr=0.5)
        >>> opt.step({"W": np.ones((2, 2)), "b": None})
        >>> opt.state["W"]["step"], opt.state["b"]["step"]
        (1, 0)
        """
        if grads is None:
            raise TypeError(
                "step needs the gradients, in the container of the parameters: opt.step(grads); to leave one array "
                "alone, put None in its place there"
            )
        self._engine.step(grads, self.param_groups, grad_scale)

    def step_one(self, key: Any, grad: np.ndarray | np.floating | _core.Rows, *, grad_scale: float = 1.0) -> None:
        """Update one parameter as soon as its gradient is there, so that the gradient's memory can be used again.

        As `step` with None for all other parameters. Called for each parameter, it has the result of one `step`, to the
        bit, but for two things: schedules are given the array's own counter instead of the group's largest, and
        `nonfinite` decides about each array alone.

        Parameters
        ----------
        key : as in `state`
            Which parameter: a running index, or its name.
        grad : ndarray or Rows
            Its gradient.
        grad_scale : float, default 1, finite
            Multiplies the gradient.

        Raises
        ------
        KeyError
            No parameter has this key.
        ValueError
            `max_norm` is set: the norm is that of all gradients at once.
        TypeError, IndexError, FloatingPointError, RuntimeError, OSError
            As `step`.

        Examples
        --------
        >>> import numpy as np, fastadam
        >>> weights = {"W": np.ones((2, 2)), "b": np.ones(2)}
        >>> opt = fastadam.SGD(weights, lr=0.5)
        >>> opt.step_one("b", np.ones(2))
        >>> weights["b"], opt.state["W"]["step"], opt.state["b"]["step"]
        (array([0.5, 0.5]), 0, 1)
        """
        if grad is None:
            raise TypeError("grad must not be None: leave the call out")
        self._engine.step_one(self._engine.index_of(key), grad, self.param_groups, grad_scale)

    def step_rows(self, key: Any, rows: np.ndarray, grads: np.ndarray, *, grad_scale: float = 1.0) -> None:
        """Update some rows of one parameter, at the cost of these rows: of an embedding table, for one.

        As `step_one` with ``Rows(rows, grads)``. `Rows` explains what is computed; inside `step` it goes with the
        gradients of other arrays, in one parallel pass.

        Parameters
        ----------
        key : as in `state`
            Which parameter: a running index, or its name.
        rows : ndarray of int32 or int64, shape (k,)
            0 <= row < len(param), in any order; they may repeat.
        grads : ndarray, shape (k,) + param.shape[1:]
            The gradient of each; those of the same row are added.
        grad_scale : float, default 1, finite
            Multiplies the gradients.

        Raises
        ------
        KeyError
            No parameter has this key.
        IndexError
            The parameter has no such row. As with all errors, nothing has changed.
        TypeError, ValueError, FloatingPointError, RuntimeError, OSError
            As `Rows` and `step_one`.

        Examples
        --------
        >>> import numpy as np, fastadam
        >>> table = np.ones((1000, 2))
        >>> opt = fastadam.Adam({"embedding": table}, lr=0.1)
        >>> opt.step_rows("embedding", np.array([7, 3, 7]), np.ones((3, 2)))
        >>> table[[3, 5, 7], 0]
        array([0.9, 1. , 0.9])
        """
        self._engine.step_one(self._engine.index_of(key), _core.Rows(rows, grads), self.param_groups, grad_scale)

    def rebind(self, key: Any, array: np.ndarray, *, keep_master: bool = False) -> None:
        """From now on another array is this parameter: for models that put a new array in the place of an old one.

        State, counter and hyper-parameters stay, and no values are copied. `param_groups` shows the new array. Where it
        stands in your own container is yours; `step` takes the same structure as before.

        Parameters
        ----------
        key : as in `state`
            Which parameter: a running index, or its name.
        array : ndarray
            Of the old one's dtype, shape and memory order. What the constructor asks of a parameter, it asks of this.
        keep_master : bool, default False
            A bfloat16 parameter stands for what the new array says, as after `reset_master`. With True it keeps the
            bits that bfloat16 lacks: for a copy of the old array. It does nothing for other parameters.

        Raises
        ------
        KeyError
            No parameter has this key.
        TypeError, ValueError
            The array is of another kind, or overlaps what is written; nothing has changed.
        RuntimeError
            Inside `swap_ema`, or inside a step.

        Examples
        --------
        >>> import numpy as np, fastadam
        >>> net = {"W": np.ones(2), "b": np.ones(2)}
        >>> opt = fastadam.SGD(net, lr=0.5)
        >>> net["W"] = np.full(2, 7.0)
        >>> opt.rebind("W", net["W"])
        >>> opt.step({"W": np.ones(2), "b": None})
        >>> net["W"]
        array([6.5, 6.5])
        """
        self._engine.rebind(self._engine.index_of(key), array, keep_master, self.param_groups)

    def master(self, key: Any) -> np.ndarray:
        """The float32 numbers that a bfloat16 parameter stands for: a copy. Of another parameter, a copy of itself.

        Parameters
        ----------
        key : as in `state`
            Which parameter: a running index, or its name.

        Raises
        ------
        KeyError
            No parameter has this key.

        Examples
        --------
        >>> import ml_dtypes, numpy as np, fastadam
        >>> w = np.ones(2, ml_dtypes.bfloat16)
        >>> opt = fastadam.SGD(w, lr=0.001)
        >>> opt.step(np.ones(2, np.float32))
        >>> w.astype(float), opt.master(0)
        (array([1., 1.]), array([0.999, 0.999], dtype=float32))
        """
        i = self._engine.index_of(key)
        with _core.Locked(self._engine):
            if LOW in self._engine.raw_state(i):
                return self._engine.decoded(i, "master")
            return np.array(self._engine.arrays[i][0], copy=True, order="K")

    def reset_master(self, key: Any = None) -> None:
        """Let bfloat16 parameters stand for what they say, after you have written into them.

        Without it the numbers that they stand for are wrong by half of the last bit of bfloat16 at most.

        Parameters
        ----------
        key : as in `state`, or None, default None
            Which parameter; None for all.

        Raises
        ------
        KeyError
            No parameter has this key.
        RuntimeError
            Inside `swap_ema` or a step of this optimizer.

        Examples
        --------
        >>> import ml_dtypes, numpy as np, fastadam
        >>> w = np.ones(2, ml_dtypes.bfloat16)
        >>> opt = fastadam.SGD(w, lr=0.001)
        >>> opt.step(np.ones(2, np.float32))
        >>> w[:] = 0.5
        >>> opt.reset_master()
        >>> opt.master(0)
        array([0.5, 0.5], dtype=float32)
        """
        which = range(len(self._engine.keys)) if key is None else [self._engine.index_of(key)]
        self._engine.reset_masters(list(which))

    @property
    def ema(self) -> dict[Any, np.ndarray]:
        """The moving averages of the parameters, by their keys: live arrays.

        Raises ValueError if the optimizer was made without `ema_decay`.
        """
        state = self.state
        if not all("ema" in entry for entry in state.values()):
            raise ValueError("there are no averages: ema_decay was None when the optimizer was made")
        return {key: entry["ema"] for key, entry in state.items()}

    def swap_ema(self) -> AbstractContextManager[None]:
        """A context manager in which the parameters hold their averages, to evaluate or save a model.

        Parameters and averages are exchanged in place, and back at the end. Meanwhile `ema` has what the parameters
        held, and steps, saving, loading and copying of the optimizer raise a RuntimeError; to save the averages, save
        the parameters alone (``fastadam.save(path, params=...)``). What is written into them goes into the averages.

        Raises
        ------
        ValueError
            The optimizer was made without `ema_decay`, or a parameter has become read-only.
        RuntimeError
            Inside `swap_ema` or a step of this optimizer.

        Examples
        --------
        >>> import numpy as np, fastadam
        >>> x = np.array([5.0])
        >>> opt = fastadam.SGD(x, lr=0.5, ema_decay=0.75)
        >>> opt.step(np.array([4.0]))
        >>> with opt.swap_ema():
        ...     print(x)
        [4.5]
        >>> x
        array([3.])
        """
        _ = self.ema
        return _core.Swapped(self._engine)
