"""Every example in the documentation runs."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastadam
from fastadam import persist, reference

ROOT = Path(__file__).parent.parent
ADAPTERS = ("sklearn", "thinc", "mpi")  # they need the library; the tests of each run its examples
MODULES = ["fastadam", *(f"fastadam.{m.name}" for m in pkgutil.iter_modules(fastadam.__path__))]
MODULES = [name for name in MODULES if name.removeprefix("fastadam.") not in ("__main__", *ADAPTERS)]
for name in "fastadam.torch", "fastadam._tensors":
    MODULES[MODULES.index(name)] = pytest.param(name, marks=pytest.mark.torch)
for package in persist, reference:
    MODULES += [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]

WITH_EXAMPLES = ["fastadam"] + [
    f"fastadam.{n}"
    for n in (
        "_config",
        "_core",
        "options",
        "optimizer",
        "persist.checkpoint",
        "reference.formats",
        "reference.gradients",
        "reference.rules",
        "rules",
        "schedules",
        "threads",
        "tracing",
    )
]
WITH_DOCTESTS = [
    pytest.param(page, marks=[pytest.mark.torch] * (page.stem == "torch"))
    for page in (ROOT / "docs").glob("*.md")
    if ">>> " in page.read_text()
]


@pytest.mark.filterwarnings("ignore:share_threads_with_blas")  # where no BLAS can share its threads
@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted > 0 or name not in WITH_EXAMPLES


@pytest.mark.filterwarnings("ignore:share_threads_with_blas")
@pytest.mark.parametrize("page", WITH_DOCTESTS)
def test_examples_in_the_pages(page):
    result = doctest.testfile(str(page), module_relative=False)
    assert result.failed == 0 and result.attempted > 0


def code_in(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_quickstart_finds_what_it_should():
    names = {}
    exec(code_in("README.md")[0], names)
    assert np.allclose(names["net"]["weight"], [1, -2, 0.5], atol=1e-3)
    assert np.allclose(names["net"]["bias"], 3, atol=1e-3)


def test_the_real_loop_is_that_of_the_example():
    assert code_in("README.md")[1] in (ROOT / "examples/train.py").read_text()


def test_the_example_goes_on_from_its_checkpoint_to_the_last_bit(tmp_path):
    def train(folder, *epochs):
        (tmp_path / folder).mkdir()
        for number in epochs:
            command = [sys.executable, "-P", ROOT / "examples/train.py", str(number)]
            out = subprocess.run(command, cwd=tmp_path / folder, check=True, capture_output=True, text=True).stdout
        return out, (tmp_path / folder / "train.safetensors").read_bytes()

    straight, in_parts = train("straight", 12), train("in parts", 5, 12)
    assert straight == in_parts
    assert float(straight[0].split()[-1]) < 0.5  # 3.5 if it always said zero


def test_the_benchmark_of_the_page_checks_its_result(tmp_path):
    code = code_in("docs/compare-yourself.md")[0]
    names = {}
    exec(code, names)

    class Benchmark:
        def pedantic(self, step, arguments=(), rounds=1, warmup_rounds=0):
            for _ in range((rounds + warmup_rounds) * self.share):
                step(*arguments)

    for name in "fastadam", "numpy":
        Benchmark.share = 1
        names["test_step"](Benchmark(), name)
        Benchmark.share = 0
        with pytest.raises(AssertionError):
            names["test_step"](Benchmark(), name)


def test_pages_are_short():
    """So that each can be read at one go."""
    most = {"performance.md": 250, "design.md": 250, "benchmarks.md": 250}
    lines = {page.name: len(page.read_text().splitlines()) for page in (ROOT / "docs").glob("*.md")}
    assert not {name: count for name, count in lines.items() if count > most.get(name, 150)}
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 140 and len(readme.split()) <= 1200


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"^([a-z-]+)$", (ROOT / "docs/index.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.stem for page in (ROOT / "docs").glob("*.md") if page.stem != "index")


@pytest.mark.parametrize("name", [name for name in fastadam.__all__ if not name.startswith("__")])
def test_the_api_page_has_every_public_name(name):
    assert re.search(rf"\b{name}\b", (ROOT / "docs/api.md").read_text())


@pytest.mark.parametrize("name", fastadam.__all__)
def test_every_public_function_and_class_has_an_example(name):
    thing = getattr(fastadam, name)
    if not callable(thing) or name in ("PerformanceWarning", "show_config"):
        assert name in ("PerformanceWarning", "show_config", "reference", "schedules", "__version__")
        return
    assert doctest.DocTestFinder(recurse=False).find(thing, name)[0].examples
