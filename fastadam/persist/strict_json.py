"""Strict JSON: no name twice in an object, no NaN, no keys that are not text. Parsers disagree about these."""

import json
import math
from typing import Any

METADATA_SIZE, METADATA_DEPTH = 1 << 20, 100  # bytes as JSON, and levels: within what every parser takes


def parse(raw: str | bytes) -> dict[str, Any]:
    """Parse a text that must be an object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name appears twice")
        return dict(pairs)

    text = json.loads(raw, object_pairs_hook=unique)
    if not isinstance(text, dict):
        raise ValueError("its text is not an object")
    return text


def as_metadata(metadata: Any) -> dict[str, Any]:
    """A copy of the metadata, as it comes back from JSON."""
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata must be a dict that JSON can hold, got a {type(metadata).__name__}")
    check_json(metadata, (), 1, [METADATA_SIZE])
    raw = json.dumps(metadata, allow_nan=False)
    if len(raw) > METADATA_SIZE:
        raise too_much_metadata()
    return parse(raw)


def check_json(value: Any, place: tuple[Any, ...], level: int, left: list[int]) -> None:
    """Raise if JSON cannot hold a value, or would give back another.

    `place` is (place of the container, key), and () at the top. `left` counts down the bytes, which bounds the work: a
    dict that is in several places is small in memory, and may be endless in a file.
    """
    left[0] -= 1 + (len(value) if isinstance(value, str) else 0)
    if left[0] < 0:
        raise too_much_metadata()
    if level > METADATA_DEPTH and isinstance(value, dict | list | tuple):
        raise ValueError(f"metadata contains itself, or has more than {METADATA_DEPTH} levels; make it flatter")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{named(place)} has the key {key!r}; JSON has keys of str only: use str(key)")
            left[0] -= len('"": ') + len(key)
            check_json(item, (place, key), level + 1, left)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_json(item, (place, i), level + 1, left)
    elif isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{named(place)} is {value!r}, which JSON does not have; use None or a str")
    elif isinstance(value, int) and value.bit_length() > 14_000:  # Python reads no more than 4300 digits
        raise ValueError(f"{named(place)} is an int of more than 4000 digits; use hex(...)")
    elif value is not None and not isinstance(value, str | float | int):
        is_array = hasattr(type(value), "__array__")
        way_out = "" if not is_array else "; use .tolist()" if getattr(value, "ndim", 0) else "; use .item()"
        raise TypeError(
            f"{named(place)} is a {type(value).__name__}; JSON holds dict, list, str, int, float, bool and None"
            f"{way_out}"
        )


def named(place: tuple[Any, ...]) -> str:
    return f"{named(place[0])}[{place[1]!r:.100}]" if place else "metadata"


def too_much_metadata() -> ValueError:
    return ValueError(f"metadata has more than {METADATA_SIZE} bytes as JSON; keep more in a file of its own")
