"""What the tests of files need: of checkpoints, and of state files."""

import json
import zipfile

import numpy as np

from fastadam.persist.checkpoint import crc_of_text
from fastadam.persist.statefile import HEADER

SUFFIXES = [".npz", ".safetensors"]


def rewritten(path, change):
    """The text of an .npz changed, with a sum that is right."""
    with zipfile.ZipFile(path) as members:
        arrays = {info.filename: members.read(info) for info in members.infolist()}
    text = json.loads(arrays.pop("fastadam.npy")[128:])
    change(text)
    text["crc32"] = crc_of_text(text)
    with zipfile.ZipFile(path, "w") as members:
        with members.open("fastadam.npy", "w") as file:
            np.lib.format.write_array(file, np.frombuffer(json.dumps(text).encode(), np.uint8))
        for name, content in arrays.items():
            members.writestr(name, content)


def condition(path):
    header = np.fromfile(path, HEADER, 1)
    return header[0]["condition"] if header.size else None  # killed before there was any


def change_header(path, **values):
    header = np.memmap(path, HEADER, "r+", shape=())
    for name, value in values.items():
        header[name] = value
