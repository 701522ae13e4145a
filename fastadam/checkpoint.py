"""Checkpoints: a model and its optimizer in one file, whole or not at all.

A file holds arrays, in a format that other tools read (safetensors, or NumPy's .npz), and one text in JSON with all the
rest: hyper-parameters, counters, metadata, and for each array its type, shape and CRC-32. The text has a CRC of its
own. Nothing in a file is believed before these agree, and nothing is ever unpickled.
"""

import errno
import json
import math
import os
import re
import stat
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
from numpy.lib.array_utils import byte_bounds

from fastadam import _core, _numbers
from fastadam.atomic import as_path, write_aside
from fastadam.containers import Tree, as_groups
from fastadam.statedict import as_counter
from fastadam.strict_json import as_metadata, parse

if TYPE_CHECKING:
    from fastadam.optimizer import Optimizer
    from fastadam.options import Container

P = ParamSpec("P")
R = TypeVar("R")
FORMAT = 1  # of the text; what reads 1 reads all of 1, and passes over keys that it does not know
NPY_HEADER = re.compile(rb"\{'descr': '([<|]\w+)', 'fortran_order': False, 'shape': \(((?:\d+, ?)*\d*)\), \} *\n")
TEXT = "fastadam"  # where it is: a key of safetensors' metadata, a member of an .npz
LARGE = 1 << 30  # bytes: with more, a bar shows the progress
TEXT_SIZE, TEXT_PER_ARRAY = 16 << 20, 4 << 10  # bytes: the longest text or header that is parsed
DTYPES = {np.dtype(name) for name in ("bool", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")}


def by_name(write: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """If arguments are given without their names, or under others, the error says what to write."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = list(signature(function).parameters)
        unnamed = known.index("path") + 1

        @wraps(function)
        def call(*arguments: P.args, **named: P.kwargs) -> R:
            unknown = [name for name in named if name not in known]
            if unknown or len(arguments) > unnamed:
                problem = f"has no {', '.join(unknown)}" if unknown else "takes only path without a name"
                raise TypeError(f"{function.__qualname__} {problem}; write {write}")
            return function(*arguments, **named)

        return call

    return decorate


# ---- what users call


@by_name("fastadam.save(path, params=..., optimizer=..., metadata=..., progress=...)")
def save(
    path: str | os.PathLike[str],
    *,
    params: "Container | None" = None,
    optimizer: "Optimizer | None" = None,
    metadata: dict[str, Any] | None = None,
    progress: bool | None = None,
) -> None:
    """Write a model's parameters, its optimizer, or both to a file, so that a crash leaves the old file or the new one.

    Parameters
    ----------
    path : str or path, ending in .safetensors or .npz
        The first needs the safetensors package (``pip install 'fastadam[checkpoint]'``). The file is written aside,
        synced to disk and renamed; a symbolic link stays one.
    params : container of ndarrays, default None
        As given to an optimizer, of any real dtype. Arrays are stored in C order under their keys.
    optimizer : Optimizer, default None
        Its state, counters and hyper-parameters are stored; schedules are code and are left out.
    metadata : dict or None, default None
        Anything else that JSON can hold: dicts with str keys, lists, str, int, finite float, bool, None; at most 100
        levels and 1 MiB as JSON. `load` and `inspect` return it. Tuples come back as lists.
    progress : bool or None, default None
        Show a bar (needs tqdm). None: for more than 1 GiB, in a terminal.

    Raises
    ------
    TypeError, ValueError
        Nothing to save, a path, an array or metadata that cannot be stored, two keys with one name; or an array was
        changed by another thread meanwhile. What was there before still is.
    ImportError
        The safetensors package is missing, or tqdm.
    OSError
        The file could not be written. What was there before still is. (Or, if syncing the folder failed, the new file
        is there, and may be gone after a power failure.) A kill may leave a hidden file next to it, .fastadam.* or
        .tmp*; delete it.

    Warns
    -----
    RuntimeWarning
        The file's mode could not be set to the old file's, or to a new file's usual one. It is saved all the same. Only
        where warnings are errors nothing is saved, and what was there before still is.

    Examples
    --------
    >>> import numpy as np, fastadam, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
    >>> weights = {"W": np.ones(3)}
    >>> opt = fastadam.Adam(weights)
    >>> fastadam.save(path, params=weights, optimizer=opt, metadata={"epoch": 3})
    >>> weights["W"][:] = 0
    >>> fastadam.load(path, params=weights, optimizer=opt)
    {'epoch': 3}
    >>> weights["W"]
    array([1., 1., 1.])
    """
    name, write, read = format_of(path)
    check_flag(progress, "progress", or_none=True)
    if params is None and optimizer is None:
        raise ValueError("nothing to save: pass params, optimizer or both")
    arrays: dict[str, np.ndarray] = {}
    text: dict[str, Any] = {"format": FORMAT}
    if metadata is not None:
        text["metadata"] = as_metadata(metadata)
    with lock_of(optimizer):
        if params is not None:
            text["params"] = add_params(arrays, leaves_of(params))
        if optimizer is not None:
            text["optimizer"] = add_optimizer(arrays, optimizer)
        stored = {name: as_stored(array, name) for name, array in arrays.items()}
        with bar(sum(array.nbytes for array in stored.values()), progress, "summing") as advance:
            text["arrays"] = {name: describe(array, advance) for name, array in stored.items()}
        text["crc32"] = crc_of_text(text)

        def write_and_read_back(aside: Path) -> None:
            write(aside, stored, json.dumps(text))
            with open(aside, "rb") as file:
                places, raw = read(file, longest_text(len(text.get("params", ())), optimizer))  # as load will
                claimed(places, raw)
                try:
                    verified(file, places, text["arrays"], False, progress)
                except ValueError as error:
                    raise ValueError(f"{error}: was it changed by another thread while it was written?") from None

        write_aside(Path(os.path.realpath(name)), write_and_read_back)


@by_name("fastadam.load(path, params=..., optimizer=..., mmap=..., progress=...)")
def load(
    path: str | os.PathLike[str],
    *,
    params: "Container | None" = None,
    optimizer: "Optimizer | None" = None,
    mmap: bool = False,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Copy a checkpoint into the live arrays of a model, its optimizer, or both: all of it, or nothing.

    Parameters
    ----------
    path : str or path
        As given to `save`.
    params : container of ndarrays, default None
        With the keys, shapes and dtypes of those that were saved. They need not be all that is in the file.
    optimizer : Optimizer, default None
        Of the same class and groups as the one saved. Hyper-parameters that were saved replace what it has, schedules
        too; those that were schedules then stay as they are. What surrounds the rule (max_norm, nonfinite, ...) is not
        in the file. Averages that are not in it begin with the parameters.
    mmap : bool, default False
        Copy from a memory map instead of reading the arrays first, which takes half the memory. Then nobody may write
        into or truncate the file meanwhile (`save` never does: it puts another in its place).
    progress : bool or None, default None
        Show a bar (needs tqdm). None: for more than 1 GiB, in a terminal.

    Returns
    -------
    dict
        The metadata that was saved; {} if there is none.

    Raises
    ------
    ValueError, TypeError
        The file is damaged, not a checkpoint, of a newer format, or of another model; the message says what differs.
        Nothing has changed.
    ImportError
        ``progress=True`` needs tqdm.
    OSError
        The file could not be read.

    Examples
    --------
    See `save`.

    >>> import numpy as np, fastadam
    >>> fastadam.load("no such file.npz", params=np.ones(1))
    Traceback (most recent call last):
    ...
    FileNotFoundError: [Errno 2] No such file or directory: 'no such file.npz'
    """
    name, _, read = format_of(path)
    check_flag(mmap, "mmap")
    check_flag(progress, "progress", or_none=True)
    if params is None and optimizer is None:
        raise ValueError(
            "nothing to load into: pass params, optimizer or both; fastadam.inspect(path) says what is in a file"
        )
    leaves = None if params is None else leaves_of(params)
    # All is read from the one file that is opened, whatever save puts in its place.
    with lock_of(optimizer), open_regular(name) as file:
        with saying(f"{name!r} is damaged or no checkpoint"):
            places, raw = read(file, longest_text(len(leaves or ()), optimizer))
            text = claimed(places, raw)
        # What the file claims is held against the model first, so that no more is read than the model takes.
        empty = {key: np.broadcast_to(np.zeros((), place.dtype), place.shape) for key, place in places.items()}
        pairs, state, used = fitting(empty, text, name, leaves, optimizer)
        with saying(f"{name!r} is damaged", but=(OSError, MemoryError, ImportError)):
            arrays = verified(file, {key: places[key] for key in used}, text["arrays"], mmap, progress)
        pairs, state, _ = fitting(arrays, text, name, leaves, optimizer)
        if optimizer is None:
            _core.copy_arrays(pairs)
        else:
            with optimizer._engine:
                optimizer._engine.load(optimizer._plan_load(state, pairs))
    return text["metadata"]


@by_name("fastadam.inspect(path)")
def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Say what is in a checkpoint, without loading or checking the elements of its arrays.

    Parameters
    ----------
    path : str or path
        As given to `save`. Any file may be passed, whoever wrote it.

    Returns
    -------
    dict
        Keys of parameters are str, as in the file.

        * "format": int, the version of the file's format.
        * "optimizer": str, the name of the optimizer's class; None if it was saved without.
        * "params": {key: {"dtype": str, "shape": tuple}}; {} if it was saved without.
        * "state": {key: {name: {"dtype": str, "shape": tuple}}}, the arrays of the optimizer's state.
        * "param_groups": a dict of hyper-parameters for each group, and the keys of its parameters as "params".
        * "steps": {key: int}, the steps that each parameter has taken.
        * "metadata": dict, as given to `save`; {} if there is none.

    Raises
    ------
    ValueError
        The file's text is damaged, not of a checkpoint, of a newer format, or longer than 16 MiB (some 60 000 arrays;
        `load` takes more, since it knows the model).
    TypeError
        The path is no str or os.PathLike.
    OSError
        The file could not be read.

    Examples
    --------
    >>> import numpy as np, fastadam, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
    >>> weights = {"W": np.ones((3, 2), np.float32)}
    >>> fastadam.save(path, params=weights, optimizer=fastadam.SGD(weights, lr=0.1), metadata={"epoch": 3})
    >>> found = fastadam.inspect(path)
    >>> found["params"]
    {'W': {'dtype': 'float32', 'shape': (3, 2)}}
    >>> found["optimizer"], found["param_groups"][0]["lr"], found["steps"], found["metadata"]
    ('SGD', 0.1, {'W': 0}, {'epoch': 3})
    """
    name, _, read = format_of(path)
    with open_regular(name) as file, saying(f"{name!r} is damaged or no checkpoint"):
        places, raw = read(file, TEXT_SIZE)
        return summary(claimed(places, raw), places)


def fitting(
    arrays: Mapping[str, np.ndarray],
    text: dict[str, Any],
    file: str,
    leaves: list[tuple[Any, Any]] | None,
    optimizer: "Optimizer | None",
) -> tuple[list[tuple[np.ndarray, np.ndarray]], dict[str, Any], set[str]]:
    """What to copy into parameters, the optimizer's state_dict, and the names of the arrays used, if all of it fits."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    state: dict[str, Any] = {}
    used: set[str] = set()
    with saying(f"{file!r} does not fit", but=(ValueError, TypeError, MemoryError)):
        if leaves is not None:
            pairs = params_to_load(leaves, section(text, "params", file), arrays)
            used |= {f"params/{key}" for key, _ in leaves}
        if optimizer is not None:
            saved, ours = section(text, "optimizer", file), type(optimizer).__name__
            if saved["class"] != ours:
                raise ValueError(f"{file!r} has the state of {saved['class']}, not of {ours}")
            keys = [str(key) for key in optimizer.state]
            if saved["keys"] != keys and sorted(saved["keys"]) == sorted(keys):
                raise ValueError(
                    f"{file!r} has the same parameters in other groups: {saved['keys']}, the optimizer {keys}; make it "
                    "with the groups, or the overrides, of the one that was saved"
                )
            if saved["keys"] != keys:
                raise ValueError(f"{file!r} has the parameters {saved['keys']}, the optimizer {keys}")
            counts = [group["count"] for group in saved["groups"]]
            expected = [len(group["params"]) for group in optimizer.param_groups]
            if counts != expected:
                raise ValueError(f"{file!r} has groups of {counts} parameters, the optimizer of {expected}")
            state = state_dict_of(saved, arrays)
            used |= {value for entry in saved["state"] for value in entry.values() if isinstance(value, str)}
            optimizer._plan_load(state, pairs)
    return pairs, state, used


# ---- from a model to arrays and a text, and back


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


def add_optimizer(arrays: dict[str, np.ndarray], optimizer: "Optimizer") -> dict[str, Any]:
    """The optimizer's state_dict, with names instead of arrays."""
    state_dict = optimizer.state_dict()
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
        {k: plain(v) for k, v in group.items() if k not in ("params", "param_names")} | {"count": len(group["params"])}
        for group in state_dict["param_groups"]
    ]
    names_of_keys = [str(key) for key in keys]
    return {"class": type(optimizer).__name__, "keys": names_of_keys, "groups": groups, "state": entries}


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


def params_to_load(
    leaves: list[tuple[Any, Any]], saved: Any, arrays: Mapping[str, np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(live array, what to copy into it)"""
    for key, array in leaves:
        if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"parameter {key!r} must be a numpy.ndarray, got a {type(array).__name__}")
    names, ours = set(saved), [str(key) for key, _ in leaves]
    if len(set(ours)) != len(ours):
        raise ValueError(f"two parameters have the name {Counter(ours).most_common(1)[0][0]!r} in a file; rename one")
    missing = [key for key in ours if key not in names]
    if missing:
        raise ValueError(f"the checkpoint has no parameters {missing}; it has {saved}")
    pairs = []
    for key, array in leaves:
        where, new = f"parameter {key!r}", arrays[f"params/{key}"]
        if array.dtype != new.dtype:
            raise TypeError(f"{where} is {array.dtype}, in the checkpoint {new.dtype}; nothing is ever cast")
        if array.shape != new.shape:
            raise ValueError(f"{where} has the shape {array.shape}, in the checkpoint {new.shape}")
        if not array.flags.writeable:
            raise ValueError(f"{where} must be writeable, got a read-only array; use .copy()")
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            raise ValueError(
                f"{where} must be C- or F-contiguous, got strides {array.strides}; use np.ascontiguousarray"
            )
        pairs.append((array, new.view(array.dtype)))  # C has two names for one integer type
    bounds = sorted((*byte_bounds(array), key) for key, array in leaves if array.size)
    for (_, end, key), (begin, _, other) in pairwise(bounds):
        if begin < end:
            raise ValueError(f"parameters {key!r} and {other!r} overlap in memory; give each its own with .copy()")
    return pairs


def add(arrays: dict[str, np.ndarray], name: str, array: Any) -> None:
    if name in arrays:
        raise ValueError(f"two arrays would be stored as {name!r}; rename one")
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a numpy.ndarray, got a {type(array).__name__}")
    if "\0" in name or len(name.encode(errors="replace")) > 60_000:
        raise ValueError(f"{name[:100]!r} cannot be a name in a file; rename the parameter")
    arrays[name] = array


def as_stored(array: np.ndarray, name: str) -> np.ndarray:
    """In C order (the safetensors package would scramble others)."""
    if array.dtype not in DTYPES or not array.dtype.isnative or array.dtype.str.startswith(">"):
        raise TypeError(
            f"{name} has the dtype {array.dtype.str}, which cannot be stored; use real numbers or bool, little-endian"
        )
    return np.ascontiguousarray(array).reshape(array.shape)


def plain(value: Any) -> Any:
    """A hyper-parameter as JSON has it."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, tuple | list) or (isinstance(value, np.ndarray) and value.ndim == 1):
        return [plain(x) for x in value]
    return _numbers.as_number(value, "a hyper-parameter")


def section(text: dict[str, Any], name: str, path: Any) -> Any:
    if name not in text:
        raise ValueError(f"{os.fspath(path)!r} has no {name}; it was saved without")
    return text[name]


# ---- sums


def describe(array: np.ndarray, advance: Callable[[int], Any]) -> dict[str, Any]:
    crc, flat = 0, array.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, 1 << 24):
        part = flat[start : start + (1 << 24)]
        crc = zlib.crc32(part.data, crc)
        advance(part.size)
    return {"dtype": array.dtype.str, "shape": list(array.shape), "crc32": crc}


def crc_of_text(text: dict[str, Any]) -> int:
    rest = {key: value for key, value in text.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


@dataclass(frozen=True)
class Place:
    """Where an array is in a file, and what it is."""

    start: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def claimed(places: dict[str, Place], raw: str | bytes) -> dict[str, Any]:
    """The text, if it agrees with the file about everything but the arrays' elements, which are not read yet."""
    text = parse(raw)
    if text["format"] != FORMAT:
        raise ValueError(f"it has the format {text['format']!r}; this fastadam reads {FORMAT}: use a newer one")
    if text["crc32"] != crc_of_text(text):
        raise ValueError("its text does not have the sum that it had when it was saved")
    if places.keys() != text["arrays"].keys():
        raise ValueError(f"its arrays are {sorted(places)}, expected {sorted(text['arrays'])}")
    for name, place in places.items():
        saved = text["arrays"][name]
        if (place.dtype.str, list(place.shape)) != (saved["dtype"], saved["shape"]):
            raise ValueError(f"the array {name!r} has another dtype or shape than when it was saved")
    text["metadata"] = as_metadata(text.get("metadata", {}))  # with its sum right, it may be anything still
    return text


def summary(text: dict[str, Any], places: dict[str, Place]) -> dict[str, Any]:
    """What `inspect` returns, if all of it is of the types that it promises."""
    arrays = {name: {"dtype": place.dtype.name, "shape": place.shape} for name, place in places.items()}
    saved = text.get("optimizer", {"class": None, "keys": [], "groups": [], "state": []})
    keys, counts = saved["keys"], [as_counter(group["count"], "a count") for group in saved["groups"]]
    if not (saved["class"] is None or isinstance(saved["class"], str)) or sum(counts) != len(keys):
        raise ValueError("what it says about the optimizer cannot be")
    groups, start = [], 0
    for group, count in zip(saved["groups"], counts, strict=True):
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in group.items() if k not in ("count", "params")}
        groups.append({"params": keys[start : start + count], **values})
        start += count
    entries, params = by_key(keys, saved["state"]), text.get("params", [])
    return {
        "format": FORMAT,
        "optimizer": saved["class"],
        "params": by_key(params, [dict(arrays[f"params/{key}"]) for key in params]),
        "state": {
            key: {name: dict(arrays[value]) for name, value in entry.items() if isinstance(value, str)}
            for key, entry in entries.items()
        },
        "param_groups": groups,
        "steps": {key: as_counter(entry["step"], "a step") for key, entry in entries.items()},
        "metadata": text["metadata"],
    }


def by_key(keys: Any, values: list[Any]) -> dict[str, Any]:
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"keys must be a list of str, got {keys!r:.100}")
    if len(set(keys)) != len(keys):
        raise ValueError("a key stands twice")
    return dict(zip(keys, values, strict=True))


def verified(
    file: BufferedReader, places: dict[str, Place], saved: dict[str, Any], mmap: bool, progress: bool | None
) -> dict[str, np.ndarray]:
    """The arrays at these places, if their elements are what was saved."""
    arrays = {}
    data = np.memmap(file, np.uint8, "r") if mmap else None
    with bar(sum(place.nbytes for place in places.values()), progress, "reading") as advance:
        for name, place in places.items():
            if data is not None:
                flat = np.asarray(data[place.start : place.start + place.nbytes])
            else:
                flat = np.empty(place.nbytes, np.uint8)
                file.seek(place.start)
                if file.readinto(flat.data) != flat.size:
                    raise ValueError("the file is too short")
            arrays[name] = flat.view(place.dtype).reshape(place.shape)  # in a map, perhaps not aligned
            if describe(arrays[name], advance) != saved[name]:
                raise ValueError(f"the array {name!r} is not what was saved")
    return arrays


# ---- files


def longest_text(params: int, optimizer: "Optimizer | None") -> int:
    """Bytes of text and headers that are read for so much of a model."""
    return TEXT_SIZE + TEXT_PER_ARRAY * (params + (5 * len(optimizer.state) if optimizer is not None else 0))


class Bounded:
    """A file of which no more than so many bytes are read at once, whatever is in it."""

    def __init__(self, file: BufferedReader, most: int) -> None:
        self.file, self.most = file, most
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = os.fstat(self.file.fileno()).st_size - self.tell()
        if size > self.most:
            raise too_long("its directory or a header", size, self.most)
        return self.file.read(size)


def too_long(what: str, size: int, most: int) -> ValueError:
    return ValueError(
        f"{what} has {size} bytes, of which at most {most} are read for so few arrays (or by inspect); "
        "shorten names, or load all that was saved at once"
    )


def format_of(path: Any) -> tuple[str, Callable[..., None], Callable[..., Any]]:
    """A path as a str, and how to write and read such a file."""
    formats = {".npz": (write_npz, read_npz), ".safetensors": (write_safetensors, read_safetensors)}
    name = as_path(path, "path")
    if Path(name).suffix not in formats:
        raise ValueError(f"path must end in .safetensors or .npz, got {Path(name).name!r}")
    return name, *formats[Path(name).suffix]


def write_npz(path: Path, arrays: dict[str, np.ndarray], text: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as members:
        for name, array in {TEXT: np.frombuffer(text.encode(), np.uint8), **arrays}.items():
            with members.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def read_npz(file: BufferedReader, most: int) -> tuple[dict[str, Place], bytes]:
    """Members are stored as they are, so their places in the file are known."""
    places = {}
    with zipfile.ZipFile(cast(IO[bytes], Bounded(file, most))) as members:
        infos = members.infolist()
        if 100 * len(infos) > most:
            raise too_long(f"the directory of {len(infos)} members", 100 * len(infos), most)
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if info.compress_type != zipfile.ZIP_STORED or name == info.filename or name in places:
                raise ValueError(f"the member {info.filename!r} is not a stored .npy, or stands twice")
            places[name] = place_of_member(file, members, info)
        if TEXT not in places:
            raise ValueError(f"it has no member {TEXT!r}, so fastadam.save has not written it")
        text = places.pop(TEXT)
        if text.nbytes > most:
            raise too_long("its text", text.nbytes, most)
    file.seek(text.start)
    return places, file.read(text.nbytes)


def place_of_member(file: BufferedReader, members: zipfile.ZipFile, info: zipfile.ZipInfo) -> Place:
    with members.open(info) as member:
        length = member.read(2 if np.lib.format.read_magic(member)[0] == 1 else 4)
        # Not NumPy's own reading: it hands any text of any length to Python's parser.
        match = NPY_HEADER.fullmatch(member.read(int.from_bytes(length, "little")))
        header = member.tell()
    if match is None:
        raise ValueError(f"the member {info.filename!r} has no .npy header of a plain array in C order")
    dtype, shape = np.dtype(match[1].decode()), [int(n) for n in match[2].split(b",") if n.strip()]
    file.seek(info.header_offset + 26)
    name_and_extra = sum(np.frombuffer(file.read(4), "<u2").tolist())
    return place_at(file, info.header_offset + 30 + name_and_extra + header, dtype, shape)


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], text: str) -> None:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "writing a .safetensors file needs the safetensors package: pip install 'fastadam[checkpoint]'; "
            "or use a name that ends in .npz"
        ) from error
    try:
        safetensors.numpy.save_file(arrays, path, metadata={TEXT: text})
    except safetensors.SafetensorError as error:  # a full disk, for example
        raise OSError(f"{os.fspath(path)!r} could not be written: {error}") from error


def read_safetensors(file: BufferedReader, most: int) -> tuple[dict[str, Place], str]:
    length = int.from_bytes(file.read(8), "little")
    if length > most:
        raise too_long("its header", length, most)
    header = parse(file.read(length))
    text = header.pop("__metadata__", {}).get(TEXT)
    if text is None:
        raise ValueError(f"its metadata has no {TEXT!r}, so fastadam.save has not written it")
    dtypes = {"BOOL": "?", **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "FIU" for size in (1, 2, 4, 8)}}
    places = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        places[name] = place_at(file, 8 + length + begin, np.dtype(dtypes[entry["dtype"]]), entry["shape"])
        if end - begin != places[name].nbytes:
            raise ValueError(f"the array {name!r} is of another size than its shape says")
    return places, text


def place_at(file: BufferedReader, start: int, dtype: np.dtype, shape: Any) -> Place:
    possible = dtype.newbyteorder("=") in DTYPES and all(type(n) is int and n >= 0 for n in shape)
    # NumPy's limits hold for arrays without elements, too.
    if not possible or len(shape) > 64 or math.prod(n for n in shape if n) * dtype.itemsize > sys.maxsize:
        raise ValueError(f"no array can have the dtype {dtype} and the shape {shape}")
    place = Place(start, dtype, tuple(shape))
    if type(start) is not int or start < 0 or start + place.nbytes > os.fstat(file.fileno()).st_size:
        raise ValueError("the file is too short")
    return place


# ---- around


@contextmanager
def saying(what: str, but: tuple[type[Exception], ...] = (MemoryError, ImportError)) -> Iterator[None]:
    """Whatever a hostile file provokes is a ValueError; errors of the system stay what they are, and those named."""
    try:
        yield
    except but as error:
        if isinstance(error, ValueError | TypeError):
            error.add_note(what)
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before or far behind the file
            raise
        raise ValueError(f"{what}: {error}") from error


def check_flag(value: Any, name: str, or_none: bool = False) -> None:
    if not (isinstance(value, bool | np.bool_) or (or_none and value is None)):
        raise TypeError(f"{name} must be True{', False or None' if or_none else ' or False'}, got {value!r}")


def open_regular(name: str) -> BufferedReader:
    """Others would keep us waiting, or have no end."""
    if not stat.S_ISREG(os.stat(name).st_mode):
        raise ValueError(f"{name!r} is no regular file")
    return open(name, "rb")


def lock_of(optimizer: "Optimizer | None") -> Any:
    """No step in between."""
    if optimizer is None:
        return nullcontext()
    if not hasattr(optimizer, "_engine"):
        raise TypeError(f"optimizer must be an optimizer of fastadam, got a {type(optimizer).__name__}")
    return optimizer._engine.lock


@contextmanager
def bar(total: int, wanted: bool | None, what: str) -> Iterator[Callable[[int], Any]]:
    """A function that advances a progress bar, or does nothing."""
    if wanted is False or (wanted is None and total < LARGE):
        yield lambda _: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        if wanted:
            raise ImportError("progress=True needs tqdm: pip install 'fastadam[checkpoint]'") from None
        yield lambda _: None
        return
    disable = None if wanted is None else False  # None: where there is no terminal
    with tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=disable) as shown:
        yield shown.update
