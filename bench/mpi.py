"""MPI: the step that ranks on one machine share, beside plain copies of the same bytes; and the memory of a rank."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from .results import must_have, promise, ratio

CHOICES = {"ranks": ("1", "2", "4")}
MIB = 1 << 20


def run(ranks, *arguments):
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        raise SystemExit("there is no mpiexec: python -m pip install mpich")
    command = [mpiexec, "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", "bench.mpi_rank", *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    line = next(line for line in done.stdout.splitlines() if line.startswith("result "))
    return json.loads(line.removeprefix("result "))


def measure(chosen):
    must_have("mpi4py", "mpi4py")
    size = MIB if chosen.quick else 64 * MIB
    for ranks in map(int, chosen.ranks):
        for max_norm in None, 1.0:
            found = run(ranks, size, 3 if chosen.quick else 9, *([max_norm] if max_norm else []))
            what = {"ranks": ranks, "max_norm": str(max_norm), "elements": size}
            share = ratio(found["bounds"], found["steps"])
            yield "steps", [{
                **what,
                "step, ms": statistics.median(found["steps"]) * 1e3,
                "copies and step, ms": statistics.median(found["bounds"]) * 1e3,
                "share of the bound": share,
                "above parameters and gradients, MiB": found["above"] / MIB,
                "state, MiB": found["held"]["state"] / MIB,
            }]  # fmt: skip
            if ranks == 2 and not max_norm and not chosen.quick:
                yield "promises", [promise({"what": "2 ranks: share of the bound"}, ">= 0.6", share)]
                most = found["held"]["state"] / MIB + 4 * 4 + 32
                above = found["above"] / MIB
                yield (
                    "promises",
                    [promise({"what": "2 ranks: MiB above parameters and gradients"}, f"<= {most:.4g}", above)],
                )
