"""The boundary: validate everything, fill tasks, release the GIL, call C once.

`Update` is the stateless form. `Engine` is the stateful one: it owns the step counters and remembers which memory it
writes. The last thing either does before the C call is one pass that runs no Python code, so nothing (a schedule, a
warning filter, a finalizer) can change an array between its check and its use.
"""
cimport cython
cimport numpy as np
from cpython.dict cimport PyDict_Next, PyDict_Update
from cpython.object cimport PyObject
from libc.math cimport INFINITY, fabs, sqrt
from libc.stdint cimport INT64_MAX, int64_t, uint16_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from fastadam._arrays cimport (
    ALIGNED, C_CONTIGUOUS, CONTIGUOUS, WRITEABLE, Array, bounds_of, data_of, descr_from_type, descr_of, flags_of,
    format_of, is_native, is_plain, is_ready, is_usable, itemsize_of, lines_of, nbytes_of, ndim_of, real_of,
    same_layout, shape_of, size_of, strides_of, type_of)
from fastadam._csrc cimport *
from fastadam._values cimport as_beta, as_flag, as_grad_scale, as_magnitude, as_pair, as_step, as_threads

import inspect
import os
import warnings
from _thread import RLock
from weakref import finalize

import numpy

from fastadam import _layout, _numbers
from fastadam._checks import (
    as_gradient, as_rows, check_is_no_container, check_like, check_replacement, check_table, check_writable,
    copied_at_every_step, describe, is_bfloat16, level_of_caller, maps_of, name_of_dtype, overlap_error)
from fastadam._cpus import cgroup_cpus
from fastadam._forks import watch
from fastadam._names import did_you_mean

np.import_array()


cdef extern from "<fenv.h>" nogil:
    ctypedef struct fenv_t:
        pass
    const fenv_t *FE_DFL_ENV
    int fegetenv(fenv_t *)
    int fesetenv(const fenv_t *)

cdef extern from "Python.h":
    void *PyMem_Realloc(void *, size_t)
    void PyMem_Free(void *)
    PyObject **PySequence_Fast_ITEMS(list)
    bint is_float "PyFloat_CheckExact" (PyObject *)
    double float_of "PyFloat_AS_DOUBLE" (PyObject *)
    PyObject *type_object_of "(PyObject *)Py_TYPE" (PyObject *)


class PerformanceWarning(UserWarning):
    """A gradient had to be copied before the step; the message says how to avoid it."""


# Of 8-bit state: elements with one scale; the least scale where it may be negative, and where it may not.
GROUP, LEAST_SCALES = int(FA_GROUP), (int(FA_LEAST_M), int(FA_LEAST_V))
SQUARES, NONFINITE, OVERFLOWS = int(FA_SQUARES), int(FA_NONFINITE), int(FA_OVERFLOWS)


# ---- instruction set and threads ------------------------------------------------------------------------------

cdef int cpu_quota = cgroup_cpus() or _numbers.MAX_THREADS
fa_set_thread_bound(cpu_quota)


def isas_available():
    """Names of the instruction-set paths that this build has and this CPU can run, narrowest first."""
    return [fa_isa_name(<fa_isa>i).decode() for i in range(FA_ISAS) if fa_isa_available(<fa_isa>i)]


def select_isa(name):
    """Use the named path from now on; the empty name stands for the widest that this CPU can run."""
    global chosen_isa
    available = isas_available()
    name = name or available[len(available) - 1]
    if name not in available:
        raise ImportError(
            f"FASTADAM_ISA={name!r}: choose one of {', '.join(available)} (what this build and CPU have), or unset it")
    for i in range(FA_ISAS):
        if fa_isa_name(<fa_isa>i).decode() == name:
            chosen_isa = <fa_isa>i


def isa():
    """The path in use."""
    return fa_isa_name(chosen_isa).decode()


def has_openmp():
    return bool(fa_has_openmp())


def set_num_threads(n):
    """Bound the threads of every step that does not order its own with ``threads=``.

    Parameters
    ----------
    n : int, 1 to 1024, or None
        The most threads that a step may take. None removes the bound.

    Raises
    ------
    TypeError, ValueError
        If `n` is not such a number.

    Examples
    --------
    >>> import fastadam
    >>> fastadam.set_num_threads(1)
    >>> fastadam.get_num_threads()
    1
    >>> fastadam.set_num_threads(None)
    """
    fa_set_thread_bound(min(cpu_quota, <int>(_numbers.as_threads(n, "n") or _numbers.MAX_THREADS)))


def get_num_threads():
    """The most threads that a step started here and now would take.

    The smallest of `set_num_threads`, what the OpenMP runtime grants the calling thread (``OMP_NUM_THREADS``,
    threadpoolctl), the CPUs that the process may run on, the CPU quota of its cgroup when fastadam was imported, and
    what the system had to give if a step in this Python thread asked for more. Steps with little work take fewer.

    Examples
    --------
    >>> import fastadam
    >>> fastadam.get_num_threads() >= 1
    True
    """
    return min(fa_max_threads(), fa_thread_bound(), fa_known_room())


# Is our own team compiled in? What must an OpenBLAS be built for, and how many threads may it have, to compute on it?
SHARED_TEAM, BLAS_NUMBERS, MOST_CALLBACK = bool(FA_SHARED_TEAM), FA_BLAS_NUMBERS, FA_MOST_CALLBACK


def share_steps(bint yes):
    """Steps run on our own team, or no longer."""
    fa_share_steps(yes)


def share_with_blas(size_t setter, bint share):
    """Let the OpenBLAS whose setter of its threads callback has this address compute on our team, or no longer."""
    with nogil:
        fa_share_with_blas(<fa_blas_setter>setter, share)


def threads_to_share(int count):
    """Make the threads that `count` jobs of a BLAS call need, and return how many there are."""
    cdef int there
    with nogil:
        there = fa_share_room(count)
    return there


def steps_on():
    """Whose threads the last step that could take several was given: "OpenMP" or "fastadam"."""
    return fa_steps_on().decode()


cdef bint has_fewer_threads(int order, int64_t lines, bint warn) except -1:
    """Ask the system for the threads of an order; warn if it has fewer. The step then takes those that there are."""
    cdef int wanted = <int>min(<int64_t>order, lines), there
    with nogil:
        fa_gate_enter()      # a fork waits
        there = fa_order(wanted)
        fa_gate_leave()
    if there < wanted and warn:
        warnings.warn(
            f"threads={order} asks for {wanted} threads, and the system has room for {there}: this step takes those; "
            f"raise its limit on threads (ulimit -u, ulimit -v, the pids limit of a container), or set threads={there}",
            RuntimeWarning, stacklevel=level_of_caller())
    return there < wanted


cdef int bfloat16 = -2      # NumPy's number of the type, once it was seen; -1 is that of all types of the newest kind

cdef int note_bfloat16(object grad) except -1:
    """So that the quick tests know it from now on. Another type of that name, of another library, is copied."""
    global bfloat16
    if bfloat16 < 0 and is_bfloat16(grad.dtype) and type_of(<Array *>grad) >= 0:
        bfloat16 = type_of(<Array *>grad)
    return 0


cdef inline bint is_decodable(Array *grad, Array *param) noexcept nogil:
    """C can read this gradient of 16 bits an element where it is."""
    return (is_plain(grad) and type_of(param) == np.NPY_FLOAT and format_of(grad, bfloat16) != FA_PLAIN
            and (flags_of(grad) & ALIGNED) != 0 and same_layout(grad, param))


cpdef object converted(object grad, object param, str name, bint warn):
    """The gradient rounded to the parameter's type, in the parameter's memory order."""
    cdef fenv_t env
    cdef fa_fp_state saved
    like = numpy.asarray(param)
    if warn:
        warnings.warn(copied_at_every_step(grad, like, name), PerformanceWarning, stacklevel=level_of_caller())
    copy = numpy.empty_like(like, numpy.float32 if is_bfloat16(like.dtype) else None)
    with numpy.errstate(all="ignore"):      # what overflows becomes Inf, as IEEE rounding has it
        fegetenv(&env)                      # long double is rounded by the x87 unit, which has a state of its own
        fesetenv(FE_DFL_ENV)
        fa_fp_default(&saved)
        try:
            numpy.copyto(copy, grad, casting="same_kind")
        finally:
            fa_fp_restore(&saved)
            fesetenv(&env)
    return copy


include "_copies.pxi"
include "_groups.pxi"
include "_state.pxi"
include "_parameters.pxi"
include "_rows.pxi"
include "_engine.pxi"
include "_rule.pxi"
include "_update.pxi"
include "_functions.pxi"
include "_capi.pxi"
include "_parts.pxi"


assert ARRAYS == FA_ARRAYS and STATES == FA_STATES
assert (EMA_BIT, SUM_BIT, LOW_BIT) == (1 << (FA_EMA - FA_STATE), 1 << (FA_SUM - FA_STATE), 1 << (FA_LOW - FA_STATE))
assert _numbers.MODES[RAISE] == "raise" and _numbers.MAX_THREADS == FA_MOST_THREADS
assert [STATE_DTYPES.index(name) for name in ("float32", "bfloat16", "8bit")] == [
    FA_STATE_PLAIN, FA_STATE_BFLOAT16, FA_STATE_8BIT]
assert (_layout.RECORD.itemsize, _layout.HEADER.itemsize) == (sizeof(fa_record), sizeof(Header))
assert (_layout.CODE, _layout.FLUSHED, _layout.WRITTEN, _layout.TORN) == (CODE, IS_FLUSHED, IS_WRITTEN, IS_TORN)
select_isa(os.environ.get("FASTADAM_ISA"))
fa_start()
fa_share_start()
