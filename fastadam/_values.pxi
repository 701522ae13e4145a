# Numbers and flags: from what the user passed to what C reads, or an error that says what is allowed.

cpdef double as_number(object value, str name) except? -1.0:
    """Any real number: Python's, NumPy's scalars and 0-d arrays, and what other libraries' scalars convert to.

    float() alone would also parse text, and the bytes of anything that has a buffer."""
    if type(value) is float:
        return value
    if isinstance(value, (numpy.generic, numpy.ndarray)):
        real = value.dtype.kind in "iuf" and value.ndim == 0
    else:
        real = type(value) is not bool and (hasattr(type(value), "__float__") or hasattr(type(value), "__index__"))
    try:
        if real:
            return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got {value!r}") from None
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be a number, got {value!r}")


cdef object as_integer(object value, str name, str kind="an int"):
    """Any integer: Python's, NumPy's scalars and 0-d arrays, and what has __index__; a bool is none."""
    if type(value) is int:
        return value
    if not isinstance(value, (bool, numpy.bool_)):
        try:
            return PyNumber_Index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be {kind}, got {value!r}")


cdef double as_magnitude(object value, str name) except? -1.0:
    cdef double x = as_number(value, name)
    if not (isfinite(x) and x >= 0.0):
        raise ValueError(f"{name} must be finite and >= 0, got {value!r}")
    return x


cdef double as_beta(object value, str name) except? -1.0:
    cdef double x = as_number(value, name)
    if not 0.0 <= x < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")
    return x


cdef bint as_flag(object value, str name) except? -1:
    if value is True:
        return True
    if value is False:
        return False
    if isinstance(value, numpy.bool_):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {value!r}")


cdef double as_grad_scale(object value) except? -1.0:
    cdef double x = as_number(value, "grad_scale")
    if not isfinite(x):
        raise ValueError(f"grad_scale must be finite, got {value!r}")
    return x


cdef enum:
    PROPAGATE
    RAISE
    SKIP

cdef enum:
    EMA_BIT = 8         # beside 1 M, 2 V, 4 W
    SUM_BIT = 16


cdef double as_limit(object value, str name) except? -1.0:
    """A bound; infinity stands for None."""
    if value is None:
        return INFINITY
    cdef double x = as_number(value, name)
    if not x > 0.0:
        raise ValueError(f"{name} must be > 0 or None, got {value!r}")
    return x


cdef int as_nonfinite(object value) except -1:
    if type(value) is str and <str>value == "propagate":    # nearly always
        return PROPAGATE
    if not isinstance(value, str):
        raise TypeError(f"nonfinite must be a str, got {value!r}")
    modes = ("propagate", "raise", "skip")
    if value not in modes:
        raise ValueError(f"nonfinite must be one of {', '.join(modes)}, got {value!r}")
    return modes.index(value)


cdef int64_t as_accumulate(object value) except -1:
    n = as_integer(value, "accumulate")
    if not 1 <= n < 2**31:
        raise ValueError(f"accumulate must be >= 1 and less than 2**31, got {n}")
    return n


cdef struct Settings:       # what an optimizer does around its rule
    int threads
    double max_norm, max_value
    int nonfinite
    int64_t accumulate
    bint average
    double ema_decay


cdef int read_settings(tuple values, Settings *s) except -1:
    threads, max_norm, max_value, nonfinite, accumulate, ema_decay = values
    s.threads = as_threads(threads)
    s.max_norm = as_limit(max_norm, "max_norm")
    s.max_value = as_limit(max_value, "max_value")
    if s.max_norm < INFINITY and s.max_value < INFINITY:
        raise ValueError("max_norm and max_value cannot both be set; make one of them None")
    s.nonfinite = as_nonfinite(nonfinite)
    s.accumulate = as_accumulate(accumulate)
    s.average = ema_decay is not None
    s.ema_decay = as_number(ema_decay, "ema_decay") if s.average else 1.0
    if not 0.0 <= s.ema_decay <= 1.0:
        raise ValueError(f"ema_decay must be from 0 to 1 or None, got {ema_decay!r}")
    return 0


def arrays_for(tuple values):
    """Raise if a setting is out of range; else the arrays that the settings need, as bits of FA_EMA and FA_SUM."""
    cdef Settings s
    read_settings(values, &s)
    return (EMA_BIT if s.average else 0) | (SUM_BIT if s.accumulate > 1 else 0)


cdef int64_t as_step(object step) except -1:
    number = as_integer(step, "step", "an integer")
    if not 1 <= number < 2**63:
        raise ValueError(f"step counts from 1 and is less than 2**63, got {number}")
    return number


cdef as_pair(object betas):
    if type(betas) is tuple and len(betas) == 2:
        return betas
    try:
        if not hasattr(betas, "__next__"):      # an iterator could be read only once
            beta1, beta2 = betas
            return beta1, beta2
    except (TypeError, ValueError):
        pass
    raise TypeError(f"betas must be a pair of numbers, got {betas!r}")


# ---- hyper-parameters: what each may be, and where C has it

cdef enum:
    MAGNITUDE       # finite, >= 0
    BETA            # in [0, 1)
    BETAS           # a pair of these
    FLAG
    FIXED_FLAG      # decided when the group is made, because it needs state
    INITIAL         # a magnitude that only the first state depends on, so no schedule

cdef struct Field:
    int kind
    Py_ssize_t offset       # in fa_options

cdef double NOT_ZERO = 0.5   # for what a schedule will say later


cdef dict known_fields():
    cdef fa_options o
    cdef char *base = <char *>&o
    return {
        "lr": (MAGNITUDE, <char *>&o.lr - base),
        "betas": (BETAS, <char *>&o.beta1 - base),
        "eps": (MAGNITUDE, <char *>&o.eps - base),
        "eps_root": (MAGNITUDE, <char *>&o.eps_root - base),
        "weight_decay": (MAGNITUDE, <char *>&o.weight_decay - base),
        "decoupled_weight_decay": (FLAG, <char *>&o.decoupled_weight_decay - base),
        "amsgrad": (FIXED_FLAG, <char *>&o.amsgrad - base),
        "maximize": (FLAG, <char *>&o.maximize - base),
        "bias_correction": (FLAG, <char *>&o.bias_correction - base),
        "eps_hat": (FLAG, <char *>&o.eps_hat - base),
        "momentum": (MAGNITUDE, <char *>&o.momentum - base),
        "dampening": (MAGNITUDE, <char *>&o.dampening - base),
        "nesterov": (FLAG, <char *>&o.nesterov - base),
        "alpha": (BETA, <char *>&o.alpha - base),
        "centered": (FIXED_FLAG, <char *>&o.centered - base),
        "lr_decay": (MAGNITUDE, <char *>&o.lr_decay - base),
        "initial_accumulator_value": (INITIAL, <char *>&o.initial_accumulator_value - base),
        "momentum_decay": (MAGNITUDE, <char *>&o.momentum_decay - base),
    }

cdef dict FIELDS = known_fields()
HYPER_PARAMETERS = frozenset(FIELDS)    # of all optimizers


cdef object at(object value, int64_t count):
    """A schedule's value after `count` steps; anything else as it is."""
    return value if type(value) is float or not callable(value) else value(count)


cdef int read_value(object value, str name, int kind, int64_t count, char *target) except -1:
    cdef double *number = <double *>target
    if kind == MAGNITUDE:
        number[0] = as_magnitude(at(value, count), name)
    elif kind == FLAG or kind == FIXED_FLAG:
        (<int *>target)[0] = as_flag(value, name)
    elif kind == BETAS:
        beta1, beta2 = as_pair(at(value, count))
        number[0], number[1] = as_beta(at(beta1, count), "betas[0]"), as_beta(at(beta2, count), "betas[1]")
    elif kind == BETA:
        number[0] = as_beta(at(value, count), name)
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
        kind, offset = FIELDS[name]
        if kind == BETAS:
            pair = (NOT_ZERO, NOT_ZERO) if callable(value) else as_pair(value)
            value = without_schedule(pair[0]), without_schedule(pair[1])
        elif kind in (MAGNITUDE, BETA):
            value = without_schedule(value)
        read_value(value, name, kind, 0, <char *>o + <Py_ssize_t>offset)
    return 0


def check_group(dict group):
    """Raise if a value in the group is out of range."""
    cdef fa_options options
    read_plain(group, &options)
