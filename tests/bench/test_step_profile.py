"""The table of `tests/tools/step_profile.py`."""

from __future__ import annotations

from collections import defaultdict

from tests.tools.step_profile import LONGEST, table


def kernels(**milliseconds: float) -> defaultdict[str, float]:
    return defaultdict(float, milliseconds)


def test_the_rows_of_a_column_add_up_to_the_step() -> None:
    prefix = "k" * LONGEST  # kernels whose names begin alike are rows of their own
    lines = table(
        {"lora": (10.0, kernels(**{prefix + "1": 4.0, prefix + "2": 3.0, "tiny": 0.05})), "full": (8.0, kernels())}
    )
    rows = [[field.strip() for field in line.strip("|").split("|")] for line in lines.splitlines()]
    assert rows[0] == ["ms a step", "lora", "full"]
    assert [row[0] for row in rows[2:]] == [prefix, prefix, "others", "no kernel", "a step"]
    *parts, total = [[float(field) for field in row[1:]] for row in rows[2:]]
    assert [round(sum(column), 2) for column in zip(*parts, strict=True)] == total == [10, 8]
    assert parts[3] == [2.95, 8]
