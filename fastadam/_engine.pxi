# Engine, the stateful step.

cdef enum:
    RAISE = 1               # of fa_settings.nonfinite
    AHEAD = 8               # so many parameters ahead their objects are prefetched; their shapes, half as many


@cython.final
cdef class Engine(Parameters):
    """Parameters, and the one call that updates them all."""
    cdef readonly dict settings         # as they were given
    cdef fa_settings chosen             # the same in numbers
    cdef Py_ssize_t first               # of the parameters in this call
    cdef bint has_rows                  # is there a gradient of rows among its own?
    cdef fa_tuner tuner
    cdef readonly int threads_used      # by the last step; 0 before the first
    cdef int denied                     # an order of threads; a warning has said that the system has fewer
    cdef double norm                    # of the last step's gradients
    cdef bint norm_known                # it was asked for
    cdef public int64_t skipped         # steps that were not taken, because of NaN or infinity

    def __cinit__(self, str family, names, dict settings, wrap_mask=None):
        self.wrap_mask = EMA_BIT | SUM_BIT if wrap_mask is None else wrap_mask
        self.change_settings(settings)
        if wrap_mask is None:
            self.wrap_mask = (EMA_BIT if self.chosen.average else 0) | (SUM_BIT if self.chosen.accumulate > 1 else 0)

    def change_settings(self, dict changes):
        """Change some settings, or raise: all of them must fit together."""
        cdef fa_settings s
        settings = changes if self.settings is None else {**self.settings, **changes}
        plain = _numbers.as_settings(settings)
        s.max_norm, s.max_norm_each, s.max_value = plain["max_norm"], plain["max_norm_each"], plain["max_value"]
        s.threads, s.nonfinite, s.accumulate = plain["threads"], plain["nonfinite"], plain["accumulate"]
        s.average, s.ema_decay = plain["average"], plain["ema_decay"]
        # State is made with the optimizer, so what needs more of it is refused.
        if s.average and not self.wrap_mask & EMA_BIT:
            raise ValueError("ema_decay was None when the optimizer was made, so there are no averages; make a "
                             "new optimizer with it, and load the state_dict() of this one")
        if s.accumulate > 1 and not self.wrap_mask & SUM_BIT:
            raise ValueError("accumulate was 1 when the optimizer was made, so there is no sum; make a new "
                             "optimizer with it, and load the state_dict() of this one")
        self.chosen, self.settings = s, settings

    @property
    def grad_norm(self):
        return self.norm if self.norm_known else None

    # -- the step

    def step(self, grads, list groups, grad_scale):
        """Update every parameter whose gradient is not None, and its counter."""
        cdef list flat      # of our own
        if type(grads) is list and len(<list>grads) == self.flat:
            flat = (<list>grads)[:]
        else:
            flat = self.structure.flatten(grads)
        self.begin_change()
        try:
            if len(flat) != self.count:     # another thread has added a group meanwhile
                raise ValueError(f"expected {self.count} gradients, got {len(flat)}")
            self.run_step(0, self.count, flat, groups, grad_scale)
        finally:
            self.end_change()

    def step_one(self, Py_ssize_t i, grad, list groups, grad_scale):
        """The same for one parameter alone."""
        self.begin_change()
        try:
            self.run_step(i, 1, [grad], groups, grad_scale)
        finally:
            self.end_change()

    cdef int prepare(self, Py_ssize_t first, Py_ssize_t count, list grads, list groups, grad_scale) except -1:
        """Check all, and build the tasks. Does any parameter step? Without groups: with the numbers read last."""
        cdef fa_call *c = &self.call
        cdef fa_settings *s = &c.settings
        cdef bint steps
        s[0] = self.chosen      # a schedule may change those
        c.scale, c.isa = as_grad_scale(grad_scale), chosen_isa
        if count != self.count and s.max_norm < INFINITY:
            raise ValueError("max_norm needs the gradients of all parameters at once: use step, or set it to None "
                             "(max_norm_each clips each array by its own norm)")
        self.first, c.slots, c.tasks, c.count = first, self.slots + first, self.tasks + first, count
        c.rows = self.rows + first
        steps = self.mark_active(grads)
        self.check_rows()
        if groups is not None:
            self.read_groups(groups, steps or s.accumulate == 1)
        if s.threads > 1 and not fa_has_room(s.threads):
            self.ask_for_threads(s.threads)
        self.prepare_file()
        while self.build_tasks(grads):
            self.convert(grads)
        if self.has_rows:
            self.sort_rows(grads)
        fa_build_tasks(c)
        if c.blockwise or s.average:
            fa_build_wraps(c)
        return steps

    cdef int read_groups(self, list groups, bint steps) except -1:
        cdef Py_ssize_t i
        groups = list(groups)               # schedules, and finalizers, may change theirs
        self.check_length(groups)
        if not steps:
            self.check_groups(groups)       # schedules are called for steps alone
        elif self.call.count != self.count:     # an array goes by its own counter
            i = self.layouts[self.first].group
            (<Group>self.groups[i]).read(groups[i], self.slots[self.first].record.step)
        else:
            for i in range(len(self.groups)):
                (<Group>self.groups[i]).read(groups[i], (<Group>self.groups[i]).c.count)
        return 0

    cdef int run_step(self, Py_ssize_t first, Py_ssize_t count, list grads, list groups, grad_scale) except -1:
        cdef fa_call *c = &self.call
        cdef fa_settings *s = &c.settings
        cdef double norm = 0.0, scale
        cdef fa_anomaly anomaly = FA_FINITE
        cdef int64_t culprit = 0, blocks
        cdef bint measured, steps, alone = count != self.count
        cdef int team, bound = fa_thread_bound()
        cdef fa_fp_state saved
        steps = self.prepare(first, count, grads, groups, grad_scale)
        measured = s.nonfinite != 0 or (min(s.max_norm, s.max_norm_each) < INFINITY and steps)
        scale = 1.0 if c.blockwise else c.scale
        c.scales = NULL
        if measured:
            blocks = fa_blocks_of_call(c)
            grow(<void **>&c.sums, (blocks + count) * sizeof(double))
            c.scales = c.sums + blocks if s.max_norm_each < INFINITY else NULL
            team = s.threads if s.threads else max(1, min(self.threads_used, bound, fa_max_threads()))
            with nogil:
                fa_fp_default(&saved)
                fa_sum_squares(c, team)
                norm = sqrt(fa_add_squares(c)) * (1.0 if c.blockwise else fabs(c.scale))
                if s.max_norm < INFINITY:
                    scale = fa_clipped(scale, s.max_norm, norm)
                if c.scales != NULL:
                    fa_clip_each(c, scale)
                if s.nonfinite:
                    anomaly = fa_find_anomaly(c, norm, scale, &culprit)
                fa_fp_restore(&saved)
            if anomaly != FA_FINITE and s.nonfinite == RAISE:
                scale = c.scales[culprit] if c.scales != NULL else scale
                self.raise_anomaly(anomaly, culprit, c.scale if c.blockwise else scale)
        with nogil:
            if steps:
                self.norm, self.norm_known = norm, measured
            if anomaly != FA_FINITE:
                self.skipped += 1
            else:
                self.begin_writing()
                fa_advance_counters(c, scale)
                self.threads_used = fa_run(c.tasks, count, s.threads, bound, NULL if alone else &self.tuner)
                self.end_writing()
        return 0

    cdef int check_rows(self) except -1:
        """Sums of gradients, and averages, are of whole arrays."""
        cdef Py_ssize_t i
        if self.has_rows and self.call.settings.accumulate > 1:
            raise ValueError("accumulate adds up whole arrays, got Rows; set it to 1, join the rows of so many batches "
                             "(they may repeat), and divide grad_scale by their number")
        if self.has_rows and self.call.settings.average:
            raise ValueError("ema_decay averages whole arrays, got Rows; set it to None, or give the whole gradient")
        for i in range(self.call.count if self.has_rows else 0):
            if (self.call.slots[i].rows != NULL and self.call.slots[i].width % FA_GROUP
                    and self.shares_scales(self.first + i)):
                raise ValueError(f"{self.name_of(self.first + i)} has 8bit state, rows of {self.call.slots[i].width} "
                                 f"elements, and got Rows: they must be a multiple of {<int>FA_GROUP} long, because "
                                 "so many elements share a scale; give it state_dtype='float32' in overrides, or in "
                                 "a group of its own")
            if self.call.slots[i].rows != NULL and self.call.slots[i].record.pending:
                raise ValueError(f"{self.name_of(self.first + i)} has pending gradients, and got Rows; "
                                 "first take a step with a gradient of the whole array; zeros will do")
        return 0

    cdef void forget_forms(self) noexcept nogil:
        """No gradient is of rows, or in another format, any more. Where one lay says nothing of one of another size."""
        cdef Py_ssize_t i
        for i in range(self.count):
            if self.slots[i].rows != NULL or self.slots[i].format != FA_PLAIN:
                self.slots[i].rows, self.slots[i].format = NULL, FA_PLAIN
                self.tasks[i].rows, self.tasks[i].decode, self.tasks[i].array[FA_GRAD] = NULL, NULL, NULL

    cdef bint mark_active(self, list grads):
        """Which parameters have a gradient, and of these, which take a step; does any?"""
        cdef Py_ssize_t i
        cdef fa_slot *slot
        cdef bint steps = False, active
        cdef int64_t pending = 0
        cdef int64_t accumulate = self.call.settings.accumulate
        cdef PyObject **given = PySequence_Fast_ITEMS(grads)
        if self.call.special:
            self.forget_forms()
        self.has_rows = False
        for i in range(self.call.count):
            slot = &self.call.slots[i]
            active = given[i] != <PyObject *>None
            if type_object_of(given[i]) == <PyObject *>Rows:
                slot.rows, self.has_rows = &self.call.rows[i], True
            slot.active, slot.steps = active, active & (slot.record.pending + 1 >= accumulate)
            steps |= slot.steps
            pending |= slot.record.pending if active else 0
        self.call.special = self.has_rows
        self.call.blockwise = pending > 0 or accumulate > 1 or self.call.settings.max_value < INFINITY
        return steps

    def check_groups(self, list groups):
        """Raise unless these are the groups that were added, with hyper-parameters changed at most."""
        self.check_length(groups)
        for group, values in zip(self.groups, groups):
            (<Group>group).check(values, True)

    cdef int ask_for_threads(self, int order) except -1:
        cdef Py_ssize_t i
        cdef int64_t lines = 0
        for i in range(self.call.count):
            if self.call.slots[i].active:
                lines += lines_of(self.call.slots[i].n * (8 if self.call.slots[i].real else 4))
        if lines > 1 and has_fewer_threads(order, lines, order != self.denied):
            self.denied = order
        return 0

    cdef Py_ssize_t build_tasks(self, list grads) except -1:
        """Make the tasks. Returns how many gradients must be converted first: then call it again.

        Runs no Python code unless it raises. State lies in our own blocks, so it cannot move."""
        cdef Py_ssize_t i = 0, count = self.call.count, conversions = 0     # i counts from self.first
        cdef bint located = False
        cdef fa_slot *slots = self.call.slots
        cdef fa_format format
        cdef Layout *layout
        cdef fa_task *task
        cdef Array *grad
        cdef Array *rows
        cdef Array **given = <Array **>PySequence_Fast_ITEMS(grads)
        cdef bint good

        while i < count:
            layout, task = &self.layouts[self.first + i], &self.call.tasks[i]
            layout.convert = False
            if not slots[i].active:
                i += 1
                continue
            if i + AHEAD < count:
                prefetch(layout[AHEAD].param)
                prefetch(<char *>layout[AHEAD].param + 64)
                prefetch(<char *>given[i + AHEAD] + 64)
                prefetch(shape_of(layout[AHEAD // 2].param))
            if not is_good(layout, self.shapes) or slots[i].record.step == INT64_MAX:
                self.refuse(self.first + i)
            if data_of(layout.param) != slots[i].place:
                self.locate()
                located, i, conversions = True, 0, 0    # gradients are looked up in the new places
                continue
            grad, rows = given[i], NULL
            if (not self.call.special and is_plain(grad) and is_like(layout, self.shapes, grad)
                    and data_of(grad) == task.array[FA_GRAD]):
                i += 1      # as in the step before
                continue
            if slots[i].rows == NULL:
                good = is_plain(grad) and is_readable(layout, self.shapes, grad, &format)
            else:
                rows, grad = <Array *>(<Rows>grad).rows, <Array *>(<Rows>grad).grads
                good = (is_plain(rows) and is_plain(grad) and is_list_of_rows(rows) and layout.ndim > 0
                        and layout.order & C_CONTIGUOUS and is_rows_of(layout, self.shapes, rows, grad))
                format = format_for(layout, grad) if good else FA_PLAIN
            if not good:
                layout.convert = True
                conversions += 1
                i += 1
                continue
            slots[i].format = format
            if format != FA_PLAIN:
                self.call.special = True
            if data_of(grad) != task.array[FA_GRAD]:
                if self.is_written(grad) or (rows != NULL and self.is_written(rows)):
                    if located:
                        self.raise_overlap(self.first + i, grads[i])
                    self.locate()       # what it touches may have moved away since
                    located, i, conversions = True, 0, 0
                    continue
                task.array[FA_GRAD] = data_of(grad)
            i += 1
        return conversions

    cdef bint is_written(self, Array *array) noexcept nogil:
        cdef uintptr_t begin = <uintptr_t>data_of(array)
        cdef int64_t near = 0
        return fa_ranges_find(self.ranges, self.range_count, begin, begin + nbytes_of(array), &near) != NULL

    cdef int raise_overlap(self, Py_ssize_t i, object grad) except -1:
        """Raise if a gradient shares memory with what is written."""
        parts = {"gradient": grad}
        if isinstance(grad, Rows):
            parts = {"rows of the gradient": grad.rows, "gradient": grad.grads}
        for what, part in parts.items():
            written = self.written_by(part)
            if written is not None:
                raise overlap_error(f"{what} of {self.name_of(i)}", written)
        return 0

    cdef int sort_rows(self, list grads) except -1:
        """Check and sort the rows of all tables. Runs no Python code unless it raises."""
        cdef Py_ssize_t i
        cdef fa_slot *slot
        cdef Array *rows
        cdef int64_t words = 0, row = 0, place
        cdef uint64_t *work
        for i in range(self.call.count):
            if self.call.slots[i].rows != NULL:
                words += fa_rows_room(shape_of(<Array *>(<Rows>grads[i]).rows)[0])
        if words > self.words:
            words += words // 8
            grow(<void **>&self.work, words * sizeof(uint64_t))
            self.words = words
        work = self.work
        for i in range(self.call.count):
            slot = &self.call.slots[i]
            if slot.rows == NULL:
                continue
            rows = <Array *>(<Rows>grads[i]).rows
            with nogil:
                place = sort_table(slot, self.call.isa, rows, work, &row)
            if place != -1:
                refuse_rows(slot, rows, place, row, "rows", f" of the gradient of {self.name_of(self.first + i)}")
            work += fa_rows_room(shape_of(rows)[0])
        return 0

    cdef int convert(self, list grads) except -1:
        cdef Py_ssize_t i
        cdef fa_format format
        for i in range(self.first, self.first + self.call.count):
            if not self.layouts[i].convert:
                continue
            param = self.arrays[i][0]
            name = f"gradient of {self.name_of(i)}"
            if self.slots[i].rows != NULL:
                grads[i - self.first] = self.converted_rows(i, param, grads[i - self.first], name)
                continue
            grad = as_gradient(grads[i - self.first], param, name, self.name_of(i))
            note_bfloat16(grad)
            if not is_readable(&self.layouts[i], self.shapes, <Array *>grad, &format):
                written = self.written_by(grad)
                if written is not None:
                    raise overlap_error(name, written)
                grad = converted(grad, param, name, not self.layouts[i].warned)
                self.layouts[i].warned = True
            grads[i - self.first] = grad
        return 0

    cdef Rows converted_rows(self, Py_ssize_t i, object param, Rows given, str name):
        rows, grads = as_rows(given.rows, given.grads, param, f"rows of the {name}", name, self.name_of(i))
        note_bfloat16(grads)
        self.raise_overlap(i, Rows(rows, grads))
        if not (is_plain(<Array *>rows) and is_list_of_rows(<Array *>rows)):
            rows = numpy.array(rows, order="C")
        if not is_rows_of(&self.layouts[i], self.shapes, <Array *>rows, <Array *>grads):
            grads = converted(grads, numpy.empty(grads.shape, numpy.asarray(param).dtype), name,
                              not self.layouts[i].warned)
            self.layouts[i].warned = True
        return Rows(rows, grads)

    cdef int refuse(self, Py_ssize_t i) except -1:
        """Raise: say what is wrong with a parameter that was good when it was added."""
        cdef Layout *layout = &self.layouts[i]
        check_writable(self.arrays[i][0], self.name_of(i), True)
        if self.slots[i].record.step == INT64_MAX:
            raise ValueError(f"{self.name_of(i)} has taken 2**63 - 1 steps; make a new optimizer")
        now = numpy.asarray(self.arrays[i][0])
        dtype, shape, _ = self.what_it_was(i)
        order = "" if layout.order == CONTIGUOUS else " in its memory order"
        raise ValueError(
            f"{self.name_of(i)} must stay what it was when it was added, {dtype} of shape {shape}{order}, "
            f"got {now.dtype} of shape {now.shape}, strides {now.strides}; change it back, or make a new optimizer")

    cdef int raise_anomaly(self, fa_anomaly anomaly, Py_ssize_t culprit, double scale) except -1:
        if anomaly == FA_NONFINITE:
            what = "has NaN or infinity in it"
        elif anomaly == FA_NORM_OVERFLOWS:
            what = f"times {self.call.scale:g} (grad_scale) is so large that the norm is infinite"
        elif self.call.slots[culprit].record.pending:
            what = "is finite, but the sum of the accumulated gradients (grad_sum) with it is not"
        else:
            what = (f"is finite, but not times {scale:g} "
                    "(grad_scale, and clipping by the norm); use a smaller grad_scale, or float64")
        raise FloatingPointError(
            f"the gradient of {self.name_of(self.first + culprit)} {what}; nothing has changed (nonfinite='skip' "
            "leaves out such steps, 'propagate' takes them)")

    # -- parameters of bfloat16, and what they stand for

    def reset_masters(self, list which):
        """From now on these stand for what they say."""
        cdef Py_ssize_t i
        self.begin_change()
        try:
            self.prepare_file()
            self.begin_writing()
            for i in which:
                self.reset_master(i)
            self.end_writing()
        finally:
            self.end_change()

    # -- the averages

    cdef void exchange_with_average(self, Py_ssize_t i) noexcept:
        cdef fa_task *task = &self.tasks[i]
        if self.slots[i].coded == 2:
            fa_exchange(fa_codec_of(chosen_isa, FA_SPLIT_32), self.slots[i].place, task.array[FA_LOW],
                        <float *>task.array[FA_EMA], self.slots[i].n)
        else:
            exchange(<char *>self.slots[i].place, <char *>task.array[FA_EMA], self.bytes_of(i))

    cdef int swap_in(self) except -1:
        """Exchange parameters and their averages. All or nothing, and Ctrl-C waits."""
        cdef Py_ssize_t i
        if self.changing or self.swapped:
            raise RuntimeError("swap_ema was called inside a step, or inside another swap_ema")
        self.changing = True
        try:
            self.prepare_file()
        finally:
            self.changing = False
        for i in range(self.count):
            if not is_good(&self.layouts[i], self.shapes):
                self.refuse(i)
            if self.format_at(i, FA_PARAM) == FA_SPLIT_24:
                raise ValueError(f"{self.name_of(i)} has master_bits=24, too few to hold its average and give it back; "
                                 "use opt.ema")
        self.locate()
        self.begin_writing()
        for i in range(self.count):
            self.exchange_with_average(i)
        self.swapped = True
        self.end_writing()
        return 0

    cdef int swap_out(self) except -1:
        """Exchange back, frozen parameters, too. A parameter that has moved keeps what it has; `ema` has the rest."""
        cdef Py_ssize_t i, size, moved = -1
        cdef Array *param
        if self.store is not None and self.owner != getpid():
            self.swapped = False
            raise RuntimeError("this process was forked inside swap_ema: its parameters hold the averages; what they "
                               f"held is in the state_file {self.store.path!r} of the parent")
        self.begin_writing()
        for i in range(self.count):
            param, size = self.layouts[i].param, self.bytes_of(i)
            if data_of(param) == self.slots[i].place and nbytes_of(param) == size:
                self.exchange_with_average(i)
            else:
                moved = i
        self.swapped = False
        self.end_writing()
        if moved >= 0:
            raise ValueError(f"{self.name_of(moved)} was resized inside swap_ema; what it held before is in "
                             "opt.ema: copy it back")
        return 0


cdef class Locked:
    """In its `with` block nobody changes the engine. (The lock's own `with` needs memory to let go.)"""
    cdef Engine engine

    def __cinit__(self, Engine engine):
        self.engine = engine

    def __enter__(self):
        self.engine.acquire()

    def __exit__(self, kind, value, traceback):
        self.engine.release()


@cython.final
cdef class Swapped(Locked):
    """In its `with` block the averages are in the parameters. It is compiled, so that Ctrl-C comes before they are, or
    when it is certain that they will go."""

    def __enter__(self):
        self.engine.acquire()
        try:
            self.engine.swap_in()
        finally:
            self.engine.release()

    def __exit__(self, kind, value, traceback):
        self.engine.swap_out()     # without the lock: Ctrl-C could end the wait for it, and all others are refused
