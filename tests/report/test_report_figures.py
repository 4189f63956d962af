"""What is on the figure, read from the Figure object, and its bytes."""

from __future__ import annotations

import matplotlib
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from report_factory import record, small

from lora_bench.report.figures import draw, encode, pages, panels
from lora_bench.report.frame import frame
from lora_bench.report.slots import Piece, pieces
from lora_bench.store import Record


def piece(records: list[Record]) -> Piece:
    return pieces(frame(records))[0]


def figure(records: list[Record]) -> Figure:
    return draw("tiny", pages(piece(records))[0])


def legend(drawn: Figure) -> list[str]:
    return [text.get_text() for text in drawn.legends[0].get_texts()]


def test_lines_levels_and_legend() -> None:
    drawn = figure(small())
    assert [ax.get_title() for ax in drawn.axes] == ["CoLA (Matthews)", "SST-2 (accuracy)"]
    assert legend(drawn) == ["mini", "lora", "head"]
    for ax in drawn.axes:
        assert sum(isinstance(drawn, ErrorbarContainer) for drawn in ax.containers) == 2
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
    drawn = draw("x/" * 140, pages(piece(rows))[0])
    drawn.canvas.draw()
    for artist in (drawn.legends[0], *drawn.texts):
        box = artist.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= drawn.bbox.x1
        assert box.y1 <= drawn.bbox.y1
    assert all(ax.get_window_extent().height > 150 for ax in drawn.axes)


def test_curve_is_the_average_over_a_and_b_with_bars_from_seeds() -> None:
    sst2 = figure(small()).axes[1]
    mini = sst2.containers[0]
    assert isinstance(mini, ErrorbarContainer)
    assert mini[0].get_ydata() == pytest.approx([91.52, 91.92])
    (low, high) = (point[1] for point in mini[2][0].get_segments()[0])
    assert (high - low) / 2 == pytest.approx(1.0)


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
    for take in ("get_color", "get_marker", "get_linestyle"):
        looks = [str(getattr(drawn[0], take)()) for drawn in ax.containers]
        if take == "get_linestyle":
            looks = [str(drawn[0]._unscaled_dash_pattern) for drawn in ax.containers]
        assert len(set(looks)) == len(methods), take


def test_tasks_go_four_to_a_page() -> None:
    tasks = ("cola", "sst2", "mrpc", "stsb", "rte")
    found = pages(piece([record(0.5, task=task) for task in tasks]))
    assert [len(page) for page in found] == [4, 1]
    assert len(draw("tiny", found[0]).axes) == 4


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
    assert panels(piece([record(0.5, method="head")])) == ()
    assert pages(piece([record(None, status="failed")])) == []


def test_a_rank_without_a_score_is_no_point() -> None:
    (panel,) = panels(piece([record(0.5), record(None, status="diverged", rank=8)]))
    assert list(panel.lines["mini"]) == [4]


def test_bytes_are_the_same_and_hold_no_date() -> None:
    first, second = (encode(figure(small())) for _ in range(2))
    assert first == second
    assert first["png"].startswith(b"\x89PNG")
    assert b"Software" not in first["png"]
    assert b"dc:date" not in first["svg"]


def test_settings_of_matplotlib_stay_and_do_not_matter() -> None:
    records = [record(0.5)]
    wanted = encode(figure(records))["svg"]
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "x", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert encode(figure(records))["svg"] == wanted
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["$\\frac{1$", "_hidden", "\u4e2d\u6587", "\x1b[31mred", "\ud800", "<&>"])
def test_names_from_outside_are_drawn_as_they_read(name: str) -> None:
    drawn = draw(name, pages(piece([record(0.5, method=name.replace("\ud800", "") or "x", rank=4)]))[0])
    assert encode(drawn)["svg"]
    assert len(legend(drawn)) == 1
