"""The arithmetic of the table of peak memory; real memory is measured by the script alone."""

import pytest

from sda.benchmarks.memory import MIB, TASKS, growth, measure, stored, table


def test_table():
    calls = []

    def peak(task: str, members: int, block: int) -> int:
        calls.append((task, members, block))
        return (100 if task == "simulation" else 200) * MIB + members * MIB // 16

    measured = measure([8, 64, 1024], 4, peak)
    assert calls == [(task, number, 4) for task in TASKS for number in (8, 64, 1024)]
    assert growth(measured["simulation"]) == pytest.approx(164 / 100.5)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table(measured).split("\n")]
    assert rows[0] == ["members", "the ensemble", "simulation", "assimilation"]
    assert rows[2:] == [
        ["8", "0.5", "100", "200"],
        ["64", "4.0", "104", "204"],
        ["1,024", "64.0", "164", "264"],
        ["largest over smallest", "128 times", "1.63 times", "1.32 times"],
    ]
    assert stored(1024) == 64 * MIB
