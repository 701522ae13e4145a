# Numbers and flags, read quickly. What is not a plain Python value goes to _numbers.py, which also has the errors.
from libc.math cimport isfinite
from libc.stdint cimport int64_t

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object, int *) except? -1


cdef inline double as_number(object value, str name) except? -1.0:
    if type(value) is float:
        return value
    from fastadam import _numbers
    return _numbers.as_number(value, name)


cdef inline double as_magnitude(object value, str name) except? -1.0:
    cdef double x = as_number(value, name)
    if not (isfinite(x) and x >= 0.0):
        raise ValueError(f"{name} must be finite and >= 0, got {value!r}")
    return x


cdef inline double as_beta(object value, str name) except? -1.0:
    cdef double x = as_number(value, name)
    if not 0.0 <= x < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")
    return x


cdef inline double as_grad_scale(object value) except? -1.0:
    cdef double x = as_number(value, "grad_scale")
    if not isfinite(x):
        raise ValueError(f"grad_scale must be finite, got {value!r}")
    return x


cdef inline bint as_flag(object value, str name) except? -1:
    if value is True:
        return True
    if value is False:
        return False
    from fastadam import _numbers
    return _numbers.as_flag(value, name)


cdef inline int as_threads(object threads) except -1:
    """A number of threads for the driver: 0 stands for None, the automatic choice."""
    if threads is None:
        return 0
    from fastadam import _numbers
    return _numbers.as_threads(threads, "threads")


cdef inline int64_t as_step(object step, str name="step") except -1:
    cdef int overflow = 0
    if type(step) is not int:
        from fastadam import _numbers
        step = _numbers.as_integer(step, name, "an integer")
    cdef int64_t t = PyLong_AsLongLongAndOverflow(step, &overflow)
    if overflow or t < 1:
        raise ValueError(f"{name} counts from 1 and is less than 2**63, got {step}")
    return t


cdef inline object as_pair(object betas):
    if type(betas) is tuple and len(<tuple>betas) == 2:
        return betas
    from fastadam import _numbers
    return _numbers.as_pair(betas)
