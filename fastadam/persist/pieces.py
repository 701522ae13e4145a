"""Arrays in a file: where they are, and their elements and sums, a piece at a time."""

import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import numpy as np

PIECE = 1 << 24  # bytes that are read or copied at once
BFLOAT16 = np.dtype([("bfloat16", "<u2")])  # stands for ml_dtypes', which need not be there
DTYPES = {np.dtype(name) for name in ("bool", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")}
DTYPES |= {BFLOAT16}
TEXT = "fastadam"  # where the text is: a key of safetensors' metadata, a member of an .npz


@dataclass(frozen=True)
class Place:
    """Where an array is in a file, and what it is."""

    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def name_of(dtype: np.dtype[Any]) -> str:
    """In the text of a checkpoint."""
    return "bfloat16" if dtype == BFLOAT16 else dtype.str


def place_at(file: BufferedReader, start: int, dtype: np.dtype, shape: Any) -> Place:
    possible = dtype.newbyteorder("=") in DTYPES and all(type(n) is int and n >= 0 for n in shape)
    # NumPy's limits hold for arrays without elements, too.
    if not possible or len(shape) > 64 or math.prod(n for n in shape if n) * dtype.itemsize > sys.maxsize:
        raise ValueError(f"no array can have the dtype {dtype} and the shape {shape}")
    place = Place(start, dtype, tuple(shape))
    if type(start) is not int or start < 0 or start + place.nbytes > os.fstat(file.fileno()).st_size:
        raise ValueError("the file is too short")
    return place


def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """The bytes of an array in C order. Those of a C-contiguous array are not copied."""
    nditer: Any = np.nditer  # whose types do not know "contig"
    if array.size:
        flags, contiguous = ["external_loop", "buffered"], ["readonly", "contig"]
        for piece in nditer(array, flags, contiguous, order="C", buffersize=PIECE // array.itemsize):
            yield piece.view(np.uint8)


def manifest_entry(array: np.ndarray, advance: Callable[[int], Any]) -> dict[str, Any]:
    """What the text of a checkpoint says about an array."""
    crc = 0
    for piece in pieces(array):
        crc = zlib.crc32(piece.data, crc)
        advance(piece.nbytes)
    return {"dtype": name_of(array.dtype), "shape": list(array.shape), "crc32": crc}


def verify(
    file: BufferedReader,
    places: Mapping[str, Place],
    saved: Mapping[str, Any],
    advance: Callable[[int], Any],
    copies: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Raise unless the elements have the sums that were saved. They are kept in `copies`, if there are any."""
    buffer = np.empty(min(PIECE, max((place.nbytes for place in places.values()), default=0)), np.uint8)
    for name, place in places.items():
        crc = 0
        file.seek(place.start)
        for start in range(0, place.nbytes, PIECE):
            target = copies[name][start : start + PIECE] if copies else buffer
            piece = target[: min(PIECE, place.nbytes - start)]
            if file.readinto(piece.data) != piece.nbytes:
                raise ValueError("the file is too short")
            crc = zlib.crc32(piece.data, crc)
            advance(piece.nbytes)
        if crc != saved[name]["crc32"]:
            raise ValueError(f"the array {name!r} is not what was saved")


def too_long(what: str, size: int, most: int) -> ValueError:
    return ValueError(
        f"{what} has {size} bytes, of which at most {most} are read for so few arrays (or by inspect); "
        "shorten names, or load all that was saved at once"
    )
