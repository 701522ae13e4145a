# Parameters: what is added and loaded, locks, and the memory that is written.

cdef enum:
    CODE = 65537            # of a state file, as its conditions (_layout.py)
    IS_FLUSHED = 1
    IS_WRITTEN = 2
    IS_TORN = 4

cdef struct Header:         # of a state file
    char magic[8]
    int64_t version, condition, groups
    char boot[64]


cdef class Parameters(StateArrays):
    """What steps update.

    Readers hold `lock`; writers use `with parameters`."""
    cdef readonly object lock
    cdef object acquire, release
    cdef public object structure        # of the container that step takes (containers.Structure)
    cdef Py_ssize_t flat                # of the structure; -1 before there is a group
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
            raise RuntimeError("an optimizer was stepped or changed from inside its own step (by a schedule?); do it "
                               "after the step")
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
        cdef Group group
        cdef Py_ssize_t flat = structure.flat
        cdef uint64_t seed = self.settings["seed"]
        read_plain(values, &options)
        group = self.new_group(params, &options)
        for key, param in zip(keys, params):
            check_writable(param, f"parameter {key!r}", True)
            note_bfloat16(numpy.asarray(param))
            if self.by_row:
                check_table(param, f"parameter {key!r}", f"{self.family} keeps a number for each row")
        plain = tuple([numpy.asarray(param) for param in params])
        coded = group.states_for(&options) & ~(2 if self.by_row else 0)
        check_formats(keys, plain, coded and options.state_dtype != FA_STATE_PLAIN)
        group.mask = mask if mask is not None else self.mask_for(group, plain)
        self.note_layouts(plain, group)
        names = self.state_names(group.mask)
        kinds = [[self.kind_of(i, a, plain[i - count]) for i in range(count, total)] for a in states_in(group.mask)]
        size = _layout.places_of(kinds)[1]
        section = None if self.store is None else self.section_for(keys, plain, names, kinds, size)
        group.records = _layout.new_records(len(params)) if section is None else section.records
        try:
            block = numpy.zeros(size, numpy.uint8) if section is None else section.block
        except MemoryError as error:
            error.add_note(f"The state of this group takes {size} bytes. state_dtype= makes it smaller, state_file= "
                           "keeps it on disk.")
            raise
        state = _layout.cut(block, <size_t>data_of(<Array *>block), kinds)
        if section is None or section.fresh:
            for i in range(len(params)):
                group.records[i]["seed"] = (seed + <uint64_t>(count + i))
            for a, arrays in zip(states_in(group.mask), state):
                for i in range(len(params)):
                    self.begin_state(count + i, a, arrays[i], plain[i], options.initial_accumulator_value)
        new_keys, new_arrays = self.keys + keys, self.arrays + list(zip(params, *state))
        new_index = {key: i for i, key in enumerate(new_keys)}
        new_groups = [*self.groups, group]
        grow(<void **>&self.tasks, total * sizeof(fa_task))
        grow(<void **>&self.rows, total * sizeof(fa_rows))
        grow(<void **>&self.call.wraps, total * sizeof(fa_wrap))
        grow(<void **>&self.call.coefficients, total * sizeof(fa_coefficients))
        grow(<void **>&self.call.squares, total * sizeof(fa_task))
        grow(<void **>&self.ranges, 2 * total * (ARRAYS - 1) * sizeof(fa_range))     # half of it to sort them
        memset(&self.tasks[count], 0, len(params) * sizeof(fa_task))
        for i in range(count, total):
            self.slots[i].group = &group.c
            self.slots[i].record = &(<fa_record *>data_of(<Array *>group.records))[i - count]
            self.layouts[i].param, self.layouts[i].group = <Array *>params[i - count], len(self.groups)
            good = is_good(&self.layouts[i], self.shapes)
            for a, array in zip(states_in(group.mask), new_arrays[i][1:]):
                if a <= FA_SUM and self.format_at(i, a) == FA_PLAIN and not (self.by_row and a == FA_V):
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
        for i in range(count, total):
            self.call.coded |= self.slots[i].coded != 0
        if section is not None and section.fresh:
            self.header.groups = CODE * <int64_t>len(new_groups)    # from now on it is there
        return 0

    cdef Group new_group(self, tuple params, const fa_options *options):
        cdef Group group = Group()
        group.family, group.names, group.params = self.call.family, self.names, params
        group.where = f"param_groups[{len(self.groups)}]"
        group.amsgrad, group.centered = options.amsgrad, options.centered
        group.c.state_dtype, group.c.master_bits = options.state_dtype, options.master_bits
        group.seen = [None] * (2 * len(self.names) + 2)
        group.c.options = options[0]
        return group

    cdef object section_for(self, list keys, tuple params, list names, list kinds, object size):
        """The next part of the state file: what is in it already, or fresh, for a group of these parameters."""
        arrays = [[str(key), name_of_dtype(param.dtype), list(param.shape), _layout.order_as_json(param)]
                  for key, param in zip(keys, params)]
        formats = {name: sorted({like.dtype.str for like in likes if like.shape != (0,)})
                   for name, likes in zip(names, kinds)}
        about = {"optimizer": self.family, "state": names, "formats": formats, "arrays": arrays}
        return self.store.section(len(self.groups), about, params, size)

    cdef int note_layouts(self, tuple params, Group group) except -1:
        """Append the layouts of new parameters. Runs no Python code, so that nothing can change meanwhile."""
        cdef Py_ssize_t i, axes = 0, shape = 0
        cdef int axis
        cdef Layout *layout
        cdef fa_slot *slot
        cdef Array *param
        if self.count:
            shape = end_of(&self.layouts[self.count - 1])
        for i in range(len(params)):
            axes += 2 * ndim_of(<Array *>params[i])
        grow(<void **>&self.slots, (self.count + len(params)) * sizeof(fa_slot))
        grow(<void **>&self.layouts, (self.count + len(params)) * sizeof(Layout))
        grow(<void **>&self.shapes, (shape + axes) * sizeof(np.npy_intp))
        for i in range(len(params)):
            layout, param = &self.layouts[self.count + i], <Array *>params[i]
            memset(layout, 0, sizeof(Layout))
            memset(&self.slots[self.count + i], 0, sizeof(fa_slot))
            slot = &self.slots[self.count + i]
            slot.n, slot.real, slot.group = size_of(param), real_of(param), &group.c
            if type_of(param) == bfloat16:
                slot.coded = 2
            elif group.mask & RULE_BITS & ~(2 if self.by_row else 0) and group.c.state_dtype != FA_STATE_PLAIN:
                slot.coded = 1
            note_rows(slot, param)
            layout.type = <int>(np.NPY_DOUBLE if real_of(param) == FA_FLOAT64 else np.NPY_FLOAT)
            layout.own_type = type_of(param) if slot.coded == 2 else layout.type
            layout.descr = descr_from_type(layout.type)     # with references that nobody gives back
            layout.own_descr = descr_from_type(layout.own_type)
            layout.ndim, layout.order, layout.shape = ndim_of(param), flags_of(param) & CONTIGUOUS, shape
            shape = end_of(layout)
            for axis in range(layout.ndim):
                self.shapes[layout.shape + axis] = shape_of(param)[axis]
                if not layout.order:
                    self.shapes[layout.shape + layout.ndim + axis] = strides_of(param)[axis] // itemsize_of(param)
        return 0

    def load(self, plan):
        """Copy in state that was checked (`statedict.LoadPlan`), all of it or nothing."""
        cdef Copies copies = Copies()
        cdef Py_ssize_t i
        cdef list groups = list(plan.param_groups), changes = list(plan.changes)
        if not len(plan.arrays) == len(plan.records) == self.count or plan.records.dtype != _layout.RECORD:
            raise ValueError(f"expected the state of {self.count} parameters, got {len(plan.arrays)}")
        pairs = list(plan.others)
        start = 0
        for group in self.groups:
            stop = start + len(group.records)
            pairs.append((group.records, plan.records[start:stop].copy()))
            start = stop
        for i in range(self.count):
            own, news = self.own_state(i), dict(plan.arrays[i])
            if own.keys() != news.keys():
                raise ValueError(f"expected the state {list(own)} of {self.name_of(i)}, got {list(news)}")
            for name, old in own.items():
                new = numpy.asarray(news[name])     # without its subclass: a memory map, for one
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

    def rebind(self, Py_ssize_t i, object array, object keep_master, list groups):
        """Let another array be this parameter, or raise. Its state and counter stay."""
        self.begin_change()
        try:
            self.rebind_if_possible(i, array, as_flag(keep_master, "keep_master"), list(groups))
        finally:
            self.end_change()

    cdef int check_length(self, list groups) except -1:
        if len(groups) != len(self.groups):
            raise ValueError(f"param_groups has {len(groups)} groups, the optimizer {len(self.groups)}; "
                             "add_param_group adds one, and none can be taken out")
        return 0

    cdef int rebind_if_possible(self, Py_ssize_t i, object array, bint keep_master, list groups) except -1:
        cdef Layout *layout = &self.layouts[i]
        cdef Layout new = layout[0]
        cdef Py_ssize_t k, number = layout.group
        cdef Group group = self.groups[number]
        cdef list maps = None       # of parameters, for each group of a state file
        name = f"array for {self.name_of(i)}"
        check_writable(array, name, True)
        note_bfloat16(numpy.asarray(array))
        self.check_length(groups)
        group.check_params(groups[number])
        # What is replaced is kept until the end: to free it could run Python code in between.
        old = self.arrays[i], group.params
        place = i - sum([len(other.records) for other in self.groups[:number]])
        arrays, params = (array, *old[0][1:]), (*old[1][:place], array, *old[1][place + 1:])
        if self.store is not None:
            maps, own_maps = self.store.params, maps_of(map(numpy.asarray, params))
            old_maps = maps[number]
        self.prepare_file()
        new.param = <Array *>array
        if not is_good(&new, self.shapes):
            check_replacement(array, name, *self.what_it_was(i))
            raise ValueError(f"{name} changed during the call")
        layout.param = new.param
        try:
            self.locate()
        except BaseException:
            layout.param = <Array *>old[0][0]
            self.locate()
            raise
        self.arrays[i], group.params, groups[number]["params"] = arrays, params, params
        for k in range(1, len(group.seen), 2):
            if group.seen[k] is old[1]:
                group.seen[k] = params
        if maps is not None:
            maps[number] = own_maps
        self.begin_writing()
        if not keep_master:
            self.reset_master(i)
        self.end_writing()
        return 0

    cdef void reset_master(self, Py_ssize_t i) noexcept nogil:
        """From now on it stands for what it says."""
        if self.slots[i].coded == 2:
            memset(self.tasks[i].array[FA_LOW], 0,
                   self.slots[i].n * fa_codec_of(FA_BASELINE, self.format_at(i, FA_PARAM)).second_size)

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

    cdef void forget_places(self) noexcept nogil:
        """They are looked up at the next step."""
        cdef Py_ssize_t i
        for i in range(self.count):
            self.slots[i].place = NULL

    cdef int locate(self) except -1:
        """Find out where the parameters are, and that nothing that is written overlaps."""
        cdef Py_ssize_t i, size, k = 0, at
        cdef int a
        cdef fa_task *task
        cdef Array *param
        cdef const fa_range *overlap
        for i in range(self.count):
            task, param = &self.tasks[i], self.layouts[i].param
            self.slots[i].place = task.array[FA_PARAM] = data_of(param)
            task.array[FA_GRAD] = NULL
            at = 0                              # in the tuple of this parameter's arrays
            for a in range(ARRAYS):
                if task.array[a] == NULL:
                    continue
                size = nbytes_of(param) if a == FA_PARAM else nbytes_of(<Array *>(<tuple>self.arrays[i])[at])
                at += 1
                if size > 0:
                    self.ranges[k].begin, self.ranges[k].slot, self.ranges[k].array = <uintptr_t>task.array[a], i, a
                    self.ranges[k].end = self.ranges[k].begin + size
                    k += 1
        self.range_count = k
        overlap = fa_ranges_sort(self.ranges, self.ranges + k, k)
        if overlap != NULL:
            self.forget_places()
            raise overlap_error(self.name_of(overlap[0].slot, overlap[0].array),
                                self.name_of(overlap[1].slot, overlap[1].array))
        return 0

    @cython.final
    cdef Py_ssize_t bytes_of(self, Py_ssize_t i) noexcept nogil:
        return self.slots[i].n * (2 if self.slots[i].coded == 2 else 8 if self.slots[i].real else 4)

    cpdef object written_by(self, object array):
        """The name of the array of ours that this one shares memory with, or None."""
        cdef const fa_range *r
        cdef uintptr_t low, high
        cdef int64_t near = 0
        array = numpy.asarray(array)
        bounds_of(<Array *>array, &low, &high)
        r = fa_ranges_find(self.ranges, self.range_count, low, high, &near)
        while r != NULL and r < self.ranges + self.range_count and r.begin < high:
            places = [FA_PARAM, *states_in((<Group>self.groups[self.layouts[r.slot].group]).mask)]
            if numpy.shares_memory(numpy.asarray(self.arrays[r.slot][places.index(r.array)]), array):
                return self.name_of(r.slot, r.array)
            r += 1
        return None
