"""Comparisons between entries: the families of a scope, what is chosen at each size, and ranks.

Each family is corrected by Holm's method on its own:

- *default*: each method's chosen setting against the reference at the nearest number of trained values, one family for
  the average and one for each task;
- *equal size*: the method that the report is about against each setting of the reference, on the main column;
- *declared*: the pairs of `compare.yaml` or of the config, on the main column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from lora_bench.compare import Arm
from lora_bench.report.numbers.entries import Column, Scope, choose_entries, seed_scores
from lora_bench.report.numbers.examples import example_terms
from lora_bench.report.numbers.frame import ARM, COUNTS, STATUS_COLUMNS
from lora_bench.report.numbers.looks import levels_of
from lora_bench.report.numbers.statistics import (
    SIGNIFICANCE,
    Contrast,
    Means,
    holm_correction,
    means_of,
    rank_entries,
    seed_interval,
)
from lora_bench.report.numbers.symmetry import measure_symmetry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pandas import DataFrame, Series

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

DEFAULT, EQUAL, DECLARED = "default", "equal size", "declared"
ABOVE, BELOW, EQUIVALENT, UNDECIDED, NOT_TESTED = "better", "worse", "equivalent", "not distinguishable", "not tested"
UNFINISHED = "not finished"  # where looks are declared: some seeds of the last one have not ended
SAME_SIZE = 1.4  # two numbers of trained values are called equal up to this factor
CLASSES_PER_DECADE = 2  # size classes of the frontier: around 10,000, 32,000, 100,000 …


@dataclass(frozen=True)
class ScopeStatistics:
    """The means of a scope's entries, and the families of comparisons between them.

    Attributes:
        scope: The results.
        means: By task, of all entries of the column in their order.
        means_over_examples: The same with the uncertainty over examples, where `means` is over seeds alone.
    """

    scope: Scope
    means: Mapping[str, Means]
    means_over_examples: Mapping[str, Means]

    def positions(self, column: Column, index: Series) -> Series:
        """Return the positions of entries, given by their index, within `means` of their column."""
        position_of = {entry: position for position, entry in enumerate(self.scope.at(column).index)}
        return index.map(position_of)

    def compare(self, column: Column, pairs: DataFrame, family: str) -> DataFrame:
        """Compare pairs of entries of one column as one family.

        Args:
            column: The column.
            pairs: The indices of the entries, `entry` and `reference`.
            family: Its name.

        Returns:
            A row per pair: those indices, the columns of `Means.compare`, half the width of the interval over seeds
            alone, Student's interval paired by seed, `holm`, `holm_equivalent` and the `verdict`. If the comparison is
            over seeds alone also `examples_low` and `examples_high`, the interval over seeds and examples.
        """
        import numpy as np

        margin = self.scope.compare.margin / 100
        first, second = (
            self.positions(column, pairs[name]).to_numpy(dtype=np.int64) for name in ("entry", "reference")
        )
        means = self.means[column.task]
        table = means.compare(first, second, margin)
        alone = means.over_seeds.compare(first, second, margin)
        paired_low, paired_high = self._paired_intervals(column, pairs)
        table = table.assign(
            family=family,
            task=column.task,
            metric=column.metric,
            entry=pairs["entry"].to_numpy(),
            reference=pairs["reference"].to_numpy(),
            seeds_half=(alone["high"] - alone["low"]) / 2,
            paired_low=paired_low,
            paired_high=paired_high,
            holm=holm_correction(table["p"].to_numpy()),
            holm_equivalent=holm_correction(table["p_equivalent"].to_numpy()),
            family_size=len(table),
        )
        if self.scope.compare.over == "seeds":
            wide = self.means_over_examples[column.task]
            both = wide.compare(first, second, margin)[["low", "high", "p_equivalent"]]
            # Without predictions nothing is known of other examples.
            known = both if wide.example_terms is not None else both * np.nan
            table = table.assign(
                examples_low=known["low"],
                examples_high=known["high"],
                examples_equivalent=holm_correction(known["p_equivalent"].to_numpy()),
            )
        return table.assign(verdict=self._verdicts(column, first, second, table))

    def _verdicts(self, column: Column, first: IntArray, second: IntArray, table: DataFrame) -> list[str]:
        """Return the verdict on each pair, given by positions; none as long as seeds of the last look are missing."""
        seeds = self.scope.at(column)["seeds"].to_numpy(dtype=float)
        needed = max(self.scope.compare.looks, default=0)
        rows = zip(seeds[first], seeds[second], verdicts(table), strict=True)
        return [UNFINISHED if min(one, other) < needed else verdict for one, other, verdict in rows]

    def mean_difference(self, family: DataFrame) -> Contrast:
        """Return the mean of the tested differences of a family of the main column, with its interval."""
        import numpy as np

        tested = family[family["p"].notna()]
        sides = [
            self.positions(self.scope.main, tested[name]).to_numpy(dtype=np.int64) for name in ("entry", "reference")
        ]
        weights = np.repeat([1.0, -1.0], len(tested)) / len(tested)
        return self.means[self.scope.main.task].contrast(np.concatenate(sides), weights)

    def _paired_intervals(self, column: Column, pairs: DataFrame) -> tuple[list[float], list[float]]:
        """Return Student's intervals of the differences by seed: without examples, n - 1 degrees of freedom."""
        scores = self._by_seed[column.task]
        entries = self.scope.entries["arm"]
        arms = ([entries[entry] for entry in pairs[name]] for name in ("entry", "reference"))
        intervals = []
        for first, second in zip(*arms, strict=True):
            both = [scores.loc[arm] for arm in (first, second)] if {first, second} <= set(scores.index) else []
            differences = (both[0] - both[1]).dropna().tolist() if both else []
            tail = self.means[column.task].levels.tail
            intervals.append(seed_interval(differences, tail) or (math.nan, math.nan))
        return [low for low, _ in intervals], [high for _, high in intervals]

    @cached_property
    def _by_seed(self) -> Mapping[str, DataFrame]:
        """By task, the scores of each arm (rows) and seed (columns)."""
        return {column.task: seed_scores(self.scope, column).unstack("seed") for column in self.scope.columns}

    @cached_property
    def default(self) -> DataFrame:
        """The default families of all columns, the main one first."""
        import pandas as pd

        columns = [self.scope.main, *(column for column in self.scope.columns if column != self.scope.main)]
        families = [self.compare(column, self._default_pairs(column), DEFAULT) for column in columns]
        return pd.concat(families, ignore_index=True)

    @cached_property
    def equal(self) -> DataFrame:
        """The subject against each setting of the reference, chosen among its settings of the same size."""
        import pandas as pd

        column, compare = self.scope.main, self.scope.compare
        entries = self.scope.at(column)
        entries = entries[entries["n"] > 0]
        references = entries[entries["label"] == compare.reference].sort_values(["targets", "adapter_params"])
        subjects = entries[entries["label"] == compare.subject]
        pairs = []
        for reference, row in references.iterrows():
            size = row["adapter_params"]
            if pd.isna(size):
                continue
            ratio = subjects["adapter_params"] / size
            same = subjects[(subjects["targets"] == row["targets"]) & ratio.between(1 / SAME_SIZE, SAME_SIZE)]
            chosen = choose_entries(same, ("method",))
            pairs += [(entry, reference, of) for entry, of in zip(chosen.index, chosen["of"], strict=True)]
        frame = pd.DataFrame(pairs, columns=["entry", "reference", "of"])
        return self.compare(column, frame, EQUAL).assign(of=frame["of"])

    @cached_property
    def declared(self) -> DataFrame:
        """The declared pairs that were run, with their number in `pair`, from 1.

        None where looks are declared and there is no score on all declared tasks: on fewer of them there is no verdict.
        """
        import pandas as pd

        column, compare = self.scope.main, self.scope.compare
        declared = compare.pairs if self.scope.has_declared_tasks or not compare.looks else ()
        pairs = []
        for number, pair in enumerate(declared, 1):
            sides = [self._matching(column, arm) for arm in (pair.arm, pair.against)]
            if all(len(side) for side in sides):
                pairs.append([number, *(side.index[0] for side in sides)])
        frame = pd.DataFrame(pairs, columns=["pair", "entry", "reference"])
        return self.compare(column, frame, DECLARED).assign(pair=frame["pair"])

    @cached_property
    def symmetry(self) -> DataFrame:
        """Whether a or b is worth more, by column, method and targets; see `symmetry.measure_symmetry`."""
        return measure_symmetry(self.scope)

    @cached_property
    def frontier(self) -> DataFrame:
        """For each size class, the chosen setting of each method; with the ranks within the class.

        Columns besides those of the entries: `of`; `size_class`, the logarithm of its middle; `low` and `high`, the
        interval; `rank_first` and `rank_last`; `best`, whether it may be the best; `methods`, how many there are.
        """
        import pandas as pd

        column = self.scope.main
        entries = self.scope.at(column)
        entries = entries[(entries["n"] > 0) & (entries["adapter_params"].fillna(0) > 0)]
        if entries.empty:
            return entries
        chosen = self.chosen_by_class(entries)
        classes = [self.with_ranks(column, members) for _, members in chosen.groupby("size_class", sort=True)]
        return pd.concat(classes)

    def chosen_by_class(self, entries: DataFrame) -> DataFrame:
        """Return the chosen setting of each method in each size class; `size_class` is the logarithm of its middle."""
        import numpy as np

        logarithm = np.log10(entries["adapter_params"].to_numpy(dtype=float))
        steps = np.floor(CLASSES_PER_DECADE * logarithm + 0.5) / CLASSES_PER_DECADE
        return choose_entries(entries.assign(size_class=steps), ("size_class", "method", "init"))

    def with_ranks(self, column: Column, entries: DataFrame) -> DataFrame:
        """Return entries of one column, the best mean first, with their intervals and ranks among each other."""
        import numpy as np

        means = self.means[column.task]
        positions = self.positions(column, entries.index.to_series()).to_numpy(dtype=np.int64)
        low, high = self.intervals(column)
        ranking = rank_entries(means, positions)
        return entries.assign(
            low=low[positions],
            high=high[positions],
            rank_first=ranking.first,
            rank_last=ranking.last,
            best=ranking.best,
            methods=len(entries),
        ).sort_values("mean", ascending=False, kind="stable")

    def without_main_score(self) -> DataFrame:
        """Return what identifies and costs the methods that have no entry in the main column, one row a method.

        The setting is the one chosen on the first task that the method was run at.
        """
        import pandas as pd

        rows, seen = [], set(_method_keys(self.scope.chosen[self.scope.main.task]))
        for column in self.scope.tasks:
            chosen = self.scope.chosen[column.task]
            new = chosen[~_method_keys(chosen).isin(seen)]
            seen |= set(_method_keys(new))
            rows.append(new)
        return pd.concat(rows)[["arm", *ARM, "label", "size", "of", *COUNTS, "seconds", *STATUS_COLUMNS]]

    def intervals(self, column: Column) -> tuple[FloatArray, FloatArray]:
        """Return the intervals of the means of a column's entries, within the metric's range."""
        import numpy as np

        low, high = self.means[column.task].intervals()
        lowest = 0.0 if column.metric.startswith(("accuracy", "f1", "macro_f1")) else -1.0
        return np.maximum(low, lowest), np.minimum(high, 1.0)

    def _default_pairs(self, column: Column) -> DataFrame:
        """Pair the chosen setting of each method with the reference of the nearest number of trained values.

        The setting is the one chosen on the main column, so that a method has the same one on every task. A method
        that was not run on all tasks has the setting chosen on this task. References with the same targets are
        preferred.
        """
        import numpy as np
        import pandas as pd

        entries = self.scope.at(column)
        references = entries[(entries["label"] == self.scope.compare.reference) & (entries["n"] > 0)]
        chosen = self._chosen_settings(column)
        pairs = []
        for entry, row in chosen[chosen["label"] != self.scope.compare.reference].iterrows():
            same = references[references["targets"] == row["targets"]]
            candidates = same if len(same) else references
            if candidates.empty or row["n"] == 0:
                continue
            size = float(row["adapter_params"]) if pd.notna(row["adapter_params"]) else 0.0
            sizes = candidates["adapter_params"].fillna(0).to_numpy(dtype=float)
            distance = np.abs(np.log(np.maximum(sizes, 1.0)) - np.log(max(size, 1.0)))
            pairs.append((entry, candidates.index[int(np.argmin(distance))]))
        return pd.DataFrame(pairs, columns=["entry", "reference"])

    def _chosen_settings(self, column: Column) -> DataFrame:
        """Return the chosen entries of a column: those of the main column's settings where they were run."""
        import pandas as pd

        entries, chosen = self.scope.at(column), self.scope.chosen[column.task]
        arms = self.scope.chosen[self.scope.main.task]["arm"]
        same = entries[entries["arm"].isin(arms)]
        others = chosen[~_method_keys(chosen).isin(set(_method_keys(same)))]
        return pd.concat([same, others]).sort_index()

    def _matching(self, column: Column, arm: Arm) -> DataFrame:
        """Return the chosen entry among those that have the declared fields; empty if there is none."""
        entries = self.scope.at(column)
        for name in ARM:
            if name in arm:
                value = arm[name]
                entries = entries[entries[name].isna() if value is None else entries[name].eq(value).fillna(False)]
        return choose_entries(entries, ("method",))


def _method_keys(entries: DataFrame) -> Series:
    """Return what identifies a method on a set of targets."""
    import pandas as pd

    columns = (entries[name].fillna("") for name in ("method", "init", "targets"))
    return pd.Series(list(zip(*columns, strict=True)), index=entries.index, dtype="object")


def scope_statistics(scope: Scope) -> ScopeStatistics:
    """Compute the means of a scope's entries, as the comparisons declare it."""
    terms, levels = example_terms(scope), levels_of(scope.compare.looks)
    whole = {c.task: means_of(scope.at(c), terms.get(c.task), levels) for c in scope.columns}
    if scope.compare.over == "seeds":
        over_seeds = {task: replace(means, example_terms=None) for task, means in whole.items()}
        return ScopeStatistics(scope, over_seeds, whole)
    return ScopeStatistics(scope, whole, whole)


def verdicts(table: DataFrame) -> list[str]:
    """Say for each comparison what the corrected tests say."""
    rows = zip(table["difference"], table["holm"], table["holm_equivalent"], strict=True)
    return [_verdict(*row) for row in rows]


def is_decided(verdict: str) -> bool:
    """Return whether a verdict says that the sides differ, or that they are equivalent."""
    return verdict.startswith((ABOVE, BELOW, EQUIVALENT))


def _verdict(difference: float, p: float, p_equivalent: float) -> str:
    """Say which is better, if that is certain; else whether they are equivalent.

    A difference that is certain and certainly smaller than the margin is both: `worse, within the margin`.
    """
    if p != p:  # NaN
        return NOT_TESTED
    equivalent = p_equivalent < SIGNIFICANCE
    if p < SIGNIFICANCE:
        return (ABOVE if difference > 0 else BELOW) + (", within the margin" if equivalent else "")
    return EQUIVALENT if equivalent else UNDECIDED
