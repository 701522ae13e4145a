"""The boundary: validate everything, fill tasks, release the GIL, call C once.

`adam_update` is the stateless form. `Engine` is the stateful one: it owns the step counters and remembers which
memory it writes. The last thing either does before the C call is one pass that runs no Python code, so nothing
(a schedule, a warning filter, a finalizer) can change an array between its check and its use.
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
    format_of, is_native, is_plain, is_ready, is_usable, itemsize_of, lines_of, nbytes_of, ndim_of, overlaps, real_of,
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
    as_gradient, as_rows, check_like, check_replacement, check_table, check_writable, copied_at_every_step, is_bfloat16,
    maps_of, name_of_dtype, overlap_error)
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
    PyObject *type_object_of "(PyObject *)Py_TYPE" (PyObject *)

UPDATE_NAMES = ("param", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")     # adam_update's arguments, in a task's order


class PerformanceWarning(UserWarning):
    """A gradient had to be copied before the step; the message says how to avoid it."""


# Of 8-bit state: elements with one scale; the least scale where it may be negative, and where it may not.
GROUP, LEAST_SCALES = int(FA_GROUP), (int(FA_LEAST_M), int(FA_LEAST_V))


# ---- instruction set and threads ------------------------------------------------------------------------------

cdef const fa_family *ADAM = fa_family_named("Adam")
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
    return min(fa_max_threads(), bound_of_threads(), fa_known_room())


cdef int bound_of_threads():
    return fa_thread_bound()


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


cdef bint has_fewer_threads(int order, int64_t lines, bint warn, int stacklevel) except -1:
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
            RuntimeWarning, stacklevel=stacklevel)
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


cdef object converted(object grad, object param, str name, bint warn, int stacklevel):
    """The gradient rounded to the parameter's type, in the parameter's memory order."""
    cdef fenv_t env
    cdef fa_fp_state saved
    like = numpy.asarray(param)
    if warn:
        warnings.warn(copied_at_every_step(grad, like, name), PerformanceWarning, stacklevel=stacklevel)
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


# ---- the stateless step; the stateful one is in _engine.pxi ---------------------------------------------------

cdef object MISSING = object()


def adam_update(param=MISSING, grad=MISSING, exp_avg=MISSING, exp_avg_sq=MISSING, step=MISSING, *, lr=1e-3,
                betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False, amsgrad=False,
                max_exp_avg_sq=None, maximize=False, bias_correction=True, eps_root=0.0, eps_hat=False, grad_scale=1.0,
                threads=None, **unknown):
    """Apply one step of Adam to an array, in place, with state that you keep.

    .. math::
        m = \\beta_1 m + (1-\\beta_1) g, \\quad v = \\beta_2 v + (1-\\beta_2) g^2, \\quad
        p = p - \\frac{lr}{1-\\beta_1^t} \\frac{m}{\\sqrt{v/(1-\\beta_2^t) + eps_{root}} + eps}

    Parameters
    ----------
    param : ndarray of float32 or float64
        p, updated in place. Native byte order, aligned, writeable, dense in memory with its axes in any order. Rows
        that are picked, ``table[rows]``, are a copy: it would be updated, and the table not.
    grad : ndarray of a real floating type
        g, of the same shape, only read. float16 and bfloat16 are converted on the way if `param` is float32. Any other
        dtype or memory order than `param`'s costs a copy and a `PerformanceWarning`. For a 0-d `param` also a NumPy
        floating scalar.
    exp_avg, exp_avg_sq : ndarray
        m and v, updated in place, with the shape, dtype and memory order of `param`. Zeros at the start.
    step : int, >= 1
        t, the number of this step, counted from 1.
    lr : float, default 1e-3, finite, >= 0
        Learning rate.
    betas : pair of float, default (0.9, 0.999), each in [0, 1)
        Decay of the two averages per step.
    eps : float, default 1e-8, finite, >= 0
        Added to the root.
    weight_decay : float, default 0, finite, >= 0
        L2 penalty: g += weight_decay * p.
    decoupled_weight_decay : bool, default False
        AdamW instead: ``p *= 1 - lr * weight_decay``, and the gradient is left alone.
    amsgrad : bool, default False
        Divide by the largest v so far, kept in `max_exp_avg_sq`.
    max_exp_avg_sq : ndarray, with `amsgrad` only
        Like `exp_avg_sq`.
    maximize : bool, default False
        Ascend: the gradient is negated.
    bias_correction : bool, default True
        False leaves out the two denominators 1 - beta**t.
    eps_root : float, default 0, finite, >= 0
        Added under the root (optax).
    eps_hat : bool, default False
        Add eps before the bias correction of v (Keras, thinc, scikit-learn): lr becomes
        lr * sqrt(1 - beta2**t) and v is not corrected.
    grad_scale : float, default 1, finite
        Multiplies the gradient.
    threads : int, 1 to 1024, or None
        An order for exactly that many threads (at most one per cache line); None chooses. Where the system has fewer
        to give, a `RuntimeWarning` says so before the step takes those.

    Raises
    ------
    TypeError
        Wrong kind of argument or dtype.
    ValueError
        Wrong value, shape, byte order, alignment or memory order; a read-only array; arrays that overlap. Whatever
        is raised, nothing has changed.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    >>> for step in 1, 2:
    ...     fastadam.adam_update(p, 2 * p, m, v, step, lr=0.1)
    >>> p
    array([0.80041223, 0.80041223, 0.80041223])

    References
    ----------
    Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015. The placement of eps is torch's.
    """
    cdef fa_options options
    cdef fa_coefficients coefficients
    cdef fa_task task
    cdef fa_format format
    cdef Array *array[4]
    cdef bint good, asked = False
    cdef list plain = None
    cdef int64_t t
    cdef int i, j, count = 3, order = as_threads(threads), bound = bound_of_threads()
    cdef double scale = as_grad_scale(grad_scale)

    if unknown or param is MISSING or grad is MISSING or exp_avg is MISSING or exp_avg_sq is MISSING or step is MISSING:
        raise wrong_arguments(adam_update, (param, grad, exp_avg, exp_avg_sq, step), unknown)
    memset(&options, 0, sizeof(options))
    beta1, beta2 = as_pair(betas)
    options.lr = as_magnitude(lr, "lr")
    options.beta1 = as_beta(beta1, "betas[0]")
    options.beta2 = as_beta(beta2, "betas[1]")
    options.eps = as_magnitude(eps, "eps")
    options.weight_decay = as_magnitude(weight_decay, "weight_decay")
    options.eps_root = as_magnitude(eps_root, "eps_root")
    options.decoupled_weight_decay = as_flag(decoupled_weight_decay, "decoupled_weight_decay")
    options.amsgrad = as_flag(amsgrad, "amsgrad")
    options.maximize = as_flag(maximize, "maximize")
    options.bias_correction = as_flag(bias_correction, "bias_correction")
    options.eps_hat = as_flag(eps_hat, "eps_hat")
    if options.amsgrad != (max_exp_avg_sq is not None):
        raise ValueError("amsgrad=True needs max_exp_avg_sq, and max_exp_avg_sq needs amsgrad=True")
    t = as_step(step)

    array[0], array[1], array[2] = <Array *>param, <Array *>exp_avg, <Array *>exp_avg_sq
    if options.amsgrad:
        array[3] = <Array *>max_exp_avg_sq
        count = 4

    while True:
        # A pass over everything that runs no Python code, unless it fails; only after one is there a C call.
        good = True
        for i in range(count):
            good = (good and is_plain(array[i]) and is_usable(array[i]) and type_of(array[i]) == type_of(array[0])
                    and same_layout(array[i], array[0]))
        if not good:
            check_writable(param, "param")
            for i in range(1, count):
                check_like(<object><PyObject *>array[i], UPDATE_NAMES[i], param, "param")
            if plain:
                raise ValueError("an array changed during the call")
            plain = [numpy.asarray(<object><PyObject *>array[i]) for i in range(count)]     # without their subclasses
            for i in range(count):
                array[i] = <Array *>plain[i]
            param = plain[0]
            continue
        if is_ready(<Array *>grad, array[0]) or is_decodable(<Array *>grad, array[0]):
            if asked or order <= 1 or fa_has_room(order):
                break
            asked = True
            if lines_of(nbytes_of(array[0])) > 1:
                has_fewer_threads(order, lines_of(nbytes_of(array[0])), True, 1)
            continue
        grad = as_gradient(grad, param, "grad", "param")
        note_bfloat16(grad)
        if not is_ready(<Array *>grad, array[0]) and not is_decodable(<Array *>grad, array[0]):
            for i in range(count):
                if numpy.shares_memory(grad, numpy.asarray(<object><PyObject *>array[i])):
                    raise overlap_error("grad", UPDATE_NAMES[i])
            grad = converted(grad, param, "grad", True, 1)

    for i in range(count):
        if overlaps(<Array *>grad, array[i]):
            raise overlap_error("grad", UPDATE_NAMES[i])
        for j in range(i):
            if overlaps(array[i], array[j]):
                raise overlap_error(UPDATE_NAMES[j], UPDATE_NAMES[i])

    fa_coefficients_at(ADAM, t, &options, scale, 1.0, &coefficients)
    memset(&task, 0, sizeof(task))
    task.kernel = fa_kernel_of(chosen_isa, fa_rule_of(ADAM, &options), real_of(array[0]))
    task.array[FA_PARAM], task.array[FA_GRAD] = data_of(array[0]), data_of(<Array *>grad)
    for i in range(1, count):
        task.array[FA_STATE + i - 1] = data_of(array[i])
    task.n = size_of(array[0])
    task.coefficients = &coefficients
    format = format_of(<Array *>grad, bfloat16)
    if format != FA_PLAIN:
        task.decode = fa_codec_of(chosen_isa, format)
    with nogil:
        fa_gate_enter()
        fa_run(&task, 1, order, bound, NULL)
        fa_gate_leave()


cdef object signature_of(function, Py_ssize_t required):
    """For `help`: that of a Python function whose first parameters have no default."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD]
    parameters[:required] = [p.replace(default=p.empty) for p in parameters[:required]]
    return inspect.Signature(parameters)


cdef wrong_arguments(function, tuple required, dict unknown):
    """The error that a Python function would raise; Cython's is less clear."""
    names, name = list(function.__signature__.parameters), function.__name__
    if unknown:
        first = next(iter(unknown))
        return TypeError(f"{name} has no {', '.join(unknown)}{did_you_mean(first, names)}; it has {', '.join(names)}")
    missing = [repr(each) for each, given in zip(names, required) if given is MISSING]
    return TypeError(f"{name}() missing {len(missing)} required positional argument{'s' * (len(missing) > 1)}: "
                     f"{', '.join(missing)}")


adam_update.__signature__ = signature_of(adam_update, 5)


include "_copies.pxi"
include "_groups.pxi"
include "_state.pxi"
include "_parameters.pxi"
include "_rows.pxi"
include "_engine.pxi"
include "_capi.pxi"


assert ARRAYS == FA_ARRAYS and STATES == FA_STATES
assert (_layout.RECORD.itemsize, _layout.HEADER.itemsize) == (sizeof(fa_record), sizeof(Header))
assert (_layout.CODE, _layout.FLUSHED, _layout.WRITTEN, _layout.TORN) == (CODE, IS_FLUSHED, IS_WRITTEN, IS_TORN)
select_isa(os.environ.get("FASTADAM_ISA"))
fa_start()
fa_share_start()
