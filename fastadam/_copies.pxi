# Copies that are checked first, and then made all at once.

cdef struct Copy:
    char *target
    char *source
    size_t size


cdef int grow(void **memory, Py_ssize_t size) except -1:
    cdef void *larger = PyMem_Realloc(memory[0], size)
    if larger == NULL:
        raise MemoryError()
    memory[0] = larger
    return 0


@cython.final
cdef class Copies:
    cdef Copy *copies
    cdef Py_ssize_t count
    cdef list pairs     # (target, source)

    def __dealloc__(self):
        PyMem_Free(self.copies)

    cdef int plan(self, list pairs) except -1:
        """Sources have the type and shape of their targets. One in another memory order is copied first. The last pass
        runs no Python code, and nothing is written before its end."""
        cdef Py_ssize_t i
        self.pairs, self.count = pairs, len(pairs)
        for i in range(self.count):
            old, new = pairs[i]
            if not same_layout(<Array *>old, <Array *>new):
                copy = numpy.empty_like(old, new.dtype, subok=False, shape=new.shape)   # in the old one's order
                copy[...] = new
                pairs[i] = old, copy
        grow(<void **>&self.copies, (self.count + 1) * sizeof(Copy))
        for i in range(self.count):
            old, new = <tuple>pairs[i]
            if not (isinstance(old, np.ndarray) and is_plain(<Array *>new) and is_native(<Array *>new)
                    and (flags_of(<Array *>old) & WRITEABLE) != 0 and is_native(<Array *>old)
                    and type_of(<Array *>new) == type_of(<Array *>old) and same_layout(<Array *>new, <Array *>old)):
                raise ValueError("an array was changed while it was being loaded, by another thread; nothing was "
                                 "loaded: load again")
            self.copies[i].target, self.copies[i].source = data_of(<Array *>old), data_of(<Array *>new)
            self.copies[i].size = nbytes_of(<Array *>old)
        return 0

    cdef void run(self) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(self.count):
            memcpy(self.copies[i].target, self.copies[i].source, self.copies[i].size)


def copy_arrays(list pairs):
    """Copy each source into its target: all of them, or none. Ctrl-C waits."""
    cdef Copies copies = Copies()
    copies.plan(list(pairs))
    copies.run()


cdef void exchange(char *a, char *b, Py_ssize_t size) noexcept nogil:
    cdef char block[4096]
    cdef Py_ssize_t done = 0, now
    while done < size:
        now = min(<Py_ssize_t>4096, size - done)
        memcpy(block, a + done, now)
        memcpy(a + done, b + done, now)
        memcpy(b + done, block, now)
        done += now
