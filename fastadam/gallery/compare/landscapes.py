"""Functions of two coordinates on which optimizers are compared, with their gradients."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Landscape:
    """One function, where to look at it, and where to start.

    `f` takes an array of the shape (2, ...), x and y, and returns the values and the gradients, of the same shape.
    """

    name: str
    formula: str
    challenge: str
    f: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    lowest: float
    minima: tuple[tuple[float, float], ...]
    view: tuple[tuple[float, float], tuple[float, float]]  # of x, of y
    starts: tuple[tuple[float, float], ...]
    scale: float  # heights are drawn as log10(1 + (f - lowest) / scale)
    eye: tuple[float, float, float]  # where the picture in space is seen from

    def shows(self, point: np.ndarray) -> np.ndarray:
        """Is the point in view? NaN is not."""
        (left, right), (bottom, top) = self.view
        x, y = point
        return (left <= x) & (x <= right) & (bottom <= y) & (y <= top)


def ravine(point):
    x, y = point
    along, across = 2 * x + y, 2 * y - x
    return (along * along + 50 * across * across) / 10, np.array(
        [(2 * along - 50 * across) / 5, (along + 100 * across) / 5]
    )


def saddle(point):
    x, y = point
    square = y * y
    return (x * x - square + square * square / 2) / 2, np.array([x, y * square - y])


def rosenbrock(point):
    x, y = point
    off, left = y - x * x, 1 - x
    return left * left + 100 * off * off, np.array([-2 * left - 400 * x * off, 200 * off])


def himmelblau(point):
    x, y = point
    a, b = x * x + y - 11, x + y * y - 7
    return a * a + b * b, np.array([4 * x * a + 2 * b, 2 * a + 4 * y * b])


def beale(point):
    x, y = point
    square = y * y
    a, b, c = 1.5 - x + x * y, 2.25 - x + x * square, 2.625 - x + x * y * square
    dx = 2 * (a * (y - 1) + b * (square - 1) + c * (y * square - 1))
    return a * a + b * b + c * c, np.array([dx, 2 * x * (a + 2 * b * y + 3 * c * square)])


LANDSCAPES = (
    Landscape(
        "Ravine",
        "((2x + y)² + 50 (2y - x)²) / 10",
        "Fifty times steeper across than along, and oblique to both axes: a rate that is right for the floor is too "
        "large for the walls.",
        ravine,
        0.0,
        ((0.0, 0.0),),
        ((-5.0, 2.0), (-3.0, 2.0)),
        ((-4.0, -1.0), (-2.5, -1.7), (1.0, -0.8)),
        1.0,
        (-0.9, -1.6, 1.2),
    ),
    Landscape(
        "Saddle",
        "x²/2 - y²/2 + y⁴/4",
        "The gradient vanishes at the saddle (0, 0), and the way down leads sideways to (0, 1) or (0, -1).",
        saddle,
        -0.25,
        ((0.0, 1.0), (0.0, -1.0)),
        ((-2.0, 2.0), (-1.6, 1.6)),
        ((-1.5, 0.001), (1.5, -0.05), (1.0, 1.5)),
        0.25,
        (-1.0, 1.5, 1.3),
    ),
    Landscape(
        "Rosenbrock",
        "(1 - x)² + 100 (y - x²)²",
        "A steep curved valley: its floor is found at once, and (1, 1) at its end only after many steps.",
        rosenbrock,
        0.0,
        ((1.0, 1.0),),
        ((-2.0, 2.0), (-1.0, 3.0)),
        ((-1.2, 1.0), (-0.5, -0.8), (0.3, 2.5)),
        10.0,
        (0.9, -1.4, 1.45),
    ),
    Landscape(
        "Himmelblau",
        "(x² + y - 11)² + (x + y² - 7)²",
        "Four minima, all of them zero: optimizers from one start may end in different ones.",
        himmelblau,
        0.0,
        ((3.0, 2.0), (-2.805118, 3.131312), (-3.779310, -3.283186), (3.584428, -1.848126)),
        ((-5.0, 5.0), (-5.0, 5.0)),
        ((-0.3, -0.9), (-1.0, 0.5), (4.5, 4.5)),
        10.0,
        (-1.2, -1.3, 1.4),
    ),
    Landscape(
        "Beale",
        "(1.5 - x + xy)² + (2.25 - x + xy²)² + (2.625 - x + xy³)²",
        "A long, nearly flat valley leads to (3, 0.5), and in the corners to its right gradients are in the thousands.",
        beale,
        0.0,
        ((3.0, 0.5),),
        ((-1.0, 4.5), (-2.0, 2.0)),
        ((1.0, 1.5), (0.5, -1.0), (4.0, -0.5)),
        1.0,
        (-1.2, -1.3, 1.4),
    ),
)
