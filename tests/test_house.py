"""Arrows between files go one way: nothing needs what stands above it."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fastadam"
PACKAGES = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}


def is_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_in(node):
    """Modules that are imported when this runs, wherever in it."""
    if is_for_types(node):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imports_in(child)


def python_imports():
    """Of each module of the package; what the compiled part takes in counts as its own."""
    modules = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = set(imports_in(ast.parse(path.read_text())))
    text = "\n".join(path.read_text() for path in [*PACKAGE.glob("*.pyx"), *PACKAGE.glob("*.px[di]")])
    found = re.findall(r"^ *from (fastadam\S*) import \(?([\w, ]+)", text, re.MULTILINE)
    modules["fastadam._core"] = {f"{module}.{name}" for module, names in found for name in names.split(", ")}
    modules["fastadam._core"] |= {module for module, _ in found}
    return {name: {each for each in found if each in modules} - {name, "fastadam"} for name, found in modules.items()}


def check_is_without_circles(graph):
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_no_module_needs_one_that_needs_it():
    order = check_is_without_circles(python_imports())
    assert order.index("fastadam._core") < order.index("fastadam.optimizer") < order.index("fastadam.rules")


def test_no_folder_needs_one_that_needs_it():
    """A package in the package is one thing, as each module beside it is."""

    def room(name):
        parts = name.split(".")
        return parts[1] if len(parts) > 1 and parts[1] in PACKAGES else name

    graph = {}
    for name, found in python_imports().items():
        graph.setdefault(room(name), set()).update({room(each) for each in found} - {room(name)})
    check_is_without_circles(graph)
    assert graph.keys() >= PACKAGES


@pytest.mark.parametrize("name", ["sklearn", "thinc", "torch"])
def test_adapters_are_leaves(name):
    """They take what `fastadam` offers to everybody, and nobody needs them. That for torch has two files."""
    graph, part = python_imports(), "fastadam._tensors"
    assert graph[f"fastadam.{name}"] == ({part} if name == "torch" else set()) and graph[part] == set()
    assert not any(f"fastadam.{name}" in found for found in graph.values())


def c_graph():
    texts = {path.name: path.read_text() for path in (ROOT / "csrc").glob("*.[chi]*")}
    texts = {name: re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL) for name, text in texts.items()}
    home = {}
    for name, text in texts.items():
        if name.endswith(".c"):
            for function in re.findall(r"^(?!static)\w[^;(){}=]*?\b(fa_\w+)\([^;{}]*?\)\n\{", text, re.MULTILINE):
                assert home.get(function, name) == name, function  # or there in two ways
                home[function] = name
    graph = {}
    for name, text in texts.items():
        used = set(re.findall(r"\bfa_\w+", text)) if name.endswith((".c", ".inc")) else set()
        calls = {home[function] for function in used & home.keys()}
        includes = set(re.findall(r'#include "(\S+)"', text))
        graph[name] = (calls | includes) - {name}
    return graph, home


def test_no_file_of_csrc_calls_or_includes_one_that_needs_it():
    graph, home = c_graph()
    assert len(home) > 30 and all((ROOT / "csrc" / name).exists() for name in graph)
    check_is_without_circles(graph)


def test_the_kernel_needs_nothing_of_python():
    """The header of the public interface lies in the package, and needs none of it either."""
    public = '#include "../fastadam/include/fastadam_api.h"'
    for path in (ROOT / "csrc").glob("*.[chi]*"):
        text = path.read_text()
        text = text.replace(public, "") if path.name == "api.c" else text
        assert not re.search(r"#include .*(Python|numpy|fastadam/)", text), path
    header = (PACKAGE / "include/fastadam_api.h").read_text()
    assert re.findall(r"#include (.*)", header) == ["<stddef.h>", "<stdint.h>"]


def test_nobody_but_an_object_itself_changes_its_attributes():
    for path in PACKAGE.rglob("*.p*"):
        if path.suffix in (".py", ".pyx", ".pxi"):
            for line in path.read_text().splitlines():
                assert "__dict__" not in line.replace("self.__dict__", "") or "'__dict__'" in line, (path, line)


def test_files_are_short():
    """So that each can be read at one go; the rules are mostly docstrings."""
    kinds = [
        f"{folder}/{kind}"
        for folder in ("fastadam/**", "tests", "bench")
        for kind in ("*.py", "*.px[di]", "*.pyx", "*.js")
    ]
    kinds += ["csrc/*.[chi]*", "fastadam/include/*.h", "tests/*.c", "tests/capi/*.c", "setup.py"]
    lines = {path: len(path.read_text().splitlines()) for kind in kinds for path in ROOT.glob(kind) if path.is_file()}
    most = {path: 660 if path.name == "rules.py" or path.parent.name == "tests" else 500 for path in lines}
    assert not {path.name: count for path, count in lines.items() if count > most[path]}
