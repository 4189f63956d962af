"""Against LoRA: each method's best setting and LoRA's, paired by seed and by example, Holm-corrected."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lora_bench.report.figures.captions import column_title, task_title
from lora_bench.report.numbers.intervals import Examples, compare_examples
from lora_bench.report.numbers.slots import Column, Piece, Slot
from lora_bench.report.numbers.statistics import Interval, holm, over_seeds, paired_over_seeds, with_examples
from lora_bench.report.numbers.tables import Field, Table, interval_text, p_text, p_words, place, plain, signed, which

REFERENCE = "lora"
SURE = 0.05
SAME, UNTESTED = "not told apart", "not tested"
NAMED = 5  # methods a sentence names


@dataclass(frozen=True)
class Comparison:
    """A method's best setting less LoRA's, over the seeds that both have; metric's units.

    `p` is of the paired t over seeds, `examples.p` of the paired t over examples (accuracy); `holm` and
    `examples_holm` are corrected over all comparisons of the piece.
    """

    column: Column
    slot: Slot
    reference: Slot
    differences: tuple[float, ...]
    interval: Interval | None
    examples: Examples | None
    p: float | None
    holm: float | None = None
    examples_holm: float | None = None

    @property
    def mean(self) -> float:
        """The mean difference."""
        return statistics.fmean(self.differences)

    @property
    def std(self) -> float | None:
        """The sample standard deviation of the differences."""
        return statistics.stdev(self.differences) if len(self.differences) > 1 else None

    @property
    def verdict(self) -> str:
        """`above`, `below`, `not told apart` by the corrected test over seeds, or `not tested`."""
        if self.p is None:
            return UNTESTED
        if self.holm is None or self.holm >= SURE:
            return SAME
        return "above" if self.mean > 0 else "below"


def comparisons(piece: Piece) -> tuple[Comparison, ...]:
    """Every method against LoRA on every task; nothing where LoRA was not run."""
    found = []
    for column in piece.columns:
        chosen = piece.chosen(column)
        if reference := chosen.pop(REFERENCE, None):
            found += [made for slot in chosen.values() if (made := _compare(column, slot, reference))]
    over_seeds_holm = holm([each.p for each in found])
    over_examples = holm([each.examples.p if each.examples else None for each in found])
    return tuple(
        Comparison(**{**vars(each), "holm": one, "examples_holm": other})
        for each, one, other in zip(found, over_seeds_holm, over_examples, strict=True)
    )


def versus_table(piece: Piece, found: Sequence[Comparison]) -> list[Table]:
    """The comparisons as a table; none where there are none."""
    if not found:
        return []
    return [
        Table(
            name=f"against lora {piece.title}",
            title=f"Against LoRA: {piece.title}",
            heads=(
                "task", "method", "LoRA", "difference", "95%\ninterval", "p\nseeds", "Holm\nseeds", "p\nexamples",
                "Holm\nexamples", "same\npredictions", "verdict",
            ),
            labels=2,
            rows=tuple(_row(each) for each in found),
            notes=_notes(found),
            data=tuple(_datum(piece, each) for each in found),
        )
    ]  # fmt: skip


def sentences(found: Sequence[Comparison]) -> list[str]:
    """The comparisons in words: what differs from LoRA, then what could not be told apart."""
    told = [_sentence(each) for each in found if each.verdict not in (SAME, UNTESTED)]
    if same := _names(SAME, found):
        told.append(f"Not told apart from LoRA by these seeds, which is not the same as equal. {same}.")
    if untested := _names(UNTESTED, found):
        told.append(f"Fewer than 3 seeds shared with LoRA, so not tested. {untested}.")
    return told


def _names(wanted: str, found: Sequence[Comparison]) -> str:
    """The methods with a verdict, task by task; only counted where they are many."""
    by_task: dict[str, list[Comparison]] = {}
    for each in found:
        by_task.setdefault(task_title(each.column.task), []).append(each)
    said = []
    for task, all_of_it in by_task.items():
        own = [each.slot.label for each in all_of_it if each.verdict == wanted]
        if own:
            said.append(f"{task}: {', '.join(own) if len(own) <= NAMED else f'{len(own)} of {len(all_of_it)} methods'}")
    return "; ".join(said)


def _compare(column: Column, slot: Slot, reference: Slot) -> Comparison | None:
    seeds = sorted(slot.scores.keys() & reference.scores.keys())
    if not seeds:
        return None
    first, second = ([each.scores[seed] for seed in seeds] for each in (slot, reference))
    differences = tuple(one - other for one, other in zip(first, second, strict=True))
    by_seed = [{cell["seed"]: cell for cell in each.cells} for each in (slot, reference)]
    examples = compare_examples(column, *([cells[seed] for seed in seeds] for cells in by_seed))
    interval = over_seeds(differences)
    if examples and column.metric == "accuracy":
        interval = with_examples(interval, statistics.fmean(differences), examples.spread.added, examples.rows)
    return Comparison(column, slot, reference, differences, interval, examples, paired_over_seeds(first, second))


def _row(each: Comparison) -> tuple[Field, ...]:
    spread = "" if each.std is None else f" ± {100 * each.std:.1f}"
    examples = each.examples
    bound = "≤" if examples and examples.bound and examples.p is not None else ""
    return (
        plain(column_title(each.column)), plain(each.slot.size), plain(each.reference.size),
        Field(f"{signed(each.mean)}{spread} ({len(each.differences)})", number=False),
        Field(interval_text(each.interval), number=False), Field(p_text(each.p)), Field(p_text(each.holm)),
        Field(bound + p_text(examples.p if examples else None)), Field(bound + p_text(each.examples_holm)),
        Field(f"{100 * examples.agreement:.1f}%" if examples else "—"),
        Field(each.verdict, each.verdict not in (SAME, UNTESTED), number=False),
    )  # fmt: skip


def _notes(found: Sequence[Comparison]) -> tuple[str, ...]:
    notes = [
        "Best setting of each method less LoRA's best, on the same seeds (n): mean ± std of the differences, ×100. "
        "Both are chosen by the reported scores, which flatters the method with more settings.",
        f"Holm: corrected over the {len(found)} comparisons of this table; the verdict is that of seeds at 5%. Seeds: "
        "Student's paired t, from 3 seeds on. Examples: paired t of accuracy over the same examples, seeds averaged "
        "(McNemar's for one seed); it speaks of these very cells, not of other seeds.",
    ]
    if any(each.examples and each.examples.bound for each in found):
        notes.append("≤: with more than two classes the p over examples is an upper bound.")
    if any(each.column.metric != "accuracy" and each.examples for each in found):
        notes.append("Where the metric is not accuracy, the test over examples is still of accuracy.")
    return tuple(notes)


def _sentence(each: Comparison) -> str:
    ends = "" if each.interval is None else f", 95% interval {interval_text(each.interval)}"
    return (
        f"{task_title(each.column.task)}: {each.slot.size} is {100 * abs(each.mean):.1f} {each.verdict} "
        f"{each.reference.size} (mean of {len(each.differences)} paired seeds{ends}; Holm's p {p_words(each.holm)})."
    )


def _datum(piece: Piece, each: Comparison) -> dict[str, object]:
    against = {f"lora_{name}": value for name, value in which(each.reference).items() if name != "method"}
    interval, examples = each.interval, each.examples
    return place(piece, each.column) | which(each.slot) | against | {
        "difference": each.mean, "std": each.std, "n": len(each.differences), "low": interval.low if interval else None,
        "high": interval.high if interval else None, "p_seeds": each.p, "p_seeds_holm": each.holm,
        "p_examples": examples.p if examples else None, "p_examples_holm": each.examples_holm,
        "p_examples_is_bound": examples.bound if examples else None, "examples": examples.rows if examples else None,
        "agreement": examples.agreement if examples else None, "verdict": each.verdict,
    }  # fmt: skip
