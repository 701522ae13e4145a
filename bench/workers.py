"""Contenders in processes of their own, which take turns: workers of one that spin cannot slow another."""

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

PAUSE = 0.03  # seconds before a turn: workers spin for up to 20 ms after their last work


class Worker:
    """A fresh process that holds one object between calls; `environment` is added to its variables."""

    def __init__(self, make, *args, environment=None):
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, context)
        with mock.patch.dict(os.environ, environment or {}):
            self.call(_make, make, *args)

    def call(self, function, *args):
        return self.pool.submit(function, *args).result()

    def __call__(self, method, *args):
        """Call that method of the object."""
        return self.call(_call, method, *args)

    def close(self):
        self.pool.shutdown()


def in_new_process(function, *args, environment=None):
    """What the function returns, or raises."""
    with (
        mock.patch.dict(os.environ, environment or {}),
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
    ):
        return pool.submit(function, *args).result()


_held = None


def _make(make, *args):
    global _held
    _held = make(*args)


def _call(method, *args):
    return getattr(_held, method)(*args)


def take_turns(turns, rounds):
    """{name: function} -> {name: results}: each once per round, after a pause; the first round warms up."""
    results = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            time.sleep(PAUSE)
            result = turn()
            if number:
                results[name].append(result)
    return results
