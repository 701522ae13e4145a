"""The optimizers: one class for each rule, with its hyper-parameters. `Optimizer` does the rest."""

from typing import Any, Unpack

from fastadam._numbers import check_nesterov
from fastadam.containers import Container
from fastadam.optimizer import Optimizer
from fastadam.options import Betas, CommonOptions, Number, hyper_parameters


class Adam(Optimizer):
    r"""Adam over any number of NumPy arrays, in place, all of them in one parallel pass per step.

    .. math::
        m = \beta_1 m + (1-\beta_1) g, \quad v = \beta_2 v + (1-\beta_2) g^2, \quad
        p = p - \frac{lr}{1-\beta_1^t} \frac{m}{\sqrt{v/(1-\beta_2^t) + eps_{root}} + eps}

    Parameters
    ----------
    params : ndarray, iterable, mapping, these nested, or a list of groups
        p, float32, float64 or bfloat16, updated in place; see `Optimizer`.
    lr : float or callable, default 1e-3, finite, >= 0
        Learning rate. Every hyper-parameter that is a number may be a callable of the steps taken; see `Optimizer`.
    betas : pair of float, default (0.9, 0.999), each in [0, 1)
        Decay per step of the averages m of the gradient and v of its square.
    eps : float, default 1e-8, finite, >= 0
        Added to the root.
    weight_decay : float, default 0, finite, >= 0
        L2 penalty: g += weight_decay * p.
    decoupled_weight_decay : bool, default False
        AdamW instead: ``p *= 1 - lr * weight_decay``, and the gradient is left alone.
    amsgrad : bool, default False
        Divide by the largest v so far (a third state array).
    maximize : bool, default False
        Ascend: the gradient is negated.
    bias_correction : bool, default True
        False leaves out the two denominators 1 - beta**t.
    eps_root : float, default 0, finite, >= 0
        Added under the root (optax).
    eps_hat : bool, default False
        Add eps before the bias correction of v, as Keras, thinc and scikit-learn do: lr becomes
        lr * sqrt(1 - beta2**t), and v is not corrected.
    max_norm, max_norm_each, max_value, nonfinite, accumulate, ema_decay, threads, state_file, overrides
    state_dtype, master_bits, seed
        The common options: see `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        Something is of the wrong kind, dtype, value or shape; the message says what is allowed.

    Notes
    -----
    State: `exp_avg` (m), `exp_avg_sq` (v), and `max_exp_avg_sq` with amsgrad: 8 bytes for each float32 parameter, 16
    for float64; 12 and 24 with amsgrad. Subnormal moments are flushed to zero. As in ``torch.optim.Adam``, eps is added
    after the bias correction, AMSGrad takes the largest v before it (optax: after it), and the decay comes before the
    step. Keras's eps is 1e-7; docs/other-libraries.md has more. Choose it where gradients differ much in size between
    parameters; docs/comparison.md has it beside others, all with tuned rates.

    Examples
    --------
    Minimise x**2 from 5:

    >>> import numpy as np, fastadam
    >>> x = np.array([5.0])
    >>> opt = fastadam.Adam(x, lr=0.1)
    >>> for _ in range(200):
    ...     opt.step(2 * x)
    >>> bool(abs(x[0]) < 0.01)
    True

    References
    ----------
    Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015; Reddi et al., "On the Convergence of Adam
    and Beyond", ICLR 2018 (amsgrad).
    """

    _family = "Adam"

    def __init__(
        self,
        params: Container,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        amsgrad: bool = False,
        maximize: bool = False,
        bias_correction: bool = True,
        eps_root: Number = 0.0,
        eps_hat: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, hyper_parameters(locals()), **common)


class AdamW(Adam):
    r"""Adam with decoupled weight decay: `Adam` with ``decoupled_weight_decay=True``.

    .. math:: p = p (1 - lr \cdot weight\_decay), \quad \text{then Adam's step}

    Parameters
    ----------
    params, lr, betas, eps, amsgrad, maximize, bias_correction, eps_root, eps_hat
        As for `Adam`.
    max_norm, max_norm_each, max_value, nonfinite, accumulate, ema_decay, threads, state_file, overrides
    state_dtype, master_bits, seed
        The common options: see `Optimizer`.
    weight_decay : float or callable, default 1e-2, finite, >= 0
        Each step first multiplies the parameters by 1 - lr * weight_decay.

    Raises
    ------
    TypeError, ValueError
        As for `Adam`.

    Notes
    -----
    State and memory: as `Adam`. Choose it instead of Adam with an L2 penalty, whose pull is divided by sqrt(v) like
    any gradient, so that parameters with large gradients hardly decay. As in torch, the decay comes before the step,
    and lr multiplies it; optax's is part of the update and by default 1e-4, Keras's 4e-3, thinc's comes after the step
    (docs/other-libraries.md).

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> w = np.ones(2)
    >>> fastadam.AdamW(w, lr=0.1, weight_decay=0.5).step(np.zeros(2))
    >>> w
    array([0.95, 0.95])

    References
    ----------
    Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019. The rule is ``torch.optim.AdamW``'s.
    """

    def __init__(
        self,
        params: Container,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 1e-2,
        *,
        amsgrad: bool = False,
        maximize: bool = False,
        bias_correction: bool = True,
        eps_root: Number = 0.0,
        eps_hat: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        if "decoupled_weight_decay" in common:
            raise TypeError("AdamW's decay is always decoupled; for another use Adam(weight_decay=...)")
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            decoupled_weight_decay=True,
            amsgrad=amsgrad,
            maximize=maximize,
            bias_correction=bias_correction,
            eps_root=eps_root,
            eps_hat=eps_hat,
            **common,
        )


class NAdam(Optimizer):
    r"""Adam with Nesterov's momentum.

    .. math::
        \mu_t = \beta_1 (1 - 0.5 \cdot 0.96^{t \cdot momentum\_decay}), \quad
        p = p - lr \left( \frac{1-\mu_t}{1-\prod_{i \le t} \mu_i} g +
        \frac{\mu_{t+1}}{1-\prod_{i \le t+1} \mu_i} m \right) / \left( \sqrt{v/(1-\beta_2^t)} + eps \right)

    with m and v as in `Adam`.

    Parameters
    ----------
    params : ndarray, iterable, mapping, these nested, or a list of groups
        p, float32, float64 or bfloat16, updated in place; see `Optimizer`.
    lr : float or callable, default 2e-3, finite, >= 0
        Learning rate. Every hyper-parameter that is a number may be a callable of the steps taken; see `Optimizer`.
    betas : pair of float, default (0.9, 0.999), each in [0, 1)
        Decay per step of the averages m of the gradient and v of its square.
    eps : float, default 1e-8, finite, >= 0
        Added to the root.
    weight_decay : float, default 0, finite, >= 0
        L2 penalty: g += weight_decay * p.
    momentum_decay : float, default 4e-3, finite, >= 0
        How soon the momentum grows from half of beta1 to beta1.
    decoupled_weight_decay : bool, default False
        ``p *= 1 - lr * weight_decay`` instead, and the gradient is left alone.
    maximize : bool, default False
        Ascend: the gradient is negated.
    max_norm, max_norm_each, max_value, nonfinite, accumulate, ema_decay, threads, state_file, overrides
    state_dtype, master_bits, seed
        The common options: see `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        Something is of the wrong kind, dtype, value or shape; the message says what is allowed.

    Notes
    -----
    State: `exp_avg` (m), `exp_avg_sq` (v), and the number `mu_product`: 8 bytes for each float32 parameter, 16 for
    float64. As torch's; Keras has momentum_decay 1, optax no schedule of the momentum (docs/other-libraries.md). Choose
    it as Adam; it often starts faster.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> x = np.array([5.0])
    >>> fastadam.NAdam(x, lr=0.1).step(2 * x)
    >>> x.round(4)
    array([4.8944])

    References
    ----------
    Dozat, "Incorporating Nesterov Momentum into Adam", ICLR workshop 2016. The rule is ``torch.optim.NAdam``'s.
    """

    _family = "NAdam"

    def __init__(
        self,
        params: Container,
        lr: Number = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        momentum_decay: Number = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, hyper_parameters(locals()), **common)


class RAdam(Optimizer):
    r"""Adam that waits with adaptive steps until v is reliable.

    .. math::
        \rho_\infty = \frac{2}{1-\beta_2} - 1, \quad \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1-\beta_2^t}, \quad
        r = \sqrt{\frac{(\rho_t-4)(\rho_t-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho_t}}

    With m and v as in `Adam`: :math:`p = p - lr \cdot r \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t} \frac{m}{\sqrt{v}+eps}`
    where :math:`\rho_t > 5`, before that :math:`p = p - lr \cdot m / (1-\beta_1^t)`.

    Parameters
    ----------
    params : ndarray, iterable, mapping, these nested, or a list of groups
        p, float32, float64 or bfloat16, updated in place; see `Optimizer`.
    lr : float or callable, default 1e-3, finite, >= 0
        Learning rate. Every hyper-parameter that is a number may be a callable of the steps taken; see `Optimizer`.
    betas : pair of float, default (0.9, 0.999), each in [0, 1)
        Decay per step of the averages m of the gradient and v of its square.
    eps : float, default 1e-8, finite, >= 0
        Added to the root.
    weight_decay : float, default 0, finite, >= 0
        L2 penalty: g += weight_decay * p.
    decoupled_weight_decay : bool, default False
        ``p *= 1 - lr * weight_decay`` instead, and the gradient is left alone.
    maximize : bool, default False
        Ascend: the gradient is negated.
    max_norm, max_norm_each, max_value, nonfinite, accumulate, ema_decay, threads, state_file, overrides
    state_dtype, master_bits, seed
        The common options: see `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        Something is of the wrong kind, dtype, value or shape; the message says what is allowed.

    Notes
    -----
    State: `exp_avg` (m), `exp_avg_sq` (v): 8 bytes for each float32 parameter, 16 for float64. As torch's, which adds
    eps before the bias correction of v here (unlike in its Adam; optax after it) and rectifies where rho > 5 (the
    paper: 4); docs/other-libraries.md has more. The first steps are as long as gradients are large, like SGD's with
    momentum (5 by default): lr must suit that. There a gradient whose square overflows makes the parameter NaN.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> x = np.array([5.0])
    >>> fastadam.RAdam(x, lr=0.01).step(2 * x)
    >>> x
    array([4.9])

    References
    ----------
    Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020. The rule is
    ``torch.optim.RAdam``'s.
    """

    _family = "RAdam"

    def __init__(
        self,
        params: Container,
        lr: Number = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        decoupled_weight_decay: bool = False,
        *,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, hyper_parameters(locals()), **common)


class Adamax(Optimizer):
    r"""Adam with the largest recent gradient in place of the mean square.

    .. math::
        m = \beta_1 m + (1-\beta_1) g, \quad u = \max(\beta_2 u, |g| + eps), \quad
        p = p - \frac{lr}{1-\beta_1^t} \frac{m}{u}

    Parameters
    ----------
    params : ndarray, iterable, mapping, these nested, or a list of groups
        p, float32, float64 or bfloat16, updated in place; see `Optimizer`.
    lr : float or callable, default 2e-3, finite, >= 0
        Learning rate. Every hyper-parameter that is a number may be a callable of the steps taken; see `Optimizer`.
    betas : pair of float, default (0.9, 0.999), each in [0, 1)
        Decay per step of the average m of the gradient and of the largest gradient u.
    eps : float, default 1e-8, finite, >= 0
        Added to the size of the gradient.
    weight_decay : float, default 0, finite, >= 0
        L2 penalty: g += weight_decay * p.
    maximize : bool, default False
        Ascend: the gradient is negated.
    max_norm, max_norm_each, max_value, nonfinite, accumulate, ema_decay, threads, state_file, overrides
    state_dtype, master_bits, seed
        The common options: see `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        Something is of the wrong kind, dtype, value or shape; the message says what is allowed.

    Notes
    -----
    State: `exp_avg` (m), `exp_inf` (u): 8 bytes for each float32 parameter, 16 for float64. As torch's and optax's;
    Keras adds eps to u instead (docs/other-libraries.md). A single large gradient moves p little, but makes steps short
    for long, by default for more than a thousand of them. docs/choosing.md has figures, beside Adam's.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> x = np.array([5.0])
    >>> fastadam.Adamax(x, lr=0.1).step(2 * x)
    >>> x.round(6)
    array([4.9])

    References
    ----------
    Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, section 7.1. The rule is
    ``torch.optim.Adamax``'s.
    """

    _family = "Adamax"

    def __init__(
        self,
        params: Container,
        lr: Number = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, hyper_parameters(locals()), **common)


class SGD(Optimizer):
    r"""Stochastic gradient descent, with or without momentum.

    .. math::
        b = \mu b + (1 - dampening) g \;\; (b = g \text{ at first}), \quad p = p - lr \cdot b,
        \quad \text{or with nesterov } p = p - lr (g + \mu b)

    Parameters
    ----------
    params : ndarray, iterable, mapping, these nested, or a list of groups
        p, float32, float64 or bfloat16, updated in place; see `Optimizer`.
    lr : float or callable, default 1e-3, finite, >= 0
        Learning rate. Every hyper-parameter that is a number may be a callable of the steps taken; see `Optimizer`.
    momentum : float, default 0, finite, >= 0
        mu. 0 keeps no state; a group that starts with 0 cannot be given momentum later.
    dampening : float, default 0, finite, >= 0
        Makes gradients count less in the buffer.
    weight_decay : float, default 0, finite, >= 0
        L2 penalty: g += weight_decay * p.
    nesterov : bool, default False
        Look ahead; needs dampening 0, and momentum > 0 at first.
    maximize : bool, default False
        Ascend: the gradient is negated.
    max_norm, max_norm_each, max_value, nonfinite, accumulate, ema_decay, threads, state_file, overrides
    state_dtype, master_bits, seed
        The common options: see `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        Something is of the wrong kind, dtype, value or shape; the message says what is allowed.

    Notes
    -----
    State: `momentum_buffer` (b), only with momentum: 4 bytes for each float32 parameter, 8 for float64. As torch's and
    optax's; in Keras lr is inside the buffer, which differs once lr changes (docs/other-libraries.md). (With dampening,
    torch takes the first gradient whole when momentum first is above 0, this at step 1.) Choose it where the learning
    rate is tuned: it needs the least memory.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> x = np.array([5.0])
    >>> opt = fastadam.SGD(x, lr=0.1, momentum=0.5)
    >>> for _ in range(2):
    ...     opt.step(2 * x)
    >>> x
    array([2.7])

    References
    ----------
    Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Sutskever et al., "On the
    importance of initialization and momentum in deep learning", ICML 2013. The rule is ``torch.optim.SGD``'s.
    """

    _family = "SGD"

    def __init__(
        self,
        params: Container,
        lr: Number = 1e-3,
        momentum: Number = 0.0,
        dampening: Number = 0.0,
        weight_decay: Number = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, hyper_parameters(locals()), **common)

    @staticmethod
    def _check_group(group: dict[str, Any]) -> None:
        Optimizer._check_group(group)
        if group["nesterov"]:
            check_nesterov(group["momentum"], group["dampening"])


class RMSprop(Optimizer):
    r"""Gradients divided by the root of their mean square.

    .. math::
        v = \alpha v + (1-\alpha) g^2, \quad p = p - lr \frac{g}{\sqrt{v} + eps}

    With momentum :math:`b = \mu b + g / (\sqrt{v} + eps)` and :math:`p = p - lr \cdot b`; centered, the mean gradient's
    square is subtracted from v below the root.

    Parameters
    ----------
    params : ndarray, iterable, mapping, these nested, or a list of groups
        p, float32, float64 or bfloat16, updated in place; see `Optimizer`.
    lr : float or callable, default 1e-2, finite, >= 0
        Learning rate. Every hyper-parameter that is a number may be a callable of the steps taken; see `Optimizer`.
    alpha : float, default 0.99, in [0, 1)
        Decay per step of the averages.
    eps : float, default 1e-8, finite, >= 0
        Added to the root.
    weight_decay : float, default 0, finite, >= 0
        L2 penalty: g += weight_decay * p.
    momentum : float, default 0, finite, >= 0
        mu. A group that starts with 0 cannot be given momentum later.
    centered : bool, default False
        Divide by the standard deviation of the gradient instead.
    maximize : bool, default False
        Ascend: the gradient is negated.
    max_norm, max_norm_each, max_value, nonfinite, accumulate, ema_decay, threads, state_file, overrides
    state_dtype, master_bits, seed
        The common options: see `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        Something is of the wrong kind, dtype, value or shape; the message says what is allowed.

    Notes
    -----
    State: `square_avg` (v), `momentum_buffer` (b) with momentum, `grad_avg` when centered: 4 bytes each for a float32
    parameter, 8 for float64. As torch's, but a variance that rounding makes negative counts as 0, where torch's root is
    NaN. Keras and optax add eps under the root, have lr inside the momentum buffer, and alpha 0.9
    (docs/other-libraries.md). Choose it where the size of gradients drifts, as in reinforcement learning or recurrent
    nets.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> x = np.array([5.0])
    >>> fastadam.RMSprop(x, lr=0.1).step(2 * x)
    >>> x.round(6)
    array([4.])

    References
    ----------
    Tieleman & Hinton, Lecture 6.5 of "Neural Networks for Machine Learning", 2012; Graves, "Generating Sequences With
    Recurrent Neural Networks", 2013 (centered). The rule is ``torch.optim.RMSprop``'s.
    """

    _family = "RMSprop"

    def __init__(
        self,
        params: Container,
        lr: Number = 1e-2,
        alpha: Number = 0.99,
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        momentum: Number = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, hyper_parameters(locals()), **common)


class Adagrad(Optimizer):
    r"""Gradients divided by the root of the sum of all their squares.

    .. math::
        s = s + g^2, \quad p = p - \frac{lr}{1 + (t-1) \cdot lr\_decay} \frac{g}{\sqrt{s} + eps}

    Parameters
    ----------
    params : ndarray, iterable, mapping, these nested, or a list of groups
        p, float32, float64 or bfloat16, updated in place; see `Optimizer`.
    lr : float or callable, default 1e-2, finite, >= 0
        Learning rate. Every hyper-parameter that is a number may be a callable of the steps taken; see `Optimizer`.
    lr_decay : float, default 0, finite, >= 0
        Decay of the learning rate with the step t.
    weight_decay : float, default 0, finite, >= 0
        L2 penalty: g += weight_decay * p.
    initial_accumulator_value : float, default 0, finite, >= 0
        Where s starts. No schedule; changing it later changes nothing.
    eps : float, default 1e-10, finite, >= 0
        Added to the root.
    maximize : bool, default False
        Ascend: the gradient is negated.
    max_norm, max_norm_each, max_value, nonfinite, accumulate, ema_decay, threads, state_file, overrides
    state_dtype, master_bits, seed
        The common options: see `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        Something is of the wrong kind, dtype, value or shape; the message says what is allowed.

    Notes
    -----
    State: `sum` (s): 4 bytes for each float32 parameter, 8 for float64. As torch's; Keras and optax start s at 0.1 and
    add eps under the root (docs/other-libraries.md). Choose it for sparse features with a convex loss, and try
    lr 0.1 first: the default, torch's, is low. In long trainings its steps become ever smaller.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> x = np.array([5.0])
    >>> opt = fastadam.Adagrad(x, lr=0.5)
    >>> for _ in range(2):
    ...     opt.step(np.ones(1))
    >>> x.round(4)
    array([4.1464])

    References
    ----------
    Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", JMLR 2011.
    The rule is ``torch.optim.Adagrad``'s.
    """

    _family = "Adagrad"

    def __init__(
        self,
        params: Container,
        lr: Number = 1e-2,
        lr_decay: Number = 0.0,
        weight_decay: Number = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: Number = 1e-10,
        *,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, hyper_parameters(locals()), **common)


class RowAdagrad(Adagrad):
    r"""Adagrad with one number of state for each row of a table: row-wise Adagrad.

    .. math::
        s = s + \frac{1}{D} \sum_{j=1}^D g_j^2, \quad
        p = p - \frac{lr}{1 + (t-1) \cdot lr\_decay} \frac{g}{\sqrt{s} + eps}

    for each row p of D elements.

    Parameters
    ----------
    params : ndarray, iterable, mapping, these nested, or a list of groups
        Tables, C-contiguous, with at least one axis. A row is all that one index of the first axis selects.
    lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize
        As for `Adagrad`.
    max_norm, max_norm_each, max_value, nonfinite, accumulate, ema_decay, threads, state_file, overrides
    state_dtype, master_bits, seed
        The common options: see `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        As for `Adagrad`; a parameter that is 0-d or not C-contiguous.

    Notes
    -----
    State: `sum` (s), of shape (len(param),): 40 MB for a table of 10 million rows of 64 float32, where Adam keeps 5.1
    GB. Gradients may be `Rows`; one of the whole table updates all rows. Squares are summed in float64. torch has no
    such optimizer. Choose it for the embedding tables of recommenders: rows that appear often get smaller steps.

    Examples
    --------
    >>> import numpy as np, fastadam
    >>> table = np.ones((4, 2))
    >>> opt = fastadam.RowAdagrad(table, lr=0.5)
    >>> opt.step(fastadam.Rows(np.array([2]), np.array([[3.0, 4.0]])))
    >>> opt.state[0]["sum"], table[2].round(4)
    (array([ 0. ,  0. , 12.5,  0. ]), array([0.5757, 0.4343]))

    References
    ----------
    Duchi et al., as for `Adagrad`; Mudigere et al., "Software-Hardware Co-design for Fast and Scalable Training of Deep
    Learning Recommendation Models", ISCA 2022 (row-wise; FBGEMM's ``EXACT_ROWWISE_ADAGRAD``).
    """

    _family = "RowAdagrad"
