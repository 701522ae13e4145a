"""From a model and its optimizer to arrays and a text, and back."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Protocol

import numpy as np
from numpy.lib.array_utils import byte_bounds

from fastadam import _core, _numbers
from fastadam._checks import as_array, check_in_place, is_bfloat16, overlap_error
from fastadam.containers import Tree, as_groups
from fastadam.persist.pieces import BFLOAT16, DTYPES


class Optimizer(Protocol):
    """What is used of an optimizer here."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    @property
    def _engine(self) -> _core.Engine: ...
    @property
    def state(self) -> Mapping[Any, Mapping[str, Any]]: ...
    def state_dict(self, *, raw: bool = False) -> dict[str, Any]: ...
    def _plan_load(self, state_dict: Mapping[str, Any], others: Sequence[Any] = ()) -> Any: ...
    def _load(self, state_dict: Mapping[str, Any], others: Sequence[Any] = ()) -> None: ...


def class_of(optimizer: Optimizer) -> str:
    """The name of its rule's class, by which files know it."""
    name: str = getattr(optimizer, "_class", type(optimizer).__name__)
    return name


def add_params(arrays: dict[str, np.ndarray], leaves: list[tuple[Any, Any]]) -> list[str]:
    for key, array in leaves:
        add(arrays, f"params/{key}", array)
    return [str(key) for key, _ in leaves]


def leaves_of(params: Any) -> list[tuple[Any, Any]]:
    """(key, array), with the keys that an optimizer of these parameters has."""
    leaves: list[tuple[Any, Any]] = []
    start = 0
    for group in as_groups(params, ())[0]:
        tree, found = Tree.read(group["params"], start)
        leaves += found
        start += tree.items
    if not leaves:
        raise ValueError("params holds no arrays")
    return leaves


def add_optimizer(arrays: dict[str, np.ndarray], optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state_dict, with names instead of arrays."""
    state_dict = optimizer.state_dict(raw=True)
    keys = [key for group in state_dict["param_groups"] for key in group["param_names"]]
    entries = []
    for key, entry in zip(keys, state_dict["state"].values(), strict=True):
        names = {}
        for name, value in entry.items():
            if isinstance(value, np.ndarray):
                add(arrays, f"optimizer/{key}/{name}", value)
                value = f"optimizer/{key}/{name}"
            names[name] = value
        entries.append(names)
    groups = [
        {
            k: v if k in ("state_dtype", "master_bits") else to_json(v)
            for k, v in group.items()
            if k not in ("params", "param_names")
        }
        | {"count": len(group["params"])}
        for group in state_dict["param_groups"]
    ]
    names_of_keys = [str(key) for key in keys]
    return {"class": class_of(optimizer), "keys": names_of_keys, "groups": groups, "state": entries}


def state_dict_of(saved: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {
        i: {k: arrays[v] if isinstance(v, str) else v for k, v in entry.items()}
        for i, entry in enumerate(saved["state"])
    }
    groups, start = [], 0
    for group in saved["groups"]:
        stop = start + group["count"]
        rest = {k: v for k, v in group.items() if k != "count"}
        groups.append({**rest, "params": list(range(start, stop))})
        start = stop
    return {"state": state, "param_groups": groups}


def in_groups(keys: list[str], counts: list[int]) -> list[list[str]]:
    """The keys of each group, sorted."""
    return [sorted(keys[end - count : end]) for count, end in zip(counts, accumulate(counts), strict=True)]


def in_order(saved: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """What is saved of each parameter, in the order of these keys."""
    entries = dict(zip(saved["keys"], saved["state"], strict=True))
    for key, entry in entries.items():
        if any(isinstance(name, str) and not name.startswith(f"optimizer/{key}/") for name in entry.values()):
            raise ValueError(f"under {key!r} it has the state of another parameter")
    return {"keys": keys, "state": [entries[key] for key in keys]}


def params_to_load(
    leaves: list[tuple[Any, Any]], saved: Any, arrays: Mapping[str, np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(live array, what to copy into it)"""
    for key, array in leaves:
        as_array(array, f"parameter {key!r}", True)
    names, ours = set(saved), [str(key) for key, _ in leaves]
    if len(set(ours)) != len(ours):
        raise ValueError(f"two parameters have the name {Counter(ours).most_common(1)[0][0]!r} in a file; rename one")
    missing = [key for key in ours if key not in names]
    if missing:
        raise ValueError(f"the checkpoint has no parameters {missing}; it has {saved}")
    pairs = []
    for key, array in leaves:
        where, new = f"parameter {key!r}", arrays[f"params/{key}"]
        if not (is_bfloat16(array.dtype) and new.dtype == BFLOAT16) and array.dtype != new.dtype:
            there, way_out = f"{new.dtype}", "load into an array of that type, and copy"
            if new.dtype == BFLOAT16:
                there, way_out = "bfloat16", f"{way_out}, or with its optimizer, for the exact numbers, opt.master(key)"
            raise TypeError(f"{where} is {array.dtype}, in the checkpoint {there}; nothing is ever cast: {way_out}")
        if array.shape != new.shape:
            raise ValueError(f"{where} has the shape {array.shape}, in the checkpoint {new.shape}")
        check_in_place(array, where)
        pairs.append((array, new.view(array.dtype)))  # C has two names for one integer type
    check_apart(leaves)
    return pairs


def check_are_stepped(leaves: list[tuple[Any, Any]], optimizer: Optimizer | None) -> None:
    """Raise if params has a key of the optimizer, but not the array stepped under it: it would not be trained."""
    if optimizer is None:
        return
    begins, ends = zip(*sorted(byte_bounds(array) for _, array in leaves), strict=True)
    last = [*accumulate(ends, max)]
    arrays = [array for group in optimizer.param_groups for array in group["params"]]
    stepped = dict(zip(optimizer.state, arrays, strict=True))
    for key, _ in leaves:
        other = stepped.get(key)
        if other is None or other.size == 0:
            continue
        begin, end = byte_bounds(other)
        before = bisect_left(begins, end)  # so many arrays of params begin before its end
        if before == 0 or last[before - 1] <= begin:
            raise ValueError(
                f"parameter {key!r} is another array than the one that the optimizer steps under this key; make the "
                "optimizer with the arrays of params, or give it each by opt.rebind(key, array). To use both as they "
                "are, call once with params and once with optimizer"
            )


def check_apart(leaves: list[tuple[Any, np.ndarray]]) -> None:
    """Raise if parameters share memory."""
    bounds = sorted((*byte_bounds(array), repr(key)) for key, array in leaves if array.size)
    for (_, end, key), (begin, _, other) in pairwise(bounds):
        if begin < end:
            raise overlap_error(f"parameter {key}", f"parameter {other}")


def add(arrays: dict[str, np.ndarray], name: str, array: Any) -> None:
    if name in arrays:
        raise ValueError(f"two arrays would be stored as {name!r}; rename one")
    array = as_array(array, name, False)
    if "\0" in name or len(name.encode(errors="replace")) > 60_000:
        raise ValueError(f"{name[:100]!r} cannot be a name in a file; rename the parameter")
    if is_bfloat16(array.dtype):
        array = array.view(BFLOAT16)
    if array.dtype not in DTYPES or not array.dtype.isnative or array.dtype.str.startswith(">"):
        raise TypeError(
            f"{name} has the dtype {array.dtype.str}, which cannot be stored; use real numbers or bool, little-endian"
        )
    arrays[name] = array


def to_json(value: Any) -> Any:
    """A hyper-parameter as JSON has it."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, tuple | list) or (isinstance(value, np.ndarray) and value.ndim == 1):
        return [to_json(x) for x in value]
    return _numbers.as_number(value, "a hyper-parameter")
