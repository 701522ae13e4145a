# Arrays: quick tests on borrowed pointers, which run no Python code, and the errors that explain what they refused.

cdef inline bint same_shape(Array *a, Array *b) noexcept nogil:
    cdef int i
    if ndim_of(a) != ndim_of(b):
        return False
    for i in range(ndim_of(a)):
        if shape_of(a)[i] != shape_of(b)[i]:
            return False
    return True


cdef bint same_layout(Array *a, Array *b) noexcept nogil:
    """Same shape, and elements in the same order in memory without gaps."""
    return same_shape(a, b) and (flags_of(a) & flags_of(b) & CONTIGUOUS) != 0


cdef bint is_usable(Array *array) noexcept nogil:
    """A kernel can read and write the elements."""
    return ((flags_of(array) & USABLE) == USABLE and is_native(array)
            and (type_of(array) == np.NPY_FLOAT or type_of(array) == np.NPY_DOUBLE))


cdef bint overlaps(Array *a, Array *b) noexcept nogil:
    """For arrays without gaps."""
    cdef char *a0 = data_of(a)
    cdef char *b0 = data_of(b)
    return a0 < b0 + nbytes_of(b) and b0 < a0 + nbytes_of(a) and nbytes_of(a) > 0 and nbytes_of(b) > 0


cdef inline int64_t lines_of(Py_ssize_t size) noexcept nogil:
    """Cache lines of so many bytes: what the driver shares out (csrc/driver.c)."""
    return (size + 63) // 64


cdef void bounds_of(Array *array, char **low, char **high) noexcept nogil:
    """Where its elements begin and end, in whatever order and with whatever gaps."""
    cdef int i
    cdef np.npy_intp extent
    low[0] = high[0] = data_of(array)
    if size_of(array) == 0:
        return
    for i in range(ndim_of(array)):
        extent = (shape_of(array)[i] - 1) * strides_of(array)[i]
        if extent < 0:
            low[0] += extent
        else:
            high[0] += extent
    high[0] += itemsize_of(array)


cdef inline bint is_plain(Array *array) noexcept:
    """An ndarray, of a subclass perhaps, but not a masked one. Asks the type only: isinstance could run Python code."""
    if is_exactly_array(array):
        return True
    return is_array(array) and not PyObject_TypeCheck(<object><PyObject *>array, <PyTypeObject *>MaskedArray)


cdef bint is_ready(Array *grad, Array *param) noexcept nogil:
    """The kernel can read this gradient where it is."""
    return (type_of(grad) == type_of(param) and is_native(grad) and (flags_of(grad) & NPY_ARRAY_ALIGNED) != 0
            and same_layout(grad, param))


cdef fa_real real_of(Array *array) noexcept nogil:
    return FA_FLOAT64 if type_of(array) == np.NPY_DOUBLE else FA_FLOAT32


# ---- and what follows may run Python code

cdef describe(object x):
    if isinstance(x, MaskedArray):
        return "a masked array"
    if isinstance(x, numpy.ndarray):
        return f"an array of {x.dtype}, shape {x.shape}"
    return f"a {type(x).__name__}"


cdef str KEEP = ", and keep the new array: it is the one that is updated"


cdef str array_of(object x, bint written):
    """How to get an ndarray of it."""
    kind = type(x)
    if x is None or isinstance(x, (str, bytes)):
        return ""
    if isinstance(x, MaskedArray):
        return "; use .data" if written else "; use .filled(0)"
    if isinstance(x, (int, float, numpy.generic)):
        return f"; make one array of the numbers that belong together: np.array(x){KEEP if written else ''}"
    if callable(x):
        return "; call it"
    if hasattr(kind, "detach") and hasattr(kind, "numpy"):      # torch's: the same memory
        return "; use .detach().numpy()"
    how = ".toarray()" if hasattr(kind, "toarray") else "np.array(x)" if written else "np.asarray(x)"
    return f"; use {how}{KEEP if written else ''}"


cdef str real_of_complex(object array):
    """How to get float32 or float64 of complex numbers, parts in turn, in the same memory where that can be."""
    real = "float32" if array.dtype.char == "F" else "float64"
    view = f".view(np.{real})"
    if array.dtype.char not in "FD" or not array.dtype.isnative:
        return f"use .astype(np.{'complex64' if array.dtype.char == 'F' else 'complex128'}){view}{KEEP}"
    if array.ndim == 0:
        return f"use .reshape(1){view}, which is the same memory"
    if array.flags.c_contiguous:
        return f"use {view}, which is the same memory"
    if array.flags.f_contiguous:
        return f"use .T{view}, which is the same memory"
    return f"use np.ascontiguousarray(x){view}{KEEP}"


cdef bint holds_arrays(object array):
    return array.dtype == object and array.size > 0 and isinstance(array.flat[0], numpy.ndarray)


cdef str real_by_cast(object array, object dtype, str keep=""):
    """How to get a real type of another, where there is a way."""
    if holds_arrays(array):
        return "; give the arrays that are in it: list(x.flat)"
    if array.dtype.fields:
        return "; give the array of each field: x[name]"
    try:
        with numpy.errstate(all="ignore"):
            array.astype(dtype)
    except Exception:       # whatever it is of, these are no numbers
        return ""
    return f"; use .astype(np.{dtype}){keep}"


cdef object as_array(object array, str name, bint written):
    """The array without its subclass, whose attributes could be anything; or raise."""
    if not is_plain(<Array *>array):
        raise TypeError(f"{name} must be a numpy.ndarray, got {describe(array)}{array_of(array, written)}")
    return numpy.asarray(array)


cdef str writeable_by(object array):
    from fastadam.state_file import maps_of

    if maps_of([array]):
        return "open the memory map with mode='r+', or with 'c' to keep the changes in memory"
    if not array.flags.owndata:
        try:
            array.view().flags.writeable = True
        except ValueError:      # what owns its memory does not allow that
            return f"use .copy(){KEEP}"
    return "set .flags.writeable = True"


cdef check_writable(object param, str name):
    """Raise unless the array may be updated in place."""
    array = as_array(param, name, True)
    if array.dtype.type not in (numpy.float32, numpy.float64):
        if array.dtype.kind == "c":
            how = "; " + real_of_complex(array)
        else:
            how = real_by_cast(array, "float32", KEEP)
        raise TypeError(f"{name} must be float32 or float64, got {array.dtype}{how}")
    if not array.dtype.isnative:
        raise ValueError(f"{name} must have native byte order, got {array.dtype.str}; "
                         f"use .astype({array.dtype.newbyteorder('=').str!r}){KEEP}")
    if not array.flags.aligned:
        raise ValueError(f"{name} must be aligned in memory; use .copy(){KEEP}")
    if not array.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array; {writeable_by(array)}")
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        raise ValueError(f"{name} must be C- or F-contiguous, got strides {array.strides} for shape {array.shape}; "
                         f"use np.ascontiguousarray{KEEP}")


cdef check_like(object state, str name, object param, str param_name):
    """Raise unless a state array matches its parameter."""
    check_writable(state, name)
    array, like = as_array(state, name, True), as_array(param, param_name, True)
    if array.dtype != like.dtype:
        raise TypeError(f"{name} must have the dtype of {param_name}, {like.dtype}, got {array.dtype}")
    if array.shape != like.shape:
        raise ValueError(f"{name} must have the shape of {param_name}, {like.shape}, got {array.shape}")
    if not same_layout(<Array *>array, <Array *>like):
        raise ValueError(f"{name} must have the memory order of {param_name}; use np.copy(..., order='K') or "
                         "np.zeros_like")


cdef object as_gradient(object grad, object param, str name, str param_name):
    """The gradient as an array that can be used, if need be after a conversion; or raise."""
    like = as_array(param, param_name, True)
    if isinstance(grad, numpy.floating) and like.ndim == 0:
        grad = numpy.asarray(grad)
    array = as_array(grad, name, False)
    if array.dtype.type not in (numpy.float16, numpy.float32, numpy.float64, numpy.longdouble):
        if array.dtype.kind == "c":
            how = f"; use .real, or .view(np.{like.dtype}) if the parameter is such a view of complex numbers"
            if not array.dtype.isnative:
                how += " (after .astype to native byte order)"
        else:
            how = real_by_cast(array, like.dtype)
        raise TypeError(f"{name} must be float16, float32, float64 or longdouble, got {array.dtype}{how}")
    if array.shape != like.shape:
        raise ValueError(f"{name} must have the shape of {param_name}, {like.shape}, got {array.shape}")
    return array


cdef object converted(object grad, object param, str name, bint warn, int stacklevel):
    """The gradient rounded to the parameter's type, in the parameter's memory order."""
    cdef fenv_t env
    cdef fa_fp_state saved
    like = numpy.asarray(param)
    if warn:
        warnings.warn(
            f"{name} is copied at every step: it is {describe(grad)}, strides {grad.strides}, and its parameter is "
            f"{describe(like)}, strides {like.strides}; make it with that dtype and order to save the copy",
            PerformanceWarning, stacklevel=stacklevel)
    copy = numpy.empty_like(like)
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


cdef overlap_error(str name, str other):
    return ValueError(f"{name} and {other} overlap in memory; give each its own memory with .copy()")
