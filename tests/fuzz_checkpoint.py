"""atheris on checkpoints: python tests/fuzz_checkpoint.py [-max_total_time=60] [libFuzzer's other options, or files].

Whatever is in a file, loading it raises ValueError or TypeError and changes nothing, or loads; inspecting it raises
ValueError, or says what JSON can hold.
Needs `pip install atheris`.
"""

import io
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["fastadam.persist", "fastadam.statedict", "zipfile", "json"]):
    import fastadam
    from fastadam.persist.checkpoint import crc_of_text
    from fastadam.persist.pieces import TEXT

FOLDER = Path(tempfile.mkdtemp())
WEIGHTS = {"w": np.array([1.5, -2.5], np.float32)}
OPTIMIZER = fastadam.SGD(WEIGHTS, momentum=0.5)
SUFFIXES = [".npz", ".safetensors"]


def seeds():
    """A byte that says which kind it is, and a file, or the text in one."""
    for kind, suffix in enumerate(SUFFIXES):
        path = FOLDER / f"seed{suffix}"
        fastadam.save(path, params=WEIGHTS, optimizer=OPTIMIZER, metadata={"epoch": [3, "x"]})
        yield bytes([kind]) + path.read_bytes()
    with zipfile.ZipFile(FOLDER / "seed.npz") as members:
        yield b"\x02" + members.read(f"{TEXT}.npy")[128:]


def with_text(text):
    """A whole .npz with any text, whose sum is right if it is JSON."""
    try:
        parsed = json.loads(text)
        if isinstance(parsed, dict):
            parsed["crc32"] = crc_of_text(parsed)
            text = json.dumps(parsed).encode()
    except (ValueError, TypeError, RecursionError):
        pass
    file = io.BytesIO()
    with zipfile.ZipFile(FOLDER / "seed.npz") as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            with new.open(name, "w") as member:
                if name == f"{TEXT}.npy":
                    np.lib.format.write_array(member, np.frombuffer(text, np.uint8))
                else:
                    member.write(old.read(name))
    return file.getvalue()


def state_of_all():
    entry = OPTIMIZER.state["w"]
    values = {k: v for k, v in OPTIMIZER.param_groups[0].items() if k != "params"}
    return WEIGHTS["w"].tobytes(), entry["momentum_buffer"].tobytes(), entry["step"], repr(values)


def test_one_input(data):
    kind = data[0] % 3 if data else 0
    path = FOLDER / f"input{SUFFIXES[kind % 2]}"
    path.write_bytes(with_text(data[1:]) if kind == 2 else data[1:])
    before = state_of_all()
    try:
        fastadam.load(path, params=WEIGHTS, optimizer=OPTIMIZER)
    except (ValueError, TypeError):
        assert state_of_all() == before
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
