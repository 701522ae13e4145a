"""python -m fastadam compare: what five optimizers do on five landscapes, on one page that needs no network."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def main(path: str = "fastadam-compare.html", pictures: str | None = None) -> None:
    """Compute, write the page to `path`, and the pictures into the folder `pictures`."""
    try:
        from plotly.offline import get_plotlyjs
        from tqdm import tqdm

        from fastadam.gallery.compare.pictures import write_pictures
    except ImportError as error:
        raise SystemExit(f"the comparison needs {error.name}: python -m pip install 'fastadam[viz]'") from error

    from fastadam.gallery.compare.grid import compute
    from fastadam.gallery.compare.page import write_page

    def progress(items: list[Any], stage: str) -> Iterable[Any]:
        return tqdm(items, desc=f"{stage:10}")

    begin = time.perf_counter()
    grid = compute(progress=progress)
    write_page(grid, get_plotlyjs(), Path(path))
    seconds, size = time.perf_counter() - begin, Path(path).stat().st_size / 1e6
    print(f"Page: {path} ({size:.1f} MB, {seconds:.0f} s); open it in a browser, it needs no network")
    if pictures is not None:
        for picture in write_pictures(grid, Path(pictures), progress):
            print(f"Picture: {picture}")
