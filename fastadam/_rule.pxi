# Rule: the way from a function's arguments to its step, and the step of one array.

cdef enum:
    ROWS = 5                # behind param, grad, M, V and W, which are given as a task has them
    MOST_HYPERS = 12
    MOST_KEPT = 16384       # arrays that there is room for between calls
    MOST_WORDS = 131072     # and of the room to sort rows in

ctypedef PyObject *Borrowed

cdef class Update
cdef object MISSING = object()
cdef Update spare = None    # for the next call: new memory costs more than all checks


@cython.final
cdef class Rule:
    """What a function knows of its rule, and the way from its arguments to the step.

    `hypers` are the hyper-parameters in the order of their values; `needs` says which hyper-parameters need the
    state that is not always there."""
    cdef const fa_family *family
    cdef tuple names            # of the arrays that are given
    cdef tuple hypers
    cdef int count              # of hyper-parameters
    cdef int kinds[MOST_HYPERS]
    cdef Py_ssize_t offsets[MOST_HYPERS]
    cdef dict needs
    cdef int always             # the state that every call needs
    cdef bint by_row

    def __cinit__(self, str family, str hypers, dict needs=None):
        cdef fa_options options
        cdef int k
        memset(&options, 0, sizeof(options))
        self.family, self.needs = fa_family_named(family.encode()), needs or {}
        states = [(<bytes>self.family.state[k]).decode() if self.family.state[k] != NULL else None for k in range(3)]
        self.names = ("param", "grad", *states, "rows")
        self.hypers = tuple(hypers.split())
        self.count = len(self.hypers)
        assert self.count <= MOST_HYPERS
        for k in range(self.count):
            self.kinds[k], self.offsets[k] = KINDS[self.hypers[k]]
        self.always = fa_kernel_of(FA_BASELINE, fa_rule_of(self.family, &options), FA_FLOAT32).states
        self.by_row = fa_kernel_of(FA_BASELINE, self.family.loop, FA_FLOAT32).add_mean != NULL

    cdef int read(self, Borrowed *values, fa_options *options) except -1:
        cdef int k, kind
        cdef char *place
        memset(options, 0, sizeof(fa_options))
        for k in range(self.count):
            kind, place = self.kinds[k], <char *>options + self.offsets[k]
            if kind == FA_MAGNITUDE and is_float(values[k]) and 0.0 <= float_of(values[k]) < INFINITY:
                (<double *>place)[0] = float_of(values[k])
            elif (kind == FA_FLAG or kind == FA_FIXED_FLAG) and (values[k] == <Borrowed>False or
                                                                 values[k] == <Borrowed>True):
                (<int *>place)[0] = values[k] == <Borrowed>True
            else:
                read_value(<object>values[k], self.hypers[k], kind, NO_SCHEDULE, place)
        if options.nesterov:
            _numbers.check_nesterov(options.momentum, options.dampening)
        return 0

    cdef object update(self, function, param, grad, m, v, w, step, product, Borrowed *values, grad_scale, rows, threads,
                       dict unknown):
        global spare
        cdef Update call
        cdef fa_options options
        cdef fa_coefficients coefficients
        cdef double scale, before
        cdef int64_t t
        cdef int order
        cdef object result
        if (unknown or param is MISSING or grad is MISSING or m is MISSING or v is MISSING or step is MISSING
                or product is MISSING):
            given = zip((*self.names[:5], "step", "mu_product"), (param, grad, m, v, w, step, product))
            raise wrong_arguments(function, dict(given), unknown)
        scale, order = as_grad_scale(grad_scale), as_threads(threads)
        self.read(values, &options)
        if rows is None and is_plain(<Array *>param):
            t, before = as_step(step), 1.0 if product is None else _numbers.as_product(product, "mu_product")
            fa_coefficients_at(self.family, t, &options, scale, before, &coefficients)
            result = None if product is None else coefficients.product
            if self.update_one([<Borrowed>param, <Borrowed>grad, <Borrowed>m, <Borrowed>v, <Borrowed>w],
                               fa_rule_of(self.family, &options), &coefficients, order):
                return result
        call, spare = spare or Update(), None
        try:
            return call.run(self, param, grad, m, v, w, step, product, &options, scale, rows, order)
        finally:
            call.kept = None
            spare = call if call.most <= MOST_KEPT and call.words <= MOST_WORDS else None

    cdef bint update_one(self, Borrowed *given, fa_rule rule, fa_coefficients *coefficients, int order) noexcept:
        """Step one array where all is as C needs it, with few instructions. False, and nothing done, otherwise."""
        cdef Array *param = <Array *>given[<int>FA_PARAM]
        cdef Array *grad = <Array *>given[<int>FA_GRAD]
        cdef fa_task task
        cdef int a, other, bound = fa_thread_bound()
        cdef Py_ssize_t size, of_grad
        if (self.by_row or not is_usable(param) or not (is_ready(grad, param) or is_decodable(grad, param))
                or order > 1 and not fa_has_room(order)):
            return False
        memset(&task, 0, sizeof(task))
        task.kernel, task.coefficients = fa_kernel_of(chosen_isa, rule, real_of(param)), coefficients
        task.n = size_of(param)
        size, of_grad = task.n * (8 if real_of(param) else 4), nbytes_of(grad)
        task.array[<int>FA_PARAM], task.array[<int>FA_GRAD] = data_of(param), data_of(grad)
        if type_of(grad) != type_of(param):
            task.decode = fa_codec_of(chosen_isa, format_of(grad, bfloat16))
        if touch(data_of(param), size, data_of(grad), of_grad):
            return False
        for a in range(<int>FA_STATE, ROWS):
            if given[a] == <Borrowed>None:
                if task.kernel.states >> (a - <int>FA_STATE) & 1:
                    return False
                continue
            if not (task.kernel.states >> (a - <int>FA_STATE) & 1 and self.is_state_of(<Array *>given[a], param)):
                return False
            task.array[a] = data_of(<Array *>given[a])
            for other in range(a):
                if task.array[other] != NULL and touch(<char *>task.array[a], size, <char *>task.array[other],
                                                       of_grad if other == FA_GRAD else size):
                    return False
        with nogil:
            fa_gate_enter()
            fa_run(&task, 1, order, bound, NULL)
            fa_gate_leave()
        return True

    cdef bint is_state_of(self, Array *state, Array *param) noexcept nogil:
        return (is_plain(state) and is_usable(state) and type_of(state) == type_of(param)
                and (has_numbers_of_rows(state, param) if self.by_row else same_layout(state, param)))


cdef wrong_arguments(function, dict given, dict unknown):
    """The error that a Python function would raise; Cython's is less clear."""
    names, name = list(function.__signature__.parameters), function.__name__
    if unknown:
        first = next(iter(unknown))
        return TypeError(f"{name} has no {', '.join(unknown)}{did_you_mean(first, names)}; it has {', '.join(names)}")
    missing = [repr(each) for each in names if given.get(each) is MISSING]
    return TypeError(f"{name}() missing {len(missing)} required positional argument{'s' * (len(missing) > 1)}: "
                     f"{', '.join(missing)}")


cdef inline bint touch(char *a, Py_ssize_t size_of_a, char *b, Py_ssize_t size_of_b) noexcept nogil:
    return a < b + size_of_b and b < a + size_of_a


cdef inline bint has_numbers_of_rows(Array *state, Array *param) noexcept nogil:
    return (ndim_of(param) > 0 and (flags_of(param) & C_CONTIGUOUS) != 0 and ndim_of(state) == 1
            and shape_of(state)[0] == shape_of(param)[0])
