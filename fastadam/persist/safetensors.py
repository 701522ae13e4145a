"""safetensors: eight bytes with the length of a header, the header in JSON, and the arrays.

The files are those that the safetensors package writes, to the byte.
"""

import json
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from fastadam.persist.pieces import BFLOAT16, TEXT, Place, pieces, place_at, too_long
from fastadam.persist.strict_json import parse

# In the order in which arrays are stored: the largest elements first, so that all are aligned.
NAMES = ["U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "I8", "U8", "BOOL"]
EIGHT_AND_FOUR = [np.dtype(name) for name in ["<u8", "<i8", "<f8", "<f4", "<u4", "<i4"]]
DTYPES = [*EIGHT_AND_FOUR, BFLOAT16, *(np.dtype(name) for name in ["<f2", "<u2", "<i2", "i1", "u1", "?"])]


def head_of(arrays: Mapping[str, np.ndarray], text: str) -> tuple[bytes, dict[str, int]]:
    """All that comes before the elements, and where in the file those of each array begin, in that order."""
    header: dict[str, Any] = {"__metadata__": {TEXT: text}}
    ordered = sorted(arrays.items(), key=lambda item: (DTYPES.index(item[1].dtype), item[0].encode()))
    starts, end = {}, 0
    for name, array in ordered:
        starts[name], end = end, end + array.nbytes
        dtype = NAMES[DTYPES.index(array.dtype)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [starts[name], end]}
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    head = len(raw).to_bytes(8, "little") + raw
    return head, {name: len(head) + start for name, start in starts.items()}


def write(path: Path, arrays: Mapping[str, np.ndarray], text: str) -> None:
    head, starts = head_of(arrays, text)
    with open(path, "wb") as file:
        file.write(head)
        for name in starts:
            for piece in pieces(arrays[name]):
                file.write(piece.data)


def read(file: BufferedReader, most: int) -> tuple[dict[str, Place], str]:
    """Where the arrays are, and the text. Raises if the header has more than `most` bytes."""
    length = int.from_bytes(file.read(8), "little")
    if length > most:
        raise too_long("its header", length, most)
    header = parse(file.read(length))
    text = header.pop("__metadata__", {}).get(TEXT)
    if text is None:
        raise ValueError(f"its metadata has no {TEXT!r}, so fastadam.save has not written it")
    places = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = DTYPES[NAMES.index(entry["dtype"])]
        places[name] = place_at(file, 8 + length + begin, dtype, entry["shape"])
        if end - begin != places[name].nbytes:
            raise ValueError(f"the array {name!r} is of another size than its shape says")
    return places, text
