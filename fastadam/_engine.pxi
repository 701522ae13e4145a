# Engine, the stateful step: parameters, their state and counters, and the memory that is written.

cdef enum:
    ARRAYS = 7              # FA_ARRAYS and FA_STATES, which Cython does not know as constants
    STATES = 5
    AHEAD = 8               # parameters whose objects are fetched before they are looked at; their shapes, half as many

cdef struct Record:         # of a parameter, in a state file; fastadam/state_file.py
    int64_t step
    double product
    int64_t summed

cdef enum:                  # conditions of a state file
    FLUSHED = 1
    WRITTEN = 2
    TORN = 4
    CODE = 65537

cdef struct Header:         # of a state file
    char magic[8]
    int64_t version, condition, groups

cdef struct Slot:           # one parameter; its arrays, and the last gradient found to be apart, are in its task
    Array *param                # owned by Engine.arrays
    char *place                 # where it was when last looked at
    int64_t n
    fa_real real
    int ndim, order             # order: NumPy's flags of contiguity
    int group
    Py_ssize_t shape            # where it begins in Engine.shapes
    int64_t step
    double product              # NAdam's
    int64_t summed              # gradients in its sum, which wait for a step
    Record *record              # NULL without a state file
    bint active                 # has a gradient in this call
    bint steps                  # which completes its sum, so it takes a step
    bint convert                # whose gradient has to be copied first
    bint warned

cdef struct Group:
    fa_options options
    int made                    # the state that it has: 1 M, 2 V, 4 W, EMA_BIT, SUM_BIT
    bint amsgrad, centered      # when it was made
    const fa_kernel *kernel[2]  # for each element type
    int64_t count               # its largest step counter
    fa_options taken            # those of its last step, if
    bint stepped                # it has taken one
    fa_factors *factors         # the last made, for the counter and product below
    int64_t step
    double product

cdef struct Copy:           # state to load
    char *target
    char *source
    size_t size

cdef enum Finding:          # about a gradient
    FINITE
    NONFINITE               # NaN or infinity is in it
    OVERFLOWS               # is in what is made of it
    NORM                    # it is the largest of a norm that is infinite

cdef struct Range:          # memory that is written
    char *begin
    char *end
    Py_ssize_t slot
    int array


cdef object number_in(const fa_options *options, const Field *field):
    cdef const double *number = <const double *>(<const char *>options + field.offset)
    if field.kind == BETAS:
        return number[0], number[1]
    return number[0]


cdef int by_begin(const void *a, const void *b) noexcept nogil:
    cdef char *x = (<const Range *>a).begin
    cdef char *y = (<const Range *>b).begin
    return (x > y) - (x < y)


cdef list states_in(int made):
    """Places in a task."""
    return [FA_STATE + a for a in range(STATES) if made & 1 << a]


cdef tuple layout_of(tuple params, int made):
    """How the state of parameters lies in one block: the bytes for each array, for each kind of state, and for all.

    Each array begins a cache line, and those of small parameters lie side by side, which is 6 % faster in cache and
    14 % for 1000 arrays of 1 K than arrays from NumPy's allocator."""
    sizes = [-(-param.nbytes // 64) * 64 for param in params]
    # Kinds of state are kept apart modulo 1 MiB, the first and the third of three, too (csrc/staging.c).
    stride = sum(sizes)
    stride += (512 - stride) % (1 << 19) if (stride + 512) % (1 << 19) < 1024 else 0
    return sizes, stride, len(states_in(made)) * stride + 64


cdef list state_in(object block, tuple params, int made, list sizes, object stride):
    """For each kind of state that is `made`, arrays like every parameter, cut from a block."""
    start = -(<size_t>data_of(<Array *>block)) % 64
    kinds = []
    for kind in range(len(states_in(made))):
        place = start + kind * stride
        arrays = []
        for param, size in zip(params, sizes):
            order = "C" if param.flags.c_contiguous else "F"
            arrays.append(block[place:place + param.nbytes].view(param.dtype).reshape(param.shape, order=order))
            place += size
        kinds.append(arrays)
    return kinds


cdef int begin_state(list state, tuple params, int made, double initial) except -1:
    """Averages are copies of the parameters, sums of gradients zeros, the rule's own is `initial`."""
    for a, arrays in zip(states_in(made), state):
        for array, param in zip(arrays, params):
            if a == FA_EMA:
                array[...] = param
            elif a != FA_SUM and initial != 0.0:
                array.fill(initial)
    return 0


cdef Finding look_at(const fa_task *task, fa_real real, bint summed, double scale, int64_t i) noexcept nogil:
    """An element of a gradient, and of what a rule takes, scaled, before it is clipped, or of a sum that waits."""
    cdef float x
    cdef double y
    if real == FA_FLOAT32:
        x = (<const float *>task.array[FA_GRAD])[i]
        if not isfinite(x):
            return NONFINITE
        if task.before != NULL:
            x = <float>task.around.s * x
            if summed:
                x = (<const float *>task.array[FA_SUM])[i] + x
            x = x * <float>task.around.mean
        return FINITE if isfinite(<float>scale * x) else OVERFLOWS
    y = (<const double *>task.array[FA_GRAD])[i]
    if not isfinite(y):
        return NONFINITE
    if task.before != NULL:
        y = task.around.s * y
        if summed:
            y = (<const double *>task.array[FA_SUM])[i] + y
        y = y * task.around.mean
    return FINITE if isfinite(scale * y) else OVERFLOWS


cdef inline Py_ssize_t bytes_of(const Slot *slot) noexcept nogil:
    return slot.n * (8 if slot.real else 4)


cdef inline int64_t blocks_of(int64_t n) noexcept nogil:
    return (n + FA_SQUARES - 1) // FA_SQUARES


cdef void exchange(char *a, char *b, Py_ssize_t size) noexcept nogil:
    cdef char block[4096]
    cdef Py_ssize_t done = 0, now
    while done < size:
        now = min(<Py_ssize_t>4096, size - done)
        memcpy(block, a + done, now)
        memcpy(a + done, b + done, now)
        memcpy(b + done, block, now)
        done += now


cdef Py_ssize_t plan_copies(list pairs, Copy **copies) except -1:
    """Places and sizes for (target, source) pairs of the same type and shape. Sources in another memory order are
    copied first; the last pass, before anything is written, runs no Python code."""
    cdef Py_ssize_t i, count = len(pairs)
    for i in range(count):
        old, new = pairs[i]
        if not same_layout(<Array *>old, <Array *>new):
            pairs[i] = old, numpy.array(new, order="C" if old.flags.c_contiguous else "F")
    grow(<void **>copies, (count + 1) * sizeof(Copy))
    for i in range(count):
        old, new = <tuple>pairs[i]
        if not (is_array(<Array *>old) and is_exactly_array(<Array *>new) and is_native(<Array *>new)
                and (flags_of(<Array *>old) & NPY_ARRAY_WRITEABLE) != 0 and is_native(<Array *>old)
                and type_of(<Array *>new) == type_of(<Array *>old) and same_layout(<Array *>new, <Array *>old)):
            raise ValueError("an array to load into must be writeable and contiguous; or it changed meanwhile")
        copies[0][i].target, copies[0][i].source = data_of(<Array *>old), data_of(<Array *>new)
        copies[0][i].size = nbytes_of(<Array *>old)
    return count


cdef void copy_planned(Copy *copies, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(count):
        memcpy(copies[i].target, copies[i].source, copies[i].size)


def copy_arrays(list pairs):
    """Copy each source into its target: all of them, or none. Ctrl-C waits."""
    cdef Copy *copies = NULL
    cdef Py_ssize_t count
    try:
        count = plan_copies(list(pairs), &copies)
        copy_planned(copies, count)
    finally:
        PyMem_Free(copies)


cdef int grow(void **memory, Py_ssize_t size) except -1:
    cdef void *larger = PyMem_Realloc(memory[0], size)
    if larger == NULL:
        raise MemoryError()
    memory[0] = larger
    return 0


@cython.final
cdef class Engine:
    """Parameters with their state and step counters, and the one call that updates them all.

    Parameters are numbered in the order in which they were added. Readers hold `lock`, writers `with engine`.
    """
    cdef readonly object lock
    cdef object acquire, release
    cdef const fa_family *family
    cdef readonly list names            # of the family's hyper-parameters
    cdef Field *fields                  # one for each name
    cdef readonly int extras            # EMA_BIT, SUM_BIT
    cdef readonly list keys, arrays     # arrays: for each parameter a tuple (param, state, ...)
    cdef dict index                     # key -> number
    cdef list group_params
    cdef Slot *slots
    cdef np.npy_intp *shapes            # of all parameters, one after the other
    cdef Group *groups
    cdef Settings settings
    cdef double scale                   # grad_scale
    cdef bint waiting                   # some of this call's gradients join a sum
    cdef Py_ssize_t first, last         # the parameters that this call is about
    cdef fa_task *tasks                 # one for each parameter, of no length while it has nothing to do
    cdef fa_around *arounds
    cdef fa_task *squares               # the same gradients, to be summed before
    cdef double *sums                   # of the squares, one for each block
    cdef fa_tuner tuners[FA_TUNERS]
    cdef readonly int threads_used      # by the last step; 0 before the first
    cdef int denied                     # an order of threads that it was said of that the system has fewer
    cdef double norm                    # of the last step's gradients, if
    cdef bint norm_known                # it was asked for
    cdef public int64_t skipped         # steps that were not taken, because of NaN or infinity
    cdef fa_factors *factors
    cdef Range *ranges                  # sorted, disjoint
    cdef Py_ssize_t count, group_count, range_count
    cdef bint changing
    cdef readonly bint swapped          # the averages are in the parameters
    cdef readonly object store          # a StateFile, or None
    cdef Header *header                 # its first page, or NULL
    cdef int owner                      # the process that may write into it
    cdef object __weakref__

    def __cinit__(self, str family, names, int extras=0, store=None):
        self.new_lock()
        watch(self)
        self.store = store
        if store is not None:
            self.header, self.owner = <Header *>data_of(<Array *>store.header), getpid()
            finalize(self, store.close, self.lock)
        self.keys, self.arrays, self.index, self.group_params = [], [], {}, []
        self.names = list(names)
        self.extras = extras
        self.family = fa_family_named(family.encode())
        if self.family == NULL:
            raise ValueError(f"no family of rules is called {family!r}")
        grow(<void **>&self.fields, len(self.names) * sizeof(Field))
        for i, name in enumerate(self.names):
            kind, offset = FIELDS[name]
            self.fields[i].kind, self.fields[i].offset = kind, offset

    def __dealloc__(self):
        PyMem_Free(self.fields)
        PyMem_Free(self.slots)
        PyMem_Free(self.shapes)
        PyMem_Free(self.groups)
        PyMem_Free(self.tasks)
        PyMem_Free(self.arounds)
        PyMem_Free(self.squares)
        PyMem_Free(self.sums)
        PyMem_Free(self.factors)
        PyMem_Free(self.ranges)

    cdef int begin_change(self) except -1:
        """Schedules, warning filters, containers and array subclasses run in the middle of a change, and must not begin
        another."""
        self.acquire()
        if self.changing:
            self.release()
            raise RuntimeError("an optimizer was stepped or changed from inside its own step (by a schedule?)")
        if self.swapped:
            self.release()
            raise RuntimeError("the averages are in the parameters; leave `with opt.swap_ema():` first")
        self.changing = True
        return 0

    cdef int end_change(self) except -1:
        self.changing = False
        self.release()
        return 0

    def renew_lock(self):
        """In a forked child: what another thread held is free. It was not writing (csrc/forks.c)."""
        if not self.lock._is_owned():
            self.new_lock()
            self.changing = False

    cdef int new_lock(self) except -1:
        self.lock = RLock()
        self.acquire, self.release = self.lock.acquire, self.lock.release
        return 0

    def __enter__(self):
        self.begin_change()

    def __exit__(self, kind, value, traceback):     # by name: `*_` would be a tuple, for which there may be no memory
        self.end_change()

    # -- what Python asks

    def index_of(self, key):
        return self.index[key]

    @property
    def grad_norm(self):
        return self.norm if self.norm_known else None

    def steps(self):
        return [self.slots[i].step for i in range(self.count)]

    def products(self):
        return [self.slots[i].product for i in range(self.count)]

    def summed(self):
        return [self.slots[i].summed for i in range(self.count)]

    def last_values(self):
        """For each group, the numbers among the hyper-parameters of its last step."""
        values = []
        for i in range(self.group_count):
            values.append({} if not self.groups[i].stepped else {
                name: number_in(&self.groups[i].taken, &self.fields[k])
                for k, name in enumerate(self.names)
                if self.fields[k].kind != FLAG and self.fields[k].kind != FIXED_FLAG
            })
        return values

    def made(self):
        """For each group, the state that it has."""
        return [self.groups[i].made for i in range(self.group_count)]

    cdef str name_of_state(self, int a):
        if a == FA_EMA:
            return "ema"
        return "grad_sum" if a == FA_SUM else (<bytes>self.family.state[a - FA_STATE]).decode()

    def entry(self, Py_ssize_t i):
        """The state of a parameter, by name. Its arrays are views: whatever is done to them, the engine's own arrays
        stay as they were made, so no step needs to look at them."""
        entry = {"step": self.slots[i].step}
        if self.family.name == b"NAdam":
            entry["mu_product"] = self.slots[i].product
        if self.extras & SUM_BIT:
            entry["grad_count"] = self.slots[i].summed
        names = [self.name_of_state(a) for a in states_in(self.groups[self.slots[i].group].made)]
        entry.update(zip(names, [array.view() for array in self.arrays[i][1:]], strict=True))
        return entry

    # -- adding and loading, inside `with engine`

    def add_group(self, list keys, tuple params, dict values, list groups, dict attributes, dict changed,
                  object made=None):
        """Take over parameters, with fresh state, as one more group; append its values to groups, and change
        attributes, which exist.

        The state is what the values need, or what is `made`. All or nothing: what can fail comes first, and Ctrl-C
        waits."""
        try:
            self.add_if_possible(keys, params, values, groups, attributes, changed, made)
        except BaseException:
            if self.store is not None:
                self.store.forget(self.group_count)
            raise

    cdef int add_if_possible(self, list keys, tuple params, dict values, list groups, dict attributes, dict changed,
                             object made) except -1:
        cdef Py_ssize_t i, count = self.count, total = count + len(params)
        cdef int a, states
        cdef bint good
        cdef fa_options options
        read_plain(values, &options)
        states = made if made is not None else self.states_for(&options) | self.extras
        for key, param in zip(keys, params):
            check_writable(param, f"parameter {key!r}")
        old = self.keys, self.arrays, self.index, self.group_params
        new_keys = self.keys + keys
        section = None
        plain = tuple([numpy.asarray(param) for param in params])
        self.note_layouts(plain)
        sizes, stride, size = layout_of(plain, states)
        if self.store is not None:
            section = self.store.section(self.group_count, self.about(keys, plain, states), plain, size)
        block = numpy.zeros(size, numpy.uint8) if section is None else section.block
        state = state_in(block, plain, states, sizes, stride)
        if section is None or section.fresh:
            begin_state(state, plain, states, options.initial_accumulator_value)
        new_arrays = self.arrays + list(zip(params, *state))
        new_index = {key: i for i, key in enumerate(new_keys)}
        new_group_params = [*self.group_params, params]
        grow(<void **>&self.tasks, total * sizeof(fa_task))
        memset(&self.tasks[count], 0, len(params) * sizeof(fa_task))
        grow(<void **>&self.arounds, total * sizeof(fa_around))
        grow(<void **>&self.factors, total * sizeof(fa_factors))
        grow(<void **>&self.ranges, total * (ARRAYS - 1) * sizeof(Range))
        grow(<void **>&self.groups, (self.group_count + 1) * sizeof(Group))

        memset(&self.groups[self.group_count], 0, sizeof(Group))
        self.groups[self.group_count].made = states
        self.groups[self.group_count].amsgrad = options.amsgrad
        self.groups[self.group_count].centered = options.centered
        for i in range(count, total):
            self.slots[i].group = self.group_count
            self.slots[i].product = 1.0
            self.slots[i].param = <Array *>params[i - count]
            good = self.is_good(&self.slots[i])
            for a, array in zip(states_in(states), new_arrays[i][1:]):
                good = good and self.is_like(&self.slots[i], <Array *>array)
                self.tasks[i].array[a] = data_of(<Array *>array)
            if not good:
                raise ValueError(f"parameter {new_keys[i]!r} changed while it was being added; nothing was added")
            self.tasks[i].kernel = fa_kernel_of(FA_BASELINE, FA_GRADIENT, self.slots[i].real)
            if section is not None:
                self.slots[i].record = &(<Record *>data_of(<Array *>section.records))[i - count]
                self.slots[i].step, self.slots[i].product = self.slots[i].record.step, self.slots[i].record.product
                self.slots[i].summed = self.slots[i].record.summed
        self.keys, self.arrays, self.index, self.group_params = new_keys, new_arrays, new_index, new_group_params
        self.count = total
        try:
            self.locate()
            groups.append(values)
        except BaseException:
            self.keys, self.arrays, self.index, self.group_params = old
            self.count = count
            self.locate()
            raise
        PyDict_Update(attributes, changed)
        self.group_count += 1
        self.count_groups()
        if section is not None and section.fresh:
            self.header.groups = CODE * self.group_count    # from now on it is there
        return 0

    cdef int note_layouts(self, tuple params) except -1:
        """Of new parameters, in slots behind those in use. Runs no Python code, so what is noted is of one moment."""
        cdef Py_ssize_t i, axes = 0, shape = 0
        cdef int axis
        cdef Slot *slot
        cdef Array *param
        if self.count:
            shape = self.slots[self.count - 1].shape + self.slots[self.count - 1].ndim
        for i in range(len(params)):
            axes += ndim_of(<Array *>params[i])
        grow(<void **>&self.slots, (self.count + len(params)) * sizeof(Slot))
        grow(<void **>&self.shapes, (shape + axes) * sizeof(np.npy_intp))
        for i in range(len(params)):
            slot, param = &self.slots[self.count + i], <Array *>params[i]
            memset(slot, 0, sizeof(Slot))
            slot.n, slot.real = size_of(param), real_of(param)
            slot.ndim, slot.order, slot.shape = ndim_of(param), flags_of(param) & CONTIGUOUS, shape
            for axis in range(slot.ndim):
                self.shapes[shape + axis] = shape_of(param)[axis]
            shape += slot.ndim
        return 0

    cdef bint is_like(self, Slot *slot, Array *array) noexcept nogil:
        """Aligned, and of the type, the shape and the memory order that the parameter was added with."""
        cdef np.npy_intp *shape = shape_of(array)
        cdef np.npy_intp *its = self.shapes + slot.shape
        cdef int i
        if (ndim_of(array) != slot.ndim or type_of(array) != <int>(np.NPY_DOUBLE if slot.real else np.NPY_FLOAT)
                or not is_native(array) or not flags_of(array) & slot.order
                or not flags_of(array) & NPY_ARRAY_ALIGNED):
            return False
        for i in range(slot.ndim):
            if shape[i] != its[i]:
                return False
        return True

    cdef bint is_good(self, Slot *slot) noexcept nogil:
        """The parameter can be updated."""
        return self.is_like(slot, slot.param) and (flags_of(slot.param) & NPY_ARRAY_WRITEABLE) != 0

    cdef dict about(self, list keys, tuple params, int made):
        """What must be the same for a state file to be gone on with."""
        arrays = []
        for key, param in zip(keys, params):
            order = "C" if param.flags.c_contiguous else "F"
            arrays.append([str(key), param.dtype.str, list(param.shape), order])
        state = [self.name_of_state(a) for a in states_in(made)]
        return {"optimizer": (<bytes>self.family.name).decode(), "state": state, "arrays": arrays}

    # -- a state file

    cdef int prepare(self) except -1:
        """Before a change that a state file has to know of. May run Python code, so it comes before the checks."""
        if self.header == NULL:
            return 0
        if self.owner != getpid():
            self.store.check_owner()
        if self.header.groups != CODE * self.group_count:
            raise ValueError(f"state_file {self.store.path!r} has the state of {self.header.groups // CODE} groups, "
                             f"the optimizer has {self.group_count}: add the others with add_param_group first")
        if self.header.condition == FLUSHED or self.store.broken:
            self.store.begin()
        return 0

    def check_readable(self):
        if self.swapped:
            raise RuntimeError("the averages are in the parameters; leave `with opt.swap_ema():` first")
        if self.store is not None:
            self.store.check_owner()

    cdef void begin_writing(self) noexcept nogil:
        fa_begin_writing()
        if self.header != NULL:
            fa_mark(&self.header.condition, TORN)

    cdef void end_writing(self) noexcept nogil:
        if self.header != NULL:
            fa_mark(&self.header.condition, TORN if self.swapped else WRITTEN)
        fa_end_writing()

    cdef void record(self, Slot *slot) noexcept nogil:
        if slot.record != NULL:
            slot.record.step, slot.record.product, slot.record.summed = slot.step, slot.product, slot.summed

    cdef int states_for(self, const fa_options *options) noexcept:
        return fa_kernel_of(FA_BASELINE, fa_rule_of(self.family, options), FA_FLOAT32).states

    def load(self, list groups, list new_groups, list new_arrays, list steps, list products, list summed,
             list others):
        """Copy validated state in, and other arrays with it: pairs of (target, source)."""
        cdef Py_ssize_t i, count
        cdef Copy *copies = NULL
        cdef Record *counters = NULL
        cdef list pairs = []
        if not len(new_arrays) == len(steps) == len(products) == len(summed) == self.count:
            raise ValueError(f"expected the state of {self.count} parameters, got {len(new_arrays)}")
        for mine, news in zip(self.arrays, new_arrays):
            for old, new in zip(mine[1:], news, strict=True):
                new = numpy.asarray(new)    # without its subclass: a memory map, for one
                # A source that is also a destination of another could be overwritten before its turn.
                pairs.append((old, new.copy("K") if self.written_by(new) is not None else new))
        pairs += others
        self.prepare()
        # What groups held stays alive until all is in; nothing is allocated once copying has begun.
        before = []
        for group in groups:
            before.append(dict(group))
        try:
            grow(<void **>&counters, self.count * sizeof(Record))
            for i in range(self.count):
                counters[i].step, counters[i].product, counters[i].summed = steps[i], products[i], summed[i]
            count = plan_copies(pairs, &copies)
            self.begin_writing()
            copy_planned(copies, count)
            for i in range(self.count):
                self.slots[i].step, self.slots[i].product = counters[i].step, counters[i].product
                self.slots[i].summed = counters[i].summed
                self.record(&self.slots[i])
            self.end_writing()
            self.count_groups()
            for i in range(len(new_groups)):
                PyDict_Update(groups[i], new_groups[i])     # their keys exist, so it needs no memory
            del before
        finally:
            PyMem_Free(counters)
            PyMem_Free(copies)

    # -- memory that is written

    cdef str name_of(self, Py_ssize_t i, int a):
        key = self.keys[i]
        if a == FA_PARAM:
            return f"parameter {key!r}"
        return f"{self.name_of_state(a)} of parameter {key!r}"

    cdef int locate(self) except -1:
        """Find out where the parameters are, and that nothing that is written overlaps."""
        cdef Py_ssize_t i, size, k = 0
        cdef int a
        cdef Slot *slot
        cdef fa_task *task
        cdef Range *r
        for i in range(self.count):
            slot, task = &self.slots[i], &self.tasks[i]
            slot.place = data_of(slot.param)
            task.array[FA_PARAM], task.array[FA_GRAD] = slot.place, NULL
            for a in range(ARRAYS):
                size = nbytes_of(slot.param) if a == FA_PARAM else bytes_of(slot)
                if task.array[a] != NULL and size > 0:
                    r = &self.ranges[k]
                    r.begin, r.end = <char *>task.array[a], <char *>task.array[a] + size
                    r.slot, r.array = i, a
                    k += 1
        self.range_count = k
        qsort(self.ranges, k, sizeof(Range), by_begin)
        for i in range(1, k):
            if self.ranges[i].begin < self.ranges[i - 1].end:
                for k in range(self.count):
                    self.slots[k].place = NULL     # look again at the next step
                r = &self.ranges[i - 1]
                raise overlap_error(self.name_of(r.slot, r.array), self.name_of(r[1].slot, r[1].array))
        return 0

    cdef Range *touched(self, char *begin, char *end) noexcept nogil:
        """A range that shares a byte with [begin, end), or NULL."""
        cdef Py_ssize_t low = 0, high = self.range_count, middle
        while low < high:
            middle = low + (high - low) // 2
            if self.ranges[middle].end <= begin:
                low = middle + 1
            else:
                high = middle
        if low < self.range_count and self.ranges[low].begin < end and begin < end:
            return &self.ranges[low]
        return NULL

    cdef object written_by(self, object array):
        """The name of an array of ours that shares memory with any array, or None."""
        cdef char *low
        cdef char *high
        cdef Range *r
        array = numpy.asarray(array)
        bounds_of(<Array *>array, &low, &high)
        r = self.touched(low, high)
        while r != NULL and r < self.ranges + self.range_count and r.begin < high:
            made = [FA_PARAM, *states_in(self.groups[self.slots[r.slot].group].made)]
            if numpy.shares_memory(numpy.asarray(self.arrays[r.slot][made.index(r.array)]), array):
                return self.name_of(r.slot, r.array)
            r += 1
        return None

    # -- the step

    def step(self, list grads, list groups, grad_scale, tuple settings):
        """Update every parameter whose gradient is not None, and its counter; `grads` is a list of our own."""
        self.begin_change()
        try:
            if len(grads) != self.count:
                raise ValueError(f"expected {self.count} gradients, got {len(grads)}")
            self.first, self.last = 0, self.count
            self.take(grads, groups, grad_scale, settings)
        finally:
            self.end_change()

    def step_one(self, Py_ssize_t i, grad, list groups, grad_scale, tuple settings):
        """The same for one parameter alone."""
        self.begin_change()
        try:
            self.first, self.last = i, i + 1
            self.take([grad], groups, grad_scale, settings)
        finally:
            self.end_change()

    cdef int take(self, list grads, list groups, grad_scale, tuple settings) except -1:
        cdef Settings *s = &self.settings
        cdef double norm = 0.0, scale
        cdef Py_ssize_t culprit = -1
        cdef Finding found = FINITE
        cdef bint measured, staged, steps, clips_by_nothing
        cdef int team, bound = bound_of_threads()
        cdef bint alone = self.last - self.first != self.count
        cdef fa_fp_state saved
        read_settings(settings, s)
        self.scale = as_grad_scale(grad_scale)
        if alone and s.max_norm < INFINITY:
            raise ValueError("max_norm needs the gradients of all parameters at once: use step, or max_value")
        self.check_made(s)
        steps = self.plan(grads)
        staged = self.waiting or s.accumulate > 1 or s.max_value < INFINITY
        if steps or s.accumulate == 1:
            self.read_groups(list(groups))
        else:       # schedules are called for steps alone, but what no step would take is refused now
            self.check_groups(groups)
        measured = s.nonfinite != PROPAGATE or (s.max_norm < INFINITY and steps)
        if measured:
            self.make_room_for_sums()
        if s.threads > 1 and not fa_has_room(s.threads):
            self.ask_for_threads(s.threads)
        self.prepare()
        while self.fill(grads, staged):
            self.convert(grads)
        if staged or s.average:
            self.make_arounds()
        scale = 1.0 if staged else self.scale
        if measured:
            team = s.threads if s.threads else max(1, min(self.threads_used, bound, fa_max_threads()))
            with nogil:
                fa_fp_default(&saved)
                norm = self.sum_squares(team)
                norm = sqrt(norm) if staged else fabs(self.scale) * sqrt(norm)
                if s.max_norm < INFINITY and not s.max_norm / (norm + 1e-6) >= 1.0:     # NaN goes on, as in torch
                    scale *= s.max_norm / (norm + 1e-6)
                if s.nonfinite != PROPAGATE:
                    clips_by_nothing = s.max_norm < INFINITY and not isfinite(norm)
                    culprit = self.find_nonfinite(clips_by_nothing, 1.0 if clips_by_nothing else scale, &found)
                fa_fp_restore(&saved)
            if culprit >= 0 and s.nonfinite == RAISE:
                if found == NONFINITE:
                    what = "has NaN or infinity in it"
                elif found == NORM:
                    what = f"times {self.scale:g} (grad_scale) is so large that the norm is infinite"
                elif self.slots[culprit].summed:
                    what = "is finite, but the sum of the accumulated gradients (grad_sum) with it is not"
                else:
                    what = (f"is finite, but not times {self.scale if staged else scale:g} "
                            "(grad_scale, and clipping by the norm); use a smaller grad_scale, or float64")
                raise FloatingPointError(
                    f"the gradient of {self.name_of(culprit, FA_PARAM)} {what}; nothing has changed (nonfinite='skip' "
                    "leaves out such steps, 'propagate' takes them)")
        with nogil:
            if steps:
                self.norm, self.norm_known = norm, measured
            if culprit >= 0:
                self.skipped += 1
            else:
                self.begin_writing()
                self.count_step(scale)
                self.threads_used = fa_run(
                    &self.tasks[self.first], self.last - self.first, s.threads, bound, NULL if alone else self.tuners)
                self.end_writing()
        return 0

    def check_settings(self, tuple values):
        """Raise unless these could be the settings of the next step."""
        cdef Settings s
        read_settings(values, &s)
        self.check_made(&s)

    cdef int check_made(self, const Settings *s) except -1:
        """State is made with the optimizer: what needs more of it comes too late."""
        if s.average and not self.extras & EMA_BIT:
            raise ValueError("ema_decay was None when the optimizer was made, so there are no averages; make a new one")
        if s.accumulate > 1 and not self.extras & SUM_BIT:
            raise ValueError("accumulate was 1 when the optimizer was made, so there is no sum; make a new one")
        return 0

    cdef int ask_for_threads(self, int order) except -1:
        cdef Py_ssize_t i
        cdef int64_t lines = 0
        for i in range(self.first, self.last):
            if self.slots[i].active:
                lines += lines_of(bytes_of(&self.slots[i]))
        if lines > 1 and has_fewer_threads(order, lines, order != self.denied, 2):
            self.denied = order
        return 0

    cdef bint plan(self, list grads):
        """Which parameters have a gradient, and of these, which take a step; does any?"""
        cdef Py_ssize_t i
        cdef Slot *slot
        cdef bint steps = False
        self.waiting = False
        for i in range(self.first, self.last):
            slot = &self.slots[i]
            slot.active = grads[i - self.first] is not None
            slot.steps = slot.active and slot.summed + 1 >= self.settings.accumulate
            steps = steps or slot.steps
            self.waiting = self.waiting or (slot.active and slot.summed > 0)
        return steps

    cdef void count_groups(self) noexcept nogil:
        cdef Py_ssize_t i
        cdef Group *group
        for i in range(self.group_count):
            self.groups[i].count = 0
        for i in range(self.count):
            group = &self.groups[self.slots[i].group]
            group.count = max(group.count, self.slots[i].step)

    cdef int check_group_keys(self, dict group, Py_ssize_t i) except -1:
        expected = ["params", *self.names]
        for name in group:
            if name not in expected:
                raise ValueError(f"param_groups[{i}] has the unknown key {name!r}{did_you_mean(name, expected)}; "
                                 f"it must have {', '.join(expected)}") from None
        for name in expected:
            if name not in group:
                raise ValueError(f"param_groups[{i}] has lost its {name}; it must have {', '.join(expected)}") from None
        return 0

    cdef dict group_values(self, list groups, Py_ssize_t i):
        """The dict of a group, if it is the one that was added; costs next to nothing when it is."""
        group = groups[i]
        if type(group) is not dict:
            raise TypeError(f"param_groups[{i}] must be a dict, got a {type(group).__name__}")
        if len(<dict>group) != len(self.names) + 1 or (<dict>group).get("params") is not self.group_params[i]:
            self.check_group_keys(group, i)
            raise ValueError(f"params was replaced in param_groups[{i}]; make a new optimizer or use add_param_group")
        return group

    def check_groups(self, list groups):
        """Raise unless these are the groups that were added, with hyper-parameters changed at most."""
        cdef Py_ssize_t i
        cdef fa_options options
        if len(groups) != self.group_count:
            raise ValueError("param_groups grew or shrank; use add_param_group")
        for i in range(self.group_count):
            values = self.group_values(groups, i)
            self.check_group_keys(values, i)
            try:
                read_plain(values, &options)
                self.check_fixed(i, &options)
            except Exception as error:
                error.add_note(f"in param_groups[{i}]")
                raise

    def check_state(self, Py_ssize_t i, dict values):
        """Raise unless the state that group i has is enough for these hyper-parameters."""
        cdef fa_options options
        read_plain(values, &options)
        self.check_fixed(i, &options)

    cdef int check_fixed(self, Py_ssize_t i, const fa_options *options) except -1:
        """State is made with the group: what needs more of it comes too late."""
        cdef Group *group = &self.groups[i]
        for name, now, then in (("amsgrad", options.amsgrad, group.amsgrad),
                                ("centered", options.centered, group.centered)):
            if now != then:
                raise ValueError(f"{name} was {bool(then)} when the group was added; make a new optimizer")
        if self.states_for(options) & ~group.made:
            raise ValueError("momentum was 0 when the group was added, so there is no momentum_buffer; "
                             "make a new optimizer")
        if options.nesterov and options.dampening != 0.0:
            raise ValueError(f"nesterov=True needs dampening 0, got {options.dampening!r}")
        return 0

    cdef int read_groups(self, list groups) except -1:
        """Hyper-parameters, schedules called with the group's largest counter; alone, an array goes by its own."""
        cdef Py_ssize_t i
        cdef bint alone = self.last - self.first != self.count
        if len(groups) != self.group_count:
            raise ValueError("param_groups grew or shrank; use add_param_group")
        if alone:
            i = self.slots[self.first].group
            return self.read_group(groups, i, self.slots[self.first].step)
        for i in range(self.group_count):
            self.read_group(groups, i, self.groups[i].count)
        return 0

    cdef int read_group(self, list groups, Py_ssize_t i, int64_t count) except -1:
        cdef Py_ssize_t k
        cdef Group *group = &self.groups[i]
        cdef dict values = self.group_values(groups, i)
        cdef fa_rule rule
        cdef str name = None    # of the value that is being read
        memset(&group.options, 0, sizeof(fa_options))
        try:
            for k in range(len(self.names)):
                name = <str>self.names[k]
                read_value(values[name], name, self.fields[k].kind, count,
                           <char *>&group.options + self.fields[k].offset)
            name = None
            rule = fa_rule_of(self.family, &group.options)
            if (group.options.amsgrad != group.amsgrad or group.options.centered != group.centered
                    or self.states_for(&group.options) & ~group.made
                    or (group.options.nesterov and group.options.dampening != 0.0)):
                self.check_fixed(i, &group.options)
        except Exception as error:
            self.check_group_keys(values, i)
            if name is not None and has_schedule(values[name]):
                error.add_note(f"in the schedule {name}, called with the number of steps taken, {count}")
            error.add_note(f"in param_groups[{i}]")
            raise
        for k in range(FA_REALS):
            group.kernel[k] = fa_kernel_of(chosen_isa, rule, <fa_real>k)
        return 0

    cdef Py_ssize_t fill(self, list grads, bint staged) except -1:
        """Make the tasks. If gradients must be converted first, return their number, and do it again after that.

        Runs no Python code on the way to success. State is cut from blocks of our own, so it cannot move."""
        cdef Py_ssize_t i = self.first, conversions = 0
        cdef bint located = False
        cdef Slot *slot
        cdef fa_task *task
        cdef Array *grad

        while i < self.last:
            slot, task = &self.slots[i], &self.tasks[i]
            slot.convert = False
            if not slot.active:
                task.n = 0
                i += 1
                continue
            if i + AHEAD < self.last:   # fetch what is looked at below
                prefetch(slot[AHEAD].param)
                prefetch(<char *>slot[AHEAD].param + 64)
                prefetch(<char *><Array *>grads[i + AHEAD - self.first] + 64)
                prefetch(shape_of(slot[AHEAD // 2].param))
            if not self.is_good(slot) or slot.step == INT64_MAX:
                self.refuse(i)
            if data_of(slot.param) != slot.place:
                self.locate()
                located, i, conversions = True, self.first, 0   # gradients are looked up in the new places
                continue
            grad = <Array *>grads[i - self.first]
            if not (is_plain(grad) and self.is_like(slot, grad)):
                slot.convert = True
                conversions += 1
                i += 1
                continue
            if data_of(grad) != task.array[FA_GRAD]:
                if self.touched(data_of(grad), data_of(grad) + nbytes_of(grad)) != NULL:
                    if located:
                        raise overlap_error(f"gradient of {self.name_of(i, FA_PARAM)}",
                                            self.written_by(grads[i - self.first]))
                    self.locate()       # what it touches may have moved away since
                    located, i, conversions = True, self.first, 0
                    continue
                task.array[FA_GRAD] = data_of(grad)
            self.make_task(task, slot, staged)
            i += 1
        return conversions

    cdef void make_task(self, fa_task *task, Slot *slot, bint staged) noexcept nogil:
        cdef int summed = FA_SUMMED if slot.summed else 0
        task.n = slot.n
        task.before = task.after = NULL
        if slot.steps:
            task.array[FA_PARAM] = slot.place
            task.kernel = self.groups[slot.group].kernel[<int>slot.real]
            if staged:
                task.before = fa_kernel_of(chosen_isa, FA_GRADIENT + summed + (
                    FA_CLIPPED if self.settings.max_value < INFINITY else 0), slot.real)
            if self.settings.average:
                task.after = fa_kernel_of(chosen_isa, FA_AVERAGE, slot.real)
        else:
            task.array[FA_PARAM] = task.array[FA_SUM]
            task.kernel = fa_kernel_of(chosen_isa, FA_GRADIENT + summed + (FA_IN_PLACE if summed else 0), slot.real)

    cdef void make_arounds(self) noexcept nogil:
        """What the loops around the rules read: one set for each number of gradients that have been summed."""
        cdef Py_ssize_t i, made = 0
        cdef double mean = 0.0, its_mean
        cdef fa_around *around
        cdef fa_fp_state saved
        fa_fp_default(&saved)
        for i in range(self.first, self.last):
            its_mean = 1.0 / <double>(self.slots[i].summed + 1) if self.slots[i].steps else 1.0
            if made == 0 or its_mean != mean:
                mean = its_mean
                around = &self.arounds[made]
                around.s, around.mean, around.limit = self.scale, mean, self.settings.max_value
                around.decay, around.rest = self.settings.ema_decay, 1.0 - self.settings.ema_decay
                made += 1
            self.tasks[i].around = &self.arounds[made - 1]
        fa_fp_restore(&saved)

    cdef void count_step(self, double scale) noexcept nogil:
        """Count, and make what the rules read: one set for each group and counter (and product of momenta).

        Before the arrays are updated, which pushes the counters out of the cache: nothing in between can fail, and a
        state file says that a step is going on."""
        cdef Py_ssize_t i, made = 0
        cdef Slot *slot
        cdef Group *group
        for i in range(self.group_count):
            self.groups[i].factors = NULL
        for i in range(self.first, self.last):
            slot = &self.slots[i]
            if not slot.active:
                continue
            group = &self.groups[slot.group]
            if slot.steps:
                if group.factors == NULL:
                    group.taken, group.stepped = group.options, True
                if group.factors == NULL or group.step != slot.step + 1 or group.product != slot.product:
                    group.step, group.product = slot.step + 1, slot.product
                    group.factors = &self.factors[made]
                    fa_factors_at(self.family, group.step, &group.options, scale, slot.product, group.factors)
                    made += 1
                self.tasks[i].factors = group.factors
                slot.step += 1
                slot.product = group.factors.product
                slot.summed = 0
                group.count = max(group.count, slot.step)
            else:
                self.tasks[i].factors = self.tasks[i].around
                slot.summed += 1
            self.record(slot)

    # -- the averages

    cdef int swap_in(self) except -1:
        """Exchange parameters and their averages. All or nothing, and Ctrl-C waits."""
        cdef Py_ssize_t i
        if self.changing or self.swapped:
            raise RuntimeError("swap_ema was called from inside a step, or of another swap_ema")
        self.changing = True
        try:
            self.prepare()
        finally:
            self.changing = False
        for i in range(self.count):
            if not self.is_good(&self.slots[i]):
                self.refuse(i)
        self.locate()
        self.begin_writing()
        for i in range(self.count):
            exchange(self.slots[i].place, <char *>self.tasks[i].array[FA_EMA], bytes_of(&self.slots[i]))
        self.swapped = True
        self.end_writing()
        return 0

    cdef int swap_out(self) except -1:
        """Back, wherever a parameter still is; frozen ones, too. What has moved meanwhile is lost to its average."""
        cdef Py_ssize_t i, size, moved = -1
        cdef Array *param
        if self.store is not None and self.owner != getpid():
            self.swapped = False
            raise RuntimeError("this process was forked inside swap_ema: its parameters hold the averages; what they "
                               f"held is in the state_file {self.store.path!r} of the parent")
        self.begin_writing()
        for i in range(self.count):
            param, size = self.slots[i].param, bytes_of(&self.slots[i])
            if data_of(param) == self.slots[i].place and nbytes_of(param) == size:
                exchange(self.slots[i].place, <char *>self.tasks[i].array[FA_EMA], size)
            else:
                moved = i
        self.swapped = False
        self.end_writing()
        if moved >= 0:
            raise ValueError(f"{self.name_of(moved, FA_PARAM)} was resized inside swap_ema; what it held before is in "
                             "opt.ema: copy it back")
        return 0

    # -- the norm of the gradients, before anything changes

    cdef int make_room_for_sums(self) except -1:
        cdef Py_ssize_t i
        cdef int64_t blocks = 0
        for i in range(self.first, self.last):
            blocks += blocks_of(self.slots[i].n)
        grow(<void **>&self.squares, self.count * sizeof(fa_task))
        grow(<void **>&self.sums, (blocks + 1) * sizeof(double))
        return 0

    cdef double sum_squares(self, int threads) noexcept nogil:
        """Over the gradients of this step: block by block, added in order, so that threads do not matter. Those that
        only join a sum are looked at, too, but do not count."""
        cdef Py_ssize_t i
        cdef int64_t block, blocks = 0
        cdef double total = 0.0
        cdef fa_task *task
        cdef fa_real real
        for i in range(self.first, self.last):
            task, real = &self.squares[i], self.slots[i].real
            memset(task, 0, sizeof(fa_task))
            task.kernel = fa_kernel_of(chosen_isa, FA_SUM_SQUARES, real)
            task.array[FA_GRAD], task.array[FA_SUM] = self.tasks[i].array[FA_GRAD], self.tasks[i].array[FA_SUM]
            task.n = self.tasks[i].n
            task.factors = &self.sums[blocks]
            task.around = self.tasks[i].around
            if self.tasks[i].before != NULL or not self.slots[i].steps:     # the mean, not clipped, or the sum
                task.before = fa_kernel_of(chosen_isa, FA_GRADIENT + (FA_SUMMED if self.slots[i].summed else 0), real)
            blocks += blocks_of(task.n)
        if blocks < threads:    # a smaller team than the step's would end some of its threads (libgomp)
            threads = 1
        fa_begin_writing()      # only so that a fork waits
        fa_run(&self.squares[self.first], self.last - self.first, threads, threads, NULL)
        fa_end_writing()
        for i in range(self.first, self.last):
            if self.slots[i].steps:
                for block in range(blocks_of(self.squares[i].n)):
                    total += (<double *>self.squares[i].factors)[block]
        return total

    cdef Py_ssize_t find_nonfinite(self, bint norm_counts, double scale, Finding *found) noexcept nogil:
        """The first parameter with NaN or infinity in its gradient, or in what is made of it, or -1. If the norm is
        infinite and counts, the largest gradient is to blame where no other is."""
        cdef Py_ssize_t i, largest = -1
        cdef int64_t block, element
        cdef fa_task *task
        cdef fa_real real
        cdef double squares, most = -1.0, limit
        for i in range(self.first, self.last):
            task = &self.squares[i]
            real = self.slots[i].real
            limit = 0.999 * (FLT_MAX if real == FA_FLOAT32 else DBL_MAX)    # less than the most, because of rounding
            for block in range(blocks_of(task.n)):
                squares = (<double *>task.factors)[block]
                if self.slots[i].steps and squares > most:
                    most, largest = squares, i
                # No element is larger than the root of its block's sum.
                if fabs(scale) < limit and fabs(scale) * sqrt(squares) < limit:
                    continue
                for element in range(block * FA_SQUARES, min((block + 1) * FA_SQUARES, task.n)):
                    found[0] = look_at(task, real, self.slots[i].summed, scale, element)
                    if found[0] != FINITE:
                        return i
        if norm_counts:
            found[0] = NORM
            return largest
        return -1

    cdef int refuse(self, Py_ssize_t i) except -1:
        """Say what is wrong with a parameter that was good when it was added."""
        cdef Slot *slot = &self.slots[i]
        check_writable(self.arrays[i][0], self.name_of(i, FA_PARAM))
        if slot.step == INT64_MAX:
            raise ValueError(f"{self.name_of(i, FA_PARAM)} has taken 2**63 - 1 steps; make a new optimizer")
        now = numpy.asarray(self.arrays[i][0])
        dtype = "float64" if slot.real else "float32"
        shape = tuple([self.shapes[slot.shape + axis] for axis in range(slot.ndim)])
        order = "" if slot.order == CONTIGUOUS else " in its memory order"
        raise ValueError(
            f"{self.name_of(i, FA_PARAM)} must stay what it was when it was added, {dtype} of shape {shape}{order}, "
            f"got {now.dtype} of shape {now.shape}, strides {now.strides}; change it back, or make a new optimizer")

    cdef int convert(self, list grads) except -1:
        cdef Py_ssize_t i
        for i in range(self.first, self.last):
            if not self.slots[i].convert:
                continue
            param = self.arrays[i][0]
            name = f"gradient of {self.name_of(i, FA_PARAM)}"
            grad = as_gradient(grads[i - self.first], param, name, self.name_of(i, FA_PARAM))
            if not self.is_like(&self.slots[i], <Array *>grad):
                written = self.written_by(grad)
                if written is not None:
                    raise overlap_error(name, written)
                grad = converted(grad, param, name, not self.slots[i].warned, 2)
                self.slots[i].warned = True
            grads[i - self.first] = grad
        return 0


@cython.final
cdef class Locked:
    """`with` it, nobody changes an engine. The lock's own `with` needs memory to let go."""
    cdef Engine engine

    def __cinit__(self, Engine engine):
        self.engine = engine

    def __enter__(self):
        self.engine.acquire()

    def __exit__(self, kind, value, traceback):
        self.engine.release()


@cython.final
cdef class Swapped:
    """`with` it, the averages are in the parameters. Compiled, so that Ctrl-C comes before they are, or when it is
    certain that they will not stay."""
    cdef Engine engine

    def __cinit__(self, Engine engine):
        self.engine = engine

    def __enter__(self):
        self.engine.acquire()
        try:
            self.engine.swap_in()
        finally:
            self.engine.release()

    def __exit__(self, kind, value, traceback):
        self.engine.swap_out()     # without the lock, for which Ctrl-C could end the wait: all others are refused
