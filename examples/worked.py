"""The small examples by which articles explain Adam, with what it really does: python examples/worked.py

Each function returns its figures; tests/test_worked.py compares them with Adam written out by hand.
"""

from functools import partial

import numpy as np

import fastadam

COLUMNS = "t", "gradient", "m", "v", "m / (1 - 0.9**t)", "v / (1 - 0.999**t)", "step", "x"


def first_steps(steps=3):
    """x**2 from 5 at lr 0.1: what Adam computes in each step, a row of COLUMNS; x is where the step leads."""
    record = fastadam.trace(partial(fastadam.Adam, lr=0.1), lambda x: (x**2, 2 * x), 5.0, steps)
    state, corrected = record.state, record.corrected
    averages = state["exp_avg"], state["exp_avg_sq"], corrected["exp_avg"], corrected["exp_avg_sq"]
    return np.transpose([state["step"], record.gradient[:-1], *averages, record.update, record.x[1:]])


def minimise(gradient, start, lr, steps):
    """The positions before each step and after the last."""
    x = np.array(float(start))
    opt = fastadam.Adam(x, lr=lr)
    path = [float(x)]
    for _ in range(steps):
        opt.step(np.array(gradient(float(x))))
        path.append(float(x))
    return path


def square():
    """x**2 from 5 at lr 0.001: Adam moves by about lr a step, so 1000 steps bring it to 4.04, not to 0.

    An article says that it arrives at 0 after 817 steps. The first gradient below 1e-7 is the 10 813th.
    """
    path = minimise(lambda x: 2 * x, 5, 0.001, 12_000)
    return path[1000], next(number for number, x in enumerate(path, 1) if abs(2 * x) < 1e-7)


def line(epochs=50, lr=0.01):
    """y = w*x + b to the points of y = 2x + 1 at x = 1..5 by mean squared error, from w = b = 0.

    After 50 epochs at lr 0.01 w and b are about 0.48: again about lr a step. An article prints 1.9953 and 1.0044.
    """
    x = np.arange(1.0, 6.0)
    y = 2 * x + 1
    weights = {"w": np.zeros(()), "b": np.zeros(())}
    opt = fastadam.Adam(weights, lr=lr)
    for _ in range(epochs):
        error = weights["w"] * x + weights["b"] - y
        opt.step({"w": 2 * (error * x).mean(), "b": 2 * error.mean()})
    return float(weights["w"]), float(weights["b"])


def cubic(start):
    """x**3 - 2x**2 + 2 at lr 0.1, 100 steps. The gradient at 0 is 0, so from there Adam never moves.

    An article shows it moving from 0. From elsewhere it finds the minimum at 4/3.
    """
    return minimise(lambda x: 3 * x**2 - 4 * x, start, 0.1, 100)[-1]


def agreeing_gradients():
    """The gradients 0.9, 0.8, 0.7, 0.6 at lr 0.1 from 0: each step is a little less than lr.

    "The step grows 1.2 times while gradients agree" is a picture for momentum, not what Adam does.
    """
    x = np.zeros(1)
    opt = fastadam.Adam(x, lr=0.1)
    path = []
    for gradient in 0.9, 0.8, 0.7, 0.6:
        opt.step(np.array([gradient]))
        path.append(float(x[0]))
    return path


def step_after_a_large_gradient(beta2):
    """The 300th step, in units of lr, of gradients that are 10 once and then 1. The paper's beta2 is 0.999.

    One source gives 0.99 as the usual value. That is no detail: v then averages over 100 gradients, not 1000.
    """
    x = np.zeros(1)
    opt = fastadam.Adam(x, lr=1.0, betas=(0.9, beta2))
    for t in range(300):
        before = float(x[0])
        opt.step(np.array([10.0 if t == 0 else 1.0]))
    return before - float(x[0])


def main():
    print("x**2 from 5, lr 0.1, step by step: m = 0.9 * m + 0.1 * gradient, v = 0.999 * v + 0.001 * gradient**2")
    print("t", *(f"{name:>9}" for name in COLUMNS[1:]))
    for t, *numbers in first_steps():
        print(f"{t:.0f}", *(f"{x:{max(9, len(name))}.4f}" for name, x in zip(COLUMNS[1:], numbers, strict=True)))
    after_1000, arrived = square()
    print(f"x**2 from 5, lr 0.001: {after_1000:.4f} after 1000 steps; the first |gradient| < 1e-7 is number {arrived}")
    print("    an article: 0 after 817 steps; but Adam moves by about lr a step")
    print("fit of 2x + 1, lr 0.01, 50 epochs: w = {:.4f}, b = {:.4f}".format(*line()))
    print("    an article: 1.9953 and 1.0044; lr 0.1, 1000 epochs give w = {:.4f}, b = {:.4f}".format(*line(1000, 0.1)))
    print(f"x**3 - 2x**2 + 2, lr 0.1, 100 steps: from 0 at {cubic(0):.4f}, from 0.5 at {cubic(0.5):.4f}")
    print("    an article shows it moving from 0, where the gradient is 0")
    print("gradients 0.9, 0.8, 0.7, 0.6, lr 0.1:", " ".join(f"{x:.4f}" for x in agreeing_gradients()))
    print("    an article: the step grows 1.2 times while gradients agree; that is a picture for momentum")
    small, usual = step_after_a_large_gradient(0.99), step_after_a_large_gradient(0.999)
    print(f"300th step after one gradient of 10 and then of 1: {usual:.3f} lr with beta2 0.999, {small:.3f} with 0.99")
    print("    one source gives 0.99 as the usual beta2; the paper has 0.999, and so has fastadam")


if __name__ == "__main__":
    main()
