"""What the report says of results that are not complete."""

from .report import Versus


def test_a_bar_that_nobody_was_measured_for_is_one_row():
    seconds = {"fastadam": [1.0, 1.0], "fastadam.adam_update": [1.0, 1.0], "numba serial": [2.0, 2.0]}
    rows = list(Versus([{"workload": "1 x 1 K", "seconds": seconds, "absent": {}}]).bars())
    measured = [row for row in rows if row[-1] != "not measured"]
    assert len(rows) == 11
    assert measured == [["1 x 1 K", "fastadam.adam_update", "numba serial", ">= 1", "2.00 (2.00 to 2.00)", "", "met"]]
