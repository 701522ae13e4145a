"""How arrays are laid end to end, and cut into buckets and parts, one part of each bucket for each rank.

Cuts are at multiples of 4096 elements from each array's own start: the blocks whose squares the norm adds up stay
whole, and so do the groups and blocks of state in fewer bits.
"""

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, count, groupby, pairwise
from typing import Any, NamedTuple

import numpy as np

from fastadam import _core
from fastadam._checks import as_array, is_dense
from fastadam._layout import Order, laid_out, order_of
from fastadam.containers import as_groups, is_container
from fastadam.optimizer import Optimizer
from fastadam.persist.model import check_apart, to_json

BLOCK = _core.SQUARES  # a sum of squares each


def blocks_in(size: int) -> int:
    return -(-size // BLOCK)


class Piece(NamedTuple):
    """Elements of an array, which is given by its number, in the order of its memory."""

    array: int
    begin: int
    end: int


@dataclass(frozen=True)
class Leaf:
    """A whole array: what it is."""

    key: Any
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Order
    size: int
    real: type  # of its gradients


@dataclass
class Bucket:
    """Consecutive elements, of arrays of one group and type."""

    words: np.ndarray  # the parameters, as MPI knows their type
    real: np.dtype[Any]  # of gradients
    counts: list[int]  # of elements in each rank's part
    places: list[int]  # where these begin
    whole: list[Piece]
    pieces: list[list[Piece]]  # of each rank
    arrays: list[int]  # of these pieces
    first: int  # the number of our first piece among all of ours


def cut(sizes: list[int], numbers: list[int], most: int, ranks: int) -> Iterable[tuple[list[int], list[list[Piece]]]]:
    """The bounds and pieces of the parts of each bucket of at most so many elements, for arrays laid end to end.

    Every rank has a piece of every array, perhaps an empty one: so it counts the steps of all."""
    starts = [0, *accumulate(sizes)]
    has: list[set[int]] = [set() for _ in range(ranks)]

    def cut_before(place: int) -> int:
        start = starts[bisect_right(starts, place) - 1]
        return start + (place - start) // BLOCK * BLOCK

    begin, total, is_last = 0, starts[-1], False
    while not is_last:
        is_last = total - begin <= most
        end = total if is_last else cut_before(begin + most)
        bounds = [begin, *(cut_before(begin + (end - begin) * r // ranks) for r in range(1, ranks)), end]
        pieces: list[list[Piece]] = []
        for (low, high), own in zip(pairwise(bounds), has, strict=True):
            inside = range(bisect_right(starts, low) - 1, bisect_left(starts, high))
            found = [
                Piece(numbers[k], max(low, starts[k]) - starts[k], min(high, starts[k + 1]) - starts[k]) for k in inside
            ]
            pieces.append([piece for piece in found if piece.begin < piece.end])
            own.update(piece.array for piece in pieces[-1])
        if is_last:
            for of_rank, own in zip(pieces, has, strict=True):
                of_rank += [Piece(i, 0, 0) for i in numbers if i not in own]
        yield bounds, pieces
        begin = end


def rebuilt(container: Any, make: Callable[[Any], Any]) -> Any:
    """The same container, nested as it is, with something else for each array."""
    if isinstance(container, Mapping):
        return {name: rebuilt(value, make) for name, value in container.items()}
    if is_container(container):
        items = [rebuilt(item, make) for item in container]
        return tuple(items) if type(container) is tuple else items
    return make(container)


class Given:
    """Parameters as they were given, read once, with running numbers in place of the arrays."""

    def __init__(self, params: Any) -> None:
        self.arrays: list[Any] = []
        numbers = count()

        def take(array: Any) -> int:
            self.arrays.append(array)
            return next(numbers)

        groups, self.is_grouped = as_groups(params, ())
        self.groups = [{**group, "params": rebuilt(group["params"], take)} for group in groups]

    def filled(self, arrays: list[Any]) -> list[dict[str, Any]]:
        """The groups with these arrays."""
        return [{**group, "params": rebuilt(group["params"], arrays.__getitem__)} for group in self.groups]

    def stands(self) -> Any:
        """The same with arrays without elements: an optimizer of them checks all the rest, and costs nothing."""
        arrays = [np.empty(0, each.dtype) if isinstance(each, np.ndarray) else each for each in self.arrays]
        return self.filled(arrays) if self.is_grouped else self.filled(arrays)[0]["params"]


class Parts:
    """All parameters, in new memory, and this rank's pieces of them."""

    def __init__(self, most_bytes: int, rank: int, ranks: int) -> None:
        self.most_bytes, self.rank, self.ranks = most_bytes, rank, ranks
        self.sources: list[np.ndarray] = []  # of the last views, which do not have their values yet
        self.leaves: list[Leaf] = []
        self.views: list[Any] = []
        self.blocks: list[np.ndarray] = []  # of memory, one for each type of each group
        self.buckets: list[Bucket] = []
        self.pieces: list[Piece] = []  # ours, in the order of the local optimizer
        self.groups: list[dict[str, Any]] = []  # for that: a piece is called by its array's key, and where it begins
        self.counts: list[int] = []  # of arrays in each group
        self.containers: list[Any] = []
        # Of each array all pieces, rank by rank, with the number of the rank; and ours, with their own numbers.
        self.owners: list[list[tuple[int, Piece]]] = []
        self.own: list[list[tuple[int, Piece]]] = []

    def joined_by(self, whole: Optimizer, given: Given) -> "Parts":
        """With the last groups of `whole`, which were given so. These parts stay as they are."""
        joined = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list):
                setattr(joined, name, value.copy())
        joined.add(whole, given)
        return joined

    def add(self, whole: Optimizer, given: Given) -> None:
        engine, first = whole._engine, len(self.leaves)
        bucket_count, piece_count = len(self.buckets), len(self.pieces)
        keys = engine.keys[first:]
        places = [p - first for p in (engine.structure.order or range(len(engine.keys)))[first:]]
        self.sources = [as_array(given.arrays[p], f"parameter {k!r}", True) for k, p in zip(keys, places, strict=True)]
        check_apart(list(zip(keys, self.sources, strict=True)))
        self.leaves += [leaf_of(key, array) for key, array in zip(keys, self.sources, strict=True)]
        self.views += [None] * len(keys)
        for group in whole.param_groups[len(self.counts) :]:
            self.groups.append({**group, "params": {}})
            begin = sum(self.counts)
            self.counts.append(len(group["params"]))
            numbers = range(begin, begin + self.counts[-1])
            for dtype in dict.fromkeys(self.leaves[i].dtype for i in numbers):
                self.lay([i for i in numbers if self.leaves[i].dtype == dtype])
        by_place = dict(zip(places, self.views[first:], strict=True))
        self.containers += [group["params"] for group in given.filled([by_place[p] for p in range(len(places))])]
        self.owners += [[] for _ in keys]
        self.own += [[] for _ in keys]
        for owner in range(self.ranks):
            for bucket in self.buckets[bucket_count:]:
                for piece in bucket.pieces[owner]:
                    self.owners[piece.array].append((owner, piece))
        for number, piece in enumerate(self.pieces[piece_count:], piece_count):
            self.own[piece.array].append((number, piece))

    def lay(self, numbers: list[int]) -> None:
        """These arrays, which are of one type, end to end."""
        leaves = [self.leaves[i] for i in numbers]
        sizes, dtype, real = [leaf.size for leaf in leaves], leaves[0].dtype, np.dtype(leaves[0].real)
        flat = np.empty(sum(sizes), dtype)
        self.blocks.append(flat)
        for i, leaf, end in zip(numbers, leaves, accumulate(sizes), strict=True):
            self.views[i] = laid_out(flat[end - leaf.size : end], leaf.shape, leaf.order)
        words = flat.view(np.uint16) if dtype.itemsize == 2 else flat
        params = self.groups[-1]["params"]
        for bounds, pieces in cut(sizes, numbers, max(self.most_bytes // real.itemsize, BLOCK), self.ranks):
            at = bounds[self.rank]
            for i, begin, end in pieces[self.rank]:
                params[self.leaves[i].key, begin] = flat[at : at + end - begin]
                at += end - begin
            counts, places = [b - a for a, b in pairwise(bounds)], [bound - bounds[0] for bound in bounds[:-1]]
            every = [piece for of_rank in pieces for piece in of_rank]
            arrays = sorted({piece.array for piece in every})
            runs = [[*run] for _, run in groupby((p for p in every if p.begin < p.end), lambda piece: piece.array)]
            whole = [Piece(run[0].array, run[0].begin, run[-1].end) for run in runs]
            here = words[bounds[0] : bounds[-1]]
            self.buckets.append(Bucket(here, real, counts, places, whole, pieces, arrays, len(self.pieces)))
            self.pieces += pieces[self.rank]

    @property
    def same(self) -> dict[str, Any]:
        """What all ranks must have alike."""
        leaves = [(leaf.key, leaf.dtype.name, leaf.shape, leaf.order) for leaf in self.leaves]
        return {**{f"parameter {i}": leaf for i, leaf in enumerate(leaves)}, **plain_values(self.groups)}


def leaf_of(key: Any, array: np.ndarray) -> Leaf:
    order, real = order_of(array) if is_dense(array) else "C", np.float64 if array.dtype == np.float64 else np.float32
    return Leaf(key, array.dtype, array.shape, order, array.size, real)


def plain_values(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of hyper-parameters, without schedules."""
    plain = [{k: v for k, v in g.items() if k != "params" and not _core.has_schedule(v)} for g in groups]
    values = [{k: v if v is None or isinstance(v, str) else to_json(v) for k, v in g.items()} for g in plain]
    return {f"group {i}": group for i, group in enumerate(values)}
