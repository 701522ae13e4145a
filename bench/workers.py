"""Contenders in processes of their own, which take turns: workers of one that spin cannot slow another."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

PAUSE = 0.03  # seconds before a turn: workers spin for up to 20 ms after their last work


def pool():
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


class Worker:
    """A fresh process that holds one object between calls of its methods."""

    def __init__(self, make, *args):
        self.pool = pool()
        self.pool.submit(_make, make, *args).result()

    def __call__(self, method, *args):
        return self.pool.submit(_call, method, *args).result()

    def close(self):
        self.pool.shutdown()


def _make(make, *args):
    global _held
    _held = make(*args)


def _call(method, *args):
    return getattr(_held, method)(*args)


def in_new_process(function, *args, environment=None):
    """What the function returns, or raises; `environment` is added to its variables."""
    with mock.patch.dict(os.environ, environment or {}), pool() as fresh:
        return fresh.submit(function, *args).result()


def stolen():
    """Seconds of CPU time that other machines on this host have taken from this one, as far as Linux knows."""
    try:
        with open("/proc/stat") as stat:
            return int(stat.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def share_stolen(turn, *args):
    """The result of a turn, and the share of its time that was stolen."""
    before, start = stolen(), time.perf_counter()
    return turn(*args), (stolen() - before) / (time.perf_counter() - start)


def undisturbed(turn, *args, **options):
    """The result of a turn that returns it and the share stolen; it is taken again, twice at most, above 2 %."""
    for _ in range(3):
        result, share = turn(*args, **options)
        if share <= 0.02:
            break
        time.sleep(PAUSE)
    return result


def take_turns(turns, rounds, pause=PAUSE):
    """{name: function} -> {name: results}: each once per round, after a pause; the first round warms up."""
    results = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            time.sleep(pause)
            result = undisturbed(share_stolen, turn)
            if number:
                results[name].append(result)
    return results
