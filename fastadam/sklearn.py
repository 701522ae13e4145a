"""scikit-learn's multi-layer perceptrons with fastadam's steps: FastMLPClassifier, FastMLPRegressor, AdamOptimizer.

Nothing of scikit-learn is patched. It has no public way to choose an optimizer, so this leans on two private things:
the class AdamOptimizer, and that a fit assigns one to an attribute. Tried with scikit-learn 1.5 and 1.9. If a release
moves the class you get an ImportError, and if it no longer uses it a RuntimeError after the first epoch.
"""

import math
import warnings
from typing import Any

import numpy as np
import sklearn
from sklearn import neural_network
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer as StockOptimizer

import fastadam

__all__ = ["AdamOptimizer", "FastMLPClassifier", "FastMLPRegressor"]

FLOAT64 = (
    "gradients are float64 and weights float32, so gradients are copied at every step; "
    "give y and sample_weight as float32, too"
)


class AdamOptimizer(StockOptimizer):
    """scikit-learn's AdamOptimizer, stepped in one pass: the same arguments and attributes.

    .. math::
        p = p - lr \\frac{\\sqrt{1-\\beta_2^t}}{1-\\beta_1^t} \\frac{m}{\\sqrt{v} + epsilon}

    In float64 the results have scikit-learn's bits. In float32 they differ in the last place: scikit-learn computes
    a part of its update in float64.

    Parameters
    ----------
    params : list of ndarray
        The arrays to be updated, of float32 or float64 and any shape.
    learning_rate_init : float, default 0.001, >= 0
        lr.
    beta_1, beta_2 : float, default 0.9 and 0.999, in [0, 1)
        Decay of m and v per step. As in scikit-learn, beta_2 may be 1: then v stays zero.
    epsilon : float, default 1e-8, >= 0
        Added to the root.

    Attributes
    ----------
    t : int
        Steps taken.
    ms, vs : list of ndarray
        m and v of each array, changed in place by each step.
    learning_rate : float
        lr times the corrections of the last step.

    Raises
    ------
    TypeError, ValueError
        A step was given something that `fastadam.adam_update` refuses; nothing has changed then.

    Examples
    --------
    >>> import numpy as np
    >>> from fastadam.sklearn import AdamOptimizer
    >>> weights = [np.ones((2, 2)), np.zeros(2)]
    >>> adam = AdamOptimizer(weights, learning_rate_init=0.1)
    >>> adam.update_params(weights, [np.ones((2, 2)), np.ones(2)])
    >>> weights[1].round(4), adam.t
    (array([-0.1, -0.1]), 1)

    References
    ----------
    ``sklearn/neural_network/_stochastic_optimizers.py`` of scikit-learn 1.9.
    """

    t: int
    threads: int | None = None
    """As for `fastadam.adam_update`."""
    _warned = False

    def update_params(self, params: Any, grads: Any) -> None:
        """Update the arrays `params` in place."""
        if self.beta_2 == 1:  # m alone changes; fastadam refuses it
            super().update_params(params, grads)
            return
        params, grads = list(params), list(grads)
        if len(params) == len(grads) and any(map(_must_be_narrowed, params, grads)):
            if not self._warned:
                warnings.warn(FLOAT64, fastadam.PerformanceWarning, stacklevel=2)
            self._warned = True
            with np.errstate(all="ignore"):  # what overflows is infinite, as in every step
                pairs = zip(params, grads, strict=True)
                grads = [g.astype("float32") if _must_be_narrowed(p, g) else g for p, g in pairs]
        t, betas = self.t + 1, (self.beta_1, self.beta_2)
        options = {"lr": self.learning_rate_init, "betas": betas, "eps": self.epsilon, "threads": self.threads}
        fastadam.adam_update(params, grads, self.ms, self.vs, t, eps_hat=True, **options)
        self.t = t
        self.learning_rate = self.learning_rate_init * math.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)


def _must_be_narrowed(param: Any, grad: Any) -> bool:
    return isinstance(grad, np.ndarray) and grad.dtype == "float64" and getattr(param, "dtype", None) == "float32"


class _Fast:
    """Comes before one of scikit-learn's MLP classes."""

    optimizer_class: type[Any] = AdamOptimizer
    """Takes the steps. A class of your own derives from AdamOptimizer, and counts its steps in t."""

    solver: str
    coefs_: list[Any]
    intercepts_: list[Any]
    _steps_seen = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if type(value) is StockOptimizer:  # each fit, and the first partial_fit, assigns one
            value = self._optimizer_like(value)
            self._steps_seen = 0
        elif name == "n_iter_" and value and self.solver == "adam":  # an epoch is over
            steps = next((each.t for each in vars(self).values() if isinstance(each, self.optimizer_class)), 0)
            if steps == self._steps_seen:
                raise RuntimeError(
                    f"scikit-learn {sklearn.__version__} did not step with fastadam, although solver='adam'; "
                    "it was tried with scikit-learn 1.5 and 1.9"
                )
            self._steps_seen = steps
        super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a model that scikit-learn's own class has trained, too: its moments are taken over."""
        super().__setstate__(state)  # type: ignore[misc]
        for name, stock in [(name, each) for name, each in vars(self).items() if type(each) is StockOptimizer]:
            setattr(self, name, stock)
            ours = vars(self)[name]
            ours.t, ours.ms, ours.vs = stock.t, stock.ms, stock.vs

    def _optimizer_like(self, stock: StockOptimizer) -> Any:
        if not hasattr(self.optimizer_class, "update_params"):
            raise TypeError(
                f"optimizer_class must be derived from fastadam.sklearn.AdamOptimizer, got {self.optimizer_class!r}; "
                "one with an optimizer of your own is in docs/adapters.md"
            )
        params = [*self.coefs_, *self.intercepts_]
        return self.optimizer_class(params, stock.learning_rate_init, stock.beta_1, stock.beta_2, stock.epsilon)


class FastMLPClassifier(_Fast, neural_network.MLPClassifier):
    """MLPClassifier whose steps are fastadam's.

    Parameters
    ----------
    **options
        Those of ``sklearn.neural_network.MLPClassifier``, with its defaults. Only ``solver="adam"``, the default, is
        stepped by fastadam. Give it float32 X: half the memory to move. And float32 sample_weight: otherwise gradients
        are float64, and are copied.

    Attributes
    ----------
    optimizer_class : type
        `AdamOptimizer`, or in a class of your own one that is derived from it (docs/adapters.md).

    Raises
    ------
    RuntimeError
        After the first epoch, if this release of scikit-learn does not use the optimizer that it was given.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from fastadam.sklearn import FastMLPClassifier
    >>> x, y = load_iris(return_X_y=True)
    >>> model = FastMLPClassifier(max_iter=500, random_state=0).fit(x, y)
    >>> model.score(x, y) > 0.95
    True
    """


class FastMLPRegressor(_Fast, neural_network.MLPRegressor):
    """MLPRegressor whose steps are fastadam's.

    Parameters
    ----------
    **options
        Those of ``sklearn.neural_network.MLPRegressor``, with its defaults. Give float32 X a float32 y, and float32
        sample_weight: otherwise gradients are float64, and are copied.

    Attributes
    ----------
    optimizer_class : type
        As of `FastMLPClassifier`.

    Raises
    ------
    RuntimeError
        As `FastMLPClassifier`.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from fastadam.sklearn import FastMLPRegressor
    >>> x, y = load_diabetes(return_X_y=True)
    >>> model = FastMLPRegressor(learning_rate_init=0.1, random_state=0).fit(x, y)
    >>> model.score(x, y) > 0.4
    True
    """
