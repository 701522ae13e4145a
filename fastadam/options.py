"""The options of an optimizer as attributes: what can be read, what can be set, and errors for all others."""

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NoReturn, TypeAlias, TypedDict, TypeVar, Unpack, cast

import numpy as np

from fastadam import _core
from fastadam._names import did_you_mean
from fastadam._numbers import as_pair
from fastadam.containers import split

Gradients: TypeAlias = "np.ndarray | np.floating | _core.Rows | Mapping[Any, Gradients] | Iterable[Gradients] | None"
Number: TypeAlias = float | Callable[[int], Any]
Betas: TypeAlias = Sequence[Number] | Callable[[int], Any]
Value = TypeVar("Value")


class CommonOptions(TypedDict, total=False):
    """The options that do not depend on the rule; `Optimizer` documents them."""

    max_norm: float | None
    max_norm_each: float | None
    max_value: float | None
    nonfinite: Literal["propagate", "raise", "skip"]
    accumulate: int
    ema_decay: float | None
    threads: int | None
    state_file: str | os.PathLike[str] | None
    overrides: Mapping[str, Mapping[str, Any]] | None
    state_dtype: Literal["float32", "bfloat16", "8bit"]
    master_bits: Literal[32, 24] | None
    seed: int


# What programs for other libraries ask for, and what to do instead.
INSTEAD = {
    "params": "the arrays are in opt.param_groups[i]['params']",
    "state_file": "it is chosen when an optimizer is made",
    "overrides": "the groups that came of it are in opt.param_groups",
    "seed": "it is chosen when an optimizer is made",
}


def hyper_parameters(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those among the arguments of a rule's constructor, given as its locals()."""
    return {name: value for name, value in arguments.items() if name not in ("self", "params", "common", "__class__")}


class Setting(Generic[Value]):
    """An option that may be set between steps; the class's text explains it. A wrong value raises when it is set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: type) -> Value:
        return cast(Value, self if optimizer is None else optimizer._engine.settings[self.name])

    def __set__(self, optimizer: Any, value: Value) -> None:
        if "_engine" not in vars(optimizer):
            raise AttributeError(f"{self.name} is set by the constructor: give it to super().__init__()")
        optimizer._engine.change_settings({self.name: value})

    def __delete__(self, optimizer: Any) -> NoReturn:
        raise AttributeError(f"{self.name} cannot be deleted; set it to what the constructor takes")


class Options:
    """The attributes of `Optimizer`."""

    _engine: _core.Engine
    _defaults: dict[str, Any]  # the hyper-parameters of the rule, for groups without their own
    _family: ClassVar[str]
    param_groups: list[dict[str, Any]]
    threads = Setting[int | None]()
    max_norm = Setting[float | None]()
    max_norm_each = Setting[float | None]()
    max_value = Setting[float | None]()
    nonfinite = Setting[str]()
    accumulate = Setting[int]()
    ema_decay = Setting[float | None]()
    if TYPE_CHECKING:  # properties of the rules that have them; see __init_subclass__
        betas: Any
        eps: Any
        eps_root: Any
        weight_decay: Any
        momentum: Any
        dampening: Any
        alpha: Any
        lr_decay: Any
        momentum_decay: Any
        initial_accumulator_value: Any
        decoupled_weight_decay: bool
        amsgrad: bool
        centered: bool
        nesterov: bool
        maximize: bool
        bias_correction: bool
        eps_hat: bool

    def __init_subclass__(cls, **options: Any) -> None:
        """Hyper-parameters are read as `lr` is, and signatures show the options that are taken as ``**`` one by one.

        (By properties: with a `__getattr__` every step would take a fifth more instructions.)
        """
        super().__init_subclass__(**options)
        for name in vars(cls).keys() & CommonOptions.__annotations__:
            raise TypeError(
                f"{cls.__name__}.{name} would hide the option {name}; give it to super().__init__() instead"
            )
        signature = inspect.signature(cls.__init__)
        own = [p for p in signature.parameters.values() if p.annotation != Unpack[CommonOptions]]
        if len(own) == len(signature.parameters):
            return
        for parameter in own:
            if parameter.name not in ("self", "params") and not hasattr(cls, parameter.name):
                text = f"{parameter.name} of all groups. ValueError if they differ; it is set in `param_groups`."
                setattr(cls, parameter.name, property(partial(Options._shared, name=parameter.name), doc=text))
        optimizer = next(c for c in reversed(cls.__mro__) if "__init__" in vars(c) and c is not object)
        all_options = inspect.signature(vars(optimizer)["__init__"]).parameters.values()
        common = [p for p in all_options if p.name in CommonOptions.__annotations__]
        cls.__init__.__signature__ = signature.replace(parameters=[*own, *common])  # type: ignore[attr-defined]

    def _set(self, name: str, value: Any) -> None:
        if name == "param_groups" and "_engine" in self.__dict__:
            if type(value) is not list:
                raise TypeError(f"param_groups must be a list, got a {type(value).__name__}")
            self._engine.check_groups(value)
        elif name == "seed" and "_engine" in self.__dict__:
            raise AttributeError(f"seed cannot be set: {INSTEAD[name]}")
        elif name in (*_core.FIXED_FLAGS, *_core.FORMATS) and name in self.__dict__.get("_defaults", ()):
            load = ", and load the state_dict() of this one" if name in _core.FORMATS else ""
            raise AttributeError(
                f"{name} is chosen when a group is made, because it needs state: make a new optimizer{load}"
            )
        elif name != "lr" and name in self.__dict__.get("_defaults", ()):
            raise AttributeError(f"{name} belongs to the groups: set opt.param_groups[i][{name!r}]")
        elif not (name.startswith("_") or self._declares(name)):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{self._what_then(name)}")
        super().__setattr__(name, value)

    if not TYPE_CHECKING:  # for which names that are not declared are errors
        __setattr__ = _set

    def _what_then(self, name: str) -> str:
        if name in INSTEAD:
            return f": {INSTEAD[name]}"
        hint = did_you_mean(name, [each for each in dir(type(self)) if not each.startswith("_")])
        if type(self).__module__.startswith("fastadam."):
            return hint
        return f"{hint}; a class declares its own ({name} = None, or an annotation), or begins them with _"

    def _declares(self, name: str) -> bool:
        return any(name in vars(c) or name in getattr(c, "__annotations__", ()) for c in type(self).__mro__[:-1])

    def _check_names(self, values: Mapping[str, Any], where: str) -> None:
        for name in values:
            if name not in self._defaults:
                hint = did_you_mean(name, self._defaults)
                if name in CommonOptions.__annotations__:
                    hint = " (it is an argument of the optimizer, for all groups)"
                raise ValueError(f"unknown hyper-parameter {name!r} in {where}{hint}; known are {list(self._defaults)}")

    def _parts(
        self, keys: list[Any], overrides: Mapping[str, Mapping[str, Any]]
    ) -> list[tuple[Mapping[str, Any], Sequence[int]]]:
        """The groups that overrides make of one container: hyper-parameters, and places of arrays."""
        if not isinstance(overrides, Mapping):
            raise TypeError(f"overrides must be a dict of patterns, got a {type(overrides).__name__}")
        if not overrides:
            return [({}, range(len(keys)))]
        for pattern, values in overrides.items():
            if not isinstance(pattern, str):
                raise TypeError(f"overrides: a pattern must be a str, got {pattern!r}")
            where = f"overrides[{pattern!r}]"
            if not isinstance(values, Mapping):
                raise TypeError(f"{where} must be a dict of hyper-parameters, got a {type(values).__name__}")
            self._check_names(values, where)
            try:
                self._check_group({**self._defaults, **values})
            except (TypeError, ValueError) as error:
                error.add_note(f"in {where}")
                raise
        return split(keys, {pattern: with_own_betas(values) for pattern, values in overrides.items()})

    @staticmethod
    def _check_group(group: dict[str, Any]) -> None:
        """Raise if a hyper-parameter is out of range."""
        _core.check_group(group)

    @property
    def zero_grad(self) -> NoReturn:
        """Not there: gradients are given to `step`, which only reads them."""
        raise AttributeError("there is no zero_grad: gradients are yours, and only read; leave the call out")

    def _shared(self, name: str) -> Any:
        lost = next((i for i, group in enumerate(self.param_groups) if name not in group), None)
        if lost is not None:
            raise ValueError(f"param_groups[{lost}] has lost its {name}; set opt.param_groups[{lost}][{name!r}]")
        first, *others = (with_own_betas({name: group[name]})[name] for group in self.param_groups)
        if any(other != first for other in others):
            raise ValueError(f"the groups differ in {name}; read opt.param_groups[i][{name!r}]")
        return first

    @property
    def lr(self) -> Any:
        """The learning rate (or schedule) of all groups; setting it sets all groups.

        Raises ValueError when groups differ: read `param_groups` then. Other hyper-parameters are read in the same way
        (``opt.weight_decay``), and set in `param_groups`.
        """
        return self._shared("lr")

    @lr.setter
    def lr(self, value: Number) -> None:
        self._check_group({**self._defaults, "lr": value})
        for group in self.param_groups:
            group["lr"] = value

    @property
    def state_dtype(self) -> str:
        """In what form all groups keep their state. ValueError if they differ: read `param_groups`."""
        return str(self._shared("state_dtype"))

    @property
    def master_bits(self) -> int | None:
        """Of the numbers that bfloat16 parameters stand for, in all groups; None: 32. ValueError if they differ."""
        bits: int | None = self._shared("master_bits")
        return bits

    @property
    def seed(self) -> int:
        """As the constructor was given it: that of the first array; others, and those added later, count on from it.

        Loading replaces those of arrays: ``opt.state[key]["seed"]`` is what is used.
        """
        return int(self._engine.settings["seed"])

    @property
    def nbytes(self) -> int:
        """The bytes of all state, beside the parameters: moments, averages, sums, low bits of bfloat16 parameters.

        Examples
        --------
        >>> import numpy as np, fastadam
        >>> weights = np.zeros((1024, 1024), np.float32)
        >>> [fastadam.Adam(weights, state_dtype=name).nbytes / weights.size for name in ("float32", "bfloat16", "8bit")]
        [8.0, 4.0, 2.0625]
        """
        return self._engine.nbytes

    @property
    def last_values(self) -> list[dict[str, Any]]:
        """For each group, the numbers that its last step took for the hyper-parameters; of schedules, their results.

        {} before its first step. A gradient that was skipped, or only joined a sum, changes nothing.

        Examples
        --------
        >>> import numpy as np, fastadam
        >>> x = np.array([5.0])
        >>> opt = fastadam.Adagrad(x, lr=lambda count: 0.5 / (count + 1))
        >>> for _ in range(2):
        ...     opt.step(2 * x)
        >>> opt.last_values[0]["lr"]
        0.25
        """
        return [group.last_values() for group in self._engine.groups]

    @property
    def steps(self) -> int:
        """The largest step counter of all parameters."""
        return int(self._engine.records()["step"].max())

    @property
    def threads_used(self) -> int:
        """The threads that the last step took; 0 before the first."""
        return self._engine.threads_used

    @property
    def grad_norm(self) -> float | None:
        """The global norm of the last step's gradients, grad_scale included, before clipping.

        None before the first step, and where none of `max_norm`, `max_norm_each` and `nonfinite` has asked for it.
        """
        return self._engine.grad_norm

    @property
    def skipped_steps(self) -> int:
        """How many calls ``nonfinite="skip"`` has left out."""
        return self._engine.skipped

    def __repr__(self) -> str:
        """A table of the groups with their values now, and the common options."""
        if "_engine" not in self.__dict__:
            return f"<{type(self).__name__} that was not made>"
        sizes = [[array.size for array in group.get("params", ())] for group in self.param_groups]
        return f"{type(self).__name__}\n{as_table(self, self._defaults, sizes)}"


def with_own_betas(values: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters with a pair of betas that is nobody else's list."""
    betas = values.get("betas", ())
    return {**values, "betas": as_pair(betas)} if "betas" in values and not callable(betas) else dict(values)


def as_table(optimizer: Any, defaults: Mapping[str, Any], sizes: list[list[int]]) -> str:
    """Of its groups, whose arrays have these sizes, with their values now; and the common options."""
    numbers = [name for name, value in defaults.items() if not isinstance(value, bool | np.bool_)]
    flags = [name for name in defaults if name not in numbers]
    for name, usual in ("state_dtype", "float32"), ("master_bits", None):
        if all(group.get(name) == usual for group in optimizer.param_groups):
            numbers.remove(name)
    rows = [("group", "arrays", "elements", *numbers, "flags")]
    for i, (group, last, arrays) in enumerate(zip(optimizer.param_groups, optimizer.last_values, sizes, strict=False)):
        values = [shown(group.get(name, "missing"), last.get(name)) for name in numbers]
        on = ", ".join(name for name in flags if group.get(name))
        rows.append((str(i), str(len(arrays)), str(sum(arrays)), *values, on or "none"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    clipping = (
        f"max_norm={optimizer.max_norm}, max_norm_each={optimizer.max_norm_each}, max_value={optimizer.max_value}"
    )
    clipping += f", nonfinite={optimizer.nonfinite!r}"
    averages = f"ema_decay={optimizer.ema_decay}, accumulate={optimizer.accumulate}"
    threads = f"threads={optimizer.threads}, {optimizer.threads_used} used by the last step"
    return "\n".join([*table, f"{clipping}; {averages}; steps={optimizer.steps}; {threads}"])


def shown(value: Any, last: Any) -> str:
    """A hyper-parameter in a table; for a schedule, its last result."""
    if not _core.has_schedule(value):
        return str(value)
    return "schedule" if last is None else f"schedule, last {last}"
