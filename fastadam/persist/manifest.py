"""The text of a checkpoint: what is in the file, and the sums of it. Nothing in a file is used before it agrees."""

import json
import zlib
from typing import Any

from fastadam.persist.pieces import Place
from fastadam.persist.strict_json import as_metadata, parse
from fastadam.statedict import as_counter

FORMAT = 1  # of the text; what reads 1 reads all of 1, and passes over keys that it does not know


def crc_of_text(text: dict[str, Any]) -> int:
    rest = {key: value for key, value in text.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def read_manifest(places: dict[str, Place], raw: str | bytes) -> dict[str, Any]:
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
