# Update, the stateless step of lists, with state that the caller keeps. One array comes here, too, as a list of one,
# where _rule.pxi cannot step it at once.

cdef enum:
    MOST_ROUNDS = 8         # of checking all arrays, where Python code had to run in between


@cython.final
cdef class Update:
    """One call, and room for the next one."""
    cdef Rule rule
    cdef fa_call call
    cdef fa_group group
    cdef bint many              # lists were given
    cdef list kept              # lists of our own, for each kind of array; None where there is none
    cdef PyObject **given[ROWS + 1]     # and what is in them
    cdef Py_ssize_t most        # arrays that there is room for
    cdef fa_record *records
    cdef fa_range *ranges       # of memory that is written, sorted
    cdef Py_ssize_t range_count
    cdef uint64_t *work         # where rows are sorted
    cdef int64_t words          # in it
    cdef bint good, readable    # the arrays that are written, and those that are only read, are as C needs them

    def __dealloc__(self):
        PyMem_Free(self.call.slots)
        PyMem_Free(self.call.tasks)
        PyMem_Free(self.call.rows)
        PyMem_Free(self.call.coefficients)
        PyMem_Free(self.records)
        PyMem_Free(self.ranges)
        PyMem_Free(self.work)

    cdef object run(self, Rule rule, param, grad, m, v, w, step, product, const fa_options *options, double scale, rows,
                    int order):
        """Everything is checked before anything changes."""
        cdef fa_call *c = &self.call
        cdef int k, bound = fa_thread_bound()
        cdef Py_ssize_t i
        cdef object result = None
        self.rule, self.kept, self.many = rule, [None] * (ROWS + 1), isinstance(param, (list, tuple))
        memset(self.given, 0, sizeof(self.given))
        memset(&self.group, 0, sizeof(self.group))
        c.family, c.isa, c.scale, self.group.options = rule.family, chosen_isa, scale, options[0]
        c.settings.max_value = INFINITY
        for k in range(<int>FA_REALS):
            self.group.kernel[k] = fa_kernel_of(c.isa, fa_rule_of(c.family, options), <fa_real>k)
        self.make_room(len(param) if self.many else 1)
        self.take(FA_PARAM, param)
        self.take(FA_GRAD, grad)
        self.take_state(FA_M, m)
        self.take_state(FA_V, v)
        self.take_state(FA_W, w)
        if rows is not None:
            self.take(ROWS, rows)
        self.count_steps(step, product)
        if product is not None:
            result = [self.records[i].product for i in range(c.count)]
            result = result if self.many else result[0]
        self.check(order)
        if rows is not None:
            self.sort_rows()
        fa_build_tasks(c)
        with nogil:
            fa_gate_enter()
            fa_run(c.tasks, c.count, order, bound, NULL)
            fa_gate_leave()
        return result

    # -- what was given

    cdef int make_room(self, Py_ssize_t count) except -1:
        cdef fa_call *c = &self.call
        if count == 0:
            raise ValueError("param is an empty list; leave the call out where there is nothing to update")
        c.count = count
        if count <= self.most:
            return 0
        self.most = 0
        grow(<void **>&c.slots, count * sizeof(fa_slot))
        grow(<void **>&c.tasks, count * sizeof(fa_task))
        grow(<void **>&c.rows, count * sizeof(fa_rows))
        grow(<void **>&c.coefficients, count * sizeof(fa_coefficients))
        grow(<void **>&self.records, count * sizeof(fa_record))
        grow(<void **>&self.ranges, 2 * (ROWS - 1) * count * sizeof(fa_range))      # half of it to sort them
        memset(c.slots, 0, count * sizeof(fa_slot))
        memset(c.tasks, 0, count * sizeof(fa_task))
        self.most = count
        return 0

    cdef int take(self, int column, object given) except -1:
        items = self.items(given, self.rule.names[column]) if self.many else [given]
        self.kept[column] = items
        self.given[column] = PySequence_Fast_ITEMS(<list>items)
        return 0

    cdef int take_state(self, int column, object given) except -1:
        cdef int bit = 1 << (column - <int>FA_STATE)
        cdef bint needed = self.group.kernel[0].states & bit
        if needed and (given is not None or self.rule.always & bit):
            self.take(column, given)
        elif needed or given is not None:
            name = self.rule.names[column]
            if needed:
                raise ValueError(f"{self.rule.needs[name]} needs {name}, which was not given")
            raise ValueError(f"{name} was given, and is used only with {self.rule.needs[name]}; leave it out")
        return 0

    cdef list items(self, object given, str name):
        """A list of our own, which nobody changes."""
        if not isinstance(given, (list, tuple)):
            raise TypeError(f"{name} must be a list or a tuple, as param is, got {describe(given)}")
        items = list(given)
        if len(items) != self.call.count:
            raise ValueError(f"{name} must have {self.call.count} items, one for each of param, got {len(items)}")
        return items

    cdef str name_of(self, int column, Py_ssize_t i):
        name = self.rule.names[column]
        return f"{name}[{i}]" if self.many else name

    cdef int count_steps(self, step, product) except -1:
        """Read the counters, and make coefficients of them."""
        cdef Py_ssize_t i
        cdef fa_slot *slot
        cdef fa_record *record
        cdef int64_t counted = 0
        cdef double its_product = 1.0
        cdef list steps = None, products = None
        if self.many and isinstance(step, (list, tuple)):
            steps = self.items(step, "step")
        else:
            counted = as_step(step) - 1
        if self.many and isinstance(product, (list, tuple)):
            products = self.items(product, "mu_product")
        elif product is not None:
            its_product = _numbers.as_product(product, "mu_product")
        for i in range(self.call.count):
            slot, record = &self.call.slots[i], &self.records[i]
            record.step = counted if steps is None else as_step(steps[i], f"step[{i}]") - 1
            record.product = its_product if products is None else _numbers.as_product(products[i], f"mu_product[{i}]")
            record.pending = 0
            slot.group, slot.record, slot.active, slot.steps = &self.group, record, True, True
        fa_advance_counters(&self.call, self.call.scale)
        return 0

    # -- checks

    cdef int check(self, int order) except -1:
        """Raise, or fill in the tasks; the last pass runs no Python code."""
        cdef int rounds
        cdef int64_t lines
        cdef bint asked = False
        for rounds in range(MOST_ROUNDS):
            self.fill_tasks()
            if not self.good:
                self.convert_written()
                continue
            self.sort_ranges()
            if not self.readable:
                self.convert_read()
                continue
            self.check_read(FA_GRAD)
            if self.given[ROWS] != NULL:
                self.check_read(ROWS)
            if asked or order <= 1 or fa_has_room(order):
                return 0
            asked, lines = True, 0
            for i in range(self.call.count):
                lines += lines_of(self.bytes_of(i))
            if lines > 1:
                has_fewer_threads(order, lines, True)
        raise ValueError("an array was changed during the call, by another thread or a warning filter; nothing was "
                         "stepped: call again")

    cdef void fill_tasks(self) noexcept nogil:
        """Fill in the tasks. Ends at the first array to be written that is not as C needs it."""
        cdef Py_ssize_t i
        cdef int a
        cdef fa_slot *slot
        cdef fa_task *task
        cdef Array *param
        cdef Array *array
        self.good = self.readable = True
        self.call.special = False
        for i in range(self.call.count):
            slot, task, param = &self.call.slots[i], &self.call.tasks[i], <Array *>self.given[<int>FA_PARAM][i]
            if not (is_plain(param) and is_usable(param)):
                self.good = False
                return
            slot.place, slot.n, slot.real = data_of(param), size_of(param), real_of(param)
            if self.rule.by_row or self.given[ROWS] != NULL:
                note_rows(slot, param)
            for a in range(<int>FA_STATE, ROWS):
                task.array[a] = NULL
                if self.given[a] == NULL:
                    continue
                array = <Array *>self.given[a][i]
                if not self.rule.is_state_of(array, param):
                    self.good = False
                    return
                task.array[a] = data_of(array)
            self.fill_gradient(i)

    cdef void fill_gradient(self, Py_ssize_t i) noexcept nogil:
        cdef fa_slot *slot = &self.call.slots[i]
        cdef Array *param = <Array *>self.given[<int>FA_PARAM][i]
        cdef Array *grad = <Array *>self.given[<int>FA_GRAD][i]
        slot.rows, slot.format = NULL, FA_PLAIN
        self.call.tasks[i].rows, self.call.tasks[i].decode = NULL, NULL
        if self.has_rows(i):
            self.call.special = True
            slot.rows = &self.call.rows[i]
            if not self.has_good_rows(i):
                self.readable = False
                return
        elif not is_ready(grad, param) and not is_decodable(grad, param):
            self.readable = False
            return
        self.call.tasks[i].array[<int>FA_GRAD] = data_of(grad)
        if type_of(grad) != type_of(param):
            slot.format = format_of(grad, bfloat16)
            self.call.special = True

    cdef bint has_rows(self, Py_ssize_t i) noexcept nogil:
        return self.given[ROWS] != NULL and self.given[ROWS][i] != <PyObject *>None

    cdef bint has_good_rows(self, Py_ssize_t i) noexcept nogil:
        cdef Array *param = <Array *>self.given[<int>FA_PARAM][i]
        cdef Array *grad = <Array *>self.given[<int>FA_GRAD][i]
        cdef Array *rows = <Array *>self.given[ROWS][i]
        return (is_plain(rows) and is_list_of_rows(rows) and is_plain(grad) and ndim_of(param) > 0
                and (flags_of(param) & C_CONTIGUOUS) != 0 and are_rows_of(param, rows, grad))

    cdef int convert_written(self) except -1:
        """Raise, or put plain arrays in the place of their subclasses."""
        cdef Py_ssize_t i
        cdef int a
        for i in range(self.call.count):
            param, name = <object>self.given[<int>FA_PARAM][i], self.name_of(FA_PARAM, i)
            check_is_no_container(param, name, self.many)
            check_writable(param, name)
            self.kept[<int>FA_PARAM][i] = numpy.asarray(param)
            for a in range(<int>FA_STATE, ROWS):
                if self.given[a] != NULL:
                    state = <object>self.given[a][i]
                    check_is_no_container(state, self.name_of(a, i), self.many)
                    check_like(state, self.name_of(a, i), param, name, self.rule.by_row)
                    self.kept[a][i] = numpy.asarray(state)
        return 0

    cdef int convert_read(self) except -1:
        """Raise, or put what the kernel can read in the place of gradients, and of rows."""
        cdef Py_ssize_t i
        for i in range(self.call.count):
            param, grad = <object>self.given[<int>FA_PARAM][i], <object>self.given[<int>FA_GRAD][i]
            name = self.name_of(FA_GRAD, i)
            check_is_no_container(grad, name, self.many)
            if self.has_rows(i):
                if not self.has_good_rows(i):
                    self.convert_rows(i, param, grad, name)
            elif not is_ready(<Array *>grad, <Array *>param) and not is_decodable(<Array *>grad, <Array *>param):
                grad = as_gradient(grad, param, name, self.name_of(FA_PARAM, i))
                note_bfloat16(grad)
                if not is_ready(<Array *>grad, <Array *>param) and not is_decodable(<Array *>grad, <Array *>param):
                    self.check_apart(grad, name)
                    grad = converted(grad, param, name, True)
                self.kept[<int>FA_GRAD][i] = grad
        return 0

    cdef int convert_rows(self, Py_ssize_t i, object param, object grad, str name) except -1:
        list_name = self.name_of(ROWS, i)
        rows, grad = as_rows(<object>self.given[ROWS][i], grad, param, list_name, name, self.name_of(FA_PARAM, i))
        note_bfloat16(grad)
        self.check_apart(rows, list_name)
        self.check_apart(grad, name)
        if not (is_plain(<Array *>rows) and is_list_of_rows(<Array *>rows)):
            rows = numpy.array(rows, order="C")
        if not are_rows_of(<Array *>param, <Array *>rows, <Array *>grad):
            grad = converted(grad, numpy.empty(grad.shape, param.dtype), name, True)
        self.kept[ROWS][i] = rows
        self.kept[<int>FA_GRAD][i] = grad
        return 0

    # -- overlaps

    cdef Py_ssize_t bytes_of(self, Py_ssize_t i) noexcept nogil:
        return self.call.slots[i].n * (8 if self.call.slots[i].real else 4)

    cdef int sort_ranges(self) except -1:
        """Raise if any two of the arrays that are written overlap."""
        cdef Py_ssize_t i, size, k = 0
        cdef int a
        cdef const fa_range *overlap
        for a in range(<int>FA_PARAM, ROWS):        # the arrays of one kind are mostly ascending
            if a == FA_GRAD or self.given[a] == NULL:
                continue
            for i in range(self.call.count):
                size = self.bytes_of(i)
                if a == FA_V and self.rule.by_row and size > 0:
                    size = self.call.slots[i].height * (8 if self.call.slots[i].real else 4)
                if size > 0:
                    self.ranges[k].begin = <uintptr_t>(self.call.slots[i].place if a == FA_PARAM else
                                                       self.call.tasks[i].array[a])
                    self.ranges[k].end, self.ranges[k].slot, self.ranges[k].array = self.ranges[k].begin + size, i, a
                    k += 1
        self.range_count = k
        overlap = fa_ranges_sort(self.ranges, self.ranges + k, k)
        if overlap != NULL:
            raise overlap_error(self.name_of(overlap[0].array, overlap[0].slot),
                                self.name_of(overlap[1].array, overlap[1].slot))
        return 0

    cdef int check_read(self, int a) except -1:
        """Raise if a gradient, or a list of rows, overlaps what is written. All of them lie in one piece."""
        cdef Py_ssize_t i
        cdef uintptr_t begin
        cdef int64_t near = 0
        cdef const fa_range *r
        cdef Array *array
        for i in range(self.call.count):
            if a == FA_GRAD or self.has_rows(i):
                array = <Array *>self.given[a][i]
                begin = <uintptr_t>data_of(array)
                r = fa_ranges_find(self.ranges, self.range_count, begin, begin + nbytes_of(array), &near)
                if r != NULL:
                    raise overlap_error(self.name_of(a, i), self.name_of(r.array, r.slot))
        return 0

    cdef int check_apart(self, object array, str name) except -1:
        """The same for an array with gaps, in which something that is written may lie."""
        cdef const fa_range *r
        cdef uintptr_t low, high
        cdef int64_t near = 0
        array = numpy.asarray(array)
        bounds_of(<Array *>array, &low, &high)
        r = fa_ranges_find(self.ranges, self.range_count, low, high, &near)
        while r != NULL and r < self.ranges + self.range_count and r.begin < high:
            if numpy.shares_memory(<object>self.given[r.array][r.slot], array):
                raise overlap_error(name, self.name_of(r.array, r.slot))
            r += 1
        return 0

    cdef int sort_rows(self) except -1:
        """Runs no Python code unless it raises."""
        cdef Py_ssize_t i
        cdef int64_t words = 0, row = 0, place
        cdef uint64_t *work
        cdef Array *rows
        for i in range(self.call.count):
            if self.has_rows(i):
                words += fa_rows_room(shape_of(<Array *>self.given[ROWS][i])[0])
        grow(<void **>&self.work, words * sizeof(uint64_t))
        self.words = words
        work = self.work
        for i in range(self.call.count):
            if self.has_rows(i):
                rows = <Array *>self.given[ROWS][i]
                with nogil:
                    place = sort_table(&self.call.slots[i], self.call.isa, rows, work, &row)
                if place != -1:
                    refuse_rows(&self.call.slots[i], rows, place, row, self.name_of(ROWS, i), "")
                work += fa_rows_room(shape_of(rows)[0])
        return 0


cdef inline bint are_rows_of(Array *param, Array *rows, Array *grad) noexcept nogil:
    cdef Layout layout
    layout.type, layout.ndim, layout.shape = type_of(param), ndim_of(param), 0
    return is_rows_of(&layout, shape_of(param), rows, grad)
