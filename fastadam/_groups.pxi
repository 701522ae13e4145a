# Groups: parameters with the same hyper-parameters, which are read from a dict before each step.

cdef dict KINDS = {}        # of hyper-parameters: name -> (fa_kind, offset in fa_options)

cdef int note_kinds() except -1:
    cdef const fa_hyper *hyper = fa_hypers
    while hyper.name != NULL:
        KINDS[(<bytes>hyper.name).decode()] = <int>hyper.kind, hyper.offset
        hyper += 1

note_kinds()
HYPER_PARAMETERS = frozenset(KINDS)     # of all optimizers
# Chosen when a group is made, because state depends on them.
FIXED_FLAGS = tuple(name for name, (kind, _) in KINDS.items() if kind == <int>FA_FIXED_FLAG)
FORMATS = tuple(name for name, (kind, _) in KINDS.items() if kind in (<int>FA_STATE_DTYPE, <int>FA_MASTER_BITS))

cdef tuple STATE_DTYPES = ("float32", "bfloat16", "8bit")      # as fa_state_format has them
cdef object UNKNOWN = object()
cdef double NOT_ZERO = 0.5      # stands for what a schedule will return


cdef enum:
    NO_SCHEDULE = -1        # in a count's place: a callable is not a number

cdef object at(object value, int64_t count):
    """A schedule's value after `count` steps; anything else as it is."""
    return value if type(value) is float or count == NO_SCHEDULE or not callable(value) else value(count)


cdef int read_value(object value, str name, int kind, int64_t count, char *target) except -1:
    cdef double *number = <double *>target
    cdef tuple pair
    if kind == FA_MAGNITUDE:
        number[0] = as_magnitude(at(value, count), name)
    elif kind == FA_FLAG or kind == FA_FIXED_FLAG:
        (<int *>target)[0] = as_flag(value, name)
    elif kind == FA_BETAS:
        pair = as_pair(at(value, count))
        number[0], number[1] = as_beta(at(pair[0], count), "betas[0]"), as_beta(at(pair[1], count), "betas[1]")
    elif kind == FA_BETA:
        number[0] = as_beta(at(value, count), name)
    elif kind == FA_STATE_DTYPE:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be one of {', '.join(map(repr, STATE_DTYPES))}, got {value!r}")
        if value not in STATE_DTYPES:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, STATE_DTYPES))}, got {value!r}")
        (<int *>target)[0] = STATE_DTYPES.index(value)
    elif kind == FA_MASTER_BITS:
        if not (value is None or (type(value) is int and value in (32, 24))):
            raise ValueError(f"{name} must be None, 32 or 24, got {value!r}")
        (<int *>target)[0] = value or 0
    else:
        number[0] = as_magnitude(value, name)
    return 0


def has_schedule(value):
    """Is a hyper-parameter, or a part of it, a schedule?"""
    return callable(value) or (isinstance(value, (tuple, list)) and any(map(callable, value)))


cdef object without_schedule(object value):
    return NOT_ZERO if callable(value) else value


cdef int read_plain(dict group, fa_options *o) except -1:
    """A group's hyper-parameters, without calling its schedules: each step checks what they return."""
    memset(o, 0, sizeof(fa_options))
    for name, value in group.items():
        if name == "params":
            continue
        kind, offset = KINDS[name]
        if kind == FA_BETAS:
            pair = (NOT_ZERO, NOT_ZERO) if callable(value) else as_pair(value)
            value = without_schedule(pair[0]), without_schedule(pair[1])
        elif kind == FA_MAGNITUDE or kind == FA_BETA:
            value = without_schedule(value)
        read_value(value, name, kind, 0, <char *>o + <Py_ssize_t>offset)
    for name, is_on in (("amsgrad", o.amsgrad), ("centered", o.centered)):
        if is_on and o.state_dtype != FA_STATE_PLAIN:
            raise ValueError(f"{name}=True goes with state_dtype='float32' alone, got {group['state_dtype']!r}; leave "
                             "one of them out")
    return 0


def check_group(dict group):
    """Raise if a value in the group is out of range."""
    cdef fa_options options
    read_plain(group, &options)


cdef bint stays(object value):
    """The same object will always mean the same number."""
    kind = type(value)
    if kind is float:
        return True
    if kind is tuple:
        return all([stays(part) for part in <tuple>value])
    return kind is int or kind is bool or kind is str or value is None


@cython.final
cdef class Group:
    """What an engine knows of a group. The numbers are read again where the dict holds another object than before."""
    cdef fa_group c
    cdef const fa_family *family
    cdef list names             # of the family's hyper-parameters
    cdef tuple params
    cdef readonly int mask      # of the state that each parameter has: 1 M, 2 V, 4 W, EMA_BIT, SUM_BIT
    cdef bint amsgrad, centered     # when it was made
    cdef str where
    cdef list seen              # what the dict held when it was last read: name, value, ...
    cdef bint whole             # and that reading came to its end
    cdef fa_isa isa             # of the kernels
    cdef readonly object records    # counters of its parameters

    cdef int states_for(self, const fa_options *options) noexcept:
        return fa_kernel_of(FA_BASELINE, fa_rule_of(self.family, options), FA_FLOAT32).states

    def last_values(self):
        """The numbers among the hyper-parameters of its last step."""
        return self.numbers_in(&self.c.taken) if self.c.stepped else {}

    cdef dict numbers_in(self, const fa_options *options):
        cdef const double *number
        values = {}
        for name in self.names:
            kind, offset = KINDS[name]
            if kind in (FA_MAGNITUDE, FA_BETA, FA_BETAS, FA_INITIAL):
                number = <const double *>(<const char *>options + <Py_ssize_t>offset)
                values[name] = number[0]
                if kind == FA_BETAS:
                    values[name] = number[0], number[1]
        return values

    cdef int check_keys(self, dict values) except -1:
        expected = ["params", *self.names]
        for name in values:
            if name not in expected:
                raise ValueError(f"{self.where} has the unknown key {name!r}{did_you_mean(name, expected)}; "
                                 f"it must have {', '.join(expected)}") from None
        for name in expected:
            if name not in values:
                raise ValueError(f"{self.where} has lost its {name}; it must have {', '.join(expected)}") from None
        return 0

    cdef int check_params(self, object values) except -1:
        if type(values) is not dict:
            raise TypeError(f"{self.where} must be a dict, got a {type(values).__name__}")
        if len(<dict>values) != len(self.names) + 1 or (<dict>values).get("params") is not self.params:
            self.check_keys(values)
            raise ValueError(f"params was replaced in {self.where}; make a new optimizer. "
                             "(opt.rebind(key, array) replaces one array, add_param_group adds some)")
        return 0

    cdef int check_fixed(self, const fa_options *options) except -1:
        """State is made with the group, so what needs more of it is refused."""
        if options.amsgrad != self.amsgrad:
            raise ValueError(f"amsgrad was {self.amsgrad} when the group was added; make a new optimizer")
        if options.centered != self.centered:
            raise ValueError(f"centered was {self.centered} when the group was added; make a new optimizer")
        if options.state_dtype != self.c.state_dtype or options.master_bits != self.c.master_bits:
            raise ValueError(f"state_dtype was {STATE_DTYPES[self.c.state_dtype]!r} and master_bits "
                             f"{self.c.master_bits or None} when the group was added; set it back. For another, make "
                             "a new optimizer, and load the state_dict() of this one")
        if self.states_for(options) & ~self.mask:
            raise ValueError("momentum was 0 when the group was added, so there is no momentum_buffer; "
                             "make a new optimizer")
        if options.nesterov and options.dampening != 0.0:
            raise ValueError(f"nesterov=True needs dampening 0, got {options.dampening!r}")
        return 0

    def check(self, dict values, bint is_ours):
        """Raise unless these could be the hyper-parameters of the next step. A dict of ours must be complete, too."""
        cdef fa_options options
        if is_ours:
            self.check_params(values)
            self.check_keys(values)
        try:
            read_plain(values, &options)
            self.check_fixed(&options)
        except Exception as error:
            if is_ours:
                error.add_note(f"in {self.where}")
            raise

    cdef bint is_as_before(self, dict values) noexcept:
        """Does the dict hold the same objects as when it was last read? Runs no Python code, and takes little time."""
        cdef PyObject *name
        cdef PyObject *value
        cdef Py_ssize_t at = 0, k = 0
        if not self.whole:
            return False
        while PyDict_Next(values, &at, &name, &value):
            if name != <PyObject *>self.seen[k] or value != <PyObject *>self.seen[k + 1]:
                return False
            k += 2
        return True

    cdef int read(self, object values, int64_t count) except -1:
        """The hyper-parameters for the next step; schedules are called with `count`."""
        cdef fa_rule rule
        cdef int k
        if type(values) is not dict or 2 * len(<dict>values) != len(self.seen):
            self.check_params(values)
        if not self.is_as_before(<dict>values):
            self.read_changes(values, count)
        elif self.isa == chosen_isa:
            return 0
        rule = fa_rule_of(self.family, &self.c.options)
        for k in range(<int>FA_REALS):
            self.c.kernel[k] = fa_kernel_of(chosen_isa, rule, <fa_real>k)
            self.c.formats[k] = fa_formats_for(chosen_isa, self.family, <fa_state_format>self.c.state_dtype,
                                               (self.c.master_bits or FA_ALL_BITS) if k else 0)
        self.isa = chosen_isa
        return 0

    cdef int read_changes(self, object values, int64_t count) except -1:
        cdef fa_options *options = &self.c.options
        cdef bint known = self.whole
        cdef Py_ssize_t k = 0
        cdef list items = list((<dict>values).items())  # a schedule may change the dict
        cdef object name = None                         # of the value that is being read
        if 2 * len(items) != len(self.seen):
            self.check_params(values)
        self.whole = False                              # until all is checked, even if Ctrl-C ends it
        try:
            for key, value in items:
                if not (known and self.seen[k] is key and self.seen[k + 1] is value):
                    if key == "params":
                        if value is not self.params:
                            self.check_params(values)
                    elif key in self.names:
                        kind, offset = KINDS[key]
                        name = str(key)     # it may be of a subclass
                        read_value(value, name, kind, count, <char *>options + <Py_ssize_t>offset)
                        name = None
                    else:
                        raise KeyError(key)     # check_keys has the words
                    self.seen[k], self.seen[k + 1] = key, value if key == "params" or stays(value) else UNKNOWN
                k += 2
            # What check_fixed asks, without its strings.
            if (options.amsgrad != self.amsgrad or options.centered != self.centered
                    or options.state_dtype != self.c.state_dtype or options.master_bits != self.c.master_bits
                    or self.states_for(options) & ~self.mask or options.nesterov):
                self.check_fixed(options)
        except Exception as error:
            self.check_keys(values)
            if name is not None and has_schedule(values[name]):
                error.add_note(f"in the schedule {name}, called with the number of steps taken, {count}")
            error.add_note(f"in {self.where}")
            raise
        self.whole = True
        return 0
