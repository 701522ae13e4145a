# State: what is kept for each parameter, and in what form.

cdef enum:
    ARRAYS = 11             # FA_ARRAYS and FA_STATES, which Cython does not know as constants
    STATES = 9
    RULE_BITS = 7           # in a mask of state: 1 M, 2 V, 4 W
    EMA_BIT = 8
    SUM_BIT = 16
    LOW_BIT = 32
    SCALE_BITS = 64         # times M, V, W

cdef struct Layout:         # of a parameter when it was added
    Array *param            # owned by Parameters.arrays
    Py_ssize_t group        # in Parameters.groups
    void *own_descr         # NumPy's own descriptor of its type, which most arrays have and which never ends
    void *descr             # the same of the type that it is computed in, which its gradients have
    int own_type, type      # NumPy's numbers
    int ndim, order         # order: NumPy's flags of contiguity; 0 if its axes are in another order
    Py_ssize_t shape        # where it begins in Parameters.shapes; strides follow if the order is 0, in elements
    bint convert            # in this call its gradient has to be copied first
    bint warned             # of that


cdef inline Py_ssize_t end_of(const Layout *layout) noexcept nogil:
    return layout.shape + (1 if layout.order else 2) * layout.ndim


cdef inline bint is_like(const Layout *layout, const np.npy_intp *shapes, Array *array) noexcept nogil:
    """Aligned, and of the type, the shape and the memory order of that parameter."""
    if descr_of(array) != layout.descr and not (type_of(array) == layout.type and is_native(array)):
        return False
    return lies_like(layout, shapes, array)


cdef inline bint lies_like(const Layout *layout, const np.npy_intp *shapes, Array *array) noexcept nogil:
    """The same of another type."""
    cdef const np.npy_intp *shape = shapes + layout.shape
    cdef int axis
    if ndim_of(array) != layout.ndim or not flags_of(array) & layout.order or not flags_of(array) & ALIGNED:
        return layout.order == 0 and lies_like_permuted(layout, shapes, array)
    for axis in range(layout.ndim):
        if shape_of(array)[axis] != shape[axis]:
            return False
    return True


cdef bint lies_like_permuted(const Layout *layout, const np.npy_intp *shapes, Array *array) noexcept nogil:
    """The same for a parameter whose order is 0. (Axes of length 1 have any strides.)"""
    cdef const np.npy_intp *shape = shapes + layout.shape
    cdef int axis
    if ndim_of(array) != layout.ndim or not flags_of(array) & ALIGNED:
        return False
    for axis in range(layout.ndim):
        if shape_of(array)[axis] != shape[axis] or (
                shape[axis] != 1 and strides_of(array)[axis] != shape[layout.ndim + axis] * itemsize_of(array)):
            return False
    return True


cdef inline bint is_as_added(const Layout *layout, const np.npy_intp *shapes) noexcept nogil:
    """The parameter can be read."""
    if descr_of(layout.param) != layout.own_descr and not (
            type_of(layout.param) == layout.own_type and is_native(layout.param)):
        return False
    return lies_like(layout, shapes, layout.param)


cdef inline bint is_good(const Layout *layout, const np.npy_intp *shapes) noexcept nogil:
    """And be updated."""
    return is_as_added(layout, shapes) and (flags_of(layout.param) & WRITEABLE) != 0


cdef inline int64_t scales_of(int64_t n) noexcept nogil:
    """The last group may be shorter."""
    return (n + FA_GROUP - 1) // FA_GROUP


cdef int check_formats(list keys, tuple params, bint has_coded_state) except -1:
    for key, param in zip(keys, params):
        if is_bfloat16(param.dtype) and type_of(<Array *>param) != bfloat16:
            raise TypeError(f"parameter {key!r} has the bfloat16 of another library than those before it; make it with "
                            "that type")
        if has_coded_state and param.dtype == numpy.float64:
            raise ValueError(f"parameter {key!r} is float64, and state in fewer bits is for float32 and bfloat16; make "
                             "it float32, or put it into a group of its own (an override) with state_dtype='float32', "
                             "which stands for its own type")
    return 0


cdef void note_rows(fa_slot *slot, Array *param) noexcept nogil:
    cdef int axis
    slot.height, slot.width = 1, 1
    if ndim_of(param) > 0:
        slot.height = shape_of(param)[0]
    for axis in range(1, ndim_of(param)):
        slot.width *= shape_of(param)[axis] if slot.n else 0    # shapes without elements may be of any size


def decoded_state(codes, scale, bint is_positive, order, tuple shape):
    """State as float32. Its codes lie in this memory order, and have been checked."""
    cdef fa_format format = fa_format_for(FA_STATE_BFLOAT16 if scale is None else FA_STATE_8BIT,
                                          <int>(FA_V if is_positive else FA_M))
    cdef int64_t n = len(codes)
    codes, result = numpy.require(codes, None, "CA"), numpy.empty(n, numpy.float32)
    cdef void *second = NULL
    if scale is not None:
        scale = numpy.require(scale, None, "C")
        second = data_of(<Array *>scale)
    fa_codec_of(chosen_isa, format).decode(<float *>data_of(<Array *>result), data_of(<Array *>codes), second, n)
    return _layout.laid_out(result, shape, order)


def decoded_master(upper, low):
    """The float32 numbers that bfloat16 ones stand for; both arrays have been checked, and lie in the same order."""
    cdef fa_format format = FA_SPLIT_24 if low.itemsize == 1 else FA_SPLIT_32
    cdef int64_t n = len(low)
    upper, low = numpy.require(upper, None, "CA"), numpy.require(low, None, "CA")
    result = numpy.empty(n, numpy.float32)
    fa_codec_of(chosen_isa, format).decode(<float *>data_of(<Array *>result), data_of(<Array *>upper),
                                           data_of(<Array *>low), n)
    return result


cdef list states_in(int mask):
    """Places in a task."""
    return [FA_STATE + a for a in range(STATES) if mask & 1 << a]


cdef class StateArrays:
    """Parameters are numbered in the order in which they were added."""
    cdef readonly list names            # of the family's hyper-parameters
    cdef readonly int wrap_mask         # state that does not depend on the rule: EMA_BIT, SUM_BIT
    cdef readonly list keys, arrays     # arrays: for each parameter a tuple (param, state, ...)
    cdef dict index                     # key -> number
    cdef readonly list groups
    cdef bint by_row                    # the family keeps one number for each row
    cdef Py_ssize_t count
    cdef fa_slot *slots
    cdef Layout *layouts
    cdef np.npy_intp *shapes            # of all parameters, one after the other
    cdef fa_task *tasks
    cdef fa_call call

    # -- what Python asks

    def index_of(self, key):
        try:
            return self.index[key]
        except (KeyError, TypeError):   # or no key at all
            raise KeyError(f"no parameter {key!r}{did_you_mean(key, self.keys)}; there are {self.keys}") from None

    @property
    def family(self):
        return (<bytes>self.call.family.name).decode()

    def records(self):
        """A copy of all counters."""
        cdef Py_ssize_t i, count = self.count
        records = _layout.new_records(count)    # which may let another thread add a group
        for i in range(count):
            (<fa_record *>data_of(<Array *>records))[i] = self.slots[i].record[0]
        return records

    cdef str name_of_state(self, int a):
        if a == FA_EMA:
            return "ema"
        if a == FA_LOW:
            return _layout.LOW
        if a >= FA_M_SCALE:
            return self.name_of_state(a - FA_M_SCALE + FA_M) + _layout.SCALE
        return "grad_sum" if a == FA_SUM else (<bytes>self.call.family.state[a - FA_STATE]).decode()

    cdef str name_of(self, Py_ssize_t i, int a=FA_PARAM):
        name = f"parameter {self.keys[i]!r}"
        return name if a == FA_PARAM else f"{self.name_of_state(a)} of {name}"

    cdef list state_names(self, int mask):
        return [self.name_of_state(a) for a in states_in(mask)]

    cdef fa_format format_at(self, Py_ssize_t i, int a) noexcept nogil:
        """In what format PARAM, M, V or W of a parameter is stored."""
        cdef fa_group *group = self.slots[i].group
        if not self.slots[i].coded or a > FA_W:
            return FA_PLAIN
        if a == FA_PARAM:
            if self.slots[i].coded < 2:
                return FA_PLAIN
            return FA_SPLIT_24 if group.master_bits == 24 else FA_SPLIT_32
        if group.state_dtype == FA_STATE_PLAIN or (self.by_row and a == FA_V):
            return FA_PLAIN
        return fa_format_for(<fa_state_format>group.state_dtype, a)

    cdef dict own_state(self, Py_ssize_t i):
        """The engine's own arrays, by the names of what they hold."""
        state = {}
        mask = (<Group>self.groups[self.layouts[i].group]).mask
        for a, array in zip(states_in(mask), self.arrays[i][1:], strict=True):
            if a != FA_LOW or self.slots[i].coded == 2:
                state[self.name_of_state(a) + (_layout.CODES if self.format_at(i, a) != FA_PLAIN else "")] = array
        return state

    def raw_state(self, Py_ssize_t i):
        """The state of a parameter as it is stored. Its arrays are views. Reshaping one leaves the engine's own array
        as it was made, so no step needs to check those."""
        return {name: array.view() for name, array in self.own_state(i).items()}

    def entry(self, Py_ssize_t i):
        """The same, with the counters."""
        cdef fa_record *record = self.slots[i].record
        entry = {"step": record.step}
        if self.call.family.name == b"NAdam":
            entry["mu_product"] = record.product
        if self.wrap_mask & SUM_BIT:
            entry["grad_count"] = record.pending
        entry.update(self.raw_state(i))
        if any([name.endswith(_layout.CODES) for name in entry]):
            entry["seed"] = record.seed
        return entry

    cdef int place_named(self, str name) except -1:
        """In a task, of the rule's state; "master" is the parameter."""
        cdef int a
        for a in range(FA_M, FA_W + 1):
            if self.call.family.state[a - FA_STATE] != NULL and self.name_of_state(a) == name:
                return a
        return FA_PARAM

    def decoded(self, Py_ssize_t i, str name):
        """What is stored in a format, as float32: a copy."""
        cdef int a = self.place_named(name)
        cdef fa_format format = self.format_at(i, a)
        cdef const fa_codec *codec = fa_codec_of(chosen_isa, format)
        cdef int64_t n = self.slots[i].n
        result = numpy.empty(n, numpy.float32)
        shaped = _layout.laid_out(result, self.shape_at(i), self.memory_order(i))
        if format == FA_PLAIN:
            raise ValueError(f"{name} of {self.name_of(i)} is not stored in a format")
        # From here on no Python code runs: tasks move when another thread adds a group.
        if a == FA_PARAM and not is_as_added(&self.layouts[i], self.shapes):
            self.refuse_changed(i)
        cdef void *codes = <void *>data_of(self.layouts[i].param) if a == FA_PARAM else self.tasks[i].array[a]
        cdef void *second = self.tasks[i].array[fa_second(a)]
        cdef float *to = <float *>data_of(<Array *>result)
        with nogil:
            codec.decode(to, codes, second, n)
        return shaped

    cdef tuple what_it_was(self, Py_ssize_t i):
        """The type, shape and memory order that a parameter had when it was added, in words."""
        dtype = "bfloat16" if self.slots[i].coded == 2 else "float64" if self.slots[i].real else "float32"
        return dtype, self.shape_at(i), self.memory_order(i)

    cdef bint shares_scales(self, Py_ssize_t i) noexcept nogil:
        """Is some of its state in groups with one scale?"""
        cdef int a
        for a in range(FA_M_SCALE, ARRAYS):
            if self.tasks[i].array[a] != NULL:
                return True
        return False

    cdef int refuse_changed(self, Py_ssize_t i) except -1:
        dtype, shape, _ = self.what_it_was(i)
        now = numpy.asarray(self.arrays[i][0])
        raise ValueError(f"{self.name_of(i)} must stay what it was when it was added, {dtype} of shape {shape}, got "
                         f"{now.dtype} of shape {now.shape}; change it back, or make a new optimizer")

    def encoded(self, Py_ssize_t i, str name, values):
        """float32 as it is stored, rounded to nearest, by the names of the arrays. In the parameter's memory order."""
        cdef int a = self.place_named(name)
        cdef fa_format format = self.format_at(i, a)
        cdef const fa_codec *codec = fa_codec_of(FA_BASELINE, format)
        cdef int64_t n = self.slots[i].n
        values = numpy.require(_layout.flattened(values, self.memory_order(i)), numpy.float32, "CA")
        if values.size != n:    # the parameter, whose shape they have, was resized
            self.refuse_changed(i)
        codes, scale = numpy.empty(n, f"u{codec.size}"), numpy.empty(scales_of(n) if codec.group else 0, numpy.uint8)
        cdef const float *source = <const float *>data_of(<Array *>values)
        cdef void *target = data_of(<Array *>codes)
        cdef void *second = data_of(<Array *>scale)
        with nogil:
            fa_encode_array(format, source, target, second, n)
        return {name + _layout.CODES: codes} | ({name + _layout.SCALE: scale} if codec.group else {})

    def low_bits(self, Py_ssize_t i, master, param):
        """What belongs to a bfloat16 parameter that will be `param` and stands for `master`; None if it cannot."""
        cdef fa_format format = self.format_at(i, FA_PARAM)
        cdef int64_t n = self.slots[i].n, bad
        order = self.memory_order(i)
        master = numpy.require(_layout.flattened(master, order), numpy.float32, "CA")
        upper = numpy.require(_layout.flattened(param, order), None, "CA")
        if not master.size == upper.size == n or not is_bfloat16(upper.dtype):
            self.refuse_changed(i)
        low = numpy.empty(n, f"i{fa_codec_of(FA_BASELINE, format).second_size}")
        cdef const float *source = <const float *>data_of(<Array *>master)
        cdef const uint16_t *there = <const uint16_t *>data_of(<Array *>upper)
        cdef void *target = data_of(<Array *>low)
        with nogil:
            bad = fa_low_bits(format, source, there, target, n)
        return low if bad < 0 else None

    def is_positive(self, str name):
        """Is this state never negative?"""
        return self.place_named(name) == FA_V

    cdef tuple shape_at(self, Py_ssize_t i):
        return tuple([self.shapes[self.layouts[i].shape + axis] for axis in range(self.layouts[i].ndim)])

    def memory_order(self, Py_ssize_t i):
        """As `_layout.Order` has it."""
        cdef Layout *layout = &self.layouts[i]
        if layout.order:
            return "C" if layout.order & C_CONTIGUOUS else "F"
        strides = [self.shapes[layout.shape + layout.ndim + axis] for axis in range(layout.ndim)]
        return _layout.axes_of(self.shape_at(i), strides)

    @property
    def nbytes(self):
        """Of state, whose arrays begin at cache lines."""
        return 64 * sum([lines_of(nbytes_of(<Array *>array)) for arrays in self.arrays for array in arrays[1:]])

    # -- making it

    cdef int mask_for(self, Group group, tuple params):
        """The state that a new group needs."""
        cdef int rule = group.states_for(&group.c.options), coded = rule & ~(2 if self.by_row else 0)
        cdef int mask = rule | self.wrap_mask
        if group.c.state_dtype == FA_STATE_8BIT:
            mask |= SCALE_BITS * coded
        return mask | (LOW_BIT if any([is_bfloat16(param.dtype) for param in params]) else 0)

    cdef object kind_of(self, Py_ssize_t i, int a, object param):
        """What an array of state looks like."""
        cdef fa_format format = self.format_at(i, a)
        cdef int64_t n = self.slots[i].n
        if a >= FA_M_SCALE:
            return _layout.flat(scales_of(n), numpy.uint8)
        if a == FA_LOW:
            is_short = self.slots[i].group.master_bits == 24
            return _layout.flat(n if self.slots[i].coded == 2 else 0, numpy.int8 if is_short else numpy.int16)
        if format != FA_PLAIN:
            return _layout.flat(n, f"u{fa_codec_of(FA_BASELINE, format).size}")
        dtype = numpy.float64 if self.slots[i].real else numpy.float32
        return _layout.flat(self.slots[i].height, dtype) if self.by_row and a == FA_V else _layout.like(param, dtype)

    cdef int begin_state(self, Py_ssize_t i, int a, object array, object param, double initial) except -1:
        """Averages begin as copies of the parameters, sums as zeros, the rule's state as `initial`. Blocks are 0."""
        cdef fa_format format = self.format_at(i, a - FA_M_SCALE + FA_M if a >= FA_M_SCALE else a)
        cdef float value = initial
        cdef uint16_t code = 0
        cdef unsigned char scale = 0
        if a == FA_EMA:
            array[...] = param
        elif format != FA_PLAIN:
            fa_encode_array(format, &value, &code, &scale, 1)
            number = code if array.itemsize == 2 else (<unsigned char *>&code)[0]
            if a >= FA_M_SCALE or number:
                array.fill(scale if a >= FA_M_SCALE else number)
        elif a <= FA_W and initial != 0.0:
            array.fill(initial)
        return 0
