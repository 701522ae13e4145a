"""A step that all ranks take together: read and checked on each, agreed on, and then taken.

Gradients go to the ranks whose parts they are of, and parameters from these to all, with a few buckets under way, each
with a buffer to send from and one to receive in. Buffers are made before any rank changes anything, so that a lack of
memory does no harm.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import accumulate, cycle, groupby, pairwise
from math import inf, isfinite, sqrt
from typing import Any, NamedTuple

import numpy as np

from fastadam import _core, _numbers
from fastadam._checks import as_gradient, is_dense, lies_in, overlap_error
from fastadam._layout import flattened
from fastadam._mpi.parts import BLOCK, Bucket, Parts, blocks_in, plain_values
from fastadam._mpi.ranks import Ranks
from fastadam.optimizer import Optimizer

RING = 2
CHUNK = 1 << 18  # elements that are looked at at once
HALF_CHANGED = "{} ended in the middle, so parameters and state may be half changed: load a checkpoint"


class Call(NamedTuple):
    """What one call of step was given, and what it will do. It has been checked."""

    given: list[np.ndarray | None]  # gradients with one axis, in the order of memory
    scale: float
    steps: list[bool]  # which arrays take a step
    joins: list[int]  # whose gradients wait for a step, in a sum
    direct: bool  # there is nothing to add up
    measured: bool  # all gradients are looked at before the step
    threads: int
    same: Mapping[str, Any]  # on all ranks


def norm_of(squares: np.ndarray) -> float:
    """Added in their order."""
    return sqrt(np.add.accumulate(squares)[-1]) if squares.size else 0.0


class Steps:
    """Steps of `local`, which has this rank's pieces. `whole` has the options, and arrays without elements."""

    def __init__(
        self, ranks: Ranks, parts: Parts, whole: Optimizer, local: Optimizer, *, reduce: str, mean: bool
    ) -> None:
        self.ranks, self.local, self.engine = ranks, local, local._engine
        self.reduce, self.mean = reduce, mean
        self.refusal = ""  # why there are no steps
        self.norm: float | None = None
        self.skipped = 0
        self.warned: set[int] = set()
        self.take(parts, whole)

    def take(self, parts: Parts, whole: Optimizer) -> None:
        """From now on these are the parameters, and no gradients wait."""
        self.parts, self.whole = parts, whole
        self.pending: dict[int, np.ndarray] = {}  # sums of gradients that wait for a step, by the number of the array
        self.counts = [0] * len(parts.leaves)  # of gradients in them
        self.ring: list[tuple[np.ndarray, np.ndarray]] = []
        self.kept: list[np.ndarray] = []  # mean gradients of our parts, until the norm is known
        self.starts = [0, *accumulate(blocks_in(leaf.size) for leaf in parts.leaves)]  # of each array's blocks

    def check(self) -> None:
        if self.refusal:
            raise RuntimeError(self.refusal)

    @property
    def nbytes(self) -> dict[str, int]:
        sums = [*self.pending.values(), *self.kept]
        return {"gradients": sum(a.nbytes for a in sums), "buckets": sum(a.nbytes + b.nbytes for a, b in self.ring)}

    # -- what this rank can check alone

    def read(self, grads: Any, grad_scale: Any, held: ExitStack) -> Call:
        """`held` keeps other threads away until it is left."""
        self.check()
        if grads is None:
            raise TypeError("step needs the gradients, in the container of the parameters: opt.step(grads)")
        scale = _numbers.as_number(grad_scale, "grad_scale")
        if not isfinite(scale):
            raise ValueError(f"grad_scale must be finite, got {grad_scale!r}")
        flat = self.whole._engine.structure.flatten(grads)
        held.enter_context(self.engine)
        groups = self.local.param_groups
        given = [None if grad is None else self.gradient(i, grad) for i, grad in enumerate(flat)]
        settings = {name: value for name, value in self.whole._engine.settings.items() if name != "threads"}
        last = settings["accumulate"] - 1
        has = [grad is not None for grad in given]
        steps = [is_here and count >= last for is_here, count in zip(has, self.counts, strict=True)]
        joins = [i for i, (is_here, step) in enumerate(zip(has, steps, strict=True)) if is_here and not step]
        self.engine.check_groups(groups)
        numbers = _core.read_values(self.engine, groups) if any(steps) or not last else []
        same = {
            **plain_values(groups),
            **{f"group {i} at this step": values for i, values in enumerate(numbers)},  # what schedules give
            **settings,
            "the arrays without a gradient": [
                leaf.key for leaf, is_here in zip(self.parts.leaves, has, strict=True) if not is_here
            ],
            "the steps so far": self.local.steps,
            "the gradients that wait": self.counts,
        }
        direct = self.ranks.size == 1 and not last and not any(self.counts)
        limits = settings["max_norm"], settings["max_norm_each"]
        measured = settings["nonfinite"] != "propagate" or limits != (None, None)
        call = Call(given, scale, steps, joins, direct, measured, self.local.threads or 0, same)
        self.make_room(call)
        return call

    def gradient(self, i: int, array: Any) -> np.ndarray:
        """With one axis, of a type that C can read, in the order of the parameter's memory."""
        leaf, view = self.parts.leaves[i], self.parts.views[i]
        param = f"parameter {leaf.key!r}"
        name = f"gradient of {param}"
        is_like = type(array) is np.ndarray and array.dtype == leaf.real and array.shape == leaf.shape
        if not (is_like and leaf.order == "C" and array.flags.c_contiguous and array.flags.aligned):  # the quick test
            if isinstance(array, _core.Rows):
                raise ValueError(f"the {name} came as Rows, and ranks add up whole arrays; give that of all rows")
            array = as_gradient(array, view, name, param)
            is_ready = array.dtype == leaf.real or (leaf.real is np.float32 and array.dtype.itemsize == 2)
            is_ready = is_ready and array.flags.aligned and array.dtype.isnative
            if not (is_ready and is_dense(array) and lies_in(array, leaf.order)):
                array = _core.converted(array, view, name, i not in self.warned)
                self.warned.add(i)
        is_ours = any(np.may_share_memory(array, block) for block in self.parts.blocks)
        written = "the parameters" if is_ours else self.engine.written_by(array)
        if written is not None:
            raise overlap_error(name, written)
        return flattened(array, leaf.order)

    def make_room(self, call: Call) -> None:
        for i in call.joins:
            if i not in self.pending:
                self.pending[i] = np.empty(self.parts.leaves[i].size, self.parts.leaves[i].real)
        if call.direct or not any(call.steps):
            return
        rank, buckets = self.ranks.rank, self.parts.buckets
        if not self.ring:
            to_send = max(sum(bucket.counts) * bucket.real.itemsize for bucket in buckets)
            to_get = max(self.ranks.size * bucket.counts[rank] * bucket.real.itemsize for bucket in buckets)
            self.ring = [(np.empty(to_send, np.uint8), np.empty(to_get, np.uint8)) for _ in range(RING)]
        if call.measured and not self.kept:
            self.kept = [np.empty(bucket.counts[rank], bucket.real) for bucket in buckets]

    # -- what all ranks do then; nothing in it fails on one alone, unless the rank or its memory comes to an end

    def run(self, call: Call) -> None:
        if call.joins and self.whole.nonfinite != "propagate" and self.spoils_sums(call):
            return
        if any(call.steps) and not self.step_parts(call):
            return
        self.refusal = HALF_CHANGED.format("a step")
        for i in call.joins:
            waiting = self.pending[i] if self.counts[i] else None
            _core.make_gradients(self.pending[i], [call.given[i]], [waiting], call.scale, 1.0, call.threads)
            self.counts[i] += 1
        self.counts = [0 if steps else count for steps, count in zip(call.steps, self.counts, strict=True)]
        self.refusal = ""

    def step_parts(self, call: Call) -> bool:
        """False: ``nonfinite`` has left it out."""
        totals: Iterable[tuple[Bucket, list[Any]]] = self.totals(call)
        scale, scales = call.scale if call.direct else 1.0, None
        norm, is_good = None, True
        if call.measured:
            totals = list(totals)
            norm, scale, scales, is_good = self.clipping(call, totals, scale)
        self.norm = norm
        if not is_good:
            return False
        self.refusal = HALF_CHANGED.format("a step")
        under_way: deque[Any] = deque()
        for bucket, grads in totals:
            if scales is None:
                _core.update_part(self.engine, bucket.first, grads, scale)
            else:
                for k, grad in enumerate(grads, bucket.first):
                    _core.update_part(self.engine, k, [grad], scales[self.parts.pieces[k].array])
            if self.ranks.size > 1:
                under_way.append(self.share(bucket))
            if len(under_way) > RING:
                under_way.popleft().Wait()
        for request in under_way:
            request.Wait()
        return True

    # -- gradients

    def totals(self, call: Call) -> Iterator[tuple[Bucket, list[Any]]]:
        """Each bucket that has a step to take, and the mean gradients of our pieces in it.

        They are there until the next is asked for, but if all gradients are looked at first."""
        under_way: deque[Any] = deque()
        ring = cycle(self.ring)
        for number, bucket in enumerate(self.parts.buckets):
            if not any(call.steps[i] for i in bucket.arrays):
                continue
            if call.direct:
                yield bucket, self.gradients_of(call, bucket, None)
                continue
            if len(under_way) == RING:
                yield self.total(call, *under_way.popleft())
            buffers = next(ring)
            under_way.append((number, buffers[0], *self.send(call, bucket, buffers)))
        while under_way:
            yield self.total(call, *under_way.popleft())

    def send(self, call: Call, bucket: Bucket, buffers: tuple[np.ndarray, np.ndarray]) -> tuple[Any, Any, np.ndarray]:
        """Begin to exchange a bucket: the request, what is sent, and where what is received will be."""
        rank, size, mine, real = self.ranks.rank, self.ranks.size, bucket.counts[self.ranks.rank], bucket.real
        sent, got = (buffer[: buffer.nbytes // real.itemsize * real.itemsize].view(real) for buffer in buffers)
        sent, got = sent[: sum(bucket.counts)], got[: size * mine]
        grads: list[Any] = []
        waiting = []
        for i, begin, end in bucket.whole:
            grad = call.given[i] if call.steps[i] else None
            grads.append(end - begin if grad is None else grad[begin:end])
            waiting.append(self.pending[i][begin:end] if call.steps[i] and self.counts[i] else None)
        if waiting == [None] and call.scale == 1.0 and grads[0].dtype == real:
            sent = grads[0]  # where it is
        else:
            _core.make_gradients(sent, grads, waiting, call.scale, 1.0, call.threads)
        if self.reduce == "mpi":
            return self.ranks.comm.Ireduce_scatter(sent, got[:mine], bucket.counts), sent, got[:mine]
        to_send, to_get = list(bucket.counts), [mine] * size
        to_send[rank] = to_get[rank] = 0  # it is here
        places = [mine * r for r in range(size)]
        return self.ranks.comm.Ialltoallv([sent, (to_send, bucket.places)], [got, (to_get, places)]), sent, got

    def total(
        self, call: Call, number: int, free: np.ndarray, request: Any, sent: np.ndarray, got: np.ndarray
    ) -> tuple[Bucket, list[Any]]:
        """The mean of all ranks' gradients, added in their order. What was sent from is `free` now."""
        request.Wait()
        bucket, rank = self.parts.buckets[number], self.ranks.rank
        mine = bucket.counts[rank]
        if self.reduce == "mpi":
            sources, place = [got], free[: got.nbytes].view(got.dtype)
        else:
            sources = [got[mine * r : mine * (r + 1)] for r in range(self.ranks.size)]
            place = sources[rank]  # nothing came there
            sources[rank] = sent[bucket.places[rank] :][:mine]
        total = self.kept[number] if call.measured else place
        end = 0
        for count, pieces in groupby(bucket.pieces[rank], lambda piece: self.counts[piece.array] + 1):
            here = slice(end, end := end + sum(piece.end - piece.begin for piece in pieces))
            out, added = total[here], [source[here] for source in sources]
            mean = 1.0 / (count * self.ranks.size if self.mean else count)
            if len(added) == 1:
                _core.make_gradients(out, added, [None], 1.0, mean, call.threads)
            for k, source in enumerate(added[1:], 1):
                before, factor = added[0] if k == 1 else out, mean if k == len(added) - 1 else 1.0
                _core.make_gradients(out, [source], [before], 1.0, factor, call.threads)
        return bucket, self.gradients_of(call, bucket, total)

    def gradients_of(self, call: Call, bucket: Bucket, total: np.ndarray | None) -> list[Any]:
        """Of our pieces in a bucket, from that of all of them, or from those that were given."""
        found: list[Any] = []
        at = 0
        for i, begin, end in bucket.pieces[self.ranks.rank]:
            grad = call.given[i]
            if grad is None or not call.steps[i]:
                found.append(None)
            else:
                found.append(grad[begin:end] if total is None else total[at : at + end - begin])
            at += end - begin
        return found

    # -- parameters

    def share(self, bucket: Bucket) -> Any:
        """Begin to send our part to all, and to get theirs, in place."""
        return self.ranks.comm.Iallgatherv(None, [bucket.words, (bucket.counts, bucket.places)])  # None: in place

    def share_all(self) -> None:
        for request in [self.share(bucket) for bucket in self.parts.buckets]:
            request.Wait()

    # -- the norm, NaN and infinity

    def clipping(
        self, call: Call, totals: list[tuple[Bucket, Any]], scale: float
    ) -> tuple[float, float, list[float] | None, bool]:
        """The norm; what all gradients are multiplied by, or, if not None, those of each array; is the step taken?"""
        grads: list[Any] = [None] * len(self.parts.pieces)
        for bucket, own in totals:
            grads[bucket.first : bucket.first + len(own)] = own
        squares = self.all_squares(grads, scale)
        size = 1.0 if self.local.max_value is not None else abs(scale)  # else it is in the squares
        norm = norm_of(squares) * size
        limit, each = self.whole.max_norm, self.whole.max_norm_each
        norms, scales = [], None
        if limit is not None:
            scale = _core.clipped(scale, limit, norm)
        if each is not None:
            norms = [norm_of(squares[a:b]) * size for a, b in pairwise(self.starts)]
            scales = [_core.clipped(scale, each, own) for own in norms]
        if self.whole.nonfinite == "propagate":
            return norm, scale, scales, True
        of_pieces = [] if scales is None else [scales[piece.array] for piece in self.parts.pieces]
        one = 1.0 if self.local.max_value is not None else scale
        kind, which = _core.find_anomaly(self.engine, inf if limit is None else limit, norm, one, of_pieces)
        # A gradient that is not finite goes before a norm that is not, and an array before the next.
        count = len(self.parts.leaves)
        bad = [count + i for i, own in enumerate(norms) if not isfinite(own)]
        if kind:
            bad.append(self.parts.pieces[which].array + (0 if kind in (_core.NONFINITE, _core.OVERFLOWS) else count))
        first = int(self.ranks.gather([min(bad, default=2 * count)]).min())
        if first < 2 * count:
            self.refuse(call, first % count)
        return norm, scale, scales, first == 2 * count

    def all_squares(self, grads: list[Any], scale: float) -> np.ndarray:
        """The sums of squares of all blocks, in the order of arrays. Each is of one rank, and 0 on the others."""
        own, at = _core.block_squares(self.engine, grads, scale), 0
        mine, squares = np.zeros(self.starts[-1]), np.empty(self.starts[-1])
        for (i, begin, end), grad in zip(self.parts.pieces, grads, strict=True):
            if grad is not None:
                first, blocks = self.starts[i] + begin // BLOCK, blocks_in(end - begin)
                mine[first : first + blocks] = own[at : at + blocks]
                at += blocks
        self.ranks.comm.Allreduce(mine, squares)
        return squares

    def spoils_sums(self, call: Call) -> bool:
        """Would the sums in which gradients wait have NaN or infinity, on any rank? Then all leave them out."""
        bad = none = len(self.parts.leaves)
        for i in reversed(call.joins):
            grad, sums = call.given[i], self.pending[i]
            for at in range(0, sums.size, CHUNK):
                old = sums[at : at + CHUNK]
                new, waiting = np.empty_like(old), old if self.counts[i] else None
                _core.make_gradients(new, [grad[at : at + CHUNK]], [waiting], call.scale, 1.0, call.threads)  # type: ignore[index]
                bad = bad if np.isfinite(new).all() else i
        bad = int(self.ranks.gather([bad]).min())
        if bad < none:
            self.refuse(call, bad)
        return bad < none

    def refuse(self, call: Call, array: int) -> None:
        """Raise on all ranks, or count a step that is left out."""
        if self.whole.nonfinite == "skip":
            self.skipped += 1
            return
        grad = call.given[array]
        is_finite = grad is None or bool(np.isfinite(grad).all())
        ranks = np.flatnonzero(self.ranks.gather([not is_finite])[:, 0]).tolist()
        what = "is finite on each rank, but not the sum, or not times grad_scale and the clip factor, or not the norm"
        if ranks:
            what = f"has NaN or infinity in it on rank {', '.join(map(str, ranks))}"
        raise FloatingPointError(
            f"the gradient of parameter {self.parts.leaves[array].key!r} {what}; nothing has changed on any rank "
            "(nonfinite='skip' leaves out such steps, 'propagate' takes them)"
        )
