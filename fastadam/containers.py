"""Containers of arrays: what an optimizer is given, and the gradients that mirror it.

A container is one array, an iterable, a mapping of names, or these nested. `Tree.read` reads one, once, and
remembers its shape; `Tree.match` takes a container of gradients apart in the same order.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import translate
from typing import Any, TypeAlias

import numpy as np

Container: TypeAlias = "np.ndarray | Mapping[Any, Container] | Iterable[Container]"


def is_container(x):
    """Neither an array of any library nor a string."""
    return isinstance(x, Mapping | Iterable) and not (
        isinstance(x, np.ndarray | np.generic | str | bytes) or hasattr(x, "__array__")
    )


class Top:
    """The path of the whole. None is a key like others."""


class Tree:
    """The shape of one container: an array (no children), a sequence (names is None) or a mapping."""

    def __init__(self, path, names, children, each="of params"):
        self.path = path
        self.names = names
        self.children = children
        self.each = each  # of a sequence, in words
        self.is_flat = children is not None and all(child.children is None for child in children)

    @classmethod
    def read(cls, params, start=0):
        """The shape of a container, and (key, array) for each array in it; sequences at the top count from `start`."""
        leaves: list[tuple[Any, Any]] = []
        try:
            return cls.of(params, leaves, start=start), leaves
        except RecursionError:
            raise ValueError("params contains itself, or is nested too deeply") from None

    @classmethod
    def of(cls, container, leaves, path=Top, start=0):
        if isinstance(container, Mapping):
            names = list(container)
            children = [cls.of(container[name], leaves, join(path, name)) for name in names]
            return cls(path, names, children)
        if is_container(container):
            children = [cls.of(x, leaves, join(path, i)) for i, x in enumerate(container, start)]
            return cls(path, None, children)
        leaves.append((start if path is Top else path, container))
        return cls(path, None, None)

    def match(self, grads, out):
        """Append the gradients to out; raise if their container is another than that of the parameters."""
        if self.children is None:
            out.append(grads)
            return
        if self.names is None:
            items = self.match_sequence(grads)
        else:
            items = self.match_mapping(grads)
        if self.is_flat:
            out.extend(items)
        else:
            for child, item in zip(self.children, items, strict=True):
                child.match(item, out)

    def match_sequence(self, grads):
        if type(grads) is list or type(grads) is tuple:
            items = grads
        elif isinstance(grads, Mapping) or not is_container(grads):
            raise TypeError(
                f"grads{self.where} must be a sequence, one item for each {self.each}, got a {type(grads).__name__}"
            )
        else:
            items = list(grads)
        if len(items) != len(self.children):
            raise ValueError(
                f"grads{self.where} must have {len(self.children)} items, one for each {self.each}, got {len(items)}; "
                "use None for an array to leave alone"
            )
        return items

    def match_mapping(self, grads):
        if type(grads) is dict and len(grads) == len(self.names):
            try:
                return [grads[name] for name in self.names]
            except KeyError:
                pass  # the error below says which
        if not isinstance(grads, Mapping):
            raise TypeError(f"grads{self.where} must be a mapping, as params is, got a {type(grads).__name__}")
        if len(grads) != len(self.names) or any(name not in grads for name in self.names):
            missing = [name for name in self.names if name not in grads]
            known = set(self.names)
            extra = [name for name in grads if name not in known]
            said = [f"{what} {names}" for what, names in (("missing", missing), ("unknown", extra)) if names]
            raise ValueError(
                f"grads{self.where} must have the names of params: {', '.join(said)}; "
                "use None for an array to leave alone"
            )
        return [grads[name] for name in self.names]

    @property
    def items(self):
        """How many running numbers it takes at the top: a mapping's names are its keys."""
        if self.names is not None:
            return 0
        return 1 if self.children is None else len(self.children)

    @property
    def where(self):
        return f" at {self.path!r}" if self.path is not Top else ""


class Structure:
    """What `step` takes: one container or, if grouped, a list of them; and in which order the engine has the arrays."""

    def __init__(self, trees: Sequence[Tree], order: list[int] | None, grouped: bool) -> None:
        self.trees, self.order, self.began_grouped = trees, order, grouped
        is_grouped = grouped or len(trees) != 1
        self.whole = Tree(Top, None, trees, "container that the optimizer was given") if is_grouped else trees[0]
        # The length of a list of gradients that `flatten` would return as it is; -1 if there is none.
        is_list = self.whole.is_flat and self.whole.names is None and order is None
        self.flat = len(self.whole.children) if is_list else -1

    def read(self, container: Any) -> tuple[Tree, list[tuple[Any, Any]]]:
        """The shape of one more container, and (key, array) for each array in it."""
        return Tree.read(container, start=sum(tree.items for tree in self.trees))

    def joined_by(self, tree: Tree, places: list[int], start: int) -> "Structure":
        """With one more container, whose arrays the engine has in this order, after `start` others."""
        order = [*(self.order or range(start)), *(start + place for place in places)]
        return Structure([*self.trees, tree], None if order == [*range(len(order))] else order, self.began_grouped)

    def flatten(self, grads: Any) -> list[Any]:
        """The gradients in the engine's order; raises if their container is another than that of the parameters."""
        flat: list[Any] = []
        self.whole.match(grads, flat)
        return flat if self.order is None else [flat[place] for place in self.order]


def join(path, name):
    """The key of a part: its name or index alone at the top, else joined to the path by a dot."""
    return name if path is Top else f"{path}.{name}"


def as_groups(params: Any, options: Iterable[str]) -> tuple[list[Any], bool]:
    """The groups that `params` stands for, and whether it was given as groups."""
    if isinstance(params, Mapping) and any(
        has_option(params, name) or (name in params and "params" in params) for name in options
    ):
        raise ValueError(
            f"params has the keys {list(params)}; a group must be in a list: [{{'params': ..., 'lr': ...}}]"
        )
    if not is_container(params) or isinstance(params, Mapping):
        return [{"params": params}], False
    items = list(params)
    are_groups = [is_group(item, options) for item in items]
    if items and all(are_groups):
        return items, True
    if any(are_groups):
        i = are_groups.index(False)
        what = f"has the keys {list(items[i])}" if isinstance(items[i], Mapping) else f"is a {type(items[i]).__name__}"
        raise ValueError(
            f"params mixes groups (dicts with the key 'params') with other items: item {i} {what}; make all of them "
            "groups"
        )
    return [{"params": items}], False


def is_group(item: Any, options: Iterable[str]) -> bool:
    return isinstance(item, Mapping) and ("params" in item or any(has_option(item, name) for name in options))


def has_option(item: Mapping[Any, Any], name: str) -> bool:
    """Has it an option of this name, and not arrays that a model calls so ("alpha")?"""
    try:
        return name in item and not holds_arrays(item[name])
    except RecursionError:  # it contains itself
        return True


def holds_arrays(x: Any) -> bool:
    items = x.values() if isinstance(x, Mapping) else x if isinstance(x, list | tuple) else ()
    return isinstance(x, np.ndarray) or any(map(holds_arrays, items))


def split(keys: list[Any], overrides: Mapping[str, Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Sequence[int]]]:
    """The groups that patterns make of keys: what matches none, then each distinct set of values with its places."""
    left = set(range(len(keys)))
    parts: list[tuple[Mapping[str, Any], list[int]]] = []
    for pattern, values in overrides.items():
        matches = re.compile(translate(pattern)).match  # what fnmatchcase does
        found = {i for i, key in enumerate(keys) if matches(str(key))}
        if not found:
            raise ValueError(f"overrides: the pattern {pattern!r} matches none of the keys {keys}")
        places = sorted(found & left)
        left -= found
        same = next((part for part in parts if part[0] == values), None)
        if same is None:
            parts.append((values, places))
        else:
            same[1].extend(places)
    return [(values, sorted(places)) for values, places in [({}, list(left)), *parts] if places]
