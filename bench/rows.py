"""Rows of tables.

`fastadam.Adam.step_rows`: milliseconds, on one thread if not said. Then how many times as long others take, on as many
threads. In brackets, eight sets of rows by turns instead of the same rows at each call. Contenders take turns in one
process, four calls each, of which the best counts. The bare loop in C moves the same bytes, of rows that were sorted
before; "sorting" is the part of our step that does it. Every result is checked, most against float64.
"""

import dataclasses
import functools
import itertools
import re
import time
from pathlib import Path

from .peers import why_absent
from .results import milliseconds, promise, ratio
from .row_peers import ON_ROWS, Shared
from .workers import PAUSE, take_turns
from .workloads import TABLES

CHOICES = {"tables": TABLES}
CALLS = 4  # in a turn
SETS = 8  # of fresh rows
OURS, OURS_2 = "fastadam", "fastadam 2 threads"
LARGE = 1 << 30  # bytes of a table
SAME = [name for name in ON_ROWS if name != "fastadam.RowAdagrad"]  # RowAdagrad is another rule
FRESH = [OURS, "bare loop", "NumPy on rows", "torch SparseAdam"]
WIDE, REPEATED, LARGEST, FEW = TABLES
BARS = [  # what is said, table, contender, over this one, bar
    ("bare loop over ours", WIDE, "bare loop", OURS, ">= 0.7"),
    ("bare loop over ours", LARGEST, "bare loop", OURS, ">= 0.6"),
    ("torch SparseAdam over ours", WIDE, "torch SparseAdam", OURS, ">= 8"),
    ("NumPy on rows over ours", WIDE, "NumPy on rows", OURS, ">= 10"),
    ("NumPy fancy indexing over ours", FEW, "NumPy fancy indexing", OURS, ">= 3"),
    ("step of the whole table over ours", WIDE, "fastadam whole table", OURS, ">= 20"),
    ("sorting's share of our step", WIDE, "sorting", OURS, "<= 0.1"),
    ("sorting's share of our step", REPEATED, "sorting", OURS, "<= 0.25"),
    ("1 thread over default", WIDE, OURS, "fastadam default", ">= 0.97"),
]
GAIN = "gain of 2 threads over the bare loop's"


def available():
    """Bytes of memory that programs could still get, as far as Linux says; elsewhere none."""
    about = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", about.read_text()) if about.exists() else None
    return int(found[1]) << 10 if found else 0


def best_of_calls(contender, given):
    contender.prepare()
    seconds = []
    for _ in range(CALLS):
        arguments = next(given)
        start = time.perf_counter()
        contender.step(*arguments)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def left_out(name, error):
    """Why. If fastadam fails, there is nothing to compare others with."""
    if name.startswith("fastadam"):
        raise error
    return why_absent(error)


def alternating(table, rounds, pause=PAUSE):
    """{(name, is it with fresh rows?): seconds, one for each round}, {name: why absent}"""
    ((rows, grads), *fresh), others = table.make(1 + SETS)
    shared, contenders, absent, turns = Shared(table.height, table.width), {}, {}, {}
    place = itertools.count()  # one for all: nobody's rows are those of the turn before
    for name in SAME:
        try:
            contender = ON_ROWS[name](shared)
            contender.check(rows, grads, others)  # before it can spoil what all share
            given = itertools.repeat(contender.given(rows, grads))
        except Exception as error:
            absent[name] = left_out(name, error)
            continue
        contenders[name], turns[name, False] = contender, functools.partial(best_of_calls, contender, given)
    for name in FRESH:
        if name in contenders:
            sets = [contenders[name].given(*each) for each in fresh]
            given = (sets[next(place) % SETS] for sets in itertools.repeat(sets))
            turns[name, True] = functools.partial(best_of_calls, contenders[name], given)
    for _ in range(30 // CALLS):  # it tries numbers of threads first
        turns["fastadam default", False]()
    seconds = take_turns(turns, rounds, pause)
    for name, contender in contenders.items():
        try:
            contender.check(rows, grads, others)
        except AssertionError as error:
            absent[name] = left_out(name, error)
            seconds = {key: samples for key, samples in seconds.items() if key[0] != name}
    return seconds, absent


def steps(table, seconds):
    for name in [name for name, is_fresh in seconds if not is_fresh]:
        base = OURS_2 if name.endswith("2 threads") and name != OURS_2 else OURS
        row = {"table": table.name, "contender": name, "ms": milliseconds(seconds[name, False])}
        row["over ours"] = ratio(seconds[name, False], seconds[base, False])
        fresh = seconds.get((name, True))
        row["fresh rows, ms"] = milliseconds(fresh) if fresh else None
        row["fresh rows, over ours"] = ratio(fresh, seconds[OURS, True]) if fresh else None
        yield row


def promises(name, table, seconds):
    for what, where, contender, base, bar in BARS:
        if where != name:
            continue
        if (contender, False) in seconds:
            measured, verdict = ratio(seconds[contender, False], seconds[base, False]), None
        else:
            measured, verdict = None, "not measured"
        yield promise({"table": table.name, "what": what}, bar, measured, verdict)
    if name == LARGEST:
        ours, bare = (
            [a / b for a, b in zip(seconds[each, False], seconds[f"{each} 2 threads", False], strict=True)]
            for each in (OURS, "bare loop")
        )
        measured = ratio(ours, bare)
        verdict = "met" if measured[2] >= 1 else None  # not behind by more than the spread
        yield promise({"table": table.name, "what": GAIN}, ">= 1", measured, verdict)


def measure(chosen):
    for name in chosen.tables:
        table, rounds, pause = TABLES[name], 41, 0 if chosen.quick else PAUSE
        if table.nbytes > LARGE:
            rounds = 9
            if chosen.quick:
                continue
            if available() < 5 * table.nbytes:  # with its state, the gradient of all of it, and some
                yield "absent", [{"table": name, "why": f"it needs {5 * table.nbytes / 1e9:.0f} GB of free memory"}]
                continue
        if chosen.quick:
            small = {"height": table.height // 10, "given": table.given // 8, "among": table.among // 10}
            table, rounds = dataclasses.replace(table, name=f"small: {name}", **small), 3
        seconds, absent = alternating(table, rounds, pause)
        yield "steps", steps(table, seconds)
        yield "absent", [{"table": table.name, "contender": each, "why": why} for each, why in absent.items()]
        yield "promises", promises(name, table, seconds)
