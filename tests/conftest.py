"""--sample=N runs every N-th slow or browser test: what CI does on each change; `.ci/run --full` runs all.

Tests of several ranks, slow ones too, are run by -m mpi alone: they need an MPI library."""

import importlib

import pytest


@pytest.fixture(params=[".npz", ".safetensors"])
def path(request, tmp_path):
    return tmp_path / f"model{request.param}"


@pytest.fixture
def restore_isa():
    from fastadam import _core

    before = _core.isa()
    yield
    _core.select_isa(before)


# Other libraries are imported here, and not at the head of a file: only the tests with their mark need them.


@pytest.fixture(scope="session")
def torch():
    torch = importlib.import_module("torch")
    assert torch.__version__.startswith(("2.13.0", "2.14.1"))
    return torch


@pytest.fixture
def ours(request):
    """The adapter of the library whose mark the test has."""
    (name,) = {"sklearn", "thinc", "torch"} & {mark.name for mark in request.node.iter_markers()}
    return importlib.import_module(f"fastadam.{name}")


def pytest_addoption(parser):
    parser.addoption("--sample", type=int, default=1, help="of the tests marked slow or viz, run every N-th")


def pytest_collection_modifyitems(config, items):
    left_out = [item for item in items if item.get_closest_marker("mpi") and "mpi" not in config.option.markexpr]
    others = [item for item in items if item not in left_out]
    slow = [item for item in others if item.get_closest_marker("slow") or item.get_closest_marker("viz")]
    left_out += [item for i, item in enumerate(slow) if i % config.getoption("--sample")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
