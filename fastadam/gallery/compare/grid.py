"""Every path on the page, taken by fastadam's optimizers. The page chooses among them and draws."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import fastadam
from fastadam.gallery.compare.landscapes import LANDSCAPES, Landscape


@dataclass(frozen=True)
class Contender:
    """An optimizer, and what the page's two betas are to it."""

    name: str
    colour: str
    make: Callable[..., Any]
    uses: tuple[str, ...]  # of beta1 and beta2
    hyperparameters: Callable[[Any, Any], dict[str, Any]]

    def over(self, params: Any, lr: float, beta1: float | None, beta2: float | None) -> Any:
        return self.make(params, lr=lr, **self.hyperparameters(beta1, beta2))


CONTENDERS = (
    Contender("SGD", "#0072b2", fastadam.SGD, (), lambda b1, b2: {}),
    Contender("Momentum", "#009e73", fastadam.SGD, ("beta1",), lambda b1, b2: {"momentum": b1}),
    Contender("RMSprop", "#8e44ad", fastadam.RMSprop, ("beta2",), lambda b1, b2: {"alpha": b2}),
    Contender("AdaGrad", "#e69f00", fastadam.Adagrad, (), lambda b1, b2: {}),
    Contender("Adam", "#d62728", fastadam.Adam, ("beta1", "beta2"), lambda b1, b2: {"betas": (b1, b2)}),
)
STEPS = 200
BETA1 = (0.0, 0.9, 0.99)
BETA2 = (0.9, 0.99, 0.999)
OPENING = {"beta1": 0.9, "beta2": 0.99}  # where the page opens, and what the base rates are tuned with
RATES = tuple(digit * 10.0**power for power in range(-5, 2) for digit in (1, 2, 5))  # to tune among
MULTIPLES = (0.1, 0.3, 1.0, 3.0)  # of each one's base rate
SAME = 0.01  # and one rate for all
SETTINGS = (*MULTIPLES, None)  # of the control for learning rates; None is SAME


@dataclass(frozen=True)
class Run:
    """An optimizer with those of the betas that it uses; the others are None."""

    contender: int
    beta1: float | None
    beta2: float | None


def runs() -> list[Run]:
    return [
        Run(number, beta1, beta2)
        for number, contender in enumerate(CONTENDERS)
        for beta1 in (BETA1 if "beta1" in contender.uses else (None,))
        for beta2 in (BETA2 if "beta2" in contender.uses else (None,))
    ]


def base_rate(contender: Contender, landscape: Landscape, steps: int) -> float:
    """The rate among RATES with the lowest loss curve: the mean of its logarithm over all steps and starts.

    Paths must stay in view from every start: a path that first jumps far away may come back lower, and shows nothing.
    All rates step together, as groups of one optimizer, and all starts are columns of one array.
    """
    points = [np.array(landscape.starts).T.copy() for _ in RATES]
    groups = [{"params": point, "lr": rate} for point, rate in zip(points, RATES, strict=True)]
    optimizer = contender.make(groups, **contender.hyperparameters(OPENING["beta1"], OPENING["beta2"]))
    curves = np.zeros(len(RATES))
    for _ in range(steps):
        optimizer.step([landscape.f(point)[1] for point in points])
        gaps = np.array([landscape.f(point)[0] for point in points]) - landscape.lowest
        curves += np.log10(np.maximum(gaps, 1e-10)).mean(axis=1)
        curves[[not landscape.shows(point).all() for point in points]] = np.inf
    return RATES[int(np.argmin(curves))]


def rate(setting: float | None, base: float) -> float:
    return SAME if setting is None else setting * base


@dataclass(frozen=True)
class Grid:
    """Everything that was computed. The first four axes: landscape, setting of the rate, start, run."""

    base_rates: list[list[float]]  # [landscape][contender]
    paths: np.ndarray  # ..., step, x or y
    gaps: np.ndarray  # ..., step: the loss above its lowest value
    adam: np.ndarray  # runs of Adam only ..., quantity (ADAM), x or y, step
    corrections: np.ndarray  # runs of Adam only, of m or v, step


ADAM = ("gradient", "m", "v", "corrected m", "corrected v", "step")


Progress = Callable[[list[Any], str], Iterable[Any]]  # passes on the items of a named stage, and may show how far it is


def compute(steps: int = STEPS, progress: Progress = lambda items, stage: items) -> Grid:
    """Every combination of landscape, learning rate, start, optimizer and betas, traced."""
    every_run = runs()
    of_adam = [run for run in every_run if CONTENDERS[run.contender].name == "Adam"]
    outer = (len(LANDSCAPES), len(SETTINGS), len(LANDSCAPES[0].starts))
    paths = np.empty((*outer, len(every_run), steps + 1, 2), np.float32)
    gaps = np.empty((*outer, len(every_run), steps + 1), np.float32)
    adam = np.empty((*outer, len(of_adam), len(ADAM), 2, steps), np.float32)
    corrections = np.empty((len(of_adam), 2, steps), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # rates that are too large are part of the picture
        base_rates = [
            [base_rate(contender, landscape, steps) for contender in CONTENDERS]
            for landscape in progress(list(LANDSCAPES), "base rates")
        ]
        combinations = itertools.product(enumerate(LANDSCAPES), enumerate(SETTINGS), range(outer[2]))
        for (i, landscape), (j, setting), k in progress(list(combinations), "paths"):
            for number, run in enumerate(every_run):
                lr = rate(setting, base_rates[i][run.contender])
                make = partial(CONTENDERS[run.contender].over, lr=lr, beta1=run.beta1, beta2=run.beta2)
                record = fastadam.trace(make, landscape.f, landscape.starts[k], steps)
                paths[i, j, k, number] = record.x
                gaps[i, j, k, number] = record.loss - landscape.lowest
                if run in of_adam:
                    place = of_adam.index(run)
                    shown = (
                        record.gradient[:-1],
                        record.state["exp_avg"],
                        record.state["exp_avg_sq"],
                        record.corrected["exp_avg"],
                        record.corrected["exp_avg_sq"],
                        record.update,
                    )
                    adam[i, j, k, place] = np.swapaxes(shown, 1, 2)
                    corrections[place] = record.correction["exp_avg"], record.correction["exp_avg_sq"]
    return Grid(base_rates, paths, gaps, adam, corrections)
