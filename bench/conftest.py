"""Says which contenders were not there to be measured."""

from bench.test_step import ABSENT


def pytest_terminal_summary(terminalreporter):
    if ABSENT:
        terminalreporter.write_line(f"absent, not measured: {', '.join(ABSENT)} (bench/requirements.txt)")
