"""scikit-learn's classifier of digits, with its own Adam and with fastadam's: python examples/sklearn_mlp.py"""

import itertools
import time
import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from fastadam.sklearn import FastMLPClassifier


def main(epochs=20):
    """Train both ways, print how it went, and return the models. Batches of 200 are the default.

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
