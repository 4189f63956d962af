"""The verdict on one method against another, at one or more sizes: a sentence and two rows of a table for each size.

The sizes are the declared pairs of a results folder whose `compare` has looks, as `lora-bench verdict` declares them.
What decides are the declared comparisons, like everywhere in the report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lora_bench.report.numbers.calibration import calibration_frame
from lora_bench.report.numbers.collapsed import collapsed_notes, collapsed_sentence, without_collapsed
from lora_bench.report.numbers.comparison_tables import with_sides
from lora_bench.report.numbers.comparisons import (
    ABOVE,
    BELOW,
    EQUIVALENT,
    NOT_TESTED,
    UNFINISHED,
    ScopeStatistics,
    is_decided,
)
from lora_bench.report.numbers.entries import AVERAGE, Scope, size_text
from lora_bench.report.numbers.frame import SCOPE, Row, device_prefix, is_missing, rows_of
from lora_bench.report.numbers.statistics import MIN_SEEDS, SIGNIFICANCE
from lora_bench.report.numbers.tables import (
    DASH,
    ReportTable,
    TableColumn,
    build_table,
    count_text,
    difference_interval_text,
    p_relation,
    p_text,
    signed_percent,
    summary_text,
)
from lora_bench.report.numbers.wording import counted_points, join_words, main_name, set_text
from lora_bench.text import counted

if TYPE_CHECKING:
    from pandas import DataFrame

    from lora_bench.compare import Arm, Comparisons

MATCHED = 1.1  # numbers of trained values are called equal up to this factor
UNDECIDED = "not decided"
_CALIBRATION = ("nll", "ece")
_SIDE = ("size", "targets", "method", "rank", "a", "b", "adapter_params", "adapter_bytes", "mean", "std", "n", "seeds")
_PAIR = ("difference", "low", "high", "examples_low", "examples_high", "holm", "holm_equivalent")


def verdict_sentences(statistics: ScopeStatistics) -> list[str]:
    """Return a sentence for each declared size, one where seeds have collapsed, and one on the looks.

    There is nothing if the folder holds no verdict.
    """
    compare = statistics.scope.compare
    if not compare.looks:
        return []
    rows = _rows(statistics)
    by_pair = {row["pair"]: _sentence(statistics, row) for row in rows}
    without_seeds = _sentences_without_seeds(compare)
    seeds = join_words([str(count) for count in compare.looks])
    return [
        *(by_pair.get(number, sentence) for number, sentence in enumerate(without_seeds, 1)),
        *_collapsed_sentences(statistics, rows),
        f"Look {len(compare.looks)} at this comparison, with {seeds} seeds: the intervals hold for all looks together, "
        f"those that may follow included.{_examples_text(statistics, rows)}",
    ]


def _examples_text(statistics: ScopeStatistics, rows: list[Row]) -> str:
    """Say whose examples the intervals are over, if they were asked to be over examples and a look has ended."""
    if statistics.scope.compare.over == "seeds" or all(row["verdict"] == UNFINISHED for row in rows):
        return ""
    without = _tasks_without_examples(statistics)
    with_examples = [task for task in _main_tasks(statistics.scope) if task not in without]
    if not with_examples:
        return f" They are over seeds alone: what other examples of {set_text(without)} would change is not known."
    unknown = f"; what those of {set_text(without)} would change is not known" if without else ""
    return f" They are over seeds and the examples of {set_text(with_examples)}{unknown}."


def _tasks_without_examples(statistics: ScopeStatistics) -> list[str]:
    """Return the tasks of the main column whose examples add nothing: their metrics or records do not say what."""
    means = statistics.means_over_examples
    return [task for task in _main_tasks(statistics.scope) if means[task].example_terms is None]


def _main_tasks(scope: Scope) -> tuple[str, ...]:
    return scope.averaged if scope.main.task == AVERAGE else (scope.main.task,)


def _collapsed_sentences(statistics: ScopeStatistics, rows: list[Row]) -> list[str]:
    """Return a sentence for each size at which cells have collapsed; none before the look has ended."""
    if not statistics.scope.entries["one_answer"].any():
        return []
    without = without_collapsed(statistics)
    ended = (row for row in rows if row["verdict"] != UNFINISHED)
    sentences = (collapsed_sentence(statistics.scope, row, without) for row in ended)
    return [sentence for sentence in sentences if sentence]


def sentences_without_results(compare: Comparisons | None) -> list[str]:
    """Return a sentence for each declared size of a folder without any cell of the grid; nothing without a verdict."""
    return _sentences_without_seeds(compare) if compare is not None and compare.looks else []


def _sentences_without_seeds(compare: Comparisons) -> list[str]:
    """Return a sentence for each declared size, as if no seed of it had ended on all tasks."""
    where = f"on {set_text(compare.average)}" if compare.average else "on every task"
    sentences = []
    for pair in compare.pairs:
        sides = f"{_arm_text(pair.arm)}{_targets_text(pair.arm)} against {_arm_text(pair.against)}"
        sentences.append(f"{sides}: {UNFINISHED}, no seed of both has ended {where}.")
    return sentences


def _arm_text(arm: Arm) -> str:
    """Name a declared arm as the rows of the table are named."""
    return size_text({"label": arm["method"], **{name: arm.get(name) for name in ("rank", "a", "b")}})


def verdict_tables(statistics: ScopeStatistics) -> list[ReportTable]:
    """Return the table with the two methods of each declared size, one below the other; none without a verdict."""
    scope = statistics.scope
    rows = _rows(statistics) if scope.compare.looks else []
    if not rows:
        return []
    frame = _sides(statistics, rows).assign(**scope.values)
    with_examples = scope.compare.over == "seeds"

    def interval(low: str, high: str) -> TableColumn:
        heads = {"low": "95%\ninterval", "examples_low": "with\nexamples"}
        return TableColumn(low, heads[low], lambda row: _of_subject(row, difference_interval_text(row[low], row[high])))

    columns = [
        TableColumn("size", "setting"),
        TableColumn("targets", "targets"),
        TableColumn("adapter_params", "trained\nvalues", lambda row: count_text(row["adapter_params"]), numeric=True),
        TableColumn("adapter_bytes", "adapter\nbytes", lambda row: count_text(row["adapter_bytes"]), numeric=True),
        TableColumn("mean", "score", summary_text),
        *(TableColumn(name, name.upper(), _three_digits(name), numeric=True) for name in _CALIBRATION),
        TableColumn(
            "seconds",
            f"{device_prefix(scope.cells)}seconds\na cell",
            lambda row: DASH if row["seconds"] is None else f"{row['seconds']:,.1f}",
            numeric=True,
        ),
        TableColumn("difference", "difference", lambda row: _of_subject(row, signed_percent(row["difference"]))),
        interval("low", "high"),
        *([interval("examples_low", "examples_high")] if with_examples else []),
        TableColumn("holm", "Holm\np", lambda row: _of_subject(row, p_text(row["holm"])), numeric=True),
        TableColumn(
            "holm_equivalent",
            "equivalence\nHolm p",
            lambda row: _of_subject(row, p_text(row["holm_equivalent"])),
            numeric=True,
        ),
        TableColumn(
            "verdict",
            "verdict",
            lambda row: _of_subject(row, row["verdict"]),
            bold=lambda row: is_decided(row["verdict"]),
        ),
        *(TableColumn(name) for name in (*SCOPE, "pair", "side", "high", "examples_high", "method", "rank", "a", "b")),
        *(TableColumn(name) for name in ("std", "n", "seeds")),
    ]
    notes = (
        f"On {main_name(scope)}; the difference is that of the row to the one below it. NLL and ECE: the mean negative "
        "log-likelihood and the expected calibration error on the rows that are scored, over the tasks with classes; "
        f"lower is better. Equivalent: within {counted_points(scope.compare.margin)}.",
        *collapsed_notes(scope, [*statistics.declared["entry"], *statistics.declared["reference"]]),
    )
    name, title = f"verdict {scope.title}", f"{scope.compare.subject} against {scope.compare.reference}: {scope.title}"
    return [build_table(name, title, columns, frame, notes, 2)]


def _rows(statistics: ScopeStatistics) -> list[Row]:
    """Return the declared comparisons with both sides, and with the verdict in words."""
    declared = statistics.declared
    rows = rows_of(with_sides(statistics, declared)) if len(declared) else []
    indices = zip(declared["entry"], declared["reference"], strict=True) if len(declared) else ()
    return [
        {**row, "entry": entry, "reference": reference, "verdict": _verdict(row)}
        for row, (entry, reference) in zip(rows, indices, strict=True)
    ]


def _verdict(row: Row) -> str:
    verdict = str(row["verdict"])
    known = (ABOVE, BELOW, EQUIVALENT, NOT_TESTED, UNFINISHED)
    return verdict if verdict.startswith(known) else UNDECIDED


def _sentence(statistics: ScopeStatistics, row: Row) -> str:
    """Say what is known at one size."""
    scope = statistics.scope
    subject, reference = f"{row['size']}{_targets_text(row)}", str(row["reference_size"])
    on = f"({_size_text(row)}) on {main_name(scope)}"
    verdict, margin = row["verdict"], counted_points(scope.compare.margin)
    done = min(row["seeds"], row["reference_seeds"])
    if verdict == UNFINISHED:
        return (
            f"{subject} against {reference} {on}: {UNFINISHED}, {done} of {scope.compare.looks[-1]} seeds have ended."
        )
    if verdict == NOT_TESTED:
        return f"{subject} against {reference} {on}: {NOT_TESTED}, fewer than {MIN_SEEDS} seeds have a score."
    interval = difference_interval_text(row["low"], row["high"])
    seeds = counted(done, "seed") + _lost_text(row)
    difference = f"{signed_percent(row['difference'])} points {interval} over {seeds}"
    elsewhere = _other_examples(statistics, row)
    if verdict == EQUIVALENT:
        p = f"equivalence p {p_relation(row['holm_equivalent'])}"
        return f"{subject} is equivalent to {reference} within {margin} {on}: {difference}, {p}.{elsewhere}"
    if verdict == UNDECIDED:
        first = f"{subject} against {reference} {on}: {UNDECIDED}. The difference is {difference}"
        # The interval is that of this size alone; what decides is corrected for the number of sizes.
        excludes_zero = row["low"] > 0 or row["high"] < 0
        tested = f"over {counted(len(scope.compare.pairs), 'size')} (Holm's p {p_relation(row['holm'])}) "
        return (
            f"{first}: {tested if excludes_zero else ''}neither one is certainly better, nor are they certainly within "
            f"{margin}."
        )
    word = ABOVE if verdict.startswith(ABOVE) else BELOW
    within = f", by certainly less than {margin}" if verdict != word else ""
    p = f"p {p_relation(row['holm'])}"
    return f"{subject} is {word} than {reference} {on}{within}: {difference}, {p}.{elsewhere}"


def _lost_text(row: Row) -> str:
    """Say how many seeds of each side have no score; nothing if all have one."""
    lost = {
        str(row["size"]): row["seeds"] - row["n"],
        str(row["reference_size"]): row["reference_seeds"] - row["reference_n"],
    }
    texts = [f"{count} of {size}" for size, count in lost.items() if count]
    return f" (failed or diverged: {join_words(texts)})" if texts else ""


def _targets_text(row: Row) -> str:
    return f" on {row['targets']}" if row.get("targets") else ""


def _size_text(row: Row) -> str:
    """Name the numbers of trained values of both sides, and say if they are not about equal."""
    first, second = row["adapter_params"], row["reference_adapter_params"]
    if first is None or second is None:
        return "numbers of trained values unknown"
    if first == second:
        return f"{first:,} trained values each"
    texts = f"{first:,} against {second:,} trained values"
    ratio = max(first, second) / max(min(first, second), 1)
    return texts if ratio <= MATCHED else f"{texts}, not matched"


def _other_examples(statistics: ScopeStatistics, row: Row) -> str:
    """Say whether what is certain over seeds is so on other examples too; nothing if it was not asked."""
    low, high = row.get("examples_low"), row.get("examples_high")
    if low is None or high is None or is_missing(low):
        return ""
    interval = difference_interval_text(low, high)
    is_equivalent = row["examples_equivalent"] < SIGNIFICANCE
    holds = is_equivalent if row["verdict"] == EQUIVALENT else low > 0 or high < 0
    certain = "" if holds else ", so it may not hold there"
    # An average has an interval over examples as soon as one of its tasks has.
    without = _tasks_without_examples(statistics)
    unknown = f" (those of {set_text(without)} do not count)" if without else ""
    return f" On other examples of the same tasks{unknown}: {interval}{certain}."


def _sides(statistics: ScopeStatistics, rows: list[Row]) -> DataFrame:
    """Return two rows for each size: the subject with the comparison, and the reference."""
    import pandas as pd

    calibration, entries = _calibration(statistics.scope), statistics.scope.entries
    by_index = dict(zip(entries.index.tolist(), rows_of(entries), strict=True))
    sides = []
    for row in rows:
        for side, role in (("entry", "subject"), ("reference", "reference")):
            entry = by_index[row[side]]
            values = {name: entry[name] for name in (*_SIDE, "seconds")} | calibration.get(entry["arm"], {})
            compared = {name: row.get(name) for name in (*_PAIR, "verdict")} if role == "subject" else {"verdict": ""}
            sides.append({**values, **compared, "pair": row["pair"], "side": role})
    names = [*_SIDE, "seconds", *_CALIBRATION, *_PAIR, "pair", "side", "verdict"]
    return pd.DataFrame(sides, columns=names)


def _calibration(scope: Scope) -> dict[int, dict[str, float]]:
    """Return the calibration of each arm at the scored epochs: the mean over its tasks of the means over seeds."""
    frame = calibration_frame(scope, _main_tasks(scope))
    by_arm = frame.groupby(["arm", "task"])[[*_CALIBRATION]].mean().groupby("arm").mean()
    values = by_arm[[*_CALIBRATION]].to_numpy().tolist()
    return {
        arm: dict(zip(_CALIBRATION, row, strict=True)) for arm, row in zip(by_arm.index.tolist(), values, strict=True)
    }


def _three_digits(name: str) -> Callable[[Row], str]:
    return lambda row: DASH if row[name] is None else f"{row[name]:.3f}"


def _of_subject(row: Row, text: str) -> str:
    return text if row["side"] == "subject" else ""
