"""The page in a real browser: it sorts, filters, hovers, draws, fits a phone, logs no error and sends no request."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_bench.records.schema import Record
from lora_bench.records.store import Loaded
from lora_bench.report.content import gather
from lora_bench.report.formats.html import html_page
from lora_bench.report.numbers.statistics import seed_interval
from lora_bench.testing import make_epochs
from tests.report.report_factory import record

webdriver = pytest.importorskip("selenium.webdriver")
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="there is no Chromium here")
EVIL = "</script><img src=x onerror=document.title='hit'>"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900",
)  # fmt: skip


def records() -> list[Record]:
    found = [
        record(
            0.8 + 0.01 * rank / 4 + 0.001 * seed, rank=rank, a=a, seed=seed, seconds=2.0, curve=make_epochs(0.7, 0.8)
        )
        for rank in (4, 8)
        for a in (8, 16)
        for seed in range(3)
    ]
    found += [
        record(0.84 + 0.01 * seed, method="lora", rank=8, seed=seed, params=(9000, 2), curve=make_epochs(0.7, 0.85))
        for seed in range(3)
    ]
    found += [record(0.6, method="head", params=(0, 2)), record(0.4, task="cola", method="lora", rank=8)]
    return [*found, record(None, status="failed", reason=EVIL, method=EVIL, rank=16, seed=7)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "report.html").write_text(html_page(gather(Loaded(tuple(records()), ()))), encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the driver's own
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_window_size(1280, 900)
    driver.get_log("performance")  # what the browser itself loads at its start
    driver.get((folder / "report.html").as_uri())
    yield driver
    driver.quit()


def run(browser: Any, script: str) -> Any:
    return browser.execute_script(script)


def column(browser: Any, name: str) -> list[str]:
    script = """
    const at = [...document.querySelectorAll("#grid th")].findIndex((head) => head.dataset.name === arguments[0]);
    return [...document.querySelectorAll("#grid tbody tr")].map((row) => row.cells[at].textContent);
    """
    return list(browser.execute_script(script, name))


def sort_by(browser: Any, name: str) -> None:
    browser.find_element("css selector", f'#grid th[data-name="{name}"] button').click()


def type_filter(browser: Any, text: str) -> str:
    field = browser.find_element("id", "filter")
    field.clear()
    field.send_keys(text or " ")
    return str(browser.find_element("id", "count").text)


def choose(browser: Any, which: str, value: str) -> None:
    script = (
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))"
    )
    browser.execute_script(script, which, value)


def test_it_is_ready_and_draws(browser: Any) -> None:
    assert run(browser, "return document.documentElement.dataset.ready") == "yes"
    for chart in ("frontier", "rank", "curves"):
        assert run(browser, f"return document.querySelectorAll('#{chart} .scatterlayer .trace').length") > 0, chart


def test_sorting_twice_reverses_the_order(browser: Any) -> None:
    type_filter(browser, "")
    down = [float(value) for value in column(browser, "mean") if value != "—"]
    assert down == sorted(down, reverse=True)
    sort_by(browser, "mean")
    up = [float(value) for value in column(browser, "mean") if value != "—"]
    assert up == sorted(up)
    assert column(browser, "mean")[-1] == "—", "what has no score comes last either way"
    sort_by(browser, "method")
    assert column(browser, "method") == sorted(column(browser, "method"))
    sort_by(browser, "mean")


def test_filter_by_words_and_by_the_id_of_a_cell(browser: Any) -> None:
    assert type_filter(browser, "mini r=8") == "2 of 8 settings"
    assert set(column(browser, "method")) == {"mini"}
    wanted = record(0.4, task="cola", method="lora", rank=8).id
    assert type_filter(browser, wanted) == "1 of 8 settings"
    assert column(browser, "task") == ["CoLA"]
    assert type_filter(browser, "nothing like it") == "0 of 8 settings"
    assert type_filter(browser, "") == "8 of 8 settings"


def test_a_click_shows_the_cells_and_their_curves(browser: Any) -> None:
    type_filter(browser, "mini r=4 a=8")
    browser.find_element("css selector", "#grid tbody tr").click()
    members = run(
        browser, "return [...document.querySelectorAll('#members tbody tr')].map((r) => r.cells[0].textContent)"
    )
    ids = [each.id for each in records() if (each.cell.rank, each.cell.a) == (4, 8)]
    assert sorted(members) == sorted(ids)
    assert run(browser, "return document.getElementById('curves').data.length") == 3
    assert run(browser, "return document.getElementById('curves').data[0].y") == pytest.approx([70, 80])
    type_filter(browser, "")


def test_pointing_at_a_setting_shows_its_size_and_its_interval(browser: Any) -> None:
    choose(browser, "column", "SST-2 (accuracy)")
    run(
        browser,
        "const chart = document.getElementById('frontier');"
        "const at = chart.data.findIndex((trace) => trace.name === 'lora');"
        "chart.scrollIntoView(); Plotly.Fx.hover(chart, [{ curveNumber: at, pointNumber: 0 }]);",
    )
    shown = run(browser, "return document.querySelector('#frontier .hoverlayer').textContent")
    assert "lora r=8" in shown
    assert "85.0 [8" in shown
    assert "9,000 values" in shown


def test_the_lines_of_the_two_methods_have_the_bars_of_the_tables(browser: Any) -> None:
    choose(browser, "column", "SST-2 (accuracy)")
    bars = run(
        browser,
        "return document.getElementById('frontier').data.filter((trace) => trace.error_y && !trace.showlegend)"
        ".map((trace) => [trace.line.color, trace.y.length, trace.error_y.array, trace.error_y.arrayminus])",
    )
    assert [bar[:2] for bar in bars] == [["#D55E00", 1], ["#0072B2", 1]]  # of four settings of mini the chosen one
    (_, _, (above,), (below,)), _ = bars
    low, high = seed_interval([0.84, 0.85, 0.86]) or (0.0, 0.0)
    assert [above, below] == pytest.approx([100 * (high - 0.85), 100 * (0.85 - low)], abs=1e-4)
    assert run(browser, "return document.getElementById('below').textContent") == "Far below: head 60.0."


def test_the_choices_above_the_chart_redraw_it(browser: Any) -> None:
    names = "return document.getElementById('frontier').data.map((trace) => trace.name)"
    choose(browser, "column", "CoLA (Matthews)")
    assert "mini" not in run(browser, names)
    choose(browser, "column", "SST-2 (accuracy)")
    assert {"mini", "lora"} <= set(run(browser, names))
    choose(browser, "cost", "6")
    assert run(browser, "return document.getElementById('frontier').layout.xaxis.title.text") == "GPU-seconds a cell"
    choose(browser, "cost", "4")


def test_it_works_by_keyboard(browser: Any) -> None:
    type_filter(browser, "mini r=8 a=16")
    row = browser.find_element("css selector", "#grid tbody tr")
    run(browser, "document.querySelector('#grid tbody tr').focus()")
    row.send_keys("\ue007")
    assert run(browser, "return document.getElementById('chosen').textContent") == "SST-2 mini r=8 a=16 b=8"
    unlabelled = "return [...document.querySelectorAll('select, input')].filter((one) => !one.closest('label')).length"
    assert run(browser, unlabelled) == 0
    scrolled = "return [...document.querySelectorAll('.wide')].filter((one) => one.tabIndex < 0).length"
    assert run(browser, scrolled) == 0, "what scrolls can have the focus"
    type_filter(browser, "")


def test_the_answer_comes_first(browser: Any) -> None:
    first = run(browser, "return document.querySelector('main h2').textContent")
    sentences = run(browser, "return [...document.querySelectorAll('#answer p')].map((one) => one.textContent)")
    assert first == "The answer"
    assert any("Does LoRA-Mini match LoRA" in sentence or "nothing to compare" in sentence for sentence in sentences)


def test_it_fits_a_phone(browser: Any) -> None:
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert run(browser, "return document.documentElement.scrollWidth") == 390
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_dark_is_dark_and_print_is_white(browser: Any) -> None:
    back = "return getComputedStyle(document.body).backgroundColor"
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert run(browser, back) == "rgb(20, 24, 28)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark | {"media": "print"})
    assert run(browser, back) == "rgb(255, 255, 255)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_names_from_outside_do_nothing(browser: Any) -> None:
    assert browser.title == "lora-bench report"
    assert run(browser, "return document.querySelectorAll('img').length") == 0
    assert EVIL in column(browser, "method")


def test_no_error_was_logged_and_no_request_was_sent(browser: Any) -> None:
    """This test is the last, so that it covers the others."""
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    # The page that the browser shows at its start may still be loading.
    asked = [each["request"]["url"] for each in sent if not each["documentURL"].startswith("chrome")]
    assert asked, "the log is on"
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_page_names_no_address_to_load() -> None:
    written = html_page(gather(Loaded(tuple(records()), ())))
    head = Path(__file__).parents[2] / "lora_bench" / "report" / "assets" / "page.html"
    assert "default-src 'none'" in head.read_text()
    for tag in ('<link rel="stylesheet', "<script src", "<img", "@import", "<iframe"):
        assert tag not in written.replace(EVIL, "").partition("<script>")[0], tag
