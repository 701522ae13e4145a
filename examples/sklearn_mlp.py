"""scikit-learn's multi-layer perceptrons, stepped by fastadam: python examples/sklearn_mlp.py

FastMLPClassifier and FastMLPRegressor are scikit-learn's own classes with all their options; nothing is patched, and
only solver="adam" (the default) differs: fastadam takes the steps. scikit-learn has no public way to choose an
optimizer, so this leans on two private classes of it, tried with 1.5 and 1.9. If a release moves them you get an
ImportError, and if it no longer uses them a RuntimeError after the first epoch, not scikit-learn's Adam in silence.
"""

import functools
import itertools
import time
import warnings

import numpy as np
import sklearn
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, BaseOptimizer
from threadpoolctl import threadpool_limits

import fastadam


class FastadamOptimizer(BaseOptimizer):
    """Takes the place of an AdamOptimizer: the same hyper-parameters, the steps by what `make_optimizer` makes."""

    def __init__(self, adam, make_optimizer):
        super().__init__(adam.learning_rate_init)
        betas = (adam.beta_1, adam.beta_2)
        self.make = functools.partial(make_optimizer, lr=adam.learning_rate_init, betas=betas, eps=adam.epsilon)
        self.params, self.optimizer, self.saved = [], None, None

    def update_params(self, params, grads):
        # The first step makes the optimizer. It steps the arrays that it was made with, so when these are others
        # (unpickled, or you have assigned to coefs_) make one anew, with the state so far.
        if self.optimizer is None or any(new is not old for new, old in zip(params, self.params, strict=True)):
            optimizer, saved = self.make(params), self.__getstate__()["saved"]
            if saved is not None:
                optimizer.load_state_dict(saved)
            self.params, self.optimizer, self.saved = params, optimizer, None
        self.optimizer.step(grads)

    def __getstate__(self):
        """For pickle and deepcopy: without the weights, which may come back read-only (joblib's mmap_mode)."""
        saved = self.saved if self.optimizer is None else self.optimizer.state_dict()
        return {**vars(self), "params": [], "optimizer": None, "saved": saved}


class FastadamMixin:
    """Comes before one of scikit-learn's MLP classes; override `make_optimizer` to plug in another optimizer."""

    @staticmethod
    def make_optimizer(params, lr, betas, eps):
        """An object whose step(grads) updates the arrays `params` in place; eps_hat is scikit-learn's place for eps."""
        return fastadam.Adam(params, lr=lr, betas=betas, eps=eps, eps_hat=True)

    def __setattr__(self, name, value):
        if isinstance(value, AdamOptimizer):  # each fit, and the first partial_fit, assigns one to self._optimizer
            value = FastadamOptimizer(value, self.make_optimizer)
        elif name == "n_iter_" and value and self.solver == "adam" and not self._has_stepped():  # an epoch is over
            raise RuntimeError(f"solver='adam', but scikit-learn {sklearn.__version__} did not step with fastadam")
        super().__setattr__(name, value)

    def _has_stepped(self):
        return any(isinstance(value, FastadamOptimizer) and value.params for value in vars(self).values())


class FastMLPClassifier(FastadamMixin, MLPClassifier):
    """MLPClassifier with fastadam. Give it float32 X: half the memory to move."""


class FastMLPRegressor(FastadamMixin, MLPRegressor):
    """MLPRegressor with fastadam. Give float32 X a float32 y, or gradients are float64 and fastadam copies them."""


def main(epochs=20):
    """Train both ways on the digits, print how it went, and return the models. Batches of 200 are the default.

    BLAS gets one thread: enough for products this small, and times depend less on what else the machine does.
    """
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split((x / 16).astype(np.float32), y, random_state=0, stratify=y)
    models = []
    print(f"{'':18}{'batch':>6}{'accuracy':>10}{'final loss':>12}{'fit()':>10}")
    for batch, kind in itertools.product((200, 32), (MLPClassifier, FastMLPClassifier)):
        model = kind((256, 256), batch_size=batch, max_iter=epochs, n_iter_no_change=np.inf, random_state=0)
        start = time.perf_counter()
        with threadpool_limits(1, "blas"), warnings.catch_warnings(category=ConvergenceWarning, action="ignore"):
            model.fit(x_train, y_train)
        seconds = time.perf_counter() - start
        accuracy = model.score(x_test, y_test)
        print(f"{kind.__name__:18}{batch:>6}{accuracy:>10.1%}{model.loss_:>12.2e}{seconds:>8.2f} s")
        models.append(model)
    return models


if __name__ == "__main__":
    main()
