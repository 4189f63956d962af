"""Stages: which cells of a grid are known, which can train, and which wait for others, given the records so far.

A cell whose rate is searched is known when the search has chosen. A cell that continues from another one can train when
that one has ended. Everything here is a function of the config and the records: whenever a run is interrupted, the same
command finds the same cells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal

from lora_bench.cell import Cell
from lora_bench.grid.choose import Rates, best_rates, held_out_metric
from lora_bench.grid.drafts import Draft, RateSearch
from lora_bench.grid.search import MAX_EXTENSIONS, is_at_edge, next_rate
from lora_bench.records.schema import Record, SearchInfo, TriedRates
from lora_bench.text import counted

Role = Literal["grid", "trial", "start"]
Stage = tuple[Literal["search", "grid"], str]  # what the cells of a stage are for, and their task

_ENDED = {"failed": "failed", "diverged": "diverged", "oom": "ran out of memory"}


@dataclass(frozen=True)
class Entry:
    """An entry of a grid: a draft, as far as the records decide it.

    Attributes:
        draft: The draft.
        state: `ready` if nothing stands in the way of training, `waiting` if other cells have to end before, `blocked`
            if it can never train.
        cell: The cell; None while its rates or its start are not known.
        reason: What it waits for or is blocked by, in words.
        role: `grid` for a cell of the grid or one that it continues from, `trial` for a cell of a search, `start` for a
            cell that only cells of searches continue from.
        needs: What it waits for, or has waited for.
    """

    draft: Draft
    state: Literal["ready", "waiting", "blocked"]
    cell: Cell | None = None
    reason: str = ""
    role: Role = "grid"
    needs: tuple[Draft, ...] = ()

    @property
    def provisional_cell(self) -> Cell:
        """The cell; while it is not known the draft's, which has the lowest of its rates."""
        return self.draft.cell if self.cell is None else self.cell

    @property
    def stage(self) -> Stage:
        """The stage that it belongs to."""
        return "grid" if self.role == "grid" else "search", self.draft.cell.task


@dataclass(frozen=True)
class Choice:
    """The state of a search.

    Attributes:
        state: `chosen`, `waiting` or `blocked`.
        trials: The drafts of the cells that are known to be tried.
        tried: The rates that were tried, and how they compare; those of a finished search.
        rates: The chosen rates by setting.
        edges: The settings whose chosen rate is the lowest or the highest that was tried.
        reason: What it waits for or is blocked by, in words.
    """

    state: Literal["chosen", "waiting", "blocked"]
    trials: tuple[Draft, ...]
    tried: tuple[TriedRates, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    edges: tuple[str, ...] = ()
    reason: str = ""


class Resolver:
    """Decides drafts by records.

    Args:
        drafts: The drafts of the grid.
        ended: The records of cells that have ended, by id. Those of cells that will train again are left out.
        lost: The ids of those of them that no other can continue from, since what they have trained is not there.
        before: A resolver of the same drafts with some of these records, whose choices stay.
    """

    def __init__(
        self,
        drafts: Sequence[Draft],
        ended: Mapping[str, Record],
        lost: Collection[str] = (),
        before: Resolver | None = None,
    ) -> None:
        self.drafts, self._ended, self._lost = drafts, ended, frozenset(lost)
        self._trials: dict[tuple[Cell, Draft | None], Draft] = {} if before is None else before._trials
        self._searched: dict[Draft, tuple[str, ...]] = {} if before is None else before._searched
        earlier: Mapping[RateSearch, Choice] = {} if before is None else before._choices
        self._choices: dict[RateSearch, Choice] = {
            search: choice for search, choice in earlier.items() if choice.state == "chosen"
        }
        self._entries: dict[Draft, Entry] = {}

    def entries(self) -> tuple[Entry, ...]:
        """Return all drafts of the grid and all that they need, each once and after what it needs."""
        order: dict[tuple[Draft, bool], None] = {}
        for draft in self.drafts:
            self._visit(draft, False, order)
        in_grid = {draft for draft, for_search in order if not for_search}
        drafts = dict.fromkeys(draft for draft, _ in order)
        roles = {draft: self._role(draft, draft in in_grid) for draft in drafts}
        entries = ((self._entry(draft), role) for draft, role in roles.items())
        return tuple(entry if entry.role == role else replace(entry, role=role) for entry, role in entries)

    def _visit(self, draft: Draft, for_search: bool, order: dict[tuple[Draft, bool], None]) -> None:
        """Add a draft after all that it needs."""
        if (draft, for_search) in order:
            return
        if draft.start is not None:
            self._visit(draft.start, for_search, order)
        if draft.search is not None:
            for trial in self.choice(draft.search).trials:
                self._visit(trial, True, order)
        order[draft, for_search] = None

    def _role(self, draft: Draft, in_grid: bool) -> Role:
        if in_grid:
            return "grid"
        return "trial" if draft in self._searched else "start"

    def _entry(self, draft: Draft) -> Entry:
        if draft not in self._entries:
            self._entries[draft] = self._decide(draft)
        return self._entries[draft]

    def _decide(self, draft: Draft) -> Entry:
        changes: dict[str, float | str] = {}
        needs = () if draft.search is None else self.choice(draft.search).trials
        needs = needs if draft.start is None else (*needs, draft.start)
        if draft.search is not None:
            choice = self.choice(draft.search)
            if choice.state != "chosen":
                return Entry(draft, choice.state, reason=choice.reason, needs=needs)
            changes |= choice.rates
        if draft.start is None:
            return Entry(draft, "ready", draft.cell.model_copy(update=changes) if changes else draft.cell, needs=needs)
        start = self._entry(draft.start)
        if start.cell is None:
            return Entry(draft, start.state, reason=start.reason, needs=needs)
        cell = draft.cell.model_copy(update={**changes, "start": start.cell.id})
        named = f"{start.cell.task} cell {start.cell.id}"
        record = None if start.cell.id in self._lost else self._ended.get(start.cell.id)
        if record is None:
            if start.state == "blocked":
                return Entry(draft, "blocked", cell, start.reason, needs=needs)
            return Entry(draft, "waiting", cell, f"the {start.cell.task} cell from which it continues", needs=needs)
        if record.status != "done":
            return Entry(
                draft,
                "blocked",
                cell,
                f"the {named}, from which it would continue, {_ENDED[record.status]}",
                needs=needs,
            )
        return Entry(draft, "ready", cell, needs=needs)

    def settings_id(self, draft: Draft) -> str:
        """Return a hash of a cell's settings that is the same for all seeds; an empty text if the cell is unknown."""
        cell = self._entry(draft).cell
        if cell is None:
            return ""
        start = None if draft.start is None else self.settings_id(draft.start)
        return cell.model_copy(update={"seed": 0, "start": start}).id

    def trained_with(self, draft: Draft) -> str | None:
        """Return what a cell that has ended was trained with; None if it has not."""
        cell = self._entry(draft).cell
        record = None if cell is None else self._ended.get(cell.id)
        return None if record is None else record.trained_with

    def search_info(self, entry: Entry) -> SearchInfo | None:
        """Return what the record of a cell keeps of the search for its rates; None if there was none."""
        draft = entry.draft
        if entry.role == "grid" and draft.search is None:
            return None
        role: Literal["chosen", "trial", "start"] = "chosen" if entry.role == "grid" else entry.role
        if draft.search is None:
            return SearchInfo(role=role, settings=self._searched.get(draft, ()))
        choice, settings = self.choice(draft.search), tuple(draft.search.axes)
        at = {name: value for name, value in draft.search.at.items() if getattr(draft.cell, name) != value}
        return SearchInfo(role=role, settings=settings, at=at, tried=choice.tried, edges=choice.edges)

    def choice(self, search: RateSearch) -> Choice:
        """Return the state of a search."""
        if search not in self._choices:
            self._choices[search] = self._search(search)
        return self._choices[search]

    def _search(self, search: RateSearch) -> Choice:
        """Compare the rates of a search, and extend it while the best one is at an edge."""
        axes = {setting: described.rates for setting, described in search.axes.items()}
        additions = dict.fromkeys(axes, 0)
        while True:
            drafts = {rates: self._trials_of(search, axes, rates) for rates in itertools.product(*axes.values())}
            trials = tuple(itertools.chain.from_iterable(drafts.values()))
            metrics = {rates: [self._metric(draft) for draft in drafts[rates]] for rates in drafts}
            left = sum(values.count(None) for values in metrics.values())
            if left:
                reason = f"{left} of {counted(len(trials), 'cell')} that search its rate"
                return Choice("waiting", trials, reason=reason)
            known = {rates: [value for value in values if value is not None] for rates, values in metrics.items()}
            best = best_rates(known)
            tried = _tried(axes, known)
            if best is None:
                return Choice("blocked", trials, tried, reason="the search of its rate: a cell failed at every rate")
            rates = dict(zip(axes, best, strict=True))
            wider = {}
            for setting, rate in rates.items():
                extends = search.axes[setting].extend and additions[setting] < MAX_EXTENSIONS
                added = next_rate(axes[setting], rate) if extends else None
                if added is not None:
                    wider[setting] = tuple(sorted((*axes[setting], added)))
                    additions[setting] += 1
            if not wider:
                edges = tuple(setting for setting, rate in rates.items() if is_at_edge(axes[setting], rate))
                return Choice("chosen", trials, tried, rates, edges)
            axes |= wider

    def _trials_of(self, search: RateSearch, axes: Mapping[str, Rates], rates: Rates) -> list[Draft]:
        """The drafts of the cells that try these rates, a seed each."""
        starts: Sequence[Draft | None] = search.starts or [None] * len(search.trials)
        changes = dict(zip(axes, rates, strict=True))
        drafts = []
        for trial, start in zip(search.trials, starts, strict=True):
            cell = trial.model_copy(update=changes)
            drafts.append(self._trials.setdefault((cell, start), Draft(cell, None, start)))
            self._searched.setdefault(drafts[-1], tuple(axes))
        return drafts

    def _metric(self, trial: Draft) -> float | None:
        """The held-out metric of a cell of a search; -inf if it failed or never can train, None before it has ended."""
        entry = self._entry(trial)
        record = None if entry.cell is None else self._ended.get(entry.cell.id)
        if record is None:
            return -math.inf if entry.state == "blocked" else None
        return held_out_metric(record)


def _tried(axes: Mapping[str, Rates], metrics: Mapping[Rates, Sequence[float]]) -> tuple[TriedRates, ...]:
    """What a record keeps of the rates that a search has tried."""
    tried = []
    for rates, values in metrics.items():
        failed = values.count(-math.inf)
        mean = None if failed else fmean(values)
        settings = dict(zip(axes, rates, strict=True))
        tried.append(TriedRates(**settings, held_out=mean, seeds=len(values), failed=failed))
    return tuple(tried)
