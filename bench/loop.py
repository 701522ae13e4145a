"""Inside a NumPy training loop.

A float32 MLP 64-h-h-10 in plain NumPy. What counts is the whole iteration: threads that wait for work slow the BLAS
calls of the forward and backward pass. "OpenMP threads" are all threads, ordered. "Spinning" is the same with workers
that wait as OpenMP's do if nobody says otherwise. "Shared team" is after `fastadam.share_threads_with_blas()`.
Contenders take turns, and every round of each is a new process. Other libraries take part in three rounds, our variants
in more. In the end all must have trained, and fastadam's variants have the same loss to the last bit.
"""

import statistics

import numpy as np

import fastadam

from .results import milliseconds, promise, quartiles, ratio
from .runner import VARIANTS, train
from .workers import in_new_process, undisturbed

# width, batch, iterations, rounds
CASES = [(256, 32, 400, 15), (1024, 32, 80, 11), (2048, 64, 24, 7), (4096, 64, 8, 5)]
QUICK = [(256, 32, 50, 2)]
CHOICES = {"contenders": VARIANTS}
FEW = 3  # rounds, the first ones, that other libraries take part in: they take most of the time
ONE, OPENMP, DEFAULT, SHARED = (f"fastadam {what}" for what in ("1 thread", "OpenMP threads", "default", "shared team"))


def agree(losses):
    """One result, whatever the threads; and every optimizer is Adam."""
    ours = {loss for name, loss in losses.items() if name.startswith("fastadam")}
    assert len(ours) <= 1, f"fastadam's bits depend on the number of threads: {losses}"
    trained = [loss for name, loss in losses.items() if name != "no optimizer"]
    assert max(trained, default=0) < 0.5 * losses.get("no optimizer", np.inf), f"one does not train: {losses}"


def iterations(names, width, batch, count, rounds):
    """{name: [(seconds of forward and backward, of the step, of a step back to back), ...]}, {name: why absent}."""
    threads = fastadam.config()["threads"]
    samples, absent, losses = {}, {}, {}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            if number >= FEW and not name.startswith(("fastadam", "no optimizer")):
                continue
            arguments, env = (train, name, width, batch, count, threads), VARIANTS[name][1]
            try:
                *seconds, losses[name] = undisturbed(in_new_process, *arguments, environment=env)
                samples.setdefault(name, []).append(seconds)
            except ImportError as error:
                absent[name] = str(error)
    agree(losses)
    return samples, absent


def rows(case, samples):
    totals = {name: [sample[0] + sample[1] for sample in found] for name, found in samples.items()}
    for name, found in samples.items():
        columns = ("forward + backward, ms", "step, ms", "step back to back, ms")
        yield {
            "h, batch": case,
            "optimizer": name,
            **dict(zip(columns, map(milliseconds, zip(*found, strict=True)), strict=True)),
            "total, ms": [1e3 * seconds for seconds in quartiles(totals[name])],
            **{f"against {k}": ratio(totals[name], totals[k]) for k in ("no optimizer", ONE) if k in totals},
        }


def promises(case, samples):
    def bar(what, name, others, seconds, most):
        if {name, *others} <= samples.keys():
            taken = {each: [seconds(sample) for sample in samples[each]] for each in (name, *others)}
            best = min(others, key=lambda other: statistics.median(taken[other]))
            yield promise({"h, batch": case, "what": what}, f"<= {most:g}", ratio(taken[name], taken[best]))

    def total(sample):
        return sample[0] + sample[1]

    yield from bar("default over the better of one and all threads, total", DEFAULT, (ONE, OPENMP), total, 1.05)
    yield from bar("default over 1 thread, forward + backward", DEFAULT, (ONE,), lambda sample: sample[0], 1.05)
    yield from bar("shared team over default, total", SHARED, (DEFAULT,), total, 1)
    if SHARED in samples:
        _, step, alone = zip(*samples[SHARED], strict=True)
        yield promise({"h, batch": case, "what": "shared team, step over back to back"}, "<= 1.3", ratio(step, alone))


def measure(chosen):
    for width, batch, *amount in QUICK if chosen.quick else CASES:
        case = f"{width}, {batch}"
        samples, absent = iterations(chosen.contenders, width, batch, *amount)
        yield "iterations", rows(case, samples)
        yield "promises", promises(case, samples)
        yield "absent", ({"contender": name, "why": why} for name, why in absent.items())
