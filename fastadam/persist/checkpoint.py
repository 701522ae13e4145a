"""Checkpoints: a model and its optimizer in one file, whole or not at all.

A file holds arrays, in a format that other tools read (safetensors, or NumPy's .npz), and one text in JSON with all the
rest: hyper-parameters, counters, metadata, and for each array its type, shape and CRC-32. The text has a CRC of its
own. Nothing in a file is used before these agree, and nothing is ever unpickled.
"""

import errno
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fastadam import _core
from fastadam._names import by_name
from fastadam._numbers import as_flag
from fastadam.containers import Container
from fastadam.persist import npz, safetensors
from fastadam.persist.atomic import as_path, write_aside
from fastadam.persist.model import (
    Optimizer,
    add_optimizer,
    add_params,
    check_are_stepped,
    class_of,
    in_groups,
    in_order,
    leaves_of,
    params_to_load,
    state_dict_of,
)
from fastadam.persist.pieces import BFLOAT16, Place, manifest_entry, name_of, verify
from fastadam.persist.strict_json import as_metadata, parse
from fastadam.statedict import as_counter

FORMAT = 1  # of the text; what reads 1 reads all of 1, and ignores keys that it does not know
LARGE = 1 << 30  # bytes: with more, a bar shows the progress
TEXT_SIZE, TEXT_PER_ARRAY = 16 << 20, 4 << 10  # bytes: the longest text or header that is parsed
FORMATS = {".npz": npz, ".safetensors": safetensors}


@by_name("fastadam.save(path, params=..., optimizer=..., metadata=..., progress=...)")
def save(
    path: str | os.PathLike[str],
    *,
    params: "Container | None" = None,
    optimizer: Optimizer | None = None,
    metadata: dict[str, Any] | None = None,
    progress: bool | None = None,
) -> None:
    """Write a model's parameters, its optimizer, or both to a file, so that a crash leaves the old file or the new one.

    Parameters
    ----------
    path : str or path, ending in .safetensors or .npz
        The suffix chooses the format. The file is written aside, synced to disk and renamed; a symbolic link stays one.
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
        There is nothing to save; a path, an array or metadata cannot be stored; two keys have one name; params has
        another array than the optimizer; or another thread changed an array meanwhile. The old file is kept.
    ImportError
        ``progress=True`` needs tqdm.
    OSError
        The file could not be written. The old file is kept. (If only syncing the folder failed, the new file is there,
        and may be gone after a power failure.) A kill may leave a hidden file next to it, .fastadam.*; delete it.

    Warns
    -----
    RuntimeWarning
        The file's mode could not be set to the old file's, or to a new file's usual one. The file is saved all the
        same, unless warnings are errors: then the old file is kept.

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
    name, layout = format_of(path)
    progress = as_progress(progress)
    if params is None and optimizer is None:
        raise ValueError("nothing to save: pass params, optimizer or both")
    arrays: dict[str, np.ndarray] = {}
    text: dict[str, Any] = {"format": FORMAT}
    if metadata is not None:
        text["metadata"] = as_metadata(metadata)
    with lock_of(optimizer):
        if params is not None:
            leaves = leaves_of(params)
            text["params"] = add_params(arrays, leaves)
            check_are_stepped(leaves, optimizer)
        if optimizer is not None:
            text["optimizer"] = add_optimizer(arrays, optimizer)
        with bar(sum(array.nbytes for array in arrays.values()), progress, "summing") as advance:
            text["arrays"] = {name: manifest_entry(array, advance) for name, array in arrays.items()}
        text["crc32"] = crc_of_text(text)

        def write_and_read_back(aside: Path) -> None:
            layout.write(aside, arrays, json.dumps(text))
            with open(aside, "rb") as file:
                places, raw = layout.read(file, longest_text(len(text.get("params", ())), optimizer))  # as load will
                read_manifest(places, raw)
                try:
                    with bar(sum(place.nbytes for place in places.values()), progress, "reading") as advance:
                        verify(file, places, text["arrays"], advance)
                except ValueError as error:
                    raise ValueError(f"{error}: was it changed by another thread while it was written?") from None

        write_aside(Path(os.path.realpath(name)), write_and_read_back)


@by_name("fastadam.load(path, params=..., optimizer=..., mmap=..., progress=...)")
def load(
    path: str | os.PathLike[str],
    *,
    params: "Container | None" = None,
    optimizer: Optimizer | None = None,
    mmap: bool = True,
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
        Of the same class and groups as the one saved; names may come in another order. Hyper-parameters that were saved
        replace what it has, schedules too; those that were schedules then stay as they are. The common options
        (max_norm, nonfinite, ...) are not in the file. Averages that are not in it begin with the parameters.
    mmap : bool, default True
        Check the file piece by piece, then copy from a memory map of it, which takes as much address space. Arrays in
        another order than C need memory for a second copy; so does state in another format than the file's, for all of
        it. Nobody may write into or truncate the file meanwhile (`save` never does: it puts another in its place). With
        False, or where files cannot be mapped, the arrays are read into memory first, so that the file may change in
        any way.
    progress : bool or None, default None
        Show a bar (needs tqdm). None: for more than 1 GiB, in a terminal.

    Returns
    -------
    dict
        The metadata that was saved; {} if there is none.

    Raises
    ------
    ValueError, TypeError
        The file is damaged, not a checkpoint, of a newer format, or of another model, or params has another array than
        the optimizer; the message says what differs. Nothing has changed.
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
    name, layout = format_of(path)
    as_flag(mmap, "mmap")
    progress = as_progress(progress)
    if params is None and optimizer is None:
        raise ValueError(
            "nothing to load into: pass params, optimizer or both; fastadam.inspect(path) says what is in a file"
        )
    leaves = None if params is None else leaves_of(params)
    # Opened once: what save puts in its place meanwhile does not matter.
    with lock_of(optimizer), open_regular(name) as file:
        with error_context(f"{name!r} is damaged or not a checkpoint"):
            places, raw = layout.read(file, longest_text(len(leaves or ()), optimizer))
            text = read_manifest(places, raw)
        # The file's text is compared with the model first, so that no more is read than the model needs.
        empty = {key: stand_in(place) for key, place in places.items()}
        pairs, state, used = plan_load(empty, text, name, leaves, optimizer)
        with error_context(f"{name!r} is damaged", but=(OSError, MemoryError, ImportError)):
            arrays = read_arrays(file, {key: places[key] for key in used}, text["arrays"], mmap, progress)
        pairs, state, _ = plan_load(arrays, text, name, leaves, optimizer)
        if optimizer is None:
            _core.copy_arrays(pairs)
        else:
            optimizer._load(state, pairs)
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
        The path is not a str or os.PathLike.
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
    name, layout = format_of(path)
    with open_regular(name) as file, error_context(f"{name!r} is damaged or not a checkpoint"):
        places, raw = layout.read(file, TEXT_SIZE)
        return summary(read_manifest(places, raw), places)


def stand_in(place: Place) -> np.ndarray:
    """An array before its elements are read. Scales of 8-bit state cannot be 0."""
    element = np.full((), 255, np.uint8) if place.dtype == np.uint8 else np.zeros((), place.dtype)
    return np.broadcast_to(element, place.shape)


def crc_of_text(text: dict[str, Any]) -> int:
    rest = {key: value for key, value in text.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def read_manifest(places: dict[str, Place], raw: str | bytes) -> dict[str, Any]:
    """The text, if it agrees with the file's arrays. Their elements are not read yet."""
    text = parse(raw)
    if text["format"] != FORMAT:
        raise ValueError(f"it has the format {text['format']!r}; this fastadam reads {FORMAT}: use a newer one")
    if text["crc32"] != crc_of_text(text):
        raise ValueError("its text does not have the sum that it had when it was saved")
    if places.keys() != text["arrays"].keys():
        raise ValueError(f"its arrays are {sorted(places)}, expected {sorted(text['arrays'])}")
    for name, place in places.items():
        saved = text["arrays"][name]
        if saved["dtype"] == "bfloat16" and place.dtype == np.dtype("<u2"):  # all that an .npz can say
            places[name] = place = replace(place, dtype=BFLOAT16)
        if (name_of(place.dtype), list(place.shape)) != (saved["dtype"], saved["shape"]):
            raise ValueError(f"the array {name!r} has another dtype or shape than when it was saved")
    text["metadata"] = as_metadata(text.get("metadata", {}))  # the right CRC does not make it valid
    return text


def summary(text: dict[str, Any], places: dict[str, Place]) -> dict[str, Any]:
    """What `inspect` returns; raise unless all of it has the types that are promised."""
    arrays = {
        name: {"dtype": "bfloat16" if place.dtype == BFLOAT16 else place.dtype.name, "shape": place.shape}
        for name, place in places.items()
    }
    saved = text.get("optimizer", {"class": None, "keys": [], "groups": [], "state": []})
    keys, counts = saved["keys"], [as_counter(group["count"], "a count") for group in saved["groups"]]
    if not (saved["class"] is None or isinstance(saved["class"], str)) or sum(counts) != len(keys):
        raise ValueError("what it says about the optimizer contradicts itself")
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
        raise ValueError("a key appears twice")
    return dict(zip(keys, values, strict=True))


def plan_load(
    arrays: Mapping[str, np.ndarray],
    text: dict[str, Any],
    file: str,
    leaves: list[tuple[Any, Any]] | None,
    optimizer: Optimizer | None,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], dict[str, Any], set[str]]:
    """What to copy into parameters, the optimizer's state_dict, and the names of the arrays used; or raise."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    state: dict[str, Any] = {}
    used: set[str] = set()
    with error_context(f"{file!r} does not fit", but=(ValueError, TypeError, MemoryError)):
        if leaves is not None:
            pairs = params_to_load(leaves, section(text, "params", file), arrays)
            check_are_stepped(leaves, optimizer)
            used |= {f"params/{key}" for key, _ in leaves}
        if optimizer is not None:
            saved, kind = section(text, "optimizer", file), class_of(optimizer)
            if saved["class"] != kind:
                raise ValueError(f"{file!r} has the state of {saved['class']}, not of {kind}")
            keys = [str(key) for key in optimizer.state]
            counts = [as_counter(group["count"], "a count") for group in saved["groups"]]
            expected = [len(group["params"]) for group in optimizer.param_groups]
            if sorted(saved["keys"]) != sorted(keys):
                raise ValueError(f"{file!r} has the parameters {saved['keys']}, the optimizer {keys}")
            theirs, ours = in_groups(saved["keys"], counts), in_groups(keys, expected)
            if counts != expected or theirs != ours:
                raise ValueError(
                    f"{file!r} has the same parameters in other groups: {theirs}, the optimizer {ours}; make it with "
                    "the groups, or the overrides in their order, of the one that was saved"
                )
            if saved["keys"] != keys:
                saved = saved | in_order(saved, keys)
            state = state_dict_of(saved, arrays)
            used |= {value for entry in saved["state"] for value in entry.values() if isinstance(value, str)}
            optimizer._plan_load(state, pairs)
    return pairs, state, used


def section(text: dict[str, Any], name: str, file: str) -> Any:
    if name not in text:
        raise ValueError(f"{file!r} has no {name}; it was saved without")
    return text[name]


def longest_text(params: int, optimizer: Optimizer | None) -> int:
    """The most bytes of text and headers that are read for a model of this size."""
    return TEXT_SIZE + TEXT_PER_ARRAY * (params + (9 * len(optimizer.state) if optimizer is not None else 0))


def format_of(path: Any) -> tuple[str, ModuleType]:
    """A path as a str, and what writes and reads such files."""
    name = as_path(path, "path")
    if Path(name).suffix not in FORMATS:
        raise ValueError(f"path must end in .safetensors or .npz, got {Path(name).name!r}")
    return name, FORMATS[Path(name).suffix]


def read_arrays(
    file: BufferedReader, places: Mapping[str, Place], saved: dict[str, Any], mmap: bool, progress: bool | None
) -> dict[str, np.ndarray]:
    """The arrays at these places, if their elements are what was saved: in a memory map, or in memory."""
    before, data = os.fstat(file.fileno()), None
    if mmap:
        with suppress(OSError):  # some file systems have no maps
            data = np.memmap(file, np.uint8, "r")
    copies = {name: np.empty(place.nbytes, np.uint8) for name, place in places.items()} if data is None else {}
    with bar(sum(place.nbytes for place in places.values()), progress, "reading") as advance:
        verify(file, places, saved, advance, copies)
    now = os.fstat(file.fileno())
    if data is not None and (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise ValueError("it was written into while it was read")
    arrays = {}
    for name, place in places.items():
        flat = copies[name] if data is None else np.asarray(data[place.start : place.start + place.nbytes])
        arrays[name] = flat.view(place.dtype).reshape(place.shape)  # in a map, perhaps not aligned
    return arrays


@contextmanager
def error_context(what: str, but: tuple[type[Exception], ...] = (MemoryError, ImportError)) -> Iterator[None]:
    """Turn any error that a hostile file causes into a ValueError, except those of the system and those in `but`."""
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


def as_progress(value: Any) -> bool | None:
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    raise TypeError(f"progress must be True, False or None, got {value!r}")


def open_regular(name: str) -> BufferedReader:
    """Pipes and devices could block, or never end."""
    if not stat.S_ISREG(os.stat(name).st_mode):
        raise ValueError(f"{name!r} is not a regular file")
    return open(name, "rb")


def lock_of(optimizer: Optimizer | None) -> Any:
    """In its `with` block no other thread steps."""
    if optimizer is None:
        return nullcontext()
    if not hasattr(optimizer, "_engine"):
        how = "; use its own save and load" if hasattr(optimizer, "save") else ""
        if hasattr(optimizer, "zero_grad"):  # torch's, or one of fastadam.torch
            how = "; give its state_dict() to torch.save, and what torch.load returns to its load_state_dict"
        raise TypeError(f"optimizer must be an optimizer of fastadam, got a {type(optimizer).__name__}{how}")
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
            raise ImportError("progress=True needs tqdm: pip install tqdm") from None
        yield lambda _: None
        return
    disable = None if wanted is None else False  # None: where there is no terminal
    with tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=disable) as shown:
        yield shown.update
