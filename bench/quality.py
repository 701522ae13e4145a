"""Quality: does training with less memory come as far?

Models in plain NumPy, each trained with every format from the same starts, on the same batches, with the same falling
rate. The final loss is a mean over seeds, with its standard error. The difference is to float32 with the same seed.
"float32 nudged" is float32 whose start differs in the last bits: what chance alone does. "To nearest" are
formats that we do not have: float32 steps, after which state or parameters are rounded to the nearest bfloat16. Peers
get the same gradients; only their optimizer differs. Seeds are added until the standard error is a third of the bar.
"""

import math
import statistics

import numpy as np

import fastadam

from .quality_formats import FLOAT32, FORMATS, NUDGED, Ours, Peer
from .quality_tasks import TASKS
from .results import promise
from .workers import Worker

CHOICES = {"tasks": TASKS, "formats": FORMATS}
LEAST, MOST = 5, 10  # seeds
POINTS = 40  # of a curve
NEAR = 0.15  # of float32's loss, in a quick run


class Trainer:
    """In a process of its own, because two peers have the same name."""

    def __init__(self, quick):
        self.quick, self.tasks = quick, {}

    def train(self, task, name, seed):
        """One run: the final loss, the batches' losses in POINTS means, bytes kept a parameter."""
        if task not in self.tasks:
            self.tasks[task] = TASKS[task](self.quick)
        task, form = self.tasks[task], FORMATS[name]
        rng = np.random.default_rng(seed)
        model = task.model(rng)
        for p in model.params.values():  # to what 16 bits can hold: all begin at the same place
            p.view(np.uint32)[...] &= 0xFFFF0000
            if name == NUDGED:
                p *= np.float32(1 + 2**-20)
        optimizer = form.make(model.params, task.betas, **form.options)
        lr = fastadam.schedules.warmup_cosine(task.lr, warmup_steps=task.steps // 20, total_steps=task.steps)
        losses, size = [], sum(p.size for p in model.params.values())
        for step in range(task.steps):
            loss, grads = model.loss_and_gradients(*task.batch(rng))
            losses.append(loss)
            if not math.isfinite(loss):
                return {"final": math.nan, "bytes": optimizer.nbytes() / size}
            optimizer.step(grads, lr(step))
        window = max(1, task.steps // POINTS)
        curve = np.mean(np.reshape(losses[: len(losses) // window * window], (-1, window)), axis=1)
        found = {"first": losses[0], "curve": curve.tolist(), "bytes": optimizer.nbytes() / size}
        return {"final": task.final(model), **found}


def attempt(worker, task, name, seed):
    """A run, or why there is none."""
    try:
        return worker("train", task, name, seed)
    except (ImportError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def error_of(samples):
    """Standard error of the mean."""
    return statistics.stdev(samples) / len(samples) ** 0.5 if len(samples) > 1 else math.nan


def finite(number):
    return number if math.isfinite(number) else None


class Comparison:
    """Runs of one task, and of float32 beside them."""

    def __init__(self, task, workers, quick):
        self.task, self.workers, self.quick = task, workers, quick
        self.runs = {}  # (name, seed) -> run
        self.least, self.most = (1, 1) if quick else (LEAST, MOST)

    def run(self, name, seed):
        if (name, seed) not in self.runs:
            self.runs[name, seed] = attempt(self.workers[FORMATS[name].process], self.task, name, seed)
        return self.runs[name, seed]

    def differences(self, name, count):
        """Of this format's final loss to float32's; NaN where it diverged."""
        return [self.run(name, seed)["final"] - self.run(FLOAT32, seed)["final"] for seed in range(count)]

    def bar(self, name):
        """(unit, the most that the mean difference may be in nats), or (unit, None)"""
        unit, sixteen, eight = TASKS[self.task].bars
        most = {0: None, 16: sixteen, 8: eight}[FORMATS[name].bits]
        return unit, most

    def scale(self, unit, count):
        """What a difference in nats is multiplied with."""
        return 1.0 if unit == "nats" else 100 / statistics.mean(self.run(FLOAT32, s)["final"] for s in range(count))

    def enough(self, name):
        """How many seeds are."""
        unit, most = self.bar(name)
        for count in range(self.least, self.most + 1):
            found = self.differences(name, count)
            if most is None or error_of(found) * self.scale(unit, count) <= most / 3:
                return count
        return self.most

    def row(self, name):
        count = self.enough(name)
        losses = [self.run(name, seed)["final"] for seed in range(count)]
        found, diverged = self.differences(name, count), sum(map(math.isnan, losses))
        scale, mean = self.scale("%", count), statistics.mean(found)
        return {
            "task": self.task,
            "format": name,
            "bytes a parameter": self.run(name, 0)["bytes"],
            "seeds": count,
            "loss": finite(statistics.mean(losses)),
            "its error": finite(error_of(losses)),
            "difference": finite(mean),
            "error": finite(error_of(found)),
            "difference, %": finite(mean * scale),
            "error, %": finite(error_of(found) * scale),
            "diverged": diverged,
        }

    def promise(self, row):
        name = row["format"]
        unit, most = self.bar(name)
        if most is None:
            return None
        measured, error = (row[what + ("" if unit == "nats" else ", %")] for what in ("difference", "error"))
        what = {"task": self.task, "format": name, "unit": unit, "error": error, "seeds": row["seeds"]}
        verdict = "MISSED" if measured is None else "too few seeds" if error > most / 3 else None
        return promise(what, f"<= {most:g}", measured, verdict)

    def check_quick(self, row):
        name = row["format"]
        runs = [self.run(name, seed) for seed in range(row["seeds"])]
        if FORMATS[name].process == "fastadam":
            assert all(run["final"] < 0.9 * run["first"] for run in runs), f"{self.task}, {name}: the loss did not fall"
        if FORMATS[name].make is Ours:
            assert abs(row["difference, %"]) <= 100 * NEAR, f"{self.task}, {name}: off by {row['difference, %']:.1f} %"

    def curve(self, name, count):
        curves = [run["curve"] for run in (self.run(name, seed) for seed in range(count)) if "curve" in run]
        return np.mean(curves, axis=0).tolist() if curves else None


def measure(chosen):
    names = list(dict.fromkeys([FLOAT32, *chosen.formats]))
    if chosen.quick:  # tests step the peers
        names = [name for name in names if FORMATS[name].make is not Peer]
    workers = {process: Worker(Trainer, chosen.quick) for process in dict.fromkeys(FORMATS[n].process for n in names)}
    curves = []
    for task in chosen.tasks:
        comparison = Comparison(task, workers, chosen.quick)
        for name in names:
            first = comparison.run(name, 0)
            if isinstance(first, str):
                if not FORMATS[name].optional:
                    raise SystemExit(f"{name}: {first}")
                yield "absent", [{"format": name, "why": first}]
                continue
            row = comparison.row(name)
            yield "losses", [row]
            if chosen.quick:
                comparison.check_quick(row)
            elif promised := comparison.promise(row):
                yield "promises", [promised]
            curves.append({"task": task, "format": name, "steps": TASKS[task].steps})
            curves[-1]["curve"] = " ".join(f"{x:.4g}" for x in comparison.curve(name, row["seeds"]) or ())
    for worker in workers.values():
        worker.close()
    if not chosen.quick:
        yield "curves", curves
