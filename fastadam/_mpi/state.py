"""An optimizer of which each rank has a part, as state dicts and checkpoints know it: whole."""

import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastadam import _core
from fastadam._layout import SCALE, Order, flattened, laid_out
from fastadam._mpi.parts import Parts
from fastadam._mpi.ranks import Ranks
from fastadam.optimizer import Optimizer
from fastadam.persist import safetensors
from fastadam.persist.atomic import write_aside
from fastadam.persist.checkpoint import crc_of_text
from fastadam.persist.pieces import Place, name_of, verify
from fastadam.statedict import LoadPlan, as_ndarray, check_kind, match_groups, with_order

NUMBERS = ("step", "mu_product", "grad_count", "seed")  # in an entry of a state dict
BYTE = np.dtype(np.uint8)

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]


class Interval(NamedTuple):
    """Bytes of an array in a file, in C order, and the rank that writes them."""

    array: str
    begin: int
    end: int
    rank: int
    read: Callable[[], np.ndarray | None]  # all ranks call it; that rank gets the bytes


def unit_of(name: str) -> int:
    """So many elements have one number in this array of state."""
    return _core.GROUP if name.endswith(SCALE) else 1


def flat_of(array: np.ndarray, order: Order) -> np.ndarray:
    """With one axis. Stand-ins stay small."""
    if array.size and not any(array.strides):
        return np.broadcast_to(array[(0,) * array.ndim], array.size)
    return flattened(array, order)


class Whole:
    """The state of all ranks together: to files, an optimizer. Groups and arrays are numbered as in one process."""

    def __init__(self, ranks: Ranks, local: Optimizer, parts: Parts) -> None:
        self.ranks, self.local, self.parts = ranks, local, parts
        self._engine, self._class = local._engine, type(local).__name__
        self.keys = [leaf.key for leaf in parts.leaves]
        self.state: dict[Any, Any] = {key: {} for key in self.keys}
        self.loaded: tuple[Any, Pairs] = {}, ()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups = zip(self.local.param_groups, self.parts.counts, strict=True)
        return [{**group, "params": [None] * count} for group, count in groups]

    # -- from ranks to all

    def state_dict(self, *, raw: bool = False, whole_of: Callable[..., Any] | None = None) -> dict[str, Any]:
        """Of all ranks. Without `whole_of` arrays are stand-ins of their types and shapes."""
        saved = self.local.state_dict(raw=raw)
        state = {}
        for i, leaf in enumerate(self.parts.leaves):
            entries = [saved["state"][number] for number, _ in self.parts.own[i]]
            entry = dict(entries[0])
            for name, value in entry.items():
                if isinstance(value, np.ndarray):
                    flat = (whole_of or self.stand_in)(i, name, [each[name] for each in entries])
                    entry[name] = flat if "::" in name or flat is None else laid_out(flat, leaf.shape, leaf.order)
            state[i] = with_order(entry, leaf.order)
        groups, start = [], 0
        for group, count in zip(saved["param_groups"], self.parts.counts, strict=True):
            numbers = list(range(start, start + count))
            groups.append({**group, "params": numbers, "param_names": [self.keys[i] for i in numbers]})
            start += count
        return {"state": state, "param_groups": groups}

    def stand_in(self, i: int, name: str, own: list[np.ndarray]) -> np.ndarray:
        return np.broadcast_to(np.zeros((), own[0].dtype), -(-self.parts.leaves[i].size // unit_of(name)))

    def gathered(self, to: int | None, i: int, name: str, own: list[np.ndarray]) -> np.ndarray | None:
        """One array of state, in the order of its memory, on this rank or on all; None elsewhere."""
        unit, ranks = unit_of(name), self.ranks
        is_here = [to in (None, rank) for rank in range(ranks.size)]
        spans = [(rank, begin // unit, -(-end // unit)) for rank, (_, begin, end) in self.parts.owners[i]]
        counts = [sum(end - begin for r, begin, end in spans if r == rank) for rank in range(ranks.size)]
        to_get = counts if is_here[ranks.rank] else [0] * ranks.size
        places = [sum(to_get[:rank]) for rank in range(ranks.size)]
        sent = np.ascontiguousarray(np.concatenate([each.reshape(-1) for each in own]))
        got = np.empty(sum(to_get), sent.dtype)
        to_send = [sent.size * wanted for wanted in is_here]
        ranks.comm.Alltoallv([sent, (to_send, [0] * ranks.size)], [got, (to_get, places)])
        if not is_here[ranks.rank]:
            return None
        whole, at = np.empty_like(got), 0
        for _, begin, end in spans:
            whole[begin:end] = got[at : at + end - begin]
            at += end - begin
        return whole

    # -- from all to this rank

    def _plan_load(self, state_dict: Mapping[str, Any], others: Pairs = ()) -> LoadPlan:
        """Of our pieces."""
        _, indices = match_groups(state_dict, self.param_groups, self.keys)
        check_kind(state_dict["state"], Mapping, "state_dict['state']")
        unknown = set(state_dict["state"]) - set(indices)
        if unknown:
            raise ValueError(f"state_dict['state'] has entries {list(unknown)} that no group lists in its 'params'")
        state: dict[int, Any] = {}
        for i, index in enumerate(indices):
            where = f"state_dict['state'][{index!r}] (parameter {self.keys[i]!r})"
            flat = self.flat_entry(i, state_dict["state"].get(index, {}), where)
            for number, (_, begin, end) in self.parts.own[i]:
                state[number] = {
                    name: value[begin // unit_of(name) : -(-end // unit_of(name))]
                    if isinstance(value, np.ndarray)
                    else value
                    for name, value in flat.items()
                }
        groups, start = [], 0
        for group, ours in zip(state_dict["param_groups"], self.local.param_groups, strict=True):
            numbers = list(range(start, start := start + len(ours["params"])))
            groups.append({**{k: v for k, v in group.items() if k != "param_names"}, "params": numbers})
        arrays = {id(view): i for i, view in enumerate(self.parts.views)}
        own = []
        for view, source in others:
            i = arrays[id(view)]
            new = flat_of(source, self.parts.leaves[i].order)
            own += [(self._engine.arrays[k][0], new[begin:end]) for k, (_, begin, end) in self.parts.own[i]]
        return self.local._plan_load({"state": state, "param_groups": groups}, own)

    def flat_entry(self, i: int, saved: Any, where: str) -> dict[str, Any]:
        """Arrays with one axis, in the order of our memory."""
        check_kind(saved, Mapping, where)
        leaf, flat = self.parts.leaves[i], {}
        order = tuple(saved["axes"]) if "axes" in saved else "F" if saved.get("fortran_order", False) else "C"
        if order != leaf.order and any("::" in str(name) for name in saved):
            raise ValueError(
                f"{where} is stored in another memory order than ours; load it in one process, and save it without raw"
            )
        for name, value in saved.items():
            if name in NUMBERS or value is None:
                flat[name] = value
            elif name not in ("fortran_order", "axes"):
                array = as_ndarray(value, f"{where}[{name!r}]")
                shape = (-(-leaf.size // unit_of(name)),) if "::" in name else leaf.shape
                if array.shape != shape:
                    raise ValueError(f"{where}[{name!r}] must have the shape {shape}, got {array.shape}")
                flat[name] = array if "::" in name else flat_of(array, leaf.order)
        return flat

    def _load(self, state_dict: Mapping[str, Any], others: Pairs = ()) -> None:
        """Not yet: first all ranks must have come so far."""
        self.loaded = state_dict, others

    # -- one file, written by all: each its intervals

    def intervals(self) -> list[Interval]:
        """Of parameters and state; all ranks read them in this order."""
        found = []
        for i, leaf in enumerate(self.parts.leaves):
            for name in ["", *self._engine.raw_state(self.parts.own[i][0][0])]:
                place = f"optimizer/{leaf.key}/{name}" if name else f"params/{leaf.key}"
                unit, size = unit_of(name), self.own(i, name)[0].itemsize
                if leaf.order != "C" and "::" not in name:
                    rank = i % self.ranks.size
                    found.append(Interval(place, 0, leaf.size * size, rank, partial(self.in_c_order, i, name, rank)))
                    continue
                for rank, (_, begin, end) in sorted(self.parts.owners[i], key=lambda each: each[1]):
                    read = partial(self.piece_at, i, name, begin) if rank == self.ranks.rank else lambda: None
                    found.append(Interval(place, begin // unit * size, -(-end // unit) * size, rank, read))
        return [interval for interval in found if interval.begin < interval.end]

    def own(self, i: int, name: str) -> list[np.ndarray]:
        """Our pieces of state, or of the parameter."""
        numbers = [number for number, _ in self.parts.own[i]]
        return [self._engine.raw_state(k)[name] if name else self._engine.arrays[k][0] for k in numbers]

    def piece_at(self, i: int, name: str, begin: int) -> np.ndarray:
        places = [piece.begin for _, piece in self.parts.own[i]]
        return self.own(i, name)[places.index(begin)].view(np.uint8)

    def in_c_order(self, i: int, name: str, rank: int) -> np.ndarray | None:
        leaf = self.parts.leaves[i]
        array = self.parts.views[i]
        if name:
            flat = self.gathered(rank, i, name, self.own(i, name))
            array = None if flat is None else laid_out(flat, leaf.shape, leaf.order)
        return np.ravel(array).view(np.uint8) if rank == self.ranks.rank else None

    def same_text(self, path: str, text: dict[str, Any]) -> dict[str, Any]:
        """What ranks that save it must have alike: what users give by its name, and then all."""
        groups = {f"group {i}": group for i, group in enumerate(text["optimizer"]["groups"])}
        return {"path": path, "metadata": text.get("metadata"), **groups, "what is saved": repr(text)}

    def save(self, path: str, arrays: Mapping[str, np.ndarray], text: dict[str, Any]) -> None:
        """Write the checkpoint of these arrays, which are stand-ins, and this text."""
        ranks, intervals = self.ranks, self.intervals()
        sums = np.zeros(len(intervals), np.int64)
        for k, interval in enumerate(intervals):
            own = interval.read()
            sums[k] = 0 if own is None else zlib.crc32(own.data)
        known = np.empty_like(sums)
        ranks.comm.Allreduce(sums, known)
        crcs = dict.fromkeys(arrays, 0)
        for interval, crc in zip(intervals, known.tolist(), strict=True):
            crcs[interval.array] = crc_of_both(crcs[interval.array], crc, interval.end - interval.begin)
        text["arrays"] = {
            name: {"dtype": name_of(array.dtype), "shape": list(array.shape), "crc32": crcs[name]}
            for name, array in arrays.items()
        }
        text["crc32"] = crc_of_text(text)
        head, starts = safetensors.head_of(arrays, json.dumps(text))
        target = Path(os.path.realpath(path))

        def write(aside: Path) -> None:
            ranks.together("save", lambda: write_parts(aside, ranks.rank, head, starts, intervals, sums.tolist()))

        def write_first(aside: Path) -> None:
            told.append(ranks.texts(aside.name))
            write(aside)

        def write_all() -> None:
            if ranks.rank == 0:
                try:
                    write_aside(target, write_first)
                finally:
                    if not told:
                        ranks.texts("")  # it failed before
            else:
                name = ranks.texts("")[0]
                if name:
                    write(target.with_name(name))

        told: list[Any] = []
        ranks.together("save", write_all)


def steps_of(plan: LoadPlan) -> dict[str, int]:
    return {"steps": int(plan.records["step"].max())}


def write_parts(
    path: Path, rank: int, head: bytes, starts: Mapping[str, int], intervals: Sequence[Interval], sums: list[int]
) -> None:
    """Write the intervals of this rank, to the disk, and read them again: they must have these sums."""
    own = [(interval, crc) for interval, crc in zip(intervals, sums, strict=True) if interval.rank == rank]
    places = {
        f"{i.array} from byte {i.begin}": Place(starts[i.array] + i.begin, BYTE, (i.end - i.begin,)) for i, _ in own
    }
    saved = {name: {"crc32": crc} for name, (_, crc) in zip(places, own, strict=True)}
    error: OSError | None = None
    with ExitStack() as held:
        try:
            file = held.enter_context(open(path, "r+b"))
            if rank == 0:
                file.write(head)
        except OSError as raised:
            error = raised
        for interval in intervals:  # which ranks may have to give each other, so a failure does not end it
            data = interval.read()
            try:
                if data is not None and error is None:
                    file.seek(starts[interval.array] + interval.begin)
                    file.write(data.data)
            except OSError as raised:
                error = raised
        if error is not None:
            raise error
        file.flush()
        os.fsync(file.fileno())
    with open(path, "rb") as written:
        verify(written, places, saved, lambda _: None)


def crc_of_both(first: int, second: int, length: int) -> int:
    """The CRC-32 of bytes, from those of their two parts and the length of the second: as zlib's crc32_combine."""
    # A zero byte multiplies the sum, a polynomial over GF(2) with the lowest bit first, by x**8 modulo CRC-32's.
    power, x = 1 << 31, 1 << 23
    while length:
        power = product(power, x) if length & 1 else power
        x, length = product(x, x), length >> 1
    return product(power, first) ^ second


def product(a: int, b: int) -> int:
    found = 0
    for bit in range(31, -1, -1):
        found ^= b if a >> bit & 1 else 0
        b = b >> 1 ^ (0xEDB88320 if b & 1 else 0)
    return found
