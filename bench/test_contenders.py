"""What a contender of one's own may be, and what is said of one that is wrong."""

import re
from pathlib import Path

import numpy as np
import pytest

from . import peers, results, row_peers, rows
from .workloads import Table, Workload

PAGE = Path(__file__).parent.parent / "docs" / "compare-yourself.md"
EXAMPLES = re.findall(r"```python\n(class .*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What the test adds to the contenders."""
    monkeypatch.setattr(peers, "CONTENDERS", {})
    monkeypatch.setattr(row_peers, "ON_ROWS", dict(row_peers.ON_ROWS))


@pytest.mark.parametrize("rule", ["Adam", "AdamW"])
def test_the_contender_of_the_page_is_right(rule):
    exec(EXAMPLES[0], vars(peers).copy())
    params, grads = Workload("", ((100, 3), (7,)), rule=rule).make()
    contender = peers.CONTENDERS["mine"](params, grads, 1, rule)
    contender.run(5)
    with pytest.raises(AssertionError, match="off by"):
        peers.check(contender, params, grads, 4)
    contender = peers.CONTENDERS["mine"](params, grads, 1, rule)
    contender.run(5)
    peers.check(contender, params, grads, 5)


def measured(monkeypatch):
    """(names with times, {name: why it has none}) of a small table: ours, and all that the test has added."""
    names = ["fastadam", "fastadam default", "mine", "wrong"]
    monkeypatch.setattr(rows, "ON_ROWS", row_peers.ON_ROWS)
    monkeypatch.setattr(rows, "SAME", [name for name in names if name in row_peers.ON_ROWS])
    seconds, absent = rows.alternating(Table("", 1000, 8, 10, 5), 1, 0)
    return {name for name, _ in seconds}, absent


def test_the_contender_of_the_page_is_right_on_rows(monkeypatch):
    exec(EXAMPLES[1], vars(row_peers).copy())
    assert measured(monkeypatch) == ({"fastadam", "fastadam default", "mine"}, {})


class Breaks(row_peers.NumpyRows):
    def step(self, rows, grads):
        raise ValueError("no such rows")


class Spoils(row_peers.NumpyRows):
    def step(self, rows, grads):
        self.t += 1
        for array in self.arrays:
            array[rows] = np.nan


class Tires(row_peers.NumpyRows):
    def step(self, rows, grads):
        super().step(rows, grads if self.t < 3 else 2 * grads)


@pytest.mark.parametrize(("kind", "why"), [(Breaks, "no such rows"), (Spoils, "Spoils: off"), (Tires, "Tires: off")])
def test_others_on_rows_are_measured_beside_one_that_fails(monkeypatch, kind, why):
    row_peers.ON_ROWS["wrong"] = kind
    names, absent = measured(monkeypatch)
    assert names == {"fastadam", "fastadam default"}
    assert absent.keys() == {"wrong"} and absent["wrong"].startswith(f"FAILED: {why}")


@pytest.mark.parametrize("why", ["FAILED: off", "it has no AdamW"])
def test_a_failure_is_told_after_all_tables_and_nothing_is_saved(capsys, monkeypatch, tmp_path, why):
    class Module:
        """Of two contenders."""

        @staticmethod
        def measure(chosen):
            yield "steps", [{"contender": "b", "ms": 1}]
            yield "absent", [{"contender": "a", "why": why}]
            yield "promises", [{"what": "c", "bar": 1}]

    monkeypatch.setattr(results, "FOLDER", tmp_path)
    if why.startswith("FAILED"):
        with pytest.raises(SystemExit, match="a contender failed"):
            results.run("some", Module, ["--save"])
        assert results.load("some") is None
    else:
        results.run("some", Module, ["--save"])
        assert results.load("some")["tables"].keys() == {"steps", "absent", "promises"}
    assert capsys.readouterr().out.endswith("| c | 1 |\n")


def test_there_are_no_other_rules():
    with pytest.raises(ValueError, match="w: there is no rule Lion; choose from Adam, AdamW, "):
        Workload("w", ((3,),), rule="Lion")
    with pytest.raises(ValueError, match="a: no peer can have SGD, .* choose from Adam, AdamW, AMSGrad, clipped"):

        class A(peers.Contender, name="a"):
            rules = ("Adam", "SGD")

    assert not peers.CONTENDERS
