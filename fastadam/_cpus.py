"""How many CPUs the cgroups of this process (a container's limit) let it use."""

import math

# Paths are strings here and in _load.py: with pathlib, importing fastadam would take a tenth longer.


def cgroup_cpus(root: str = "/sys/fs/cgroup", mine: str = "/proc/self/cgroup") -> int | None:
    """The CPU quota, rounded up, of the process's cgroup or the strictest one above it; None if there is none."""
    try:
        lines = [line.split(":", 2) for line in text_of(mine).splitlines()]
    except OSError:  # not Linux
        return None
    quotas = []
    for _, controllers, path in lines:
        if controllers == "":  # version 2: one hierarchy
            quotas += [quota_v2(folder) for folder in upwards(root, path)]
        elif "cpu" in controllers.split(","):
            for hierarchy in controllers, "cpu":
                quotas += [quota_v1(folder) for folder in upwards(f"{root}/{hierarchy}", path)]
    found = [quota for quota in quotas if quota]
    return max(1, math.ceil(min(found))) if found else None


def text_of(file: str) -> str:
    with open(file) as opened:
        return opened.read()


def upwards(root: str, path: str) -> list[str]:
    """The cgroup's folder and those above it; inside a container some, or all but the root, cannot be seen."""
    names = [name for name in path.split("/") if name]
    return ["/".join([root, *names[:count]]) for count in range(len(names), -1, -1)]


def quota_v2(folder: str) -> float | None:
    try:
        quota, period = text_of(f"{folder}/cpu.max").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def quota_v1(folder: str) -> float | None:
    try:
        quota, period = (int(text_of(f"{folder}/cpu.cfs_{name}_us")) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
