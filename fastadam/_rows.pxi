# Rows, the gradient of a table where few of its rows appear.

cdef enum:
    TOO_MANY = -2           # a row and a place among those given need more bits than there are

cdef int INT32 = numpy.dtype("int32").num, INT64 = numpy.dtype("int64").num, LONGLONG = numpy.dtype("longlong").num


@cython.auto_pickle(False)
@cython.final
cdef class Rows:
    """Rows(rows, grads)
--

    The gradient of some rows of a parameter, in an array's place in ``step``: an update at the cost of these rows.

    .. math:: g_r = \\sum_{i: rows_i = r} grads_i

    The rule is then applied to those rows alone. Other rows, and their state, stay as they are: nothing decays or
    moves there. The step counter is the parameter's, one more at each call, with no rows at all, too.

    Parameters
    ----------
    rows : ndarray of int32 or int64, shape (k,)
        Which rows, 0 <= row < len(param), in any order. Rows may repeat; their gradients are then added, in the order
        given.
    grads : ndarray, shape (k,) + param.shape[1:]
        The gradient of each, of the types that `step` takes.

    Raises
    ------
    IndexError
        By `step`: a row that the parameter does not have. Negative ones do not count from the end.
    TypeError, ValueError
        By `step`: another kind, type or shape; a parameter that is not C-contiguous or has no axis; `accumulate` or
        `ema_decay` is set, or gradients are pending; a row and its place among those given need more than 63 bits.

    Notes
    -----
    Nothing is copied or checked before the step, which reads `rows` once. Weight decay acts on the rows that appear.
    With all rows once, in any order, the result is that of the dense gradient, bit for bit (but for clipping by the
    norm, which sums the squares of each row by themselves).

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> table, bias = np.ones((5, 2)), np.ones(2)
    >>> opt = fastadam.SGD([table, bias], lr=0.5)
    >>> rows = fastadam.Rows(np.array([3, 0, 3]), np.ones((3, 2)))
    >>> opt.step([rows, np.ones(2)])
    >>> table[:, 0], bias
    (array([0.5, 1. , 1. , 0. , 1. ]), array([0.5, 0.5]))

    References
    ----------
    The semantics of ``torch.optim.SparseAdam``, for every rule; in NumPy: ``fastadam.reference.sum_rows``.
    """
    cdef readonly object rows, grads

    # Once: a step relies on both while other threads run.
    def __cinit__(self, rows=None, grads=None, *others, **unknown):
        if rows is None or grads is None or others or unknown:
            raise TypeError("Rows takes both, which rows and their gradients: Rows(rows, grads)")
        self.rows, self.grads = rows, grads

    def __reduce__(self):
        return Rows, (self.rows, self.grads)

    def __repr__(self):
        return f"Rows({self.rows!r}, {self.grads!r})"


cdef inline fa_format format_for(const Layout *layout, Array *grad) noexcept nogil:
    """Of a gradient that C can decode for that parameter."""
    return format_of(grad, bfloat16) if layout.type == np.NPY_FLOAT else FA_PLAIN


cdef inline bint is_readable(const Layout *layout, const np.npy_intp *shapes, Array *grad,
                             fa_format *format) noexcept nogil:
    """C can take this gradient of that parameter where it is, in this format."""
    format[0] = FA_PLAIN
    if is_like(layout, shapes, grad):
        return True
    format[0] = format_for(layout, grad)
    return format[0] != FA_PLAIN and lies_like(layout, shapes, grad)


cdef inline bint is_list_of_rows(Array *rows) noexcept nogil:
    """int32 or int64 that C can read where they are."""
    return (ndim_of(rows) == 1 and (flags_of(rows) & ALIGNED) != 0 and (flags_of(rows) & CONTIGUOUS) != 0
            and (type_of(rows) == INT32 or type_of(rows) == INT64 or type_of(rows) == LONGLONG) and is_native(rows))


cdef inline bint is_rows_of(const Layout *layout, const np.npy_intp *shapes, Array *rows, Array *grads) noexcept nogil:
    """As `is_like`, for some rows of that parameter."""
    cdef int axis
    if (ndim_of(grads) != layout.ndim or not flags_of(grads) & ALIGNED or not flags_of(grads) & C_CONTIGUOUS
            or not (type_of(grads) == layout.type and is_native(grads)) and format_for(layout, grads) == FA_PLAIN
            or shape_of(grads)[0] != shape_of(rows)[0]):
        return False
    for axis in range(1, layout.ndim):
        if shape_of(grads)[axis] != shapes[layout.shape + axis]:
            return False
    return True


cdef int64_t sort_table(fa_slot *slot, fa_isa isa, Array *rows, uint64_t *work, int64_t *row) noexcept nogil:
    """Check and sort the rows of a table: -1, or what `refuse_rows` wants to know."""
    if slot.n and fa_rows_bits(shape_of(rows)[0], slot.height) > FA_MOST_BITS:
        return TOO_MANY
    slot.rows.width = slot.width
    slot.rows.add = fa_kernel_of(isa, FA_GRADIENT + FA_SUMMED + FA_IN_PLACE, slot.real)
    return fa_rows_sort(slot.rows, data_of(rows), itemsize_of(rows) == 8, shape_of(rows)[0], slot.height, work, row)


cdef int refuse_rows(fa_slot *slot, Array *rows, int64_t place, int64_t row, str name, str of_whom) except -1:
    if place == TOO_MANY:
        most = FA_MOST_BITS - fa_rows_bits(1, slot.height)
        raise ValueError(f"{name}{of_whom}: there are {shape_of(rows)[0]}, and a table of {slot.height} takes at most "
                         f"2**{most} in a step")
    there = f"its rows are 0 to {slot.height - 1}" if slot.height else "it has no rows"
    there += ", and negative ones do not count from the end" if row < 0 else ""
    raise IndexError(f"{name}[{place}]{of_whom} is {row}; {there}")
