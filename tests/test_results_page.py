"""What the page on results/base says beside the report's own tables is that of the records."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lora_bench.compare import Arm
from lora_bench.grid.config import load_comparisons
from lora_bench.records.schema import Record
from lora_bench.report.formats.render import markdown_table
from lora_bench.report.numbers.frame import gives_one_answer
from lora_bench.report.numbers.statistics import holm_correction
from tests.test_results import AGAIN, LONGER, RESULTS, loaded, report

NAMED = {"mini": "LoRA-Mini", "lora": "LoRA"}
BASE_TASKS = ("cola", "mrpc", "stsb", "rte")  # those that base averages over
PEFT = "lora r=8 (qv)"  # the setting that a bare loop of transformers and peft trained too


def seed_scores(arm: Arm, tasks: Iterable[str], name: str = "base") -> NDArray[np.float64]:
    """The scores ×100 of a declared setting, `[seeds, tasks]`."""
    final = [record for record in loaded(name).records if not record.is_search and record.cell.init != "published"]
    members = [r for r in final if all(getattr(r.cell, field) == value for field, value in arm.items())]
    of = {(r.cell.task, r.cell.seed): 100 * (r.score or 0) for r in members}
    seeds = sorted({seed for _, seed in of})
    return np.array([[of[task, seed] for task in tasks] for seed in seeds if ("cola", seed) in of])


Sides = Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
TESTS = {
    "welch": lambda one, other: stats.ttest_ind(one, other, equal_var=False).pvalue,
    "paired": lambda one, other: stats.ttest_rel(one, other).pvalue,
    "rank sum": lambda one, other: stats.mannwhitneyu(one, other).pvalue,
}


def corrected(test: str, sides: Sides) -> list[str]:
    """Holm's p of each comparison, as the page writes it."""
    values = holm_correction(np.array([TESTS[test](*side) for side in sides]))
    return ["<0.001" if value < 0.001 else f"{value:.3f}" for value in values]


def differences(sides: Sides, average: Callable[[NDArray[np.float64]], Any] = np.mean) -> list[str]:
    """The differences of means or medians."""
    return [f"{average(one) - average(other):+.1f}" for one, other in sides]


def sensitivity() -> list[str]:
    """How much the declared comparisons depend on the test, on RTE and on CoLA: a row each."""
    pairs = load_comparisons(RESULTS / "base").pairs

    def over(tasks: tuple[str, ...]) -> Sides:
        return [(seed_scores(pair.arm, tasks).mean(1), seed_scores(pair.against, tasks).mean(1)) for pair in pairs]

    every, no_rte, no_cola = over(BASE_TASKS), over(("cola", "mrpc", "stsb")), over(("mrpc", "stsb", "rte"))
    columns = [
        *zip(*([arm_text(side) for side in (pair.arm, pair.against)] for pair in pairs), strict=True),
        *(differences(every), differences(every, np.median)),
        *(corrected(test, every) for test in ("welch", "paired", "rank sum")),
        *(differences(no_rte), corrected("welch", no_rte), corrected("rank sum", no_rte)),
        *(differences(no_cola), corrected("welch", no_cola)),
    ]
    return [f"| {' | '.join(row)} |" for row in zip(*columns, strict=True)]


def longer_less_base() -> str:
    """What five settings gain by three times the epochs, over the seeds that both have."""
    gains = []
    for pair in load_comparisons(RESULTS / LONGER).pairs:
        for arm in (pair.arm, pair.against):
            long, short = (seed_scores(arm, BASE_TASKS, name).mean(1) for name in (LONGER, "base"))
            gain = long.mean() - short.mean()
            interval = stats.ttest_ind(long, short, equal_var=False).confidence_interval(0.95)
            gains.append(f"{arm_text(arm)} {gain:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]")
    return ", ".join(dict.fromkeys(gains))


def both_correlations(record: Record) -> float:
    """The mean of Pearson's and Spearman's correlation ×100, of the epoch that has the best on held-out rows."""

    def mean(scores: Mapping[str, float | None] | None) -> float:
        return fmean(value or 0 for value in (scores or {}).values())

    return 100 * mean(max(record.epochs, key=lambda epoch: mean(epoch.held_out)).metrics)


def beside_peft() -> list[str]:
    """LoRA r=8 on q and v beside a bare loop of transformers and peft, a row a task and one of their average."""
    lines = (RESULTS / "base" / "plain-peft.jsonl").read_text(encoding="utf-8").splitlines()
    plain = {(line["task"], line["seed"]): 100 * line["score"] for line in map(json.loads, lines)}
    assert plain.keys() == set(itertools.product(BASE_TASKS, range(20)))
    (arm,) = [pair.against for pair in load_comparisons(RESULTS / "base").pairs if arm_text(pair.against) == PEFT]
    both = seed_scores(arm, BASE_TASKS), np.array([[plain[task, seed] for task in BASE_TASKS] for seed in range(20)])
    correlated = [r for r in loaded("base").records if r.cell.task == "stsb" and not r.is_search]
    by_seed = {
        record.cell.seed: both_correlations(record)
        for record in correlated
        if all(getattr(record.cell, field) == value for field, value in arm.items())
    }
    both[0][:, BASE_TASKS.index("stsb")] = [by_seed[seed] for seed in range(20)]
    rows = []
    for title in (*BASE_TASKS, "average"):
        chosen = range(len(BASE_TASKS)) if title == "average" else [BASE_TASKS.index(title)]
        ours, peft = (side[:, list(chosen)].mean(1) for side in both)
        error = np.sqrt(np.var(ours, ddof=1) / 20 + np.var(peft, ddof=1) / 20)
        difference = ours.mean() - peft.mean()
        interval = stats.ttest_ind(ours, peft, equal_var=False).confidence_interval(0.95)
        sides = [f"{side.mean():.1f} ± {side.std(ddof=1):.1f}" for side in (ours, peft)]
        rows.append(
            f"| {title} | {' | '.join(sides)} | {difference:+.2f} | \\[{interval.low:+.1f}, {interval.high:+.1f}\\] | "
            f"{difference / error:+.1f} | {np.median(ours) - np.median(peft):+.2f} |"
        )
    return rows


def again_alone() -> str:
    """How far cells that were trained again, each alone, are from those in their packs, as the page says it."""
    first = {record.id: record.score or 0 for record in loaded("base").records}
    differences = np.array([100 * ((record.score or 0) - first[record.id]) for record in loaded(AGAIN).records])
    count = len(differences)
    half = stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count)
    mean = differences.mean()
    return (
        f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}] points on average over the {count}; either way "
        f"{np.median(abs(differences)):.1f} at the median and {abs(differences).max():.1f} at most"
    )


def arm_text(arm: Arm) -> str:
    """A declared setting in short, with targets other than all linear layers."""
    outer = f" a={arm['a']} b={arm['b']}" if "a" in arm else ""
    return f"{arm['method']} r={arm['rank']}{outer}" + (" (qv)" if arm["targets"] == "qv" else "")


def assert_cards_are_those_named(plain: str) -> None:
    """On which cards the cells of base and of three times the epochs ran."""
    cards = {
        name: Counter((record.environment["device"], record.is_search) for record in loaded(name).records)
        for name in ("base", LONGER)
    }
    assert f"{sum(count for (card, _), count in cards['base'].items() if 'H200' in card)} cells of `full`" in plain
    (h100,) = {card for card, _ in cards[LONGER] if "H100" in card}
    assert f"{cards[LONGER][h100, True]} trials and {cards[LONGER][h100, False]} final cells" in plain


def test_what_the_page_on_base_says_beside_the_report_is_that_of_the_records() -> None:
    text = (RESULTS / "base" / "README.md").read_text(encoding="utf-8")
    plain = " ".join(text.split())
    records = {record.id: record for record in loaded("base").records}
    assert f"All {len(records):,} cells" in plain
    search_minutes, minutes = (
        sum(record.timing.seconds for record in part if record.timing) / 60
        for part in ([record for record in records.values() if record.is_search], records.values())
    )
    assert f"{minutes:.0f} GPU-minutes in all, {search_minutes:.0f} of them searches" in plain
    assert [line for line in (*sensitivity(), *beside_peft(), again_alone()) if line not in text] == []
    (declared,) = [table for table in report(LONGER).tables if table.name.startswith("declared")]
    rows = [line for line in markdown_table(declared).splitlines() if line.startswith("|")]
    assert len(rows) == 5
    assert "\n".join(rows) in text

    final = [r for r in records.values() if not r.is_search and r.cell.init != "published"]
    scores = {name: [r.score or 0 for r in final if (r.cell.task, r.cell.method) == ("cola", name)] for name in NAMED}
    of_cola = [r for r in final if r.cell.task == "cola" and r.cell.method in NAMED]
    assert all(gives_one_answer(record) is ((record.score or 0) < 0.05) for record in of_cola)
    low = {name: sum(score < 0.05 for score in values) for name, values in scores.items()}
    counts = [[low[name], len(scores[name]) - low[name]] for name in NAMED]
    said = [f"{low[name]} of {len(scores[name])} cells of {title}" for name, title in NAMED.items()]
    p = stats.fisher_exact(counts).pvalue
    assert (
        f"{said[0]} and {said[1]} end CoLA below 5 (Fisher's p = {p:.2f}): each gives one answer to all rows" in plain
    )

    with (RESULTS / "base" / "tables" / "searches.csv").open(encoding="utf-8", newline="") as file:
        searched = {tuple(row[name] for name in ("task", "method", "rank", "a")): row for row in csv.DictReader(file)}
    row = searched["rte", "mini", "16", "72"]
    assert f"rates {row['tried']} had the mean held-out scores {row['held_out']}" in plain

    scope = report("base").sections[0].statistics.scope
    entries = scope.at(scope.main)
    lora = entries[(entries["label"] == "lora") & (entries["targets"] == "attention+dense")].set_index("rank")["mean"]
    assert len(lora) == 7
    assert f"within {100 * (lora - lora[1]).abs().max():.1f} points of every larger rank" in plain
    equal = report("base").sections[0].statistics.equal
    assert f"without that row {100 * equal['difference'].drop(equal['difference'].idxmin()).mean():.1f}" in plain
    heads = sorted({(record.cell.task == "stsb", record.counts.head_params) for record in final if record.counts})
    assert "a head of {:,} values ({:,} on STS-B)".format(*(size for _, size in heads)) in plain
    assert longer_less_base() in plain
    assert_cards_are_those_named(plain)
    for name, title in NAMED.items():
        of = [record for record in final if (record.cell.task, record.cell.method) == ("sst2", name)]
        keys = {(record.cell.targets, record.cell.rank, record.cell.a) for record in of}
        means = [
            100 * fmean(r.score or 0 for r in of if (r.cell.targets, r.cell.rank, r.cell.a) == key) for key in keys
        ]
        assert f"{title} has {min(means):.1f} to {max(means):.1f}" in plain
