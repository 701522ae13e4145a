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


def take_turns(turns, rounds, pause=PAUSE):
    """{name: function} -> {name: results}: each once per round, after a pause; the first round warms up."""
    results = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            time.sleep(pause)
            result = turn()
            if number:
                results[name].append(result)
    return results
