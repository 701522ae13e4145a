"""Checkpoints: a model and its optimizer in one file, whole or not at all.

A file holds arrays, in a format that other tools read (safetensors, or NumPy's .npz), and one text in JSON with all the
rest: hyper-parameters, counters, and for each array its type, shape and CRC-32. The text has a CRC of its own. Nothing
in a file is believed before these agree, and nothing is ever unpickled.
"""

import errno
import json
import math
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam import _core
from fastadam.containers import Tree, as_groups

if TYPE_CHECKING:
    from fastadam.optimizer import Container, Optimizer

FORMAT = 1  # of the text; what reads 1 reads all of 1
TEXT = "fastadam"  # where it is: a key of safetensors' metadata, a member of an .npz
LARGE = 1 << 30  # bytes: with more, a bar shows the progress
DTYPES = {np.dtype(name) for name in ("bool", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")}


# ---- what users call


def save(
    path: str | os.PathLike[str],
    *,
    params: "Container | None" = None,
    optimizer: "Optimizer | None" = None,
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
    progress : bool or None, default None
        Show a bar (needs tqdm). None: for more than 1 GiB, in a terminal.

    Raises
    ------
    TypeError, ValueError
        Nothing to save, a suffix or an array that cannot be stored, two keys with one name.
    ImportError
        The safetensors package is missing.
    OSError
        The file could not be written; what was there before still is.

    Examples
    --------
    >>> import numpy as np, fastadam, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
    >>> weights = {"W": np.ones(3)}
    >>> opt = fastadam.Adam(weights)
    >>> fastadam.save(path, params=weights, optimizer=opt)
    >>> weights["W"][:] = 0
    >>> fastadam.load(path, params=weights, optimizer=opt)
    >>> weights["W"]
    array([1., 1., 1.])
    """
    if params is None and optimizer is None:
        raise ValueError("nothing to save: pass params, optimizer or both")
    target = Path(os.path.realpath(path))
    write, _ = format_of(target)
    arrays: dict[str, np.ndarray] = {}
    text: dict[str, Any] = {"format": FORMAT}
    with locked(optimizer):
        if params is not None:
            text["params"] = add_params(arrays, params)
        if optimizer is not None:
            text["optimizer"] = add_optimizer(arrays, optimizer)
        stored = {name: as_stored(array, name) for name, array in arrays.items()}
        with bar(sum(array.nbytes for array in stored.values()), progress, "checking") as advance:
            text["arrays"] = {name: describe(array, advance) for name, array in stored.items()}
        text["crc32"] = crc_of_text(text)
        write_aside(target, lambda aside: write(aside, stored, json.dumps(text)))


def load(
    path: str | os.PathLike[str],
    *,
    params: "Container | None" = None,
    optimizer: "Optimizer | None" = None,
    mmap: bool = False,
    progress: bool | None = None,
) -> None:
    """Copy a checkpoint into the live arrays of a model, its optimizer, or both: all of it, or nothing.

    Parameters
    ----------
    path : str or path
        As given to `save`.
    params : container of ndarrays, default None
        With the keys, shapes and dtypes of those that were saved. They need not be all that is in the file.
    optimizer : Optimizer, default None
        Of the same class and groups as the one saved.
    mmap : bool, default False
        Copy from a memory map instead of reading the file first, which takes half the memory. Then nobody may write
        into or truncate the file meanwhile (`save` never does).
    progress : bool or None, default None
        Show a bar (needs tqdm). None: for more than 1 GiB, in a terminal.

    Raises
    ------
    ValueError, TypeError
        The file is damaged, not a checkpoint, of a newer format, or of another model; the message says what differs.
        Nothing has changed.
    OSError
        The file could not be read.

    Examples
    --------
    See `save`.

    >>> import fastadam
    >>> fastadam.load("no such file.npz", params=[])
    Traceback (most recent call last):
    ...
    FileNotFoundError: [Errno 2] No such file or directory: 'no such file.npz'
    """
    if params is None and optimizer is None:
        raise ValueError("nothing to load into: pass params, optimizer or both")
    _, read = format_of(Path(path))
    file = os.fspath(path)
    with open(file, "rb"):  # the system's own error, if there is one
        pass
    with saying(f"{file!r} is damaged or no checkpoint"):
        mapped, text = claimed(*read(file))
    with locked(optimizer):
        # What the file claims is held against the model first, so that no more is read than the model takes.
        fitting(mapped, text, file, params, optimizer)
        with saying(f"{file!r} is damaged"):
            arrays = verified(mapped, text, mmap, progress)
        pairs, state = fitting(arrays, text, file, params, optimizer)
        if optimizer is None:
            _core.copy_arrays(pairs)
        else:
            with optimizer._engine:
                optimizer._engine.load(*optimizer._match(state, pairs))


def fitting(
    arrays: Mapping[str, np.ndarray], text: dict[str, Any], file: str, params: Any, optimizer: "Optimizer | None"
) -> tuple[list[tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
    """What to copy into parameters, and the optimizer's state_dict, if both fit."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    state: dict[str, Any] = {}
    with saying(f"{file!r} does not fit", but=(ValueError, TypeError, MemoryError)):
        if params is not None:
            pairs = params_to_load(params, section(text, "params", file), arrays)
        if optimizer is not None:
            saved, ours = section(text, "optimizer", file), type(optimizer).__name__
            if saved["class"] != ours:
                raise ValueError(f"{file!r} has the state of {saved['class']}, not of {ours}")
            keys = [str(key) for key in optimizer.state]
            if saved["keys"] != keys:
                raise ValueError(f"{file!r} has the parameters {saved['keys']}, the optimizer {keys}")
            state = state_dict_of(saved, arrays)
            optimizer._match(state)
    return pairs, state


# ---- from a model to arrays and a text, and back


def add_params(arrays: dict[str, np.ndarray], params: Any) -> list[str]:
    leaves = leaves_of(params)
    for key, array in leaves:
        add(arrays, f"params/{key}", array)
    return [str(key) for key, _ in leaves]


def leaves_of(params: Any) -> list[tuple[Any, Any]]:
    """(key, array), with the keys that an optimizer of these parameters has."""
    leaves: list[tuple[Any, Any]] = []
    start = 0
    for group in as_groups(params, ())[0]:
        start += Tree.of(group["params"], leaves, start=start).items
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
    params: Any, saved: list[str], arrays: Mapping[str, np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(live array, what to copy into it)"""
    leaves = leaves_of(params)
    names = [str(key) for key, _ in leaves]
    missing = [name for name in names if name not in saved]
    if missing:
        raise ValueError(f"the checkpoint has no parameters {missing}; it has {saved}")
    pairs = []
    for key, array in leaves:
        where, new = f"parameter {key!r}", arrays[f"params/{key}"]
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{where} must be a numpy.ndarray, got a {type(array).__name__}")
        if array.dtype != new.dtype:
            raise TypeError(f"{where} is {array.dtype}, in the checkpoint {new.dtype}; nothing is ever cast")
        if array.shape != new.shape:
            raise ValueError(f"{where} has the shape {array.shape}, in the checkpoint {new.shape}")
        pairs.append((array, new))
    return pairs


def add(arrays: dict[str, np.ndarray], name: str, array: Any) -> None:
    if name in arrays:
        raise ValueError(f"two arrays would be stored as {name!r}; rename one")
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a numpy.ndarray, got a {type(array).__name__}")
    arrays[name] = array


def as_stored(array: np.ndarray, name: str) -> np.ndarray:
    """In C order (the safetensors package would scramble others) and little-endian."""
    if array.dtype.newbyteorder("=") not in DTYPES:
        raise TypeError(f"{name} has the dtype {array.dtype}, which cannot be stored; use real numbers or bool")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)


def plain(value: Any) -> Any:
    """A hyper-parameter as JSON has it."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, tuple | list):
        return [plain(x) for x in value]
    return _core.as_number(value, "a hyper-parameter")


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


def claimed(arrays: dict[str, np.ndarray], raw: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and text, if they agree about everything but the arrays' elements, which are not read yet."""
    text = parse(raw)
    if text["format"] != FORMAT:
        raise ValueError(f"it has the format {text['format']!r}; this fastadam reads {FORMAT}: use a newer one")
    if text["crc32"] != crc_of_text(text):
        raise ValueError("its text does not have the sum that it had when it was saved")
    if arrays.keys() != text["arrays"].keys():
        raise ValueError(f"its arrays are {sorted(arrays)}, expected {sorted(text['arrays'])}")
    for name, array in arrays.items():
        if {**text["arrays"][name], "dtype": array.dtype.str, "shape": list(array.shape)} != text["arrays"][name]:
            raise ValueError(f"the array {name!r} has another dtype or shape than when it was saved")
    return arrays, text


def verified(
    arrays: dict[str, np.ndarray], text: dict[str, Any], mmap: bool, progress: bool | None
) -> dict[str, np.ndarray]:
    """The arrays, copied into memory unless mmap, if their elements are what was saved."""
    verified = {}
    with bar(sum(array.nbytes for array in arrays.values()), progress, "reading") as advance:
        for name, array in arrays.items():
            verified[name] = array if mmap else array.copy()
            if describe(verified[name], advance) != text["arrays"][name]:
                raise ValueError(f"the array {name!r} is not what was saved")
    return verified


def parse(raw: str | bytes) -> dict[str, Any]:
    """JSON without what parsers disagree about."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    text = json.loads(raw, object_pairs_hook=unique)
    if not isinstance(text, dict):
        raise ValueError("its text is no object")
    return text


# ---- files


def write_aside(target: Path, write: Callable[[Path], None]) -> None:
    """Write a file next to the target, and put it in the target's place when it is safely on the disk."""
    aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        mode = os.fstat(descriptor).st_mode & 0o777  # what the umask left of it
        os.close(descriptor)
        write(aside)
        os.chmod(aside, mode)
        sync(aside)
        os.replace(aside, target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync(target.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def format_of(path: Path) -> tuple[Callable[..., None], Callable[..., Any]]:
    formats = {".npz": (write_npz, read_npz), ".safetensors": (write_safetensors, read_safetensors)}
    if path.suffix not in formats:
        raise ValueError(f"path must end in .safetensors or .npz, got {path.name!r}")
    return formats[path.suffix]


def write_npz(path: Path, arrays: dict[str, np.ndarray], text: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as members:
        for name, array in {TEXT: np.frombuffer(text.encode(), np.uint8), **arrays}.items():
            with members.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def read_npz(path: str) -> tuple[dict[str, np.ndarray], str]:
    """Views of the file: members are stored as they are, so their places in it are known."""
    data = np.memmap(path, np.uint8, "r")
    arrays = {}
    with zipfile.ZipFile(path) as members:
        for info in members.infolist():
            if info.compress_type != zipfile.ZIP_STORED or not info.filename.endswith(".npy"):
                raise ValueError(f"the member {info.filename!r} is not a stored .npy")
            with members.open(info) as file:
                major = np.lib.format.read_magic(file)[0]
                read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read_header(file)
                header = file.tell()
            name_and_extra = data[info.header_offset + 26 : info.header_offset + 30].view("<u2").sum(dtype=np.int64)
            start = info.header_offset + 30 + int(name_and_extra) + header
            name = info.filename.removesuffix(".npy")
            if fortran or name in arrays:
                raise ValueError(f"the array {name!r} is in Fortran's order, or stands twice")
            arrays[name] = view(data, start, dtype, shape)
    return arrays, bytes(arrays.pop(TEXT)).decode()


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], text: str) -> None:
    safetensors().numpy.save_file(arrays, path, metadata={TEXT: text})


def read_safetensors(path: str) -> tuple[dict[str, np.ndarray], str]:
    with safetensors().safe_open(path, framework="numpy") as file:  # which checks the header
        text = (file.metadata() or {})[TEXT]
    data = np.memmap(path, np.uint8, "r")
    length = int(data[:8].view("<u8")[0])
    header = parse(bytes(data[8 : 8 + length]))
    del header["__metadata__"]
    dtypes = {"BOOL": "?", **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "FIU" for size in (1, 2, 4, 8)}}
    arrays = {
        name: view(data, 8 + length + entry["data_offsets"][0], np.dtype(dtypes[entry["dtype"]]), entry["shape"])
        for name, entry in header.items()
    }
    return arrays, text


def safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "a .safetensors file needs the safetensors package: pip install 'fastadam[checkpoint]'; "
            "or use a name that ends in .npz"
        ) from error
    return safetensors


def view(data: np.ndarray, start: int, dtype: np.dtype, shape: Any) -> np.ndarray:
    """The array of that type and shape that begins there, if the file has it."""
    if dtype.newbyteorder("=") not in DTYPES or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"no array can have the dtype {dtype} and the shape {shape}")
    size = math.prod(shape) * dtype.itemsize
    if start < 0 or start + size > data.size:
        raise ValueError("the file is too short")
    return np.asarray(data[start : start + size]).view(dtype).reshape(shape)  # which need not be aligned


# ---- around


@contextmanager
def saying(what: str, but: tuple[type[Exception], ...] = (MemoryError, ImportError)) -> Iterator[None]:
    """Whatever a hostile file provokes is a ValueError; errors of the system stay what they are, and those named."""
    try:
        yield
    except but:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before or far behind the file
            raise
        raise ValueError(f"{what}: {error}") from error


@contextmanager
def locked(optimizer: "Optimizer | None") -> Iterator[None]:
    """No step in between."""
    if optimizer is None:
        yield
    else:
        with optimizer._engine.lock:
            yield


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
