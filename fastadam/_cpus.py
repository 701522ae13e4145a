"""How many CPUs the cgroups of this process (a container's limit) let it use."""

import math
from pathlib import Path


def cgroup_cpus(root: Path = Path("/sys/fs/cgroup"), mine: Path = Path("/proc/self/cgroup")) -> int | None:
    """The CPU quota, rounded up, of the process's cgroup or the strictest one above it; None if there is none."""
    try:
        lines = [line.split(":", 2) for line in mine.read_text().splitlines()]
    except OSError:  # not Linux
        return None
    quotas = []
    for _, controllers, path in lines:
        if controllers == "":  # version 2: one hierarchy
            quotas += [quota_v2(folder) for folder in upwards(root, path)]
        elif "cpu" in controllers.split(","):
            for hierarchy in controllers, "cpu":
                quotas += [quota_v1(folder) for folder in upwards(root / hierarchy, path)]
    found = [quota for quota in quotas if quota]
    return max(1, math.ceil(min(found))) if found else None


def upwards(root: Path, path: str) -> list[Path]:
    """The cgroup's folder and those above it; inside a container some, or all but the root, cannot be seen."""
    folder = root / path.strip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def quota_v1(folder: Path) -> float | None:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
