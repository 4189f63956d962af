"""What is on the figure, read from the Figure object, and its bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lora_bench.methods import RECIPES
from lora_bench.records.schema import Record
from lora_bench.report.figures import cost_plots, heat_maps, learning_curves
from lora_bench.report.figures.catalogue import all_figures
from lora_bench.report.figures.cost_plots import CostPoint, pareto_front
from lora_bench.report.figures.drawing import MAX_METHODS, divide_methods, encode_figure, method_styles, paginate
from lora_bench.report.figures.rank_plots import RankPanel, draw_rank_page, paired_only, rank_figures, rank_panels
from lora_bench.report.numbers.entries import Subset, comparable_subsets
from lora_bench.report.numbers.frame import cell_frame
from lora_bench.testing import make_epochs
from tests.report.report_factory import record, small


def subset(records: list[Record]) -> Subset:
    return comparable_subsets(cell_frame(records))[0]


def pages(subset: Subset) -> list[Sequence[RankPanel]]:
    return paginate(rank_panels(subset))


def curves(ax: Axes) -> list[Line2D]:
    """The methods with ranks: the lines that are not horizontal over the whole axis."""
    return [line for line in ax.lines if np.asarray(line.get_xdata()).tolist() != [0, 1]]


def figure(records: list[Record]) -> Figure:
    return draw_rank_page("tiny", pages(subset(records))[0])


def legend(drawn: Figure) -> list[str]:
    return [text.get_text() for text in drawn.legends[0].get_texts()]


def test_lines_levels_and_legend() -> None:
    drawn = figure(small())
    assert [ax.get_title() for ax in drawn.axes] == ["CoLA (Matthews)", "SST-2 (accuracy)"]
    assert legend(drawn) == ["mini", "lora", "head"]
    for ax in drawn.axes:
        assert len(curves(ax)) == len(ax.collections) == 2
        assert ax.lines[-1].get_xdata() == [0, 1]


def test_title_says_what_is_averaged() -> None:
    title = figure(small()).get_suptitle()
    assert title == "tiny\nmean ± sample std over seeds; mini: averaged over (a, b)"
    assert "averaged" not in figure([record(0.5, method="lora", rank=4)]).get_suptitle()


@pytest.mark.parametrize("tasks", [("rte",), ("rte", "sst2", "cola")])
@pytest.mark.parametrize("name", ["mini", "long-name-" * 30])
def test_title_and_legend_lie_within_the_figure(tasks: tuple[str, ...], name: str) -> None:
    methods = [(name, 4), *((f"method-{number} with a long name", 4) for number in range(6)), ("head", None)]
    rows = [record(0.5, task=task, method=method, rank=rank) for task in tasks for method, rank in methods]
    drawn = draw_rank_page("x/" * 140, pages(subset(rows))[0])
    drawn.canvas.draw()
    for artist in (drawn.legends[0], *drawn.texts):
        box = artist.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= drawn.bbox.x1
        assert box.y1 <= drawn.bbox.y1
    assert all(ax.get_window_extent().height > 150 for ax in drawn.axes)


def test_curve_is_the_average_over_a_and_b_with_a_band_from_seeds() -> None:
    sst2 = figure(small()).axes[1]
    (mini,) = [line for line in curves(sst2) if to_hex(line.get_color()) == "#0072b2"]
    assert mini.get_ydata() == pytest.approx([91.52, 91.92])
    band = next(area for area in sst2.collections if to_hex(np.asarray(area.get_facecolor())[0]) == "#0072b2")
    ends = band.get_paths()[0].get_extents()
    assert (ends.y0, ends.y1) == pytest.approx((90.52, 92.92))


def test_level_is_the_mean_of_head() -> None:
    level = figure(small()).axes[1].lines[-1]
    assert level.get_ydata() == pytest.approx([71.0, 71.0])
    assert level.get_linestyle() == "--"


def test_ranks_are_the_ticks_of_a_log2_axis() -> None:
    ax = figure([record(0.5 + rank / 1000, rank=rank) for rank in (4, 25, 64)]).axes[0]
    assert ax.get_xscale() == "log"
    assert list(ax.get_xticks()) == [4, 25, 64]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["4", "25", "64"]
    assert list(ax.get_xticks(minor=True)) == []


def test_methods_differ_in_colour_marker_and_line() -> None:
    methods = ("mini", "lora", "xs", "cora", "cora-init", "zzz")
    ax = figure([record(0.5, method=method, rank=4, a=None, b=None) for method in methods]).axes[0]
    for take in ("get_color", "get_marker", "_unscaled_dash_pattern"):
        found = [getattr(line, take) for line in curves(ax)]
        assert len({str(each() if callable(each) else each) for each in found}) == len(methods), take


def test_many_methods_all_look_different() -> None:
    found = method_styles([*RECIPES, *(f"other-{number}" for number in range(8))])
    assert len({(style.colour, style.marker, str(style.dashes)) for style in found.values()}) == len(found) > 20


def test_many_methods_go_on_several_figures_each_beside_the_references() -> None:
    names = [f"m{number:02d}" for number in range(11)] + ["lora", "head"]
    assert divide_methods([*names[:MAX_METHODS], "lora", "full", "head"]) == [
        frozenset({*names[:MAX_METHODS], "lora", "full", "head"})
    ]
    parts = divide_methods(names)
    assert [len(part) for part in parts] == [5, 6, 6]
    assert all({"lora", "head"} <= part for part in parts)
    assert frozenset().union(*parts) == set(names)
    made = rank_figures("tiny", rank_panels(subset([record(0.5, method=name, rank=4) for name in names])))
    assert [len(legend(each)) for each in made] == [5, 6, 6]


def test_a_level_far_below_is_written_and_does_not_compress_the_lines() -> None:
    lines = [record(0.8 + rank / 1000, method="lora", rank=rank) for rank in (4, 8, 64)]
    ax = figure([*lines, record(0.3, method="head", rank=None)]).axes[0]
    assert ax.get_ylim()[0] > 75
    assert [text.get_text() for text in ax.texts] == ["head: 30.0 ↓"]


def test_tasks_go_four_to_a_page() -> None:
    tasks = ("cola", "sst2", "mrpc", "stsb", "rte")
    found = pages(subset([record(0.5, task=task) for task in tasks]))
    assert [len(page) for page in found] == [4, 1]
    assert len(draw_rank_page("tiny", found[0]).axes) == 4


def test_an_empty_panel_is_off() -> None:
    drawn = figure([record(0.5, task=task) for task in ("cola", "sst2", "rte")])
    assert [ax.axison for ax in drawn.axes] == [True, True, True, False]


def test_one_scale_for_one_metric_unless_it_flattens() -> None:
    near = figure([record(s, task=t, rank=r) for t in ("rte", "sst2") for r, s in ((4, 0.6), (8, 0.7))])
    assert near.axes[0].get_ylim() == near.axes[1].get_ylim()
    far = {"rte": (0.5, 0.6), "sst2": (0.92, 0.93)}
    apart = figure([record(s, task=t, rank=r) for t, both in far.items() for r, s in zip((4, 8), both, strict=True)])
    assert apart.axes[0].get_ylim() != apart.axes[1].get_ylim()


def test_no_figure_without_ranks_or_scores() -> None:
    assert rank_panels(subset([record(0.5, method="head")])) == ()
    assert pages(subset([record(None, status="failed")])) == []


def test_a_rank_without_a_score_is_no_point() -> None:
    (panel,) = rank_panels(subset([record(0.5), record(None, status="diverged", rank=8)]))
    assert list(panel.lines["mini"]) == [4]


def test_bytes_are_the_same_and_hold_no_date() -> None:
    first, second = (encode_figure(figure(small())) for _ in range(2))
    assert first == second
    assert first["png"].startswith(b"\x89PNG")
    assert b"Software" not in first["png"]
    assert b"dc:date" not in first["svg"]
    assert first["pdf"].startswith(b"%PDF")
    assert b"CreationDate" not in first["pdf"]


def test_settings_of_matplotlib_stay_and_do_not_matter() -> None:
    records = [record(0.5)]
    wanted = encode_figure(figure(records))["svg"]
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "x", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert encode_figure(figure(records))["svg"] == wanted
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["$\\frac{1$", "_hidden", "\u4e2d\u6587", "\x1b[31mred", "\ud800", "<&>"])
def test_names_from_outside_are_drawn_as_they_read(name: str) -> None:
    drawn = draw_rank_page(name, pages(subset([record(0.5, method=name.replace("\ud800", "") or "x", rank=4)]))[0])
    assert encode_figure(drawn)["svg"]
    assert len(legend(drawn)) == 1


def test_the_papers_figure_shows_the_methods_with_a_and_b_alone() -> None:
    (only,) = {tuple(panel.lines) for panel in paired_only(rank_panels(subset(small())))}
    assert only == ("mini",)
    assert paired_only(rank_panels(subset([record(0.5, method="lora", rank=4)]))) == ()


def test_the_front_is_what_no_other_point_beats() -> None:
    draw = random.Random(0)
    points = [CostPoint("m", draw.randint(1, 20), draw.randint(0, 9) / 10, 0.0) for _ in range(60)]
    unbeaten = {
        (point.cost, point.mean)
        for point in points
        if not any(
            other.cost <= point.cost
            and other.mean >= point.mean
            and (other.cost, other.mean) != (point.cost, point.mean)
            for other in points
        )
    }
    front = pareto_front(points)
    assert {(point.cost, point.mean) for point in front} == unbeaten
    assert [point.cost for point in front] == sorted(point.cost for point in front)


def test_cost_panels_hold_every_setting_and_draw_what_is_free_as_a_level() -> None:
    (panel, _) = cost_plots.cost_panels(subset(small()), "params")
    assert sorted({point.cost for point in panel.points}) == [1000, 9000]
    assert [point.label for point in panel.free] == ["head"]
    assert panel.front[-1].label == "lora"
    (drawn,) = cost_plots.cost_figures(subset(small()), "params")
    assert drawn.axes[0].get_xscale() == "log"
    drawn.draw_without_rendering()
    assert "$" not in "".join(label.get_text() for label in drawn.axes[0].get_xticklabels())


def test_no_cost_no_figure() -> None:
    assert cost_plots.cost_figures(subset([record(0.5, params=None)]), "bytes") == []
    assert cost_plots.cost_figures(subset([record(0.5)]), "seconds") == []


def test_heat_map_is_a_by_b_with_gaps() -> None:
    records = [record(0.5 + a / 1000 + b / 10_000, a=a, b=b) for a in (8, 16) for b in (8, 16) if (a, b) != (16, 16)]
    maps = heat_maps.heat_maps(subset(records))
    (drawn,) = heat_maps.heat_figures(subset(records), "mini", maps["mini"])
    (image,) = drawn.axes[0].images
    values = image.get_array()
    assert values is not None
    assert values[0, 1] == pytest.approx(0.5 + 0.008 + 0.0016)
    assert [text.get_text() for text in drawn.axes[0].texts] == ["50.9", "51.0", "51.7", "–"]
    assert heat_maps.heat_maps(subset([record(0.5)])) == {}


def test_a_large_heat_map_has_a_scale_instead_of_numbers() -> None:
    records = [record(0.5 + a / 1000, a=a) for a in range(1, 13)]
    (drawn,) = heat_maps.heat_figures(subset(records), "mini", heat_maps.heat_maps(subset(records))["mini"])
    assert len(drawn.axes) == 2
    assert len(drawn.axes[0].texts) == 0
    drawn.draw_without_rendering()
    assert "50.5" in [label.get_text() for label in drawn.axes[1].get_yticklabels()]


def test_learning_curve_is_the_mean_of_the_seeds_that_ended() -> None:
    seeds = [record(0.9, seed=seed, curve=make_epochs(0.5 + 0.1 * seed, 0.9)) for seed in range(3)]
    diverged = record(None, seed=3, status="diverged", curve=make_epochs(0.1, None))
    (panel,) = learning_curves.curve_panels(subset([*seeds, diverged]))
    (first, second) = panel.curves["mini"]
    assert first == pytest.approx((1, 0.6, 0.1))
    assert second == pytest.approx((2, 0.9, 0))


def test_a_method_looks_the_same_whatever_stands_beside_it() -> None:
    assert method_styles(["head", "lora", "mini"])["mini"] == method_styles(["mini", "xs"])["mini"]
    assert list(method_styles(["head", "zzz", "xs", "lora"])) == ["lora", "xs", "zzz", "head"]


def test_every_figure_has_a_name_of_its_own() -> None:
    names = [name for _, name, _ in all_figures(subset(small()), "stem")]
    assert len(set(names)) == len(names)
    assert {name.partition("-")[0] for name in names} == {
        "figure2",
        "accuracy_vs_rank",
        "score_vs_params",
        "score_vs_bytes",
        "heat",
    }
