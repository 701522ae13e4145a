# Numbers and flags: from what the user passed to what C reads, or an error that says what is allowed.

cpdef double as_number(object value, str name) except? -1.0:
    """Any real number: Python's, NumPy's scalars and 0-d arrays, and what other libraries' scalars convert to."""
    if type(value) is float:
        return value
    if isinstance(value, (numpy.generic, numpy.ndarray)):
        real = value.dtype.kind in "iuf" and value.ndim == 0
    else:
        real = not isinstance(value, (bool, str, bytes, bytearray, complex))
    try:
        if real:
            return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got {value!r}") from None
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be a number, got {value!r}")


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


cpdef double as_max_norm(object value) except? -1.0:
    """The largest norm that is left alone; infinity stands for None."""
    if value is None:
        return INFINITY
    cdef double x = as_number(value, "max_norm")
    if not x > 0.0:
        raise ValueError(f"max_norm must be > 0 or None, got {value!r}")
    return x


cpdef int as_nonfinite(object value) except -1:
    if not isinstance(value, str):
        raise TypeError(f"nonfinite must be a str, got {value!r}")
    modes = ("propagate", "raise", "skip")
    if value not in modes:
        raise ValueError(f"nonfinite must be one of {', '.join(modes)}, got {value!r}")
    return modes.index(value)


cdef int64_t as_step(object step) except -1:
    try:
        number = PyNumber_Index(step)
    except TypeError:
        raise TypeError(f"step must be an integer, got {step!r}") from None
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


cdef int set_options(fa_adam_options *o, lr, betas, eps, weight_decay, eps_root, decoupled_weight_decay, amsgrad,
                     maximize, bias_correction, eps_hat) except -1:
    beta1, beta2 = as_pair(betas)
    o.lr = as_magnitude(lr, "lr")
    o.beta1 = as_beta(beta1, "betas[0]")
    o.beta2 = as_beta(beta2, "betas[1]")
    o.eps = as_magnitude(eps, "eps")
    o.weight_decay = as_magnitude(weight_decay, "weight_decay")
    o.eps_root = as_magnitude(eps_root, "eps_root")
    o.decoupled = as_flag(decoupled_weight_decay, "decoupled_weight_decay")
    o.amsgrad = as_flag(amsgrad, "amsgrad")
    o.maximize = as_flag(maximize, "maximize")
    o.bias_correction = as_flag(bias_correction, "bias_correction")
    o.eps_hat = as_flag(eps_hat, "eps_hat")
    return 0


cdef object at(object value, int64_t count):
    """A schedule's value after `count` steps; anything else as it is."""
    return value(count) if type(value) is not float and callable(value) else value


cdef int read_group(dict group, int64_t count, fa_adam_options *o) except -1:
    """What a group asks for, its schedules called with `count`."""
    beta1, beta2 = as_pair(at(group["betas"], count))
    return set_options(
        o, at(group["lr"], count), (at(beta1, count), at(beta2, count)), at(group["eps"], count),
        at(group["weight_decay"], count), at(group["eps_root"], count), group["decoupled_weight_decay"],
        group["amsgrad"], group["maximize"], group["bias_correction"], group["eps_hat"])


def check_group(dict group):
    """Raise if a value in the group is out of range. Schedules are not called: each step checks what they return."""
    cdef fa_adam_options options
    plain = dict(group)
    for name in SCHEDULABLE:
        if callable(plain[name]):
            plain[name] = 0.0
    if callable(plain["betas"]):
        plain["betas"] = (0.0, 0.0)
    plain["betas"] = tuple([0.0 if callable(beta) else beta for beta in as_pair(plain["betas"])])
    read_group(plain, 0, &options)
