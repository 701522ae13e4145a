"""atheris on checkpoints: python tests/fuzz_checkpoint.py [-max_total_time=60] [libFuzzer's other options, or files].

Whatever is in a file, loading it raises ValueError or TypeError and changes nothing, or loads; inspecting it raises
ValueError, or says what JSON can hold.
Needs `pip install atheris ml_dtypes`.
"""

import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import atheris
import ml_dtypes
import numpy as np

with atheris.instrument_imports(include=["fastadam.persist", "fastadam.statedict", "zipfile", "json"]):
    import fastadam
    from fastadam.persist.checkpoint import crc_of_text
    from fastadam.persist.pieces import TEXT

FOLDER = Path(tempfile.mkdtemp())
SUFFIXES = [".npz", ".safetensors"]


def made(dtype, make):
    weights = {"w": np.array([1.5, -2.5], dtype)}
    optimizer = make(weights)
    optimizer.step({"w": np.array([0.5, 0.3], np.float32)})
    return weights, optimizer


PAIRS = [  # a file of any kind is loaded into each in turn
    made(np.float32, lambda weights: fastadam.SGD(weights, momentum=0.5)),
    made(np.float32, lambda weights: fastadam.Adam(weights, state_dtype="bfloat16")),
    made(ml_dtypes.bfloat16, lambda weights: fastadam.Adam(weights, state_dtype="8bit")),
    made(ml_dtypes.bfloat16, lambda weights: fastadam.Adam(weights, master_bits=24)),
]


def seeds():
    """A byte that says into which pair it is loaded, and which kind it is; and a file, or the text in one."""
    for number, (weights, optimizer) in enumerate(PAIRS):
        for kind, suffix in enumerate(SUFFIXES):
            path = FOLDER / f"seed{number}{suffix}"
            fastadam.save(path, params=weights, optimizer=optimizer, metadata={"epoch": [3, "x"]})
            yield bytes([4 * kind + number]) + path.read_bytes()
        with zipfile.ZipFile(FOLDER / f"seed{number}.npz") as members:
            yield bytes([8 + number]) + members.read(f"{TEXT}.npy")[128:]


def with_text(text, number):
    """A whole .npz with any text, whose sum is right if it is JSON."""
    try:
        parsed = json.loads(text)
        if isinstance(parsed, dict):
            parsed["crc32"] = crc_of_text(parsed)
            text = json.dumps(parsed).encode()
    except (ValueError, TypeError, RecursionError):
        pass
    file = io.BytesIO()
    with zipfile.ZipFile(FOLDER / f"seed{number}.npz") as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            with new.open(name, "w") as member:
                if name == f"{TEXT}.npy":
                    np.lib.format.write_array(member, np.frombuffer(text, np.uint8))
                else:
                    member.write(old.read(name))
    return file.getvalue()


def state_of_all(weights, optimizer):
    raw = optimizer.state_dict(raw=True)["state"][0]
    values = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    return weights["w"].tobytes(), {k: getattr(v, "tobytes", lambda v=v: v)() for k, v in raw.items()}, repr(values)


def test_one_input(data):
    kind, number = divmod(data[0] % 12 if data else 0, 4)
    weights, optimizer = PAIRS[number]
    path = FOLDER / f"input{SUFFIXES[kind % 2]}"
    path.write_bytes(with_text(data[1:], number) if kind == 2 else data[1:])
    before = state_of_all(weights, optimizer)
    try:
        fastadam.load(path, params=weights, optimizer=optimizer)
        optimizer.state_dict()
    except (ValueError, TypeError):
        assert state_of_all(weights, optimizer) == before
    try:
        found = fastadam.inspect(path)
    except ValueError:
        return
    assert found["format"] == 1 and list(found["state"]) == list(found["steps"])
    json.dumps(found)
    json.dumps(found["metadata"], allow_nan=False)


if __name__ == "__main__":
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(seeds()):
        (corpus / str(i)).write_bytes(seed)
    files = [argument for argument in sys.argv[1:] if Path(argument).is_file()]  # to be run once, without a corpus
    atheris.Setup([*sys.argv, *([] if files else [str(corpus)])], test_one_input)
    atheris.Fuzz()
