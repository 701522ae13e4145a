# Parameters: arrays with their state and counters, and the memory that is written.

cdef enum:
    ARRAYS = 7              # FA_ARRAYS and FA_STATES, which Cython does not know as constants
    STATES = 5
    EMA_BIT = 8             # in a mask of state, beside 1 M, 2 V, 4 W
    SUM_BIT = 16
    CODE = 65537            # of a state file, as its conditions (_layout.py)
    IS_FLUSHED = 1
    IS_WRITTEN = 2
    IS_TORN = 4

cdef struct Header:         # of a state file
    char magic[8]
    int64_t version, condition, groups
    char boot[64]

cdef struct Layout:         # of a parameter when it was added
    Array *param            # owned by Parameters.arrays
    Py_ssize_t group        # in Parameters.groups
    void *descr             # NumPy's own descriptor of its type, which most arrays have and which never ends
    int type, ndim, order   # type: NumPy's number; order: NumPy's flags of contiguity
    Py_ssize_t shape        # where it begins in Parameters.shapes
    bint convert            # in this call its gradient has to be copied first
    bint warned             # of that


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
        return False
    for axis in range(layout.ndim):
        if shape_of(array)[axis] != shape[axis]:
            return False
    return True


cdef inline bint is_good(const Layout *layout, const np.npy_intp *shapes) noexcept nogil:
    """The parameter can be updated."""
    return is_like(layout, shapes, layout.param) and (flags_of(layout.param) & WRITEABLE) != 0


cdef void note_rows(fa_slot *slot, Array *param) noexcept nogil:
    cdef int axis
    slot.height, slot.width = 1, 1
    if ndim_of(param) > 0:
        slot.height = shape_of(param)[0]
    for axis in range(1, ndim_of(param)):
        slot.width *= shape_of(param)[axis] if slot.n else 0    # shapes without elements may be of any size


cdef list states_in(int mask):
    """Places in a task."""
    return [FA_STATE + a for a in range(STATES) if mask & 1 << a]


cdef class Parameters:
    """What steps update. Parameters are numbered in the order in which they were added.

    Readers hold `lock`; writers use `with parameters`."""
    cdef readonly object lock
    cdef object acquire, release
    cdef readonly list names            # of the family's hyper-parameters
    cdef readonly int wrap_mask         # state that does not depend on the rule: EMA_BIT, SUM_BIT
    cdef readonly list keys, arrays     # arrays: for each parameter a tuple (param, state, ...)
    cdef dict index                     # key -> number
    cdef readonly list groups
    cdef public object structure        # of the container that step takes (containers.Structure)
    cdef Py_ssize_t flat                # of the structure; -1 before there is a group
    cdef bint by_row                    # the family keeps one number for each row
    cdef Py_ssize_t count
    cdef fa_slot *slots
    cdef Layout *layouts
    cdef np.npy_intp *shapes            # of all parameters, one after the other
    cdef fa_task *tasks
    cdef fa_call call
    cdef fa_rows *rows
    cdef uint64_t *work                 # where rows are sorted
    cdef int64_t words                  # in it
    cdef fa_range *ranges               # of memory that is written, sorted
    cdef Py_ssize_t range_count
    cdef bint changing
    cdef readonly bint swapped          # the averages are in the parameters
    cdef readonly object store          # a StateFile, or None
    cdef Header *header                 # its first page, or NULL
    cdef int owner                      # the process that may write into it
    cdef object __weakref__

    def __cinit__(self, str family, names, dict settings, wrap_mask=None):
        self.new_lock()
        watch(self)
        self.keys, self.arrays, self.index, self.groups = [], [], {}, []
        self.names, self.flat = list(names), -1
        self.call.family = fa_family_named(family.encode())
        if self.call.family == NULL:
            raise ValueError(f"no family of rules is called {family!r}")
        self.by_row = fa_kernel_of(FA_BASELINE, self.call.family.loop, FA_FLOAT32).add_mean != NULL

    def __dealloc__(self):
        PyMem_Free(self.slots)
        PyMem_Free(self.layouts)
        PyMem_Free(self.shapes)
        PyMem_Free(self.tasks)
        PyMem_Free(self.rows)
        PyMem_Free(self.work)
        PyMem_Free(self.ranges)
        PyMem_Free(self.call.wraps)
        PyMem_Free(self.call.coefficients)
        PyMem_Free(self.call.squares)
        PyMem_Free(self.call.sums)

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
        """In a forked child: free what another thread held. It was not writing: a fork waits for that (csrc/fork.c)."""
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
        try:
            return self.index[key]
        except (KeyError, TypeError):   # or no key at all
            raise KeyError(f"no parameter {key!r}; there are {self.keys}") from None

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
        return "grad_sum" if a == FA_SUM else (<bytes>self.call.family.state[a - FA_STATE]).decode()

    cdef list state_names(self, int mask):
        return [self.name_of_state(a) for a in states_in(mask)]

    def entry(self, Py_ssize_t i):
        """The state of a parameter, by name. Its arrays are views. Reshaping one leaves the engine's own array as it
        was made, so no step needs to check those."""
        cdef fa_record *record = self.slots[i].record
        entry = {"step": record.step}
        if self.call.family.name == b"NAdam":
            entry["mu_product"] = record.product
        if self.wrap_mask & SUM_BIT:
            entry["grad_count"] = record.pending
        names = self.state_names((<Group>self.groups[self.layouts[i].group]).mask)
        entry.update(zip(names, [array.view() for array in self.arrays[i][1:]], strict=True))
        return entry

    # -- adding and loading, inside `with engine`

    def add_group(self, list keys, tuple params, dict values, list groups, object structure, object mask=None):
        """Add parameters as one more group, with fresh state: what the values need, or what `mask` says.

        `values` is appended to `groups`. All or nothing: the new part is made first, and then swapped in."""
        try:
            self.add_if_possible(keys, params, values, groups, structure, mask)
        except BaseException:
            if self.store is not None:
                self.store.forget(len(self.groups))
            raise

    cdef int add_if_possible(self, list keys, tuple params, dict values, list groups, object structure,
                             object mask) except -1:
        cdef Py_ssize_t i, count = self.count, total = count + len(params)
        cdef int a
        cdef bint good
        cdef fa_options options
        cdef Group group = Group()
        cdef Py_ssize_t flat = structure.flat
        read_plain(values, &options)
        group.family, group.names, group.params = self.call.family, self.names, params
        group.where = f"param_groups[{len(self.groups)}]"
        group.amsgrad, group.centered = options.amsgrad, options.centered
        group.seen = [None] * (2 * len(self.names) + 2)
        group.mask = mask if mask is not None else group.states_for(&options) | self.wrap_mask
        for key, param in zip(keys, params):
            check_writable(param, f"parameter {key!r}")
            if self.by_row:
                check_table(param, f"parameter {key!r}", f"{self.family} keeps a number for each row")
        plain = tuple([numpy.asarray(param) for param in params])
        self.note_layouts(plain)
        names = self.state_names(group.mask)
        kinds = [plain] * len(names)
        if self.by_row:
            kinds[names.index(self.name_of_state(FA_V))] = _layout.one_a_row(plain)
        size = _layout.places_of(kinds)[1]
        section = None
        if self.store is not None:
            about = [[str(key), param.dtype.str, list(param.shape), "C" if param.flags.c_contiguous else "F"]
                     for key, param in zip(keys, plain)]
            about = {"optimizer": self.family, "state": names, "arrays": about}
            section = self.store.section(len(self.groups), about, plain, size)
        group.records = _layout.new_records(len(params)) if section is None else section.records
        block = numpy.zeros(size, numpy.uint8) if section is None else section.block
        state = _layout.cut(block, <size_t>data_of(<Array *>block), kinds)
        if section is None or section.fresh:
            _layout.begin(dict(zip(names, state)), plain, options.initial_accumulator_value)
        new_keys, new_arrays = self.keys + keys, self.arrays + list(zip(params, *state))
        new_index = {key: i for i, key in enumerate(new_keys)}
        new_groups = [*self.groups, group]
        grow(<void **>&self.tasks, total * sizeof(fa_task))
        grow(<void **>&self.rows, total * sizeof(fa_rows))
        grow(<void **>&self.call.wraps, total * sizeof(fa_wrap))
        grow(<void **>&self.call.coefficients, total * sizeof(fa_coefficients))
        grow(<void **>&self.call.squares, total * sizeof(fa_task))
        grow(<void **>&self.ranges, total * (ARRAYS - 1) * sizeof(fa_range))
        memset(&self.tasks[count], 0, len(params) * sizeof(fa_task))
        for i in range(count, total):
            self.slots[i].group = &group.c
            self.slots[i].record = &(<fa_record *>data_of(<Array *>group.records))[i - count]
            self.layouts[i].param, self.layouts[i].group = <Array *>params[i - count], len(self.groups)
            good = is_good(&self.layouts[i], self.shapes)
            for a, array in zip(states_in(group.mask), new_arrays[i][1:]):
                if not (self.by_row and a == FA_V):
                    good = good and is_like(&self.layouts[i], self.shapes, <Array *>array)
                self.tasks[i].array[a] = data_of(<Array *>array)
            if not good:
                raise ValueError(f"parameter {new_keys[i]!r} changed while it was being added; nothing was added")
            self.tasks[i].kernel = fa_kernel_of(FA_BASELINE, FA_GRADIENT, self.slots[i].real)
        old = self.keys, self.arrays
        self.keys, self.arrays, self.count = new_keys, new_arrays, total    # for name_of, if arrays overlap
        try:
            self.locate()
            groups.append(values)
        except BaseException:
            self.keys, self.arrays = old
            self.count = count
            self.locate()       # ranges are those of the old arrays again
            raise
        self.groups, self.index, self.structure, self.flat = new_groups, new_index, structure, flat
        self.count_groups()
        if section is not None and section.fresh:
            self.header.groups = CODE * <int64_t>len(new_groups)    # from now on it is there
        return 0

    cdef int note_layouts(self, tuple params) except -1:
        """Append the layouts of new parameters. Runs no Python code, so that nothing can change meanwhile."""
        cdef Py_ssize_t i, axes = 0, shape = 0
        cdef int axis
        cdef Layout *layout
        cdef Array *param
        if self.count:
            shape = self.layouts[self.count - 1].shape + self.layouts[self.count - 1].ndim
        for i in range(len(params)):
            axes += ndim_of(<Array *>params[i])
        grow(<void **>&self.slots, (self.count + len(params)) * sizeof(fa_slot))
        grow(<void **>&self.layouts, (self.count + len(params)) * sizeof(Layout))
        grow(<void **>&self.shapes, (shape + axes) * sizeof(np.npy_intp))
        for i in range(len(params)):
            layout, param = &self.layouts[self.count + i], <Array *>params[i]
            memset(layout, 0, sizeof(Layout))
            memset(&self.slots[self.count + i], 0, sizeof(fa_slot))
            self.slots[self.count + i].n, self.slots[self.count + i].real = size_of(param), real_of(param)
            note_rows(&self.slots[self.count + i], param)
            layout.type = <int>(np.NPY_DOUBLE if real_of(param) == FA_FLOAT64 else np.NPY_FLOAT)
            layout.descr = descr_from_type(layout.type)     # with a reference that nobody gives back
            layout.ndim, layout.order, layout.shape = ndim_of(param), flags_of(param) & CONTIGUOUS, shape
            for axis in range(layout.ndim):
                self.shapes[shape + axis] = shape_of(param)[axis]
            shape += layout.ndim
        return 0

    def load(self, plan):
        """Copy in state that was checked (`statedict.LoadPlan`), all of it or nothing."""
        cdef Copies copies = Copies()
        cdef list groups = list(plan.param_groups), changes = list(plan.changes)
        if not len(plan.arrays) == len(plan.records) == self.count or plan.records.dtype != _layout.RECORD:
            raise ValueError(f"expected the state of {self.count} parameters, got {len(plan.arrays)}")
        pairs = list(plan.others)
        start = 0
        for group in self.groups:
            stop = start + len(group.records)
            pairs.append((group.records, plan.records[start:stop].copy()))
            start = stop
        for mine, news in zip(self.arrays, plan.arrays):
            for old, new in zip(mine[1:], news, strict=True):
                new = numpy.asarray(new)    # without its subclass: a memory map, for one
                # A source that is also a destination of another could be overwritten before its turn.
                pairs.append((old, new.copy("K") if self.written_by(new) is not None else new))
        self.prepare_file()
        before = [dict(group) for group in groups]  # keeps old values: to free one could run Python code in between
        copies.plan(pairs)
        self.begin_writing()
        copies.run()
        self.end_writing()
        self.count_groups()
        for i in range(len(changes)):
            PyDict_Update(groups[i], changes[i])    # their keys exist, so it needs no memory
        del before

    cdef void count_groups(self) noexcept nogil:
        cdef Py_ssize_t i
        cdef fa_group *group
        for i in range(self.count):
            self.slots[i].group.count = 0
        for i in range(self.count):
            group = self.slots[i].group
            group.count = max(group.count, self.slots[i].record.step)

    # -- a state file

    def keep_in(self, store):
        """From now on state is in this file."""
        self.store, self.header, self.owner = store, <Header *>data_of(<Array *>store.header), getpid()
        finalize(self, store.close, self.lock)

    cdef int prepare_file(self) except -1:
        """Tell the state file that a change comes. May run Python code, so it comes before the checks."""
        if self.header == NULL:
            return 0
        if self.owner != getpid():
            self.store.check_owner()
        if self.header.groups != CODE * <int64_t>len(self.groups):
            self.store.check_groups()
        if self.header.condition == IS_FLUSHED or self.store.broken:
            self.store.begin()
        return 0

    def check_readable(self):
        if self.swapped:
            raise RuntimeError("the averages are in the parameters; leave `with opt.swap_ema():` first")
        if self.store is not None:
            self.store.check_owner()

    cdef void begin_writing(self) noexcept nogil:
        fa_gate_enter()
        if self.header != NULL:
            fa_mark(&self.header.condition, IS_TORN)

    cdef void end_writing(self) noexcept nogil:
        if self.header != NULL:
            fa_mark(&self.header.condition, IS_TORN if self.swapped else IS_WRITTEN)
        fa_gate_leave()

    # -- memory that is written

    cdef str name_of(self, Py_ssize_t i, int a=FA_PARAM):
        name = f"parameter {self.keys[i]!r}"
        return name if a == FA_PARAM else f"{self.name_of_state(a)} of {name}"

    cdef void forget_places(self) noexcept nogil:
        """They are looked up at the next step."""
        cdef Py_ssize_t i
        for i in range(self.count):
            self.slots[i].place = NULL

    cdef int locate(self) except -1:
        """Find out where the parameters are, and that nothing that is written overlaps."""
        cdef Py_ssize_t i, size, k = 0
        cdef int a
        cdef fa_task *task
        cdef Array *param
        cdef const fa_range *overlap
        for i in range(self.count):
            task, param = &self.tasks[i], self.layouts[i].param
            self.slots[i].place = task.array[FA_PARAM] = data_of(param)
            task.array[FA_GRAD] = NULL
            for a in range(ARRAYS):
                size = nbytes_of(param) if a == FA_PARAM else self.bytes_of_state(i, a)
                if task.array[a] != NULL and size > 0:
                    self.ranges[k].begin, self.ranges[k].slot, self.ranges[k].array = <uintptr_t>task.array[a], i, a
                    self.ranges[k].end = self.ranges[k].begin + size
                    k += 1
        self.range_count = k
        overlap = fa_ranges_sort(self.ranges, k)
        if overlap != NULL:
            self.forget_places()
            raise overlap_error(self.name_of(overlap[0].slot, overlap[0].array),
                                self.name_of(overlap[1].slot, overlap[1].array))
        return 0

    @cython.final
    cdef Py_ssize_t bytes_of(self, Py_ssize_t i) noexcept nogil:
        return self.slots[i].n * (8 if self.slots[i].real else 4)

    @cython.final
    cdef Py_ssize_t bytes_of_state(self, Py_ssize_t i, int a) noexcept nogil:
        """The same, but of one number a row where the family keeps no more."""
        if a == FA_V and self.by_row:
            return self.slots[i].height * (8 if self.slots[i].real else 4)
        return self.bytes_of(i)

    cdef object written_by(self, object array):
        """The name of the array of ours that this one shares memory with, or None."""
        cdef const fa_range *r
        cdef uintptr_t low, high
        array = numpy.asarray(array)
        bounds_of(<Array *>array, &low, &high)
        r = fa_ranges_find(self.ranges, self.range_count, low, high)
        while r != NULL and r < self.ranges + self.range_count and r.begin < high:
            places = [FA_PARAM, *states_in((<Group>self.groups[self.layouts[r.slot].group]).mask)]
            if numpy.shares_memory(numpy.asarray(self.arrays[r.slot][places.index(r.array)]), array):
                return self.name_of(r.slot, r.array)
            r += 1
        return None
