# A step in parts, for optimizers whose arrays are parts of whole ones (mpi.py). What takes an engine is called inside
# `with engine`.


def place_parts(Engine engine, Py_ssize_t first, list numbers, list origins):
    """The random bits of the parameters from `first` on are those of whole arrays: their numbers, and where in them
    each begins."""
    cdef Py_ssize_t i
    for i in range(len(numbers)):
        engine.slots[first + i].record.seed = <uint64_t>engine.settings["seed"] + <uint64_t>numbers[i]
        engine.tasks[first + i].origin = origins[i]


def read_values(Engine engine, list groups):
    """Read the hyper-parameters of the next step. Returns the numbers among them, a dict for each group."""
    engine.first, engine.call.count = 0, engine.count
    engine.read_groups(groups, True)
    return [(<Group>group).numbers_in(&(<Group>group).c.options) for group in engine.groups]


def update_part(Engine engine, Py_ssize_t first, list grads, grad_scale):
    """One step of consecutive parameters, with the hyper-parameters that were read."""
    engine.run_step(first, len(grads), grads, None, grad_scale)


def block_squares(Engine engine, list grads, grad_scale):
    """The sums of squares of all blocks of all gradients that are not None, in their order."""
    cdef fa_call *c = &engine.call
    cdef int team
    cdef Py_ssize_t i, blocks
    engine.prepare(0, engine.count, grads, None, grad_scale)
    blocks = fa_blocks_of_call(c)
    grow(<void **>&c.sums, (blocks + engine.count) * sizeof(double))
    c.scales = c.sums + blocks
    team = c.settings.threads if c.settings.threads else max(1, min(fa_thread_bound(), fa_max_threads()))
    with nogil:
        fa_sum_squares(c, team)
    blocks = sum([(c.tasks[i].n + FA_SQUARES - 1) // FA_SQUARES for i in range(engine.count)])
    sums = numpy.empty(blocks)
    memcpy(data_of(<Array *>sums), c.sums, blocks * sizeof(double))
    return sums


def find_anomaly(Engine engine, double max_norm, double norm, double scale, list scales):
    """After block_squares: (fa_anomaly, the number of the parameter). With max_norm_each there is a scale for each."""
    cdef fa_call *c = &engine.call
    cdef int64_t which = 0
    cdef Py_ssize_t i
    cdef fa_fp_state saved
    c.settings.max_norm = max_norm
    for i in range(len(scales)):
        c.scales[i] = scales[i]
    if not scales:
        c.scales = NULL
    fa_fp_default(&saved)
    found = <int>fa_find_anomaly(c, norm, scale, &which)
    fa_fp_restore(&saved)
    return found, which


def clipped(double scale, double max_norm, double norm):
    return fa_clipped(scale, max_norm, norm)


def make_gradients(out, list grads, list sums, double scale, double mean, int threads):
    """((sum +) scale * grad) * mean of each, one after the other in `out`, as the loop before a rule makes it.

    All are arrays with one axis, of the type of `out`; a gradient may have 16 bits an element. It is a number where so
    many elements of `out` are left alone. A sum may be None, or that very place in `out`."""
    cdef Py_ssize_t i, count = len(grads), at = 0
    cdef fa_task *tasks = NULL
    cdef fa_wrap wrap
    cdef fa_real real = real_of(<Array *>out)
    cdef fa_format format
    cdef int loop, bound = fa_thread_bound()
    wrap.s, wrap.mean = scale, mean
    grow(<void **>&tasks, (count + 1) * sizeof(fa_task))
    try:
        memset(tasks, 0, count * sizeof(fa_task))
        for i in range(count):
            loop = FA_GRADIENT
            tasks[i].array[FA_PARAM] = data_of(<Array *>out) + at * itemsize_of(<Array *>out)
            if isinstance(grads[i], int):
                at += grads[i]
            else:
                if itemsize_of(<Array *>grads[i]) == 2:
                    note_bfloat16(grads[i])
                format = format_of(<Array *>grads[i], bfloat16)
                tasks[i].array[FA_GRAD], tasks[i].n = data_of(<Array *>grads[i]), size_of(<Array *>grads[i])
                if format != FA_PLAIN:
                    tasks[i].decode = fa_codec_of(chosen_isa, format)
                at += tasks[i].n
            if sums[i] is not None:
                tasks[i].array[FA_SUM] = data_of(<Array *>sums[i])
                loop += FA_SUMMED + (FA_IN_PLACE if tasks[i].array[FA_SUM] == tasks[i].array[FA_PARAM] else 0)
            tasks[i].kernel = fa_kernel_of(chosen_isa, loop, real)
            tasks[i].coefficients = &wrap
        with nogil:
            fa_gate_enter()
            fa_run(tasks, count, threads, bound, NULL)
            fa_gate_leave()
    finally:
        PyMem_Free(tasks)
