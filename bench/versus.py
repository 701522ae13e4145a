"""Steps back to back.

Every contender in its best mode, all threads, each in a process of its own, taking turns. First milliseconds a step of
`fastadam.Adam(threads=all)`; then how many times as long the others take, in bold where ours is slower. "fastadam
default" is our Adam with nothing configured. It first takes 24 steps, in which it tries numbers of threads.

No step can be faster than two limits. The memory limit reads and writes the same bytes, where they do not fit in the
cache. The arithmetic limit computes one square root and one division an element. Both run in C on all threads. Their
columns are the limit's time over ours in the same rounds: 1 is the limit, and in a cache it may be more. The command
prints it for each contender, as its share of the limit. Rows were measured minutes apart: compare within a row. Results
are checked against float64 or, for rules that no peer has, against `fastadam.reference`.
"""

import functools

import fastadam

from . import own
from .limits import LIMITS
from .peers import PEERS
from .results import milliseconds, promise, ratio
from .runner import LARGE, Runner
from .workers import Worker, take_turns
from .workloads import FAMILY, WORKLOADS, Workload

OURS = [*LIMITS, "fastadam", "fastadam default", "fastadam.adam_update"]
SLOW = {"NumPy tutorial", "NumPy in place", "scikit-learn", "thinc", "autograd"}  # seconds a step at 64 Mi
PARALLEL = ("torch fused", "DeepSpeed CPUAdam", "numba prange")  # the best of those that use all cores
NUMBA = ("numba prange", "numba serial")
NEAREST = [f"1 x {size} {rule}" for size in ("100 K", "1 M") for rule in ("AdamW", "AMSGrad")]
CLASSES = ("torch fused", "DeepSpeed CPUAdam", "thinc", "scikit-learn")
FUNCTION = "fastadam.adam_update"
LARGEST = [name for name, workload in WORKLOADS.items() if name.startswith("1 x 64 Mi") and workload.rule != "clipped"]

CHOICES = {"peers": PEERS, "workloads": WORKLOADS}
# (the best of these, what it is compared with, workloads, at least this many times as long)
BARS = [
    (PARALLEL, "fastadam", ("1 x 64 Mi", "GPT-2 124M"), 1.0),
    (("torch fused", "numba prange"), "fastadam", ("1 x 1 M",), 1.2),
    (("DeepSpeed CPUAdam",), "fastadam", ("1 x 1 M",), 1.0),
    (NUMBA, "fastadam", NEAREST, 1.05),
    (NUMBA, "fastadam", ("1 x 100 K float64", "1 x 1 M float64"), 1.15),
    (PARALLEL, "fastadam", ("1 x 100 K",), 2.0),
    (PARALLEL, "fastadam", ("1000 x 1 K",), 15.0),
    (CLASSES, "fastadam", ("1 x 1 K",), 3.0),
    (("numba prange",), FUNCTION, ("1 x 1 K",), 2.0),
    (("numba serial",), FUNCTION, ("1 x 1 K",), 1.0),
    (("NumPy tutorial",), "fastadam", ("1 x 1 M", "1 x 64 Mi"), 20.0),
    (("memory limit",), "fastadam", LARGEST, 0.95),
]


def one_group(workload, ours, peers, rounds):
    """All contenders in turn: {name: seconds a step, one for each round}, {name: why absent}."""
    threads = fastadam.config()["threads"]
    absent = ours("prepare", workload, threads)
    for worker in peers.values():
        absent |= worker("prepare", workload, threads)
    workers = {name: worker for name, worker in (dict.fromkeys(OURS, ours) | peers).items() if name not in absent}
    seconds = take_turns({name: functools.partial(each, "turn", name) for name, each in workers.items()}, rounds)
    for worker in dict.fromkeys(workers.values()):
        for name, why in worker("finish").items():
            absent[name] = why
            del seconds[name]
    return seconds, absent


def rows(workload, groups):
    """A row for each contender, from the seconds of groups, in which large workloads meet one peer at a time."""

    def against(*names):
        both = [seconds for seconds in groups if seconds.keys() >= set(names)]
        return ratio(*([x for seconds in both for x in seconds[name]] for name in names)) if both else None

    for name in dict.fromkeys(name for seconds in groups for name in seconds):
        ms = milliseconds([sample for seconds in groups for sample in seconds.get(name, [])])
        yield {
            "workload": workload.name,
            "contender": name,
            "ms": ms,
            "GB/s": workload.step_bytes / ms / 1e6,
            **{f"against {base}": against(name, base) for base in ("fastadam", FUNCTION)},
            **{f"share of the {limit}": against(limit, name) for limit in LIMITS},
        }


def promises(steps):
    """What the rows of all contenders say of BARS."""
    found = {(row["workload"], row["contender"]): row for row in steps}
    for contenders, base, workloads, bar in BARS:
        for workload in workloads:
            present = {name: found[workload, name] for name in contenders if (workload, name) in found}
            ratios = {name: row[f"against {base}"] for name, row in present.items() if row[f"against {base}"]}
            what = {"workload": workload, "ours": base, "other": ", ".join(contenders), "a step at the limit": None}
            if not ratios:
                yield promise(what, f">= {bar:g}", None, "not measured")
                continue
            best = min(ratios, key=lambda name: ratios[name][1])
            _, middle, high = ratios[best]
            met = middle >= bar or (bar == 1 and high >= bar)  # a bar of 1: not behind by more than the spread
            verdict = "met" if met else "MISSED"
            if len(ratios) < len(contenders):
                verdict += f" (not measured: {', '.join(sorted(set(contenders) - set(ratios)))})"
            shares = [present[best][f"share of the {limit}"] for limit in LIMITS if best not in LIMITS]
            most = min((1 / share[1] for share in shares if share), default=0)  # if our step were at a limit
            if most > middle and workload != "1 x 1 K":  # there calls count
                what["a step at the limit"] = round(most, 2)
            yield promise(what | {"other": best}, f">= {bar:g}", ratios[best], verdict)


def measure(chosen):
    workloads = [WORKLOADS[name] for name in chosen.workloads]
    if chosen.quick:
        family = (w.rule for w in workloads if w.rule in FAMILY)
        workloads = [w for w in workloads if w.size <= 1 << 20]
        workloads += [Workload(f"1 x 1 M {rule}", ((1 << 20,),), rule=rule) for rule in family]
    ours, peers = Worker(Runner, OURS), {name: Worker(Runner, [name]) for name in chosen.peers}
    steps, absent = [], {}
    for workload in workloads:
        large, groups = workload.nbytes >= LARGE, []
        able = [] if workload.rule in FAMILY else list(peers)
        for group in [[name] for name in able] if large and able else [able]:
            rounds = 3 if chosen.quick or (large and SLOW.intersection(group)) else 15
            seconds, missing = one_group(workload, ours, {name: peers[name] for name in group}, rounds)
            groups.append(seconds)
            if workload.rule not in FAMILY:
                absent |= {(name, why): None for name, why in missing.items() if name not in LIMITS}
            for name in group if large else ():  # what its allocator keeps would be missing later
                peers[name].close()
                peers[name] = Worker(Runner, [name])
        found = list(rows(workload, groups))
        steps += found
        yield "steps", found
    for worker in [ours, *peers.values()]:
        worker.close()
    yield "absent", ({"contender": name, "why": why} for name, why in absent)
    yield "promises", (row for row in promises(steps) if chosen.everything or row["verdict"] != "not measured")
    if chosen.everything:
        yield from own.measure(chosen)
