"""What is on the figures, read from the Figure objects, and their bytes."""

from __future__ import annotations

import itertools
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lora_bench.methods import RECIPES
from lora_bench.records.schema import Record
from lora_bench.report.figures import heat_maps, learning_curves
from lora_bench.report.figures.catalogue import all_figures
from lora_bench.report.figures.drawing import PANELS_PER_PAGE, encode_figure, method_styles, paginate
from lora_bench.report.figures.frontier import frontier_caption, frontier_figures
from lora_bench.report.figures.rank_plots import (
    MAX_METHODS,
    compare_ranks,
    figure2_panels,
    rank_figures,
    rank_panels,
)
from lora_bench.report.numbers.frame import rows_of
from lora_bench.testing import make_epochs
from tests.report.report_factory import grid, record, small, statistics


def rank_figure(records: list[Record], title: str = "tiny") -> Figure:
    return rank_figures([title], rank_panels(statistics(records), "attention"))[0]


def curves(ax: Axes) -> list[Line2D]:
    """The methods with ranks: the lines that are not horizontal over the whole axis."""
    return [line for line in ax.lines if np.asarray(line.get_xdata()).tolist() != [0, 1]]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def sized(sizes: tuple[int, ...], method: str = "mini", score: float = 0.8, **settings: Any) -> list[Record]:
    """Three seeds at each number of trained values."""
    return [
        record(
            score + 0.02 * place + 0.001 * seed,
            method=method,
            rank=2 ** (place + 1),
            seed=seed,
            params=(size, 592_130),
            **settings,
        )
        for place, size in enumerate(sizes)
        for seed in range(3)
    ]


# ---- the frontier


def test_the_frontier_has_the_reference_by_rank_the_subject_by_size_and_levels() -> None:
    records = [*sized((1000, 20_000)), *sized((900, 30_000), "lora", a=None, b=None), *sized((500, 800), "xs", a=None)]
    records += [record(0.75, method="head", seed=seed, params=(0, 2)) for seed in range(3)]
    (figure,) = frontier_figures(statistics(records))
    (ax,) = figure.axes
    assert ax.get_xscale() == "log"
    assert legend(figure) == [
        "other methods", "lora by rank", "mini, chosen at each size", "95% interval",
    ]  # fmt: skip
    drawn = {line.get_color(): np.asarray(line.get_xdata()).tolist() for line in curves(ax)}
    assert drawn["#D55E00"] == [900, 30_000]
    assert drawn["#0072B2"] == [1000, 20_000]
    assert len(figure.axes[0].lines) > 0


def test_targets_are_told_apart() -> None:
    records = [*sized((1000, 20_000)), *sized((2000, 40_000), targets="qv")]
    (figure,) = frontier_figures(statistics(records))
    assert legend(figure)[:2] == ["mini, chosen at each size, attention", "mini, chosen at each size, qv"]


def test_another_method_far_below_is_written() -> None:
    """Drawn, it would press the two methods that the figure is about together."""
    records = [*sized((1000, 20_000)), *sized((900, 30_000), "lora", a=None, b=None)]
    records += [record(0.3, method="xs", seed=seed, params=(500, 2), a=None, b=None) for seed in range(3)]
    (figure,) = frontier_figures(statistics(records))
    assert figure.axes[0].get_ylim()[0] > 60
    assert any("xs" in text.get_text() and "30.0 ↓" in text.get_text() for text in figure.axes[0].texts)


def test_a_method_slightly_below_two_that_are_alike_is_drawn() -> None:
    """A part of next to no height is no distance."""
    records = [*sized((1000, 20_000)), *sized((900, 30_000), "lora", a=None, b=None)]
    lowest = min(one.score or 0 for one in records)
    records += [record(lowest - 0.02, method="xs", seed=seed, params=(500, 2), a=None, b=None) for seed in range(3)]
    (figure,) = frontier_figures(statistics(records))
    assert figure.axes[0].get_ylim()[0] < 100 * (lowest - 0.02)
    assert not any("↓" in text.get_text() for text in figure.axes[0].texts)


@pytest.mark.parametrize("others", [[], ["mini"], ["cora", "head"], ["mini", "cora r=8", "adalora"]])
def test_a_method_has_one_colour_in_all_figures(others: list[str]) -> None:
    assert method_styles(["lora r=8", *others])["lora r=8"].colour == "#D55E00"
    assert method_styles(["lora", *others])["lora"].colour == "#D55E00"
    assert all(style.colour != "#D55E00" for name, style in method_styles(["mini", "xs"]).items())


def test_a_level_far_below_is_written() -> None:
    records = [*sized((1000, 20_000)), record(0.3, method="head", params=(0, 2))]
    (figure,) = frontier_figures(statistics(records))
    assert figure.axes[0].get_ylim()[0] > 75
    assert "head 30.0 ↓" in [text.get_text() for text in figure.axes[0].texts]


def bars(ax: Axes) -> dict[str, list[tuple[float, float, float]]]:
    """By colour, the bars: (x, low, high)."""
    intervals: dict[str, list[tuple[float, float, float]]] = {}
    for collection in ax.collections:
        if isinstance(collection, LineCollection):
            for (x, low), (_, high) in collection.get_segments():
                intervals.setdefault(to_hex(tuple(np.asarray(collection.get_color())[0])), []).append((x, low, high))
    return intervals


def test_the_bars_are_the_intervals_of_the_tables() -> None:
    """Each of its own seeds: one of the settings varies ten times as much."""
    wide = [record(0.9 + 0.02 * seed, rank=4, seed=seed, params=(20_000, 2)) for seed in range(3)]
    records = [*sized((1000,)), *wide, *sized((900, 30_000), "lora", a=None, b=None)]
    computed = statistics(records)
    drawn = bars(frontier_figures(computed)[0].axes[0])
    low, high = computed.intervals(computed.scope.main)
    for colour, label in (("#0072b2", "mini"), ("#d55e00", "lora")):
        entries = computed.scope.at(computed.scope.main).assign(low=100 * low, high=100 * high)
        entries = entries[entries["label"] == label].sort_values("adapter_params")
        assert drawn[colour] == [pytest.approx(row) for row in entries[["adapter_params", "low", "high"]].to_numpy()]
    narrow, broad = (high - low for _, low, high in drawn["#0072b2"])
    assert broad > 5 * narrow


def test_settings_that_are_not_chosen_and_other_methods_have_no_bars() -> None:
    records = [*sized((1000, 20_000)), *sized((900, 30_000), "lora", a=None, b=None), *sized((500, 800), "xs", a=None)]
    records += [record(0.7 + 0.001 * seed, seed=seed, rank=2, a=16, params=(1100, 2)) for seed in range(3)]
    drawn = bars(frontier_figures(statistics(records))[0].axes[0])
    assert {colour: [x for x, _, _ in intervals] for colour, intervals in drawn.items()} == {
        "#0072b2": [1000, 20_000],
        "#d55e00": [900, 30_000],
    }


def test_bars_of_the_same_size_stand_side_by_side() -> None:
    computed = statistics([*sized((1000, 20_000)), *sized((1000, 30_000), "lora", a=None, b=None)])
    drawn = bars(frontier_figures(computed)[0].axes[0])
    (lora, _, _), (mini, _, _) = drawn["#d55e00"][0], drawn["#0072b2"][0]
    assert lora != mini
    assert [lora, mini] == pytest.approx([1000, 1000], rel=0.05)
    assert drawn["#0072b2"][1][0] == 20_000


def test_of_one_size_all_stand_around_it() -> None:
    (figure,) = frontier_figures(statistics([*sized((1000,)), *sized((1000,), "lora", a=None, b=None)]))
    drawn = bars(figure.axes[0])
    assert drawn["#d55e00"][0][0] * drawn["#0072b2"][0][0] == pytest.approx(1000**2)
    assert figure.axes[0].get_xlim() == pytest.approx((500, 2000))


def test_with_two_seeds_there_are_no_bars() -> None:
    computed = statistics([one for one in sized((1000, 20_000)) if one.cell.seed < 2])
    (figure,) = frontier_figures(computed)
    assert bars(figure.axes[0]) == {}
    assert "95% interval" not in legend(figure)
    assert frontier_caption(computed).endswith("No bars: fewer than 3 seeds.")


def test_names_cover_neither_points_nor_bars_nor_each_other() -> None:
    (figure,) = frontier_figures(statistics(list(grid())))
    figure.draw_without_rendering()
    (ax,) = figure.axes
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) > 1
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    for collection in ax.collections:
        at = collection.get_segments() if isinstance(collection, LineCollection) else collection.get_offsets()
        points = ax.transData.transform(np.asarray(at).reshape(-1, 2))
        assert not any(box.contains(x, y) for box in boxes for x, y in points)


def test_no_sizes_no_frontier() -> None:
    assert frontier_figures(statistics([record(0.5, params=None), record(0.6, rank=8, params=None)])) == []
    assert frontier_figures(statistics([record(0.5, method="head", params=(0, 2))])) == []


def test_captions_say_what_is_drawn() -> None:
    caption = frontier_caption(statistics(small()))
    assert "tiny: the average of CoLA and SST-2; means over 2 to 3 seeds" in caption
    assert "Bars: the 95% interval of each mean on a line, over seeds, from the deviation between its own" in caption
    pictures = [picture for picture, _ in all_figures(statistics(small()), "stem")]
    for picture in pictures:
        assert "tiny" in picture.caption
        assert "seeds" in picture.caption
    assert "95% intervals" in next(one.caption for one in pictures if one.name.startswith("accuracy"))


def test_captions_name_what_is_drawn_and_its_seeds_alone() -> None:
    """Not a method without ranks on these targets, nor the one seed of the head."""
    records = [*sized((900, 30_000), "lora", a=None, b=None), *sized((1000, 20_000), targets="qv")]
    records += [record(0.75, method="head", params=(0, 2))]
    captions = {picture.name: picture.caption for picture, _ in all_figures(statistics(records), "stem")}
    assert captions["accuracy_vs_rank-attention-stem"].endswith(
        "of lora at each rank the setting chosen by the score shown, means over 3 seeds. "
        "Bands, of lora: the 95% intervals of the tables."
    )
    assert "of mini at each rank" in captions["accuracy_vs_rank-qv-stem"]


# ---- score by rank


def test_lines_levels_and_legend() -> None:
    figure = rank_figure(small())
    assert [ax.get_title() for ax in figure.axes[:3]] == ["CoLA (Matthews)", "SST-2 (accuracy)", "Average"]
    assert legend(figure) == ["mini", "lora", "head"]
    for ax in figure.axes[:3]:
        assert len(curves(ax)) == 2
        assert np.asarray(ax.lines[-1].get_xdata()).tolist() == [0, 1]


def test_a_line_is_the_chosen_setting_with_its_interval() -> None:
    computed = statistics(small())
    panel = rank_panels(computed, "attention")[1]
    entries = computed.scope.at(panel.column)
    low, high = computed.intervals(panel.column)
    assert [rank for rank, *_ in panel.lines["mini"]] == [4, 8]
    for rank, mean, below, above in panel.lines["mini"]:
        index = next(i for i, row in enumerate(rows_of(entries)) if (row["rank"], row["a"]) == (rank, 16))
        assert (mean, below, above) == pytest.approx((entries["mean"].iloc[index], low[index], high[index]))


def test_level_is_the_mean_of_head() -> None:
    level = rank_figure(small()).axes[1].lines[-1]
    assert np.asarray(level.get_ydata()).tolist() == pytest.approx([71.0, 71.0])
    assert level.get_linestyle() == "--"


def test_ranks_are_the_ticks_of_a_log2_axis() -> None:
    ax = rank_figure([record(0.5 + rank / 1000, rank=rank) for rank in (4, 25, 64)]).axes[0]
    assert ax.get_xscale() == "log"
    assert list(ax.get_xticks()) == [4, 25, 64]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["4", "25", "64"]
    assert list(ax.get_xticks(minor=True)) == []


def test_of_many_methods_those_with_most_ranks_are_drawn() -> None:
    records = [record(0.5, method=f"m{number}", rank=4) for number in range(9)]
    records += [record(0.5, method=name, rank=rank) for name in ("lora", "zz") for rank in (4, 8)]
    names = legend(rank_figure(records))
    assert len(names) == MAX_METHODS
    assert {"lora", "zz"} <= set(names)


def test_methods_differ_in_colour_marker_and_line() -> None:
    methods = ("mini", "lora", "xs", "cora", "cora-init", "zzz")
    ax = rank_figure([record(0.5, method=method, rank=4, a=None, b=None) for method in methods]).axes[0]
    for take in ("get_color", "get_marker", "_unscaled_dash_pattern"):
        found = [getattr(line, take) for line in curves(ax)]
        assert len({str(value() if callable(value) else value) for value in found}) == len(methods), take


def test_many_methods_all_look_different() -> None:
    styles = method_styles([*RECIPES, *(f"other-{number}" for number in range(100))])
    assert len({(style.colour, style.marker, str(style.dashes)) for style in styles.values()}) == len(styles) > 20


def test_a_method_looks_the_same_whatever_stands_beside_it() -> None:
    assert method_styles(["head", "lora", "mini"])["mini"] == method_styles(["mini", "xs"])["mini"]
    assert list(method_styles(["head", "zzz", "xs", "lora"])) == ["lora", "xs", "zzz", "head"]
    assert list(method_styles(["a = 128", "a = 16"])) == ["a = 16", "a = 128"]


@pytest.mark.parametrize("tasks", [("rte",), ("rte", "sst2", "cola")])
@pytest.mark.parametrize("name", ["mini", "long-name-" * 30])
def test_title_and_legend_lie_within_the_figure(tasks: tuple[str, ...], name: str) -> None:
    methods = [(name, 4), *((f"method-{number} with a long name", 4) for number in range(6)), ("head", None)]
    records = [record(0.5, task=task, method=method, rank=rank) for task in tasks for method, rank in methods]
    figure = rank_figure(records, "x/" * 140)
    figure.canvas.draw()
    for artist in (figure.legends[0], *figure.texts):
        box = artist.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    assert all(ax.get_window_extent().height > 150 for ax in figure.axes)


def test_panels_fill_a_page_before_the_next() -> None:
    assert [len(page) for page in paginate(range(PANELS_PER_PAGE + 1))] == [PANELS_PER_PAGE, 1]
    figure = rank_figure([record(0.5, task=task) for task in ("cola", "sst2")])  # and their average
    assert [ax.axison for ax in figure.axes] == [True, True, True, False]


def test_no_figure_without_ranks_or_scores() -> None:
    assert rank_panels(statistics([record(0.5, method="head")]), "attention") == []
    assert rank_panels(statistics([record(None, status="failed")]), "attention") == []


# ---- Figure 2


def test_figure_2_is_of_the_subject_alone_averaged_over_a_and_b_by_seed() -> None:
    panel = figure2_panels(statistics(small()), "attention")[1]
    assert set(panel.lines) == {"mean over (a, b)"}
    points = panel.lines["mean over (a, b)"]
    assert [point[1] for point in points] == pytest.approx([0.9152, 0.9192])
    half = 4.302652 * 0.01 / 3**0.5  # of three seeds that differ by 0.01
    assert [point[3] - point[1] for point in points] == pytest.approx([half, half], rel=1e-4)
    assert figure2_panels(statistics([record(0.5, method="lora", rank=4)]), "attention") == []


def test_figure_2_has_a_line_for_each_a_equal_to_b() -> None:
    records = [record(0.5 + a / 1000, a=a, b=b, seed=seed) for a in (8, 16) for b in (8, 16) for seed in range(3)]
    (panel,) = figure2_panels(statistics(records), "attention")
    assert list(panel.lines) == ["a = b = 8", "a = b = 16", "mean over (a, b)"]


def test_figure_2_averages_over_the_same_a_and_b_at_each_rank() -> None:
    """One that was run at a single rank, and is far lower, moves no mean."""
    pairs = [(rank, a, 0.8) for rank in (4, 8) for a in (8, 16)] + [(8, 24, 0.2)]
    records = [record(score, rank=rank, a=a, b=a, seed=seed) for rank, a, score in pairs for seed in range(3)]
    (panel,) = figure2_panels(statistics(records), "attention")
    assert [point[1] for point in panel.lines["mean over (a, b)"]] == pytest.approx([0.8, 0.8])
    assert "a = b = 24" in panel.lines


def test_scores_by_rank_are_drawn_where_half_of_the_methods_have_several_ranks() -> None:
    """Not of a grid with one setting of each method, of which one happens to have two."""
    ranked = [record(0.5 + rank / 100, method="lora", rank=rank) for rank in (4, 8)]
    single = [record(0.5, method=method, rank=4) for method in ("xs", "cora")]
    for records, drawn in ((ranked, True), ([*ranked, single[0]], True), ([*ranked, *single], False), (single, False)):
        figures = [picture.title for picture, _ in all_figures(statistics(records), "tiny")]
        assert ("Score by rank, attention" in figures) == drawn
    assert not compare_ranks([])


# ---- heat maps and learning curves


def test_heat_map_is_a_by_b_with_gaps() -> None:
    records = [record(0.5 + a / 1000 + b / 10_000, a=a, b=b) for a in (8, 16) for b in (8, 16) if (a, b) != (16, 16)]
    (figure,) = heat_maps.heat_figures(statistics(records))
    (image,) = figure.axes[0].images
    values = image.get_array()
    assert values is not None
    assert values[0, 1] == pytest.approx(0.5 + 0.008 + 0.0016)
    assert [text.get_text() for text in figure.axes[0].texts] == ["50.9", "51.0", "51.7", "–"]
    assert heat_maps.heat_figures(statistics([record(0.5)])) == []


def test_heat_maps_have_a_row_for_each_set_of_targets_on_one_scale() -> None:
    records = [record(0.5 + a / 1000, a=a, targets=targets) for a in (8, 16) for targets in ("attention", "qv")]
    (figure,) = heat_maps.heat_figures(statistics(records))
    assert [ax.get_ylabel() for ax in figure.axes] == ["attention\na", "qv\na"]
    assert len({ax.images[0].get_clim() for ax in figure.axes}) == 1


def test_a_large_heat_map_has_a_scale_instead_of_numbers() -> None:
    (figure,) = heat_maps.heat_figures(statistics([record(0.5 + a / 1000, a=a) for a in range(1, 13)]))
    assert len(figure.axes) == 2
    assert len(figure.axes[0].texts) == 0
    figure.draw_without_rendering()
    assert "50.5" in [label.get_text() for label in figure.axes[1].get_yticklabels()]


def test_learning_curve_is_the_mean_of_the_seeds_that_ended() -> None:
    seeds = [record(0.9, seed=seed, curve=make_epochs(0.5 + 0.1 * seed, 0.9)) for seed in range(3)]
    diverged = record(None, seed=3, status="diverged", curve=make_epochs(0.1, None))
    (panel,) = learning_curves.curve_panels(statistics([*seeds, diverged]))
    first, second = panel.curves["mini r=4 a=8 b=8"]
    assert first == pytest.approx((1, 0.6, 0.5, 0.7))
    assert second == pytest.approx((2, 0.9, 0.9, 0.9))


def test_few_curves_are_drawn() -> None:
    records = [record(0.5, method=f"m{n}", rank=4, curve=make_epochs(0.4, 0.5)) for n in range(12)]
    (panel,) = learning_curves.curve_panels(statistics([*records, record(0.1, curve=make_epochs(0.1, 0.1))]))
    assert len(panel.curves) == learning_curves.MAX_METHODS
    assert "mini r=4 a=8 b=8" in panel.curves


# ---- all of them


def test_a_grid_like_the_papers_has_at_most_twelve_figures_with_names_of_their_own() -> None:
    names = [picture.name for picture, _ in all_figures(statistics(list(grid())), "roberta-base")]
    assert len(set(names)) == len(names) <= 12
    assert names[0] == "frontier-roberta-base"


def test_bytes_are_the_same_and_hold_no_date() -> None:
    first, second = (encode_figure(rank_figure(small())) for _ in range(2))
    assert first == second
    assert first["png"].startswith(b"\x89PNG")
    assert b"Software" not in first["png"]
    assert b"dc:date" not in first["svg"]
    assert first["pdf"].startswith(b"%PDF")
    assert b"CreationDate" not in first["pdf"]


def test_settings_of_matplotlib_stay_and_do_not_matter() -> None:
    records = [record(0.5)]
    wanted = encode_figure(rank_figure(records))["svg"]
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "x", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert encode_figure(rank_figure(records))["svg"] == wanted
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["$\\frac{1$", "_hidden", "中文", "\x1b[31mred", "\ud800", "<&>"])
def test_names_from_outside_are_drawn_as_they_read(name: str) -> None:
    figure = rank_figure([record(0.5, method=name.replace("\ud800", "") or "x", rank=4)], name)
    assert encode_figure(figure)["svg"]
    assert len(legend(figure)) == 1
