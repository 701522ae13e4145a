"""CPU quotas of cgroups, as a container's limit."""

import pytest
from helpers import run_python

from fastadam._cpus import cgroup_cpus


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "mine", "expected"),
    [
        ({}, "0::/\n", None),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "200000 100000\n"}, "0::/\n", 2),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 2),
        ({"cpu.max": "20000 100000\n"}, "0::/\n", 1),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, "0::/a/b\n", 3),
        ({"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "300000 100000\n"}, "0::/a/b\n", 1),
        ({"cpu.max": "200000 100000\n"}, "0::/not/visible/here\n", 2),
        ({"cpu.max": "what is this\n"}, "0::/\n", None),
        ({"cpu.max": "100000 0\n"}, "0::/\n", None),
        (
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"},
            "5:memory:/x\n4:cpu,cpuacct:/x\n",
            4,
        ),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/docker/1\n", 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/\n", None),
    ],
)
def test_quota(tmp_path, files, mine, expected):
    for name, text in files.items():
        write(tmp_path / "cgroup" / name, text)
    write(tmp_path / "mine", mine)
    assert cgroup_cpus(str(tmp_path / "cgroup"), str(tmp_path / "mine")) == expected


def test_no_cgroups_no_quota(tmp_path):
    assert cgroup_cpus(str(tmp_path), str(tmp_path / "none")) is None


def test_the_quota_bounds_every_choice_but_an_order():
    run_python("""
import sys, types
fake = types.ModuleType("fastadam._cpus")
fake.cgroup_cpus = lambda: 1
sys.modules["fastadam._cpus"] = fake
import numpy as np, fastadam
assert fastadam.get_num_threads() == 1
fastadam.set_num_threads(2)
assert fastadam.get_num_threads() == 1
p = np.ones(1 << 23, np.float32)
opt = fastadam.Adam(p)
opt.step(p.copy())
assert opt.threads_used == 1
opt.threads = 2
opt.step(p.copy())
assert opt.threads_used == (2 if fastadam.config()["openmp"] else 1)
""")
