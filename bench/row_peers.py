"""The contenders of steps on rows of a table: each an Adam, in its best mode.

`given(rows, grads)` makes what `step` takes, and is not timed. All work on the same parameter and state, because a
table of 10 million rows leaves no memory for copies. Each counts its own steps. ImportError means that it is not
installed, NotImplementedError that it cannot take these rows.
"""

import ctypes

import numpy as np

import fastadam
from fastadam import _core, reference

from .limits import library
from .peers import BETA1, BETA2, EPS, LR, close

ON_ROWS = {}  # by name


class Shared:
    """The parameter, its state, and the optimizer whose state it is."""

    def __init__(self, height, width):
        self.p = np.ones((height, width), np.float32)
        self.optimizer = fastadam.Adam(self.p, lr=LR)
        self.m, self.v = (self.optimizer.state[0][name] for name in ("exp_avg", "exp_avg_sq"))


class OnRows:
    twin = staticmethod(reference.adam_update)
    threads = 1
    t = 0

    def __init_subclass__(cls, name=None):
        if name:
            ON_ROWS[name] = cls

    def __init__(self, shared):
        self.arrays = [shared.p, shared.m, shared.v]
        self.setup(shared)

    def setup(self, shared):
        pass

    def prepare(self):
        """Before calls of `step`, as others had their turn."""

    def given(self, rows, grads):
        return rows, grads

    def expect(self, p, g, *state):
        self.twin(p, g, *state, self.t, lr=LR)

    def check(self, rows, grads, others):
        """One step more, of other gradients: these rows against float64, others to the bit. Then all is as before."""
        grads = grads * np.float32(-3)  # the state is that of many equal gradients, which hides wrong betas
        distinct, g = reference.sum_rows(rows, grads, np.float64)
        before = [(array[distinct], array[others]) for array in self.arrays]
        self.prepare()
        self.step(*self.given(rows, grads))
        after = [(array[distinct], array[others]) for array in self.arrays]
        for array, (start, kept) in zip(self.arrays, before, strict=True):
            array[distinct], array[others] = start, kept
        expected = [start.astype(np.float64) for start, _ in before]
        self.expect(expected[0], g, *expected[1:])
        for i, (end, rest) in enumerate(after):
            largest = np.abs(expected[i]).max()
            most = 1e-3 * LR + 4 * np.spacing(np.float32(largest)) if i == 0 else 1e-5 * largest
            close(self, end, expected[i], most, f"after {self.t} steps")
            assert np.array_equal(rest, before[i][1]), f"{type(self).__name__}: other rows have changed"


class FastadamRows(OnRows, name="fastadam"):
    """fastadam.Adam.step_rows"""

    def setup(self, shared):
        self.optimizer = shared.optimizer

    def prepare(self):
        self.optimizer.threads = self.threads

    def step(self, rows, grads):
        self.optimizer.step_rows(0, rows, grads)

    @property
    def t(self):
        return self.optimizer.steps


class FastadamRows2(FastadamRows, name="fastadam 2 threads"):
    threads = 2


class FastadamRowsDefault(FastadamRows, name="fastadam default"):
    threads = None


class FastadamDense(FastadamRows, name="fastadam whole table"):
    """A step of the whole table, whose gradient is zero where no row appears."""

    def setup(self, shared):
        super().setup(shared)
        self.grad, self.last = (
            np.full(shared.p.shape, np.float32(0)),
            [],
        )  # full: zeros' pages would be one and the same

    def given(self, rows, grads):
        self.grad[self.last] = 0
        self.last, g = reference.sum_rows(rows, grads, np.float32)
        self.grad[self.last] = g
        return (self.grad,)

    def step(self, grad):
        self.optimizer.step(grad)


class FastadamRowAdagrad(FastadamRows, name="fastadam.RowAdagrad"):
    """Another rule, with one number of state a row."""

    twin = staticmethod(reference.rowadagrad_update)

    def setup(self, shared):
        self.optimizer = fastadam.RowAdagrad(shared.p, lr=LR)
        self.arrays = [shared.p, self.optimizer.state[0]["sum"]]


class BareLoop(OnRows, name="bare loop"):
    """Reads and writes what a step must, sorted before, with next to no arithmetic (limits.c)."""

    scale = 0.0

    def given(self, rows, grads):
        order = np.argsort(rows, kind="stable")
        distinct, start = np.unique(rows[order], return_index=True)
        p, m, v = self.arrays
        assert p.shape[1] <= 1024  # limits.c: WIDEST
        arrays = p, grads, m, v, distinct, order, np.append(start, len(rows))
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        return *pointers, ctypes.c_int64(len(distinct)), ctypes.c_int64(p.shape[1]), arrays

    def step(self, *arguments):
        *arguments, _ = arguments  # the last keeps the arrays alive
        library(self.arrays[0].dtype).rows_limit(*arguments, self.threads, ctypes.c_double(self.scale))

    def expect(self, p, g, *state):
        for array in (p, *state):
            array += g

    def check(self, rows, grads, others):
        self.scale = 1.0
        super().check(rows, grads, others)
        self.scale = 0.0


class BareLoop2(BareLoop, name="bare loop 2 threads"):
    threads = 2


class SortedRows(ctypes.Structure):
    """fa_rows of csrc/fastadam.h."""

    _fields_ = [("width", ctypes.c_int64), ("count", ctypes.c_int64)]
    _fields_ += [("order", ctypes.POINTER(ctypes.c_uint64)), ("start", ctypes.POINTER(ctypes.c_int64))]
    _fields_ += [("shift", ctypes.c_int), ("add", ctypes.c_void_p)]


class Sorting(OnRows, name="sorting"):
    """What a step does first: it checks and sorts the rows."""

    def setup(self, shared):
        self.csrc, self.found, self.bad = ctypes.CDLL(_core.__file__), SortedRows(width=1), ctypes.c_int64()
        self.csrc.fa_rows_room.restype = self.csrc.fa_rows_sort.restype = ctypes.c_int64

    def given(self, rows, grads):
        count, height = (ctypes.c_int64(n) for n in (len(rows), len(self.arrays[0])))
        room = np.empty(self.csrc.fa_rows_room(count), np.uint64)
        found, bad = ctypes.byref(self.found), ctypes.byref(self.bad)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (rows, room)]
        return found, pointers[0], int(rows.itemsize == 8), count, height, pointers[1], bad, (rows, room)

    def step(self, *arguments):
        *arguments, _ = arguments
        self.result = self.csrc.fa_rows_sort(*arguments)

    def check(self, rows, grads, others):
        rows = rows[::-1].copy()  # others than those that were timed
        given = self.given(rows, grads)  # its memory has the order
        self.step(*given)
        order = np.ctypeslib.as_array(self.found.order, (len(rows),)) & ((1 << self.found.shift) - 1)
        assert np.array_equal(order, np.argsort(rows, kind="stable"))
        assert (self.result, self.found.count) == (-1, len(np.unique(rows)))


class NumpyFancy(OnRows, name="NumPy fancy indexing"):
    """Fancy indexing alone."""

    def given(self, rows, grads):
        if len(np.unique(rows)) < len(rows):
            raise NotImplementedError("it is wrong where a row repeats")
        return rows, grads

    def step(self, rows, g):
        self.t += 1
        p, m, v = self.arrays
        some = m[rows]
        some *= BETA1
        some += (1 - BETA1) * g
        m[rows] = some
        squares = v[rows]
        squares *= BETA2
        squares += (1 - BETA2) * g * g
        v[rows] = squares
        np.sqrt(squares, out=squares)
        squares /= (1 - BETA2**self.t) ** 0.5
        squares += EPS
        some /= squares
        some *= LR / (1 - BETA1**self.t)
        p[rows] -= some


class NumpyRows(NumpyFancy, name="NumPy on rows"):
    """Gradients of the same row are added first."""

    given = OnRows.given

    def step(self, rows, grads):
        distinct, inverse = np.unique(rows, return_inverse=True)
        g = np.zeros((len(distinct), grads.shape[1]), grads.dtype)
        np.add.at(g, inverse, grads)
        super().step(distinct, g)


class TorchSparse(OnRows, name="torch SparseAdam"):
    """torch.optim.SparseAdam, which coalesces the gradient in its step."""

    def setup(self, shared):
        import torch

        self.torch, tensors = torch, [torch.from_numpy(array) for array in self.arrays]
        self.parameter = torch.nn.Parameter(tensors[0])
        self.optimizer = torch.optim.SparseAdam([self.parameter], LR, (BETA1, BETA2), EPS)
        self.optimizer.state[self.parameter] = {"step": 0, "exp_avg": tensors[1], "exp_avg_sq": tensors[2]}

    def prepare(self):
        self.torch.set_num_threads(self.threads)

    def given(self, rows, grads):
        tensors = self.torch.from_numpy(rows)[None], self.torch.from_numpy(grads)
        return (self.torch.sparse_coo_tensor(*tensors, self.parameter.shape, check_invariants=False),)

    def step(self, grad):
        self.parameter.grad = grad
        self.optimizer.step()

    @property
    def t(self):
        return self.optimizer.state[self.parameter]["step"]


class TorchSparse2(TorchSparse, name="torch SparseAdam 2 threads"):
    threads = 2
