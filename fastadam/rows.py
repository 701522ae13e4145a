"""The optimizer that keeps one number for each row of a table."""

from typing import Unpack

from fastadam.containers import Container
from fastadam.optimizer import Optimizer
from fastadam.options import CommonOptions, Number, hyper_parameters


class RowAdagrad(Optimizer):
    r"""Adagrad with one number of state for each row of a table: row-wise Adagrad.

    .. math::
        s = s + \frac{1}{D} \sum_{j=1}^D g_j^2, \quad
        p = p - \frac{lr}{1 + (t-1) \cdot lr\_decay} \frac{g}{\sqrt{s} + eps}

    for each row p of D elements.

    Parameters
    ----------
    params : ndarray, iterable, mapping, these nested, or a list of groups
        Tables of rows, float32 or float64, with at least one axis, C-contiguous, updated in place; see `Optimizer`. A
        row is all that one index of the first axis selects.
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
    max_norm, max_value, nonfinite, accumulate, ema_decay, threads, state_file, overrides
        The common options: see `Optimizer`.

    Raises
    ------
    TypeError, ValueError
        Something is of the wrong kind, dtype, value or shape; the message says what is allowed.

    Notes
    -----
    State: `sum` (s), of shape (len(param),): 40 MB for a table of 10 million rows of 64 float32, where Adam keeps 5.1
    GB. Gradients may be `Rows`; one of the whole table updates all rows. Squares are summed in float64. torch has no
    such optimizer; FBGEMM's (``EXACT_ROWWISE_ADAGRAD``) adds the same mean. Choose it for the embedding tables of
    recommenders: rows that appear often get smaller steps, and a row's elements share one.

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
    Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", JMLR 2011;
    Mudigere et al., "Software-Hardware Co-design for Fast and Scalable Training of Deep Learning Recommendation
    Models", ISCA 2022 (row-wise).
    """

    _family = "RowAdagrad"

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
