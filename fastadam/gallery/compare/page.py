"""The page: a template, plotly.js, and the numbers, all in one file."""

import base64
import dataclasses
import gzip
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from fastadam.gallery.compare.grid import ADAM, BETA1, BETA2, CONTENDERS, OPENING, SAME, SETTINGS, Grid, rate, runs
from fastadam.gallery.compare.landscapes import LANDSCAPES, Landscape

POINTS = 81  # of the surface, each way
MANTISSA = 12  # bits that are kept of 23: one part in 8192 is less than a pixel, and the page is half as large


def write_page(grid: Grid, plotly: str, path: Path) -> None:
    """Write the page, given the text of plotly.js."""
    arrays = {
        "paths": grid.paths,
        "gaps": grid.gaps,
        "adam": grid.adam,
        "corrections": grid.corrections,
        "surfaces": np.array([surface(landscape) for landscape in LANDSCAPES], np.float32),
    }
    parts = {
        "plotly": plotly,
        "header": json.dumps(header(grid, arrays)),
        "numbers": pack(np.concatenate([array.ravel() for array in arrays.values()])),
        "script": read("numbers.js") + read("page.js"),
    }
    path.write_text(re.sub(r"@@(\w+)@@", lambda match: parts[match[1]], read("page.html")), encoding="utf-8")


def read(name: str) -> str:
    return resources.files("fastadam.gallery.compare").joinpath(name).read_text(encoding="utf-8")


def surface(landscape: Landscape) -> np.ndarray:
    """How far the landscape lies above its lowest value, rows along y."""
    x, y = (np.linspace(*edges, POINTS) for edges in landscape.view)
    return landscape.f(np.array(np.meshgrid(x, y)))[0] - landscape.lowest


def header(grid: Grid, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """All that is not an array of numbers, and what the arrays are."""
    landscapes = []
    for landscape, bases in zip(LANDSCAPES, grid.base_rates, strict=True):
        about = dataclasses.asdict(landscape)
        del about["f"]
        about["eye"] = dict(zip("xyz", landscape.eye, strict=True))
        about["rates"] = [[rate(setting, base) for base in bases] for setting in SETTINGS]
        landscapes.append(about)
    return {
        "arrays": {name: array.shape for name, array in arrays.items()},
        "landscapes": landscapes,
        "optimizers": [{"name": c.name, "colour": c.colour, "uses": c.uses} for c in CONTENDERS],
        "runs": [dataclasses.asdict(run) for run in runs()],
        "settings": SETTINGS,
        "same": SAME,
        "beta1": BETA1,
        "beta2": BETA2,
        "opening": OPENING,
        "steps": grid.gaps.shape[-1] - 1,
        "adam": ADAM,
    }


def pack(numbers: np.ndarray) -> str:
    """float32, rounded, compressed, as text. First bytes of all numbers come first: they repeat, and compress well."""
    dropped = 23 - MANTISSA
    bits = numbers.view(np.uint32) + np.uint32(1 << (dropped - 1))
    bits &= np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    columns = bits.astype("<u4").view(np.uint8).reshape(-1, 4).T
    return base64.b64encode(gzip.compress(columns.tobytes(), mtime=0)).decode()
