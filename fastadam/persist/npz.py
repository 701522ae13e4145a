"""NumPy's .npz: a zip file, not compressed, with a .npy file for each array, and one for the text."""

import os
import re
import zipfile
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

import numpy as np

from fastadam.persist.pieces import BFLOAT16, TEXT, Place, pieces, place_at, too_long

NPY_HEADER = re.compile(rb"\{'descr': '([<|]\w+)', 'fortran_order': False, 'shape': \(((?:\d+, ?)*\d*)\), \} *\n")


def write(path: Path, arrays: Mapping[str, np.ndarray], text: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as members:
        for name, array in {TEXT: np.frombuffer(text.encode(), np.uint8), **arrays}.items():
            descr = "<u2" if array.dtype == BFLOAT16 else array.dtype.str  # what it is, is in the text
            header = {"descr": descr, "fortran_order": False, "shape": array.shape}
            with members.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for piece in pieces(array):
                    file.write(piece.data)


def read(file: BufferedReader, most: int) -> tuple[dict[str, Place], bytes]:
    """Where the arrays are, and the text. Raises if the text or a header has more than `most` bytes."""
    places: dict[str, Place] = {}
    with zipfile.ZipFile(cast(IO[bytes], Bounded(file, most))) as members:
        infos = members.infolist()
        if 100 * len(infos) > most:
            raise too_long(f"the directory of {len(infos)} members", 100 * len(infos), most)
        for info in infos:
            name = info.filename.removesuffix(".npy")
            if info.compress_type != zipfile.ZIP_STORED or name == info.filename or name in places:
                raise ValueError(f"the member {info.filename!r} is not a stored .npy, or appears twice")
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
        # Not with NumPy's reader, which hands text of any length to Python's parser.
        match = NPY_HEADER.fullmatch(member.read(int.from_bytes(length, "little")))
        header = member.tell()
    if match is None:
        raise ValueError(f"the member {info.filename!r} has no .npy header of a plain array in C order")
    dtype, shape = np.dtype(match[1].decode()), [int(n) for n in match[2].split(b",") if n.strip()]
    file.seek(info.header_offset + 26)
    name_and_extra = sum(np.frombuffer(file.read(4), "<u2").tolist())
    return place_at(file, info.header_offset + 30 + name_and_extra + header, dtype, shape)


class Bounded:
    """A file that refuses to read more than `most` bytes at once."""

    def __init__(self, file: BufferedReader, most: int) -> None:
        self.file, self.most = file, most
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = os.fstat(self.file.fileno()).st_size - self.tell()
        if size > self.most:
            raise too_long("its directory or a header", size, self.most)
        return self.file.read(size)
