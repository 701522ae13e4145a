# The functions: a step of each rule, for state that the caller keeps. What they do is in _update.pxi.


cdef Rule ADAM = Rule("Adam", "lr betas eps weight_decay decoupled_weight_decay amsgrad maximize "
                      "bias_correction eps_root eps_hat",
                      {"max_exp_avg_sq": "amsgrad=True"})


def adam_update(param=MISSING, grad=MISSING, exp_avg=MISSING, exp_avg_sq=MISSING, step=MISSING, *, lr=1e-3,
                betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False, amsgrad=False,
                max_exp_avg_sq=None, maximize=False, bias_correction=True, eps_root=0.0, eps_hat=False, grad_scale=1.0,
                rows=None, threads=None, **unknown):
    """Apply one step of Adam to an array, or to many in one pass, in place, with state that you keep.

    .. math::
        m = \\beta_1 m + (1-\\beta_1) g, \\quad v = \\beta_2 v + (1-\\beta_2) g^2, \\quad
        p = p - \\frac{lr}{1-\\beta_1^t} \\frac{m}{\\sqrt{v/(1-\\beta_2^t) + eps_{root}} + eps}

    Parameters
    ----------
    param : ndarray of float32 or float64, or a list or tuple of them
        p, updated in place. Native byte order, aligned, writeable, dense with its axes in any order. Rows that are
        picked, ``table[rows]``, are a copy: it would be updated, and the table not; give `rows`.
    grad : ndarray of a real floating type, or as many
        g, of the same shape, only read. float16 and bfloat16 are converted on the way if `param` is float32. Any other
        dtype or memory order than `param`'s costs a copy and a `PerformanceWarning`. For a 0-d `param` also a NumPy
        floating scalar.
    exp_avg, exp_avg_sq : ndarray, or as many
        m and v, updated in place, with the shape, dtype and memory order of `param`. Zeros at the start.
    step : int, >= 1, or a list or tuple of as many
        t, the number of this step, counted from 1.
    lr : float, default 1e-3, finite, >= 0
        Learning rate.
    betas : pair of float, default (0.9, 0.999), each in [0, 1)
        Decay of the two averages per step.
    eps : float, default 1e-8, finite, >= 0
        Added to the root.
    weight_decay : float, default 0, finite, >= 0
        L2 penalty: g += weight_decay * p.
    decoupled_weight_decay : bool, default False
        AdamW instead: ``p *= 1 - lr * weight_decay``, and the gradient is left alone.
    amsgrad : bool, default False
        Divide by the largest v so far, kept in `max_exp_avg_sq`.
    max_exp_avg_sq : ndarray, or as many, or None, default None
        With `amsgrad` only; like `exp_avg_sq`.
    maximize : bool, default False
        Ascend: the gradient is negated.
    bias_correction : bool, default True
        False leaves out the two denominators 1 - beta**t.
    eps_root : float, default 0, finite, >= 0
        Added under the root (optax).
    eps_hat : bool, default False
        Add eps before the bias correction of v (Keras, thinc, scikit-learn): lr becomes
        lr * sqrt(1 - beta2**t) and v is not corrected.
    grad_scale : float, default 1, finite
        Multiplies the gradient.
    rows : ndarray of int32 or int64, shape (k,), default None
        Update these rows of a table alone. `grad` is then theirs, of shape (k,) + param.shape[1:]; see `Rows`. For
        many arrays one ndarray or None each.
    threads : int, 1 to 1024, or None, default None
        An order for exactly that many threads (at most one per cache line); None chooses. Where the system has fewer
        to give, a `RuntimeWarning` says so before the step takes those.

    Raises
    ------
    TypeError
        Wrong kind of argument or dtype.
    ValueError
        Wrong value, shape, byte order, alignment, memory order or number of items; a read-only array; arrays that
        overlap; state that these hyper-parameters need and that is not there, or the other way round.
    IndexError
        A row that the table does not have. Whatever is raised, nothing has changed.

    Notes
    -----
    Many arrays give the bits of one call each, in any order.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, m, v = np.ones(3), np.zeros(3), np.zeros(3)
    >>> for step in 1, 2:
    ...     fastadam.adam_update(p, 2 * p, m, v, step, lr=0.1)
    >>> p
    array([0.80041223, 0.80041223, 0.80041223])

    References
    ----------
    Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015. The placement of eps is torch's.
    """
    return ADAM.update(adam_update, param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, step, None, [<Borrowed>lr,
                       <Borrowed>betas, <Borrowed>eps, <Borrowed>weight_decay, <Borrowed>decoupled_weight_decay,
                       <Borrowed>amsgrad, <Borrowed>maximize, <Borrowed>bias_correction, <Borrowed>eps_root,
                       <Borrowed>eps_hat], grad_scale, rows, threads, unknown)


cdef Rule NADAM = Rule("NAdam", "lr betas eps weight_decay momentum_decay decoupled_weight_decay maximize")


def nadam_update(param=MISSING, grad=MISSING, exp_avg=MISSING, exp_avg_sq=MISSING, step=MISSING, mu_product=MISSING, *,
                 lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, momentum_decay=4e-3,
                 decoupled_weight_decay=False, maximize=False, grad_scale=1.0, rows=None, threads=None, **unknown):
    """Apply one step of NAdam as `adam_update` does one of Adam, and return the new `mu_product`.

    .. math::
        \\mu_t = \\beta_1 (1 - 0.5 \\cdot 0.96^{t \\cdot momentum\\_decay}), \\quad
        p = p - lr \\left( \\frac{1-\\mu_t}{1-\\prod_{i \\le t} \\mu_i} g +
        \\frac{\\mu_{t+1}}{1-\\prod_{i \\le t+1} \\mu_i} m \\right) / \\left( \\sqrt{v/(1-\\beta_2^t)} + eps \\right)

    Parameters
    ----------
    param, grad, exp_avg, exp_avg_sq, step
        As for `adam_update`.
    mu_product : float from 0 to 1, or a list or tuple of as many
        The product of the momenta of all steps so far, 1.0 before the first.
    lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay
        As for `NAdam`, with its defaults; no schedules.
    maximize, grad_scale, rows, threads
        As for `adam_update`.

    Returns
    -------
    float, or list of float
        `mu_product` for the next step.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `adam_update`; nothing has changed.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, m, v, product = np.ones(2), np.zeros(2), np.zeros(2), 1.0
    >>> for step in 1, 2:
    ...     product = fastadam.nadam_update(p, 2 * p, m, v, step, product, lr=0.1)
    >>> p.round(4), round(product, 4)
    (array([0.82, 0.82]), 0.2026)

    References
    ----------
    Dozat, "Incorporating Nesterov Momentum into Adam", ICLR workshop 2016. The rule is that of `NAdam`.
    """
    if mu_product is None:      # which other rules give
        _numbers.as_product(mu_product, "mu_product")
    return NADAM.update(nadam_update, param, grad, exp_avg, exp_avg_sq, None, step, mu_product, [<Borrowed>lr,
                        <Borrowed>betas, <Borrowed>eps, <Borrowed>weight_decay, <Borrowed>momentum_decay,
                        <Borrowed>decoupled_weight_decay, <Borrowed>maximize], grad_scale, rows, threads, unknown)


cdef Rule RADAM = Rule("RAdam", "lr betas eps weight_decay decoupled_weight_decay maximize")


def radam_update(param=MISSING, grad=MISSING, exp_avg=MISSING, exp_avg_sq=MISSING, step=MISSING, *, lr=1e-3,
                 betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False, maximize=False,
                 grad_scale=1.0, rows=None, threads=None, **unknown):
    """Apply one step of RAdam as `adam_update` does one of Adam.

    .. math::
        p = p - lr \\cdot r \\frac{\\sqrt{1-\\beta_2^t}}{1-\\beta_1^t} \\frac{m}{\\sqrt{v}+eps} \\; (\\rho_t > 5),
        \\quad p = p - lr \\frac{m}{1-\\beta_1^t} \\; \\text{before that}

    Parameters
    ----------
    param, grad, exp_avg, exp_avg_sq, step
        As for `adam_update`.
    lr, betas, eps, weight_decay, decoupled_weight_decay
        As for `RAdam`, which says what r and rho are, with its defaults; no schedules.
    maximize, grad_scale, rows, threads
        As for `adam_update`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `adam_update`; nothing has changed.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> fastadam.radam_update(p, np.array([3.0, -0.5]), m, v, 1, lr=0.1)
    >>> p
    array([0.7 , 1.05])

    References
    ----------
    Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020. The rule is that of `RAdam`.
    """
    return RADAM.update(radam_update, param, grad, exp_avg, exp_avg_sq, None, step, None, [<Borrowed>lr,
                        <Borrowed>betas, <Borrowed>eps, <Borrowed>weight_decay, <Borrowed>decoupled_weight_decay,
                        <Borrowed>maximize], grad_scale, rows, threads, unknown)


cdef Rule ADAMAX = Rule("Adamax", "lr betas eps weight_decay maximize")


def adamax_update(param=MISSING, grad=MISSING, exp_avg=MISSING, exp_inf=MISSING, step=MISSING, *, lr=2e-3,
                  betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, maximize=False, grad_scale=1.0, rows=None,
                  threads=None, **unknown):
    """Apply one step of Adamax as `adam_update` does one of Adam.

    .. math::
        m = \\beta_1 m + (1-\\beta_1) g, \\quad u = \\max(\\beta_2 u, |g| + eps), \\quad
        p = p - \\frac{lr}{1-\\beta_1^t} \\frac{m}{u}

    Parameters
    ----------
    param, grad, step
        As for `adam_update`.
    exp_avg, exp_inf : ndarray, or as many
        m and u, as `adam_update` has m and v.
    lr, betas, eps, weight_decay
        As for `Adamax`, with its defaults; no schedules.
    maximize, grad_scale, rows, threads
        As for `adam_update`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `adam_update`; nothing has changed.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, m, u = np.ones(2), np.zeros(2), np.zeros(2)
    >>> fastadam.adamax_update(p, np.array([3.0, -0.5]), m, u, 1, lr=0.1)
    >>> p.round(6)
    array([0.9, 1.1])

    References
    ----------
    Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, section 7.1. The rule is that of `Adamax`.
    """
    return ADAMAX.update(adamax_update, param, grad, exp_avg, exp_inf, None, step, None, [<Borrowed>lr, <Borrowed>betas,
                         <Borrowed>eps, <Borrowed>weight_decay, <Borrowed>maximize], grad_scale, rows, threads, unknown)


cdef Rule SGD = Rule("SGD", "lr momentum dampening weight_decay nesterov maximize", {"momentum_buffer": "momentum > 0"})


def sgd_update(param=MISSING, grad=MISSING, step=MISSING, *, momentum_buffer=None, lr=1e-3, momentum=0.0, dampening=0.0,
               weight_decay=0.0, nesterov=False, maximize=False, grad_scale=1.0, rows=None, threads=None, **unknown):
    """Apply one step of stochastic gradient descent as `adam_update` does one of Adam.

    .. math::
        b = \\mu b + (1 - dampening) g \\;\\; (b = g \\text{ at step } 1), \\quad p = p - lr \\cdot b,
        \\quad \\text{or with nesterov } p = p - lr (g + \\mu b)

    Parameters
    ----------
    param, grad, step
        As for `adam_update`.
    momentum_buffer : ndarray, or as many, or None, default None
        With momentum > 0 only. b, as `adam_update` has m.
    lr, momentum, dampening, weight_decay, nesterov
        As for `SGD`, with its defaults; no schedules.
    maximize, grad_scale, rows, threads
        As for `adam_update`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `adam_update`; nothing has changed.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> layers = [np.ones(2), np.ones(3)]
    >>> grads, buffers = [np.ones(2), np.zeros(3)], [np.zeros(2), np.zeros(3)]
    >>> for step in 1, 2:
    ...     fastadam.sgd_update(layers, grads, step, momentum_buffer=buffers, lr=0.1, momentum=0.5)
    >>> layers
    [array([0.75, 0.75]), array([1., 1., 1.])]

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. The rule is that of `SGD`.
    """
    return SGD.update(sgd_update, param, grad, momentum_buffer, None, None, step, None, [<Borrowed>lr,
                      <Borrowed>momentum, <Borrowed>dampening, <Borrowed>weight_decay, <Borrowed>nesterov,
                      <Borrowed>maximize], grad_scale, rows, threads, unknown)


cdef Rule RMSPROP = Rule("RMSprop", "lr alpha eps weight_decay momentum centered maximize",
                         {"momentum_buffer": "momentum > 0", "grad_avg": "centered=True"})


def rmsprop_update(param=MISSING, grad=MISSING, square_avg=MISSING, step=MISSING, *, momentum_buffer=None,
                   grad_avg=None, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False,
                   maximize=False, grad_scale=1.0, rows=None, threads=None, **unknown):
    """Apply one step of RMSprop as `adam_update` does one of Adam.

    .. math::
        v = \\alpha v + (1-\\alpha) g^2, \\quad p = p - lr \\frac{g}{\\sqrt{v} + eps}

    Parameters
    ----------
    param, grad, step
        As for `adam_update`.
    square_avg : ndarray, or as many
        v, as `adam_update` has it.
    momentum_buffer : ndarray, or as many, or None, default None
        With momentum > 0 only. Zeros at the start.
    grad_avg : ndarray, or as many, or None, default None
        With `centered` only. The mean gradient. Zeros at the start.
    lr, alpha, eps, weight_decay, momentum, centered
        As for `RMSprop`, with its defaults; no schedules.
    maximize, grad_scale, rows, threads
        As for `adam_update`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `adam_update`; nothing has changed.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, v = np.ones(2), np.zeros(2)
    >>> fastadam.rmsprop_update(p, np.array([3.0, -0.5]), v, 1, lr=0.1)
    >>> p.round(6)
    array([0., 2.])

    References
    ----------
    Tieleman & Hinton, Lecture 6.5 of "Neural Networks for Machine Learning", 2012. The rule is that of `RMSprop`.
    """
    return RMSPROP.update(rmsprop_update, param, grad, grad_avg, square_avg, momentum_buffer, step, None, [<Borrowed>lr,
                          <Borrowed>alpha, <Borrowed>eps, <Borrowed>weight_decay, <Borrowed>momentum,
                          <Borrowed>centered, <Borrowed>maximize], grad_scale, rows, threads, unknown)


cdef Rule ADAGRAD = Rule("Adagrad", "lr lr_decay weight_decay initial_accumulator_value eps maximize")


def adagrad_update(param=MISSING, grad=MISSING, sum=MISSING, step=MISSING, *, lr=1e-2, lr_decay=0.0, weight_decay=0.0,
                   initial_accumulator_value=0.0, eps=1e-10, maximize=False, grad_scale=1.0, rows=None, threads=None,
                   **unknown):
    """Apply one step of Adagrad as `adam_update` does one of Adam.

    .. math::
        s = s + g^2, \\quad p = p - \\frac{lr}{1 + (t-1) \\cdot lr\\_decay} \\frac{g}{\\sqrt{s} + eps}

    Parameters
    ----------
    param, grad, step
        As for `adam_update`.
    sum : ndarray, or as many
        s, as `adam_update` has v. It starts at `initial_accumulator_value`, which is not used here.
    lr, lr_decay, weight_decay, initial_accumulator_value, eps
        As for `Adagrad`, with its defaults; no schedules.
    maximize, grad_scale, rows, threads
        As for `adam_update`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `adam_update`; nothing has changed.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> p, s = np.ones(2), np.zeros(2)
    >>> fastadam.adagrad_update(p, np.array([3.0, -0.5]), s, 1, lr=0.1)
    >>> p.round(6)
    array([0.9, 1.1])

    References
    ----------
    Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", JMLR 2011.
    The rule is that of `Adagrad`.
    """
    return ADAGRAD.update(adagrad_update, param, grad, None, sum, None, step, None, [<Borrowed>lr, <Borrowed>lr_decay,
                          <Borrowed>weight_decay, <Borrowed>initial_accumulator_value, <Borrowed>eps,
                          <Borrowed>maximize], grad_scale, rows, threads, unknown)


cdef Rule ROW_ADAGRAD = Rule("RowAdagrad", "lr lr_decay weight_decay initial_accumulator_value eps maximize")


def rowadagrad_update(param=MISSING, grad=MISSING, sum=MISSING, step=MISSING, *, lr=1e-2, lr_decay=0.0,
                      weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10, maximize=False, grad_scale=1.0,
                      rows=None, threads=None, **unknown):
    """Apply one step of row-wise Adagrad to a table, or to many, as `adam_update` does one of Adam.

    .. math::
        s = s + \\frac{1}{D} \\sum_{j=1}^D g_j^2, \\quad
        p = p - \\frac{lr}{1 + (t-1) \\cdot lr\\_decay} \\frac{g}{\\sqrt{s} + eps}

    Parameters
    ----------
    param : ndarray of float32 or float64, or a list or tuple of them
        Tables, C-contiguous, with at least one axis.
    sum : ndarray of shape (len(param),), or as many
        s, a number for each row of D elements. It starts at `initial_accumulator_value`, which is not used here.
    lr, lr_decay, weight_decay, initial_accumulator_value, eps
        As for `RowAdagrad`, with its defaults; no schedules.
    grad, step, maximize, grad_scale, rows, threads
        As for `adam_update`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `adam_update`; nothing has changed.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> table, s = np.ones((4, 2)), np.zeros(4)
    >>> fastadam.rowadagrad_update(table, np.array([[3.0, 4.0]]), s, 1, lr=0.5, rows=np.array([2]))
    >>> s, table[2].round(4)
    (array([ 0. ,  0. , 12.5,  0. ]), array([0.5757, 0.4343]))

    References
    ----------
    As for `adagrad_update`; the rule is that of `RowAdagrad`.
    """
    return ROW_ADAGRAD.update(rowadagrad_update, param, grad, None, sum, None, step, None, [<Borrowed>lr,
                              <Borrowed>lr_decay, <Borrowed>weight_decay, <Borrowed>initial_accumulator_value,
                              <Borrowed>eps, <Borrowed>maximize], grad_scale, rows, threads, unknown)


cdef int sign(tuple functions) except -1:
    """For `help`: the signature of a Python function."""
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        function.__signature__ = inspect.Signature([p.replace(default=p.empty) if p.default is MISSING else p
                                                    for p in parameters if p.kind != p.VAR_KEYWORD])


sign((adam_update, nadam_update, radam_update, adamax_update, sgd_update, rmsprop_update, adagrad_update,
      rowadagrad_update))
