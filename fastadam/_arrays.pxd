# Quick tests of arrays, on borrowed pointers: no reference counting, and no Python code.
cimport numpy as np
from libc.stdint cimport int64_t, uintptr_t

from fastadam._csrc cimport FA_BFLOAT16, FA_FLOAT16, FA_FLOAT32, FA_FLOAT64, FA_PLAIN, fa_format, fa_real

cdef extern from "numpy/arrayobject.h" nogil:
    ctypedef struct Array "PyArrayObject":
        pass
    int C_CONTIGUOUS "NPY_ARRAY_C_CONTIGUOUS"
    int CONTIGUOUS "(NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_F_CONTIGUOUS)"
    int USABLE "(NPY_ARRAY_ALIGNED | NPY_ARRAY_WRITEABLE)"
    int HALF "NPY_HALF"
    int ALIGNED "NPY_ARRAY_ALIGNED"
    int WRITEABLE "NPY_ARRAY_WRITEABLE"
    int flags_of "PyArray_FLAGS" (Array *)
    int type_of "PyArray_TYPE" (Array *)
    void *descr_of "PyArray_DESCR" (Array *)
    void *descr_from_type "PyArray_DescrFromType" (int)
    int ndim_of "PyArray_NDIM" (Array *)
    np.npy_intp *shape_of "PyArray_DIMS" (Array *)
    np.npy_intp *strides_of "PyArray_STRIDES" (Array *)
    np.npy_intp itemsize_of "PyArray_ITEMSIZE" (Array *)
    np.npy_intp size_of "PyArray_SIZE" (Array *)
    np.npy_intp nbytes_of "PyArray_NBYTES" (Array *)
    char *data_of "PyArray_BYTES" (Array *)
    bint is_native "PyArray_ISNOTSWAPPED" (Array *)
    bint is_plain "PyArray_CheckExact" (Array *)    # a subclass may hide anything behind its attributes


cdef inline fa_format format_of(Array *grad, int bfloat16) noexcept nogil:
    """Of a gradient that C can decode; `bfloat16` is NumPy's number of that type."""
    if itemsize_of(grad) != 2 or not is_native(grad):
        return FA_PLAIN
    if type_of(grad) == HALF:
        return FA_FLOAT16
    return FA_BFLOAT16 if type_of(grad) == bfloat16 else FA_PLAIN


cdef inline bint is_dense(Array *array) noexcept nogil:
    """No gaps between its elements, with its axes in any order. (Axes of length 1 have any strides.)"""
    cdef np.npy_intp stride = itemsize_of(array)
    cdef int axis = 0
    if flags_of(array) & CONTIGUOUS:
        return True
    while axis < ndim_of(array):
        if shape_of(array)[axis] > 1 and strides_of(array)[axis] == stride:     # the next faster axes are found
            stride *= shape_of(array)[axis]
            axis = 0
        else:
            axis += 1
    return stride == nbytes_of(array)


cdef inline bint same_layout(Array *a, Array *b) noexcept nogil:
    """Same shape, and elements in the same order in memory without gaps."""
    cdef int i
    cdef bint same_order = (flags_of(a) & flags_of(b) & CONTIGUOUS) != 0
    if ndim_of(a) != ndim_of(b) or not (same_order or is_dense(a)):
        return False
    for i in range(ndim_of(a)):
        if shape_of(a)[i] != shape_of(b)[i]:
            return False
        if (not same_order and shape_of(a)[i] > 1
                and strides_of(a)[i] * itemsize_of(b) != strides_of(b)[i] * itemsize_of(a)):
            return False
    return True


cdef inline bint is_usable(Array *array) noexcept nogil:
    """A kernel can read and write the elements."""
    return ((flags_of(array) & USABLE) == USABLE and is_dense(array) and is_native(array)
            and (type_of(array) == np.NPY_FLOAT or type_of(array) == np.NPY_DOUBLE))


cdef inline bint is_ready(Array *grad, Array *param) noexcept nogil:
    """The kernel can read this gradient where it is."""
    return (is_plain(grad) and type_of(grad) == type_of(param) and is_native(grad)
            and (flags_of(grad) & ALIGNED) != 0 and same_layout(grad, param))


cdef inline void bounds_of(Array *array, uintptr_t *low, uintptr_t *high) noexcept nogil:
    """Where its elements begin and end, in any order and with any gaps. (NumPy's byte_bounds needs memory.)"""
    cdef int i
    cdef np.npy_intp extent
    low[0] = high[0] = <uintptr_t>data_of(array)
    if size_of(array) == 0:
        return
    for i in range(ndim_of(array)):
        extent = (shape_of(array)[i] - 1) * strides_of(array)[i]
        if extent < 0:
            low[0] += extent
        else:
            high[0] += extent
    high[0] += itemsize_of(array)


cdef inline fa_real real_of(Array *array) noexcept nogil:
    return FA_FLOAT64 if type_of(array) == np.NPY_DOUBLE else FA_FLOAT32


cdef inline int64_t lines_of(Py_ssize_t size) noexcept nogil:
    """Cache lines in `size` bytes: the driver gives each thread whole lines (csrc/driver.c)."""
    return (size + 63) // 64
