"""What is said of results that are not complete, and whether they come back as they were written."""

import pytest

from . import results, versus
from .versus import promises


def test_a_bar_that_nobody_was_measured_for_is_one_row():
    twice = [2.0, 2.0, 2.0]
    ratios = {"against fastadam": twice, "against fastadam.adam_update": twice}
    shares = {"share of the memory limit": None, "share of the arithmetic limit": None}
    rows = list(promises([{"workload": "1 x 1 K", "contender": "numba serial"} | ratios | shares]))
    assert len(rows) == 17 + 12  # of peers, of the memory limit
    (measured,) = (row for row in rows if row["verdict"] != "not measured")
    assert (measured["ours"], measured["other"]) == ("fastadam.adam_update", "numba serial")
    assert (measured["bar"], measured["measured"], measured["verdict"]) == (">= 1", twice, "met")


def test_results_are_read_as_they_were_written(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    rows = [{"what": "a", "ms": 1.23456, "ratio": [0.9, 1.0, 1.1]}, {"what": "b", "ms": None, "ratio": None}]
    results.write("some", {"machine": "this"}, {"steps": rows})
    rows[0]["ms"] = 1.235
    assert results.load("some") == {"about": {"machine": "this"}, "tables": {"steps": rows}}
    assert results.table(rows).splitlines()[2:] == ["| a | 1.24 | 1.00 (0.90 to 1.10) |", "| b |  |  |"]


def test_a_pivot_has_a_cell_for_each_case():
    rows = [{"what": what, "case": case, "x": x} for what, case, x in (("a", 2, 1.0), ("b", 3, 2.0), ("a", 3, 3.0))]
    assert results.table(results.pivot(rows, ("what",), "case", lambda row: row["x"])).splitlines() == [
        "| what | 2 | 3 |", "| --- | --- | --- |", "| a | 1 | 3 |", "| b |  | 2 |",
    ]  # fmt: skip


def test_only_what_was_chosen_is_measured():
    assert results.options("versus", "", [], versus.CHOICES).everything
    chosen = results.options("versus", "", ["--workloads=none"], versus.CHOICES)
    assert (chosen.everything, chosen.workloads, chosen.peers) == (False, [], versus.PEERS)
    chosen.peers = []
    assert [row for _, rows in versus.measure(chosen) for row in rows] == []


def test_names_may_have_spaces_around_their_commas(capsys):
    def peers(given):
        return results.options("versus", "", [f"--peers={given}"], versus.CHOICES).peers

    assert peers("thinc, autograd ,optax jit") == ["thinc", "autograd", "optax jit"]
    assert (peers("all"), peers("none")) == (versus.PEERS, [])
    with pytest.raises(SystemExit):
        peers("thinc, Thinc")
    assert "--peers: there is no Thinc; choose from NumPy tutorial, " in capsys.readouterr().err
