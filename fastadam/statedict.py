"""The state of an optimizer as users see it, and the checks of a state dict before any of it is loaded."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from fastadam import _core, _numbers
from fastadam._checks import maps_of
from fastadam._layout import CODES, LOW, SCALE, Order, flattened, laid_out
from fastadam.options import with_own_betas


class State(Mapping[Any, Mapping[str, Any]]):
    """A read-only view of an engine's state, by key."""

    def __init__(self, engine: _core.Engine) -> None:
        self._engine = engine

    def __getitem__(self, key: Any) -> Mapping[str, Any]:
        return Entry(self._engine, self._engine.index_of(key))

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._engine.keys))

    def __len__(self) -> int:
        return len(self._engine.keys)

    def __repr__(self) -> str:
        return repr(dict(self))


class Entry(Mapping[str, Any]):
    """The state of one parameter at this moment. What is stored in fewer bits is decoded when it is read. Assigning to
    it would change nothing, so it raises."""

    def __init__(self, engine: _core.Engine, i: int) -> None:
        self._engine, self._i, self.raw = engine, i, engine.entry(i)
        self._decoded = [name.removesuffix(CODES) for name in self.raw if name.endswith(CODES)]

    def __getitem__(self, name: str) -> Any:
        if name not in self._decoded:
            return self.raw[name]
        with _core.Locked(self._engine):  # codes and scales of one step
            array = self._engine.decoded(self._i, name)
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        yield from (name.removesuffix(CODES) for name in self.raw if name.endswith(CODES) or "::" not in name)
        yield from (name for name in self.raw if "::" in name)

    def __contains__(self, name: object) -> bool:  # without decoding it
        return name in self.raw or name in self._decoded

    def __len__(self) -> int:
        return len(self.raw) + len(self._decoded)

    def __repr__(self) -> str:
        return repr(dict(self))

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("opt.state is read-only: write into its arrays, or use load_state_dict")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


class LoadPlan(NamedTuple):
    """What an engine is to load. It has been checked."""

    param_groups: list[dict[str, Any]]
    changes: list[dict[str, Any]]  # for each of these
    arrays: Sequence[Mapping[str, np.ndarray]]  # raw state, for each parameter
    records: np.ndarray  # its counters
    others: Sequence[tuple[np.ndarray, np.ndarray]] = ()  # (target, source): parameters, for one


def state_dict(engine: _core.Engine, param_groups: list[dict[str, Any]], raw: bool) -> dict[str, Any]:
    engine.check_readable()
    engine.check_groups(param_groups)
    state = {i: raw_entry(engine, i) if raw else plain_entry(engine, i) for i in range(len(engine.keys))}
    groups: list[dict[str, Any]] = []
    start = 0
    for group in param_groups:
        stop = start + len(group["params"])
        plain = {k: v for k, v in group.items() if k != "params" and not _core.has_schedule(v)}
        groups.append({**plain, "params": list(range(start, stop)), "param_names": engine.keys[start:stop]})
        start = stop
    return {"state": state, "param_groups": groups}


def plain_entry(engine: _core.Engine, i: int) -> dict[str, Any]:
    entry = Entry(engine, i)
    plain = {name: entry[name] for name in entry if "::" not in name}
    return plain | {"master": engine.decoded(i, "master")} if LOW in entry.raw else plain


def raw_entry(engine: _core.Engine, i: int) -> dict[str, Any]:
    """As it is stored."""
    return with_order(Entry(engine, i).raw, engine.memory_order(i))


def with_order(raw: dict[str, Any], order: Order) -> dict[str, Any]:
    """Codes are in the order of memory, so which one that is belongs to them."""
    if order == "C" or not any("::" in name for name in raw):
        return raw
    return raw | ({"fortran_order": True} if order == "F" else {"axes": list(order)})


def plan_load(
    engine: _core.Engine,
    param_groups: list[dict[str, Any]],
    state_dict: Mapping[str, Any],
    others: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> LoadPlan:
    """What a state dict changes, or an error if any of it does not fit. `others` are copied, too."""
    engine.check_groups(param_groups)
    changes, indices = match_groups(state_dict, param_groups, engine.keys)
    initial = []
    for group, ours, change in zip(engine.groups, param_groups, changes, strict=True):
        merged = {**ours, **change}
        group.check(merged, False)
        initial += [merged.get("initial_accumulator_value", 0.0)] * len(ours["params"])
    sources = {id(target): source for target, source in others}  # averages begin with what the parameters will be
    params = [sources.get(id(arrays[0]), arrays[0]) for arrays in engine.arrays]
    arrays, records = match_state(state_dict, indices, engine, params, initial)
    return LoadPlan(param_groups, changes, arrays, records, others)


def plain_of(engine: _core.Engine, param_groups: list[dict[str, Any]]) -> dict[str, Any]:
    """What pickle and copy keep of an engine."""
    engine.check_readable()
    engine.check_groups(param_groups)
    return {
        "family": engine.family,
        "names": list(engine.names),
        "settings": dict(engine.settings),
        "wrap_mask": engine.wrap_mask,
        "structure": engine.structure,
        "keys": list(engine.keys),
        "masks": [group.mask for group in engine.groups],
        "arrays": [engine.raw_state(i) for i in range(len(engine.keys))],
        "orders": [engine.memory_order(i) for i in range(len(engine.keys))],
        "records": engine.records(),
        "skipped": engine.skipped,
    }


def engine_of(saved: dict[str, Any], param_groups: list[dict[str, Any]]) -> _core.Engine:
    """An engine from what `plain_of` kept."""
    params = [array for group in param_groups for array in group["params"]]
    for key, array in zip(saved["keys"], params, strict=True):
        if not array.flags.writeable and maps_of([array]):
            raise ValueError(
                f"parameter {key!r} comes as a read-only memory map; with joblib give max_nbytes=None or "
                "mmap_mode='c' to Parallel, mmap_mode='c' to load"
            )
    settings = {"max_norm_each": None, **saved["settings"]}  # pickles of a version before have none
    engine = _core.Engine(saved["family"], saved["names"], settings, saved["wrap_mask"])
    engine.skipped = saved["skipped"]
    remaining = iter(saved["keys"])
    with engine:
        for group, mask in zip(param_groups, saved["masks"], strict=True):
            keys = [next(remaining) for _ in group["params"]]
            engine.add_group(keys, group["params"], group, [], saved["structure"], mask)
        orders = saved.get("orders", [engine.memory_order(i) for i in range(len(params))])
        arrays = [in_our_order(engine, i, raw, orders[i]) for i, raw in enumerate(saved["arrays"])]
        engine.load(LoadPlan([], [], arrays, saved["records"]))
    return engine


def in_our_order(engine: _core.Engine, i: int, raw: dict[str, np.ndarray], order: Order) -> dict[str, np.ndarray]:
    """Raw state that lay in this order. (Pickle may bring an array back in C order: up to protocol 4, for one.)"""
    if order == engine.memory_order(i) or not any("::" in name for name in raw):
        return raw
    param, where = engine.arrays[i][0], f"parameter {engine.keys[i]!r}"
    saved, stored = stored_apart(with_order(raw, order), param.ndim, where), {}
    for name, value in saved.items():
        if name == "master":
            stored[LOW] = as_low(engine, i, value, param, where)
        else:
            stored |= as_stored(engine, i, name, value, where)
    return stored


def match_groups(
    state_dict: Mapping[str, Any], param_groups: list[dict[str, Any]], keys: list[Any]
) -> tuple[list[dict[str, Any]], list[Any]]:
    """The hyper-parameters to set in each group, and the saved index of each of our parameters."""
    check_kind(state_dict, Mapping, "state_dict")
    if not {"state", "param_groups"} <= set(state_dict):
        raise ValueError(f"state_dict needs the keys 'state' and 'param_groups', got {list(state_dict)}")
    saved_groups = state_dict["param_groups"]
    check_kind(saved_groups, list | tuple, "state_dict['param_groups']")
    if len(saved_groups) != len(param_groups):
        raise ValueError(f"state_dict has {len(saved_groups)} groups, the optimizer {len(param_groups)}")
    changes: list[dict[str, Any]] = []
    indices: list[Any] = []
    for i, (ours, saved) in enumerate(zip(param_groups, saved_groups, strict=True)):
        where = f"state_dict['param_groups'][{i}]"
        check_kind(saved, Mapping, where)
        saved_params = saved.get("params")
        check_kind(saved_params, list | tuple, f"{where}['params']")
        count = len(ours["params"])
        if len(saved_params) != count:
            raise ValueError(f"{where} has {len(saved_params)} parameters, the optimizer's group {count}")
        names = keys[len(indices) : len(indices) + count]
        saved_names = saved.get("param_names")
        if saved_names is not None:
            check_kind(saved_names, list | tuple, f"{where}['param_names']")
        if saved_names is not None and list(saved_names) != names:
            named = len(saved_names) == count and all(name in names for name in saved_names)
            place = dict(zip(saved_names, saved_params, strict=True)) if named else {}
            if place.keys() != set(names):
                raise ValueError(
                    f"{where} has the param_names {saved_names}, the optimizer {names}; to go by position "
                    "instead, delete 'param_names' from it"
                )
            saved_params = [place[name] for name in names]
        foreign = [name for name in saved if name in _core.HYPER_PARAMETERS and name not in ours]
        if foreign:
            raise ValueError(f"{where} is of another optimizer: it has {', '.join(foreign)}; known are {list(ours)}")
        # The rest is not for us: how torch computes, what its schedulers remember, labels.
        change = {k: v for k, v in saved.items() if k in ours and k not in ("params", *_core.FORMATS)}
        _core.check_group({**ours, **change})
        for flag in change.keys() & _core.FIXED_FLAGS:
            if change[flag] != ours[flag]:
                raise ValueError(f"{where} has {flag}={change[flag]}, the optimizer {ours[flag]}")
        changes.append(with_own_betas(change))
        for index in saved_params:
            if not isinstance(index, Hashable):
                raise TypeError(f"{where}['params'] must list running indices, got a {type(index).__name__}")
        indices += saved_params
    if len(set(indices)) != len(indices):
        raise ValueError(f"state_dict['param_groups'] lists a parameter twice: {indices}")
    return changes, indices


def match_state(
    state_dict: Mapping[str, Any],
    indices: list[Any],
    engine: _core.Engine,
    params: list[np.ndarray],
    initial: list[float],
) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """For each of our parameters: arrays as they are stored, and counters."""
    check_kind(state_dict["state"], Mapping, "state_dict['state']")
    saved_state = dict(state_dict["state"])
    unknown = saved_state.keys() - set(indices)
    if unknown:
        raise ValueError(f"state_dict['state'] has entries {list(unknown)} that no group lists in its 'params'")
    arrays: list[dict[str, np.ndarray]] = []
    records = engine.records()
    for i, (index, param, start, record) in enumerate(zip(indices, params, initial, records, strict=True)):
        where = f"state_dict['state'][{index!r}] (parameter {engine.keys[i]!r})"
        saved = saved_state.get(index, {})
        check_kind(saved, Mapping, where)
        saved = {name: value for name, value in saved.items() if value is not None}
        saved = stored_apart(saved, param.ndim, where)
        seed, master = saved.pop("seed", None), saved.pop("master", None)
        entry = engine.entry(i)
        low = as_low(engine, i, master, param, f"{where}['master']") if LOW in entry else None
        if low is None and master is not None:
            check_master(master, param, f"{where}['master']")
        names = [name.removesuffix(CODES) for name in engine.raw_state(i) if name.endswith(CODES) or "::" not in name]
        expected = [name for name in entry if "::" not in name and name not in (*names, "seed")] + names
        fresh: dict[str, Any] = {"step": 0, "mu_product": 1.0, "grad_count": 0}
        for name in names:
            ours = entry.get(name)
            kind = np.float32 if ours is None else ours.dtype.type
            shape = param.shape if ours is None else ours.shape
            fresh[name] = np.broadcast_to(kind(0.0 if name == "grad_sum" else start), shape)
            if name == "ema" and name not in saved:
                order = engine.memory_order(i)
                fresh[name] = param.astype(kind, copy=False) if low is None else joined(param, low, order)
        fresh = {name: fresh[name] for name in expected}
        if saved.keys() == {"momentum_buffer"}:  # torch's SGD counts no steps: all that matters is the first
            saved["step"] = 1
        if not saved:  # torch has none, an empty one, or None for a buffer, before the first step
            saved = fresh
        else:
            for kept in {"ema"}, {"grad_sum", "grad_count"}:
                if not kept & saved.keys():  # saved by torch, or without them
                    saved |= {name: fresh[name] for name in kept if name in fresh}
                elif not kept & fresh.keys():
                    leave_out(kept, saved, where)
        if saved.keys() != fresh.keys():
            raise ValueError(
                f"{where} has the keys {list(saved)}, expected {expected}; make the optimizer with the options "
                "of the one that was saved (ema_decay, accumulate, amsgrad, momentum, ...)"
            )
        arrays.append({})
        for name in names:
            arrays[-1] |= as_stored(engine, i, name, saved[name], f"{where}[{name!r}]")
        if low is not None:
            arrays[-1][LOW] = low
        step = as_counter(saved["step"], f"{where}['step']")
        count = as_counter(saved.get("grad_count", 0), f"{where}['grad_count']")
        if count >= 2**31:
            raise ValueError(f"{where}['grad_count'] must be less than 2**31, got {count}")
        record["step"], record["pending"] = step, count
        record["product"] = _numbers.as_product(saved.get("mu_product", 1.0), f"{where}['mu_product']")
        if seed is not None:
            record["seed"] = as_seed(seed, f"{where}['seed']")
        is_own = any(np.shares_memory(array, entry[name]) for name, array in arrays[-1].items())
        if is_own and (step, count) != (entry["step"], entry.get("grad_count", 0)):
            raise ValueError(
                f"{where} says step {step}, but its arrays are this optimizer's own, which went on to step "
                f"{entry['step']}; state_dict() does not copy: keep copy.deepcopy(opt.state_dict())"
            )
    return arrays, records


class Stored(NamedTuple):
    """State as raw state dicts have it."""

    codes: np.ndarray
    scale: np.ndarray | None
    order: Order


def stored_apart(saved: dict[Any, Any], ndim: int, where: str) -> dict[str, Any]:
    """With `Stored` in place of the arrays of raw state, by the names of what they hold."""
    order: Order = "F" if _numbers.as_flag(saved.pop("fortran_order", False), f"{where}['fortran_order']") else "C"
    axes = saved.pop("axes", None)
    if axes is not None:
        if type(axes) is not list or sorted(map(repr, axes)) != sorted(map(repr, range(ndim))):
            raise ValueError(
                f"{where}['axes'] must be a list of the axes 0 to {ndim - 1} in memory order, got {axes!r}"
            )
        order = tuple(axes)
    for name in [name for name in saved if isinstance(name, str) and (name.endswith(CODES) or name == LOW)]:
        base = "master" if name == LOW else name.removesuffix(CODES)
        if base == "master" and name != LOW:
            raise ValueError(f"{where} has {name!r}; the low bits of a master are {LOW!r}")
        if base in saved:
            raise ValueError(f"{where} has {base!r} twice, the other time as {name!r}; leave one of them out")
        codes = as_ndarray(saved.pop(name), f"{where}[{name!r}]")
        scale = None if name == LOW else saved.pop(base + SCALE, None)
        if scale is not None:
            scale = as_ndarray(scale, f"{where}[{base + SCALE!r}]")
        saved[base] = Stored(codes, scale, order)
    return saved


def as_stored(engine: _core.Engine, i: int, name: str, saved: Any, where: str) -> dict[str, np.ndarray]:
    """Saved state, in the form of ours, by the names of the arrays."""
    raw = engine.raw_state(i)
    like, codes = engine.arrays[i][0], raw.get(name + CODES)
    if isinstance(saved, Stored):
        check_stored(saved, like.size, engine.is_positive(name), where)
        if codes is not None and saved.codes.dtype == codes.dtype and saved.order == engine.memory_order(i):
            return {name + CODES: saved.codes} | ({} if saved.scale is None else {name + SCALE: saved.scale})
        saved = _core.decoded_state(saved.codes, saved.scale, engine.is_positive(name), saved.order, like.shape)
    if codes is None:
        return {name: as_state(saved, raw[name].dtype, raw[name].shape, where)}
    saved = as_state(saved, np.dtype(np.float32), like.shape, where)
    if engine.is_positive(name) and (saved < 0).any():
        raise ValueError(f"{where} has negative elements, which it never has; the state is damaged")
    return engine.encoded(i, name, saved)


def check_stored(saved: Stored, size: int, is_positive: bool, where: str) -> None:
    """Raise unless these are codes, in any format, of so many elements."""
    codes, scale = saved.codes, saved.scale
    kind = np.dtype(np.uint16 if scale is None else np.uint8)
    if codes.dtype == np.uint8 and scale is None:
        raise TypeError(f"{where} has codes of uint8, which need its {SCALE!r}, too")
    if codes.dtype != kind or (scale is not None and scale.dtype != np.uint8):
        raise TypeError(f"{where} has codes of {codes.dtype}, expected {kind}")
    if codes.shape != (size,) or (scale is not None and scale.shape != (-(-size // _core.GROUP),)):
        raise ValueError(f"{where} has codes of the shape {codes.shape}, and the parameter {size} elements")
    least = _core.LEAST_SCALES[is_positive]
    if scale is None and is_positive and (codes >= 0x8000).any():
        raise ValueError(f"{where} has negative elements, which it never has; the state is damaged")
    if scale is not None and (scale < least).any():
        raise ValueError(f"{where} has a scale below {least}, which it never has; the state is damaged")


def as_low(engine: _core.Engine, i: int, saved: Any, param: np.ndarray, where: str) -> np.ndarray:
    """What is stored beside a bfloat16 parameter, which will be `param`."""
    ours = engine.raw_state(i)[LOW]
    if saved is None:
        return np.zeros_like(ours)
    if isinstance(saved, Stored):
        low = saved.codes
        if low.dtype.type not in (np.int16, np.int8) or low.shape != ours.shape:
            raise ValueError(
                f"{where} must have the low bits ({LOW!r}) in int16 or int8, of the shape {ours.shape}, got "
                f"{low.dtype} of the shape {low.shape}"
            )
        if low.dtype == ours.dtype and saved.order == engine.memory_order(i):
            return low
        saved = joined(param, low, saved.order)
    found = engine.low_bits(i, as_state(saved, np.dtype(np.float32), param.shape, where), param)
    if found is None:
        raise ValueError(
            f"{where} does not belong to the parameter: rounded to bfloat16 it is another; load both, or leave it out"
        )
    return found


def check_master(saved: Any, param: np.ndarray, where: str) -> None:
    """Raise if a parameter that has all its bits is not what a bfloat16 one stood for: steps would be lost."""
    if isinstance(saved, Stored):
        raise ValueError(
            f"{where} has the low bits ({LOW!r}) of a bfloat16 parameter, and this one is {param.dtype}; load it into "
            "an optimizer of bfloat16 arrays, and go on from its opt.master(key) and opt.state_dict()"
        )
    if not np.array_equal(as_state(saved, np.dtype(np.float32), param.shape, where), param, equal_nan=True):
        raise ValueError(
            f"{where} is what a bfloat16 parameter stood for, and this one, of {param.dtype}, has other numbers; write "
            "it into the parameter first, or delete it from the entry to go on from the parameter"
        )


def joined(param: np.ndarray, low: np.ndarray, order: Order) -> np.ndarray:
    """What a bfloat16 parameter stands for, with low bits in this memory order."""
    return laid_out(_core.decoded_master(flattened(param, order).view(np.uint16), low), param.shape, order)


def leave_out(kept: set[str], saved: dict[str, Any], where: str) -> None:
    """Take out what this optimizer does not keep, or raise if something would be lost."""
    if "ema" in kept:
        raise ValueError(
            f"{where} has an average of the parameter (ema), and this optimizer keeps none: make it with ema_decay. "
            "To go on without averages, load into such an optimizer, delete 'ema' from each entry of its state_dict(), "
            "and load that here"
        )
    pending = as_counter(saved.get("grad_count", 0), f"{where}['grad_count']")
    if pending:
        raise ValueError(
            f"{where} has a sum of gradients, {pending} so far, that waits for a step, and this optimizer keeps none: "
            "make it with accumulate. To drop the sum, delete 'grad_count' and 'grad_sum' from each entry of the "
            "state_dict() of such an optimizer, and load that"
        )
    for name in kept:
        saved.pop(name, None)


def as_ndarray(saved: Any, where: str) -> np.ndarray:
    if not hasattr(saved, "__array__") or isinstance(saved, np.ma.MaskedArray | np.generic):
        raise TypeError(f"{where} must be an array, got a {type(saved).__name__}")
    try:
        return np.asarray(saved)
    except MemoryError:
        raise
    except Exception as error:  # whatever its __array__ raises: torch's does for tensors on a GPU
        how = "; use .float()" if "BFloat16" in str(error) else ""  # of torch
        raise TypeError(f"{where} cannot be converted to an ndarray: {type(error).__name__}: {error}{how}") from error


def as_state(saved: Any, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> np.ndarray:
    """A saved state array that can be copied into one of ours without a cast, or an error."""
    array = as_ndarray(saved, where)
    if array.dtype != dtype:
        raise TypeError(f"{where} must be {dtype}, got {array.dtype}; state is never cast, so convert it first")
    if array.shape != shape:
        raise ValueError(f"{where} must have the shape {shape}, got {array.shape}")
    return array


def check_kind(x: Any, kind: Any, where: str) -> None:
    if not isinstance(x, kind):
        expected = "dict" if kind is Mapping else "list"
        raise TypeError(f"{where} must be a {expected}, got a {type(x).__name__}")


def as_counter(step: Any, where: str) -> int:
    """A step counter, which torch keeps as a float tensor."""
    number = int(step) if type(step) is int or isinstance(step, np.integer) else _numbers.as_number(step, where)
    if not (0 <= number < 2**63 and number == int(number)):
        raise ValueError(f"{where} must be an integer >= 0 and less than 2**63, got {step!r}")
    return int(number)


def as_seed(value: Any, where: str) -> int:
    seed = _numbers.as_integer(value, where)
    if not 0 <= seed < 2**64:
        raise ValueError(f"{where} must be >= 0 and less than 2**64, got {seed}")
    return seed
