"""Every example in the documentation runs."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import fastadam
from fastadam import persist

ROOT = Path(__file__).parent.parent
MODULES = ["fastadam", *(f"fastadam.{m.name}" for m in pkgutil.iter_modules(fastadam.__path__) if m.name != "__main__")]
MODULES += [f"fastadam.persist.{m.name}" for m in pkgutil.iter_modules(persist.__path__)]

WITH_EXAMPLES = ["fastadam"] + [
    f"fastadam.{n}"
    for n in (
        "_config",
        "_core",
        "options",
        "optimizer",
        "persist.checkpoint",
        "reference",
        "rules",
        "schedules",
        "threads",
        "tracing",
    )
]


@pytest.mark.filterwarnings("ignore:share_threads_with_blas")  # where no BLAS can share its threads
@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0 or name not in WITH_EXAMPLES


@pytest.mark.filterwarnings("ignore:share_threads_with_blas")
@pytest.mark.parametrize("page", ["README.md", "docs/schedules.md", "docs/threads.md"])
def test_examples_in_the_pages(page):
    result = doctest.testfile(str(ROOT / page), module_relative=False)
    assert result.failed == 0 and result.attempted > 0


@pytest.mark.parametrize("name", fastadam.__all__)
def test_every_public_function_and_class_has_an_example(name):
    thing = getattr(fastadam, name)
    if not callable(thing) or name in ("PerformanceWarning", "show_config"):
        assert name in ("PerformanceWarning", "show_config", "reference", "schedules", "__version__")
        return
    assert doctest.DocTestFinder(recurse=False).find(thing, name)[0].examples
