"use strict";
// Charts, table and learning curves of the report; everything comes from the JSON above. Text is set as text, never as HTML.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = Object.fromEntries(data.columns.map((name, index) => [name, index]));
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const STEP = 100;
  const HEADS = {
    adapter_params: "adapter params", adapter_bytes: "adapter bytes", seconds: data.seconds, mean: "mean ×100",
    std: "std", median: "median", n: "scores", lost: "without score",
  };
  const state = { sort: "mean", down: true, shown: STEP, chosen: 0, matching: [], printing: false };
  const $ = (id) => document.getElementById(id);
  const percent = (value, digits = 1) => (value === null || value === undefined ? "—" : (100 * value).toFixed(digits));

  // Plotly reads a little HTML in its texts: names from outside must not be that.
  const inert = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function words(number) {
    const row = data.settings[number];
    const parts = data.columns.slice(0, data.labels).map((name, index) => [name, row[index]]);
    const short = { rank: "r" };
    return parts.filter(([, value]) => value !== null)
      .map(([name, value]) => (name === "task" ? data.titles[value] : name === "method" ? value : `${short[name] || name}=${value}`));
  }

  // ---- charts

  const HUES = { subject: "#0072B2", reference: "#D55E00", extra: "#009E73", other: "#9aa0a6" };
  const LEVELS = { head: ["#000000", "dash"], full: ["#666666", "dot"] };
  const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "cross"];
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];

  function theme() {
    const night = dark.matches && !state.printing;
    return {
      night,
      text: night ? "#e6e9ec" : "#1c2126",
      line: night ? "#37404a" : "#d7dce1",
      back: night ? "#1d2329" : state.printing ? "#ffffff" : "#f6f7f9",
      of: (colour) => (night ? { "#000000": "#ffffff", "#666666": "#b5bcc4", "#0072B2": "#4aa8e0" }[colour] || colour : colour),
    };
  }

  function layout(across, extra) {
    const { text, line, back } = theme();
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    return {
      paper_bgcolor: back, plot_bgcolor: back, font: { color: text, size: 12 }, hovermode: "closest",
      margin: { l: 50, r: 14, t: 14, b: 100 }, legend: { orientation: "h", yref: "container", y: 0.01, yanchor: "bottom", x: 0 }, hoverlabel: { align: "left" },
      xaxis: { ...axis, title: { text: across }, ...extra }, yaxis: { ...axis, title: { text: "score ×100" } },
    };
  }

  // On paper a chart cannot follow its column: it is drawn for the width of a page.
  const paper = () => (state.printing ? { width: 680, height: 320 } : {});
  const draw = (id, traces, shape) => Plotly.react(id, traces, { ...shape, ...paper() }, { responsive: true, displaylogo: false, displayModeBar: false });

  const scopeCharts = () => data.charts.filter((chart) => chart.scope === $("scope").value);
  const currentChart = () => scopeCharts().find((chart) => chart.column === $("column").value) || scopeCharts()[0];

  // A point is [label, size, targets, setting, params, bytes, seconds, mean, low, high, seeds, chosen].
  function pointText(point) {
    const [, size, targets, , params, bytes, , mean, low, high, seeds] = point;
    const interval = low === null ? "" : ` [${percent(low)}, ${percent(high)}]`;
    const costs = [params === null ? "" : `${params.toLocaleString("en")} values`, bytes === null ? "" : `${bytes.toLocaleString("en")} bytes`];
    return [`<b>${inert(size)}</b>`, inert(targets), `${percent(mean)}${interval} (${seeds} seed${seeds === 1 ? "" : "s"})`, ...costs].filter(Boolean).join("<br>");
  }

  function pointTrace(points, x, name, colour, shape, symbols) {
    return {
      x: points.map((p) => p[x]), y: points.map((p) => 100 * p[7]), text: points.map(pointText), customdata: points.map((p) => p[3]),
      name: inert(name), type: "scatter", mode: "markers", hovertemplate: "%{text}<extra></extra>",
      marker: { color: theme().of(colour), symbol: points.map((p) => symbols[p[2]] || "circle"), ...shape },
    };
  }

  // A line through points, with the 95% interval of each that has one.
  function lineTrace(points, x, colour, look, connected) {
    const reach = (end) => points.map((p) => (p[8] === null ? 0 : 100 * Math.abs(p[end] - p[7])));
    return {
      x: points.map((p) => p[x]), y: points.map((p) => 100 * p[7]), type: "scatter", mode: connected ? "lines+markers" : "none", showlegend: false, hoverinfo: "skip",
      line: { color: theme().of(colour), width: 1.4, dash: look[1] }, marker: { color: theme().of(colour), symbol: look[0], size: 8 },
      error_y: { type: "data", symmetric: false, array: reach(9), arrayminus: reach(8), color: `${theme().of(colour)}80`, thickness: 1, width: 0 },
    };
  }

  function levelTrace(name, mean, ends, look) {
    return {
      x: ends, y: ends.map(() => 100 * mean), name: inert(name), type: "scatter", mode: "lines",
      line: { color: theme().of(look[0]), dash: look[1], width: 1.5 }, hovertemplate: `${inert(name)}: ${percent(mean)}<extra></extra>`,
    };
  }

  function drawFrontier() {
    const chart = currentChart();
    const x = Number($("cost").value);
    const sized = chart.points.filter((p) => p[x] > 0 && !(p[0] in LEVELS));
    const count = (name) => sized.filter((p) => p[2] === name).length;
    const targets = [...new Set(sized.map((p) => p[2]))].sort((one, other) => count(other) - count(one) || (one < other ? -1 : 1));
    const symbols = Object.fromEntries(targets.map((name, number) => [name, SYMBOLS[number % SYMBOLS.length]]));
    // Another method far below the two that the chart is about is written: drawn, it would press all others together.
    const isMain = (p) => p[0] === chart.reference || p[0] === chart.subject;
    const main = sized.filter(isMain).map((p) => p[7]);
    const [lowest, highest] = [Math.min(...main), Math.max(...main)];
    const floor = main.length > 1 ? lowest - Math.max(0.5 * (highest - lowest), 0.05) : -Infinity;
    const isLow = (p) => p[7] < floor && !isMain(p) && p[0] !== $("extra").value;
    const drawn = sized.filter((p) => !isLow(p));
    const levels = chart.points.filter((p) => p[0] in LEVELS);
    const costs = drawn.map((p) => p[x]);
    const ends = costs.length ? [Math.min(...costs), Math.max(...costs)] : [1, 10];
    const coloured = [[chart.reference, HUES.reference], [chart.subject, HUES.subject], [$("extra").value, HUES.extra]].filter(([name]) => name);
    const names = new Set(coloured.map(([name]) => name));
    const traces = [pointTrace(drawn.filter((p) => !names.has(p[0])), x, "other methods", HUES.other, { size: 6, opacity: 0.6 }, symbols)];
    for (const [name, colour] of coloured) {
      const points = drawn.filter((p) => p[0] === name).sort((one, other) => one[x] - other[x]);
      if (points.length) traces.push(pointTrace(points, x, name, colour, points.length > 30 ? { size: 6, opacity: 0.5 } : { size: 8, opacity: 0.9 }, symbols));
    }
    for (const [name, colour] of coloured) {
      targets.forEach((target, number) => {
        const points = drawn.filter((p) => p[0] === name && p[2] === target && (p[11] || name !== chart.subject));
        points.sort((one, other) => one[x] - other[x]);
        if (points.length) traces.push(lineTrace(points, x, colour, [symbols[target], DASHES[number % DASHES.length]], points.every(isMain)));
      });
    }
    const scores = drawn.map((p) => 100 * p[7]);
    const height = Math.max(1, Math.max(...scores) - Math.min(...scores));
    const far = (level) => scores.length && 100 * level[7] < Math.min(...scores) - height / 4;
    for (const level of levels.filter((one) => !far(one))) traces.push(levelTrace(level[0], level[7], ends, LEVELS[level[0]]));
    const shape = layout($("cost").selectedOptions[0].textContent, { type: "log", tickformat: "~s", dtick: ends[1] < 300 * ends[0] ? "D2" : 1 });
    const written = [...levels.filter(far).map((p) => [p[0], p[7]]), ...sized.filter(isLow).map((p) => [p[1], p[7]])];
    $("below").textContent = written.length ? `Far below: ${written.map(([name, mean]) => `${name} ${percent(mean)}`).join(", ")}.` : "";
    draw("frontier", traces, shape);
  }

  function drawRank() {
    const chart = currentChart();
    if ($("by-rank").hidden) return;
    const panel = chart.ranks[$("targets").value];
    const lines = panel ? panel.lines : {};
    const ranks = [...new Set(Object.values(lines).flat().map((p) => p[0]))].sort((one, other) => one - other);
    const hues = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8c6d31", "#7b4173"];
    const dashes = ["solid", "dash", "dashdot", "dot", "longdash"];
    // As in the chart above, where the line is of one of its two methods.
    const fixed = Object.fromEntries([[chart.subject, HUES.subject], [chart.reference, HUES.reference]].filter(([name]) => name in lines));
    const free = hues.filter((hue) => !Object.values(fixed).includes(hue));
    const others = Object.keys(lines).filter((name) => !(name in fixed));
    const hueOf = (name) => fixed[name] || free[others.indexOf(name) % free.length];
    const traces = Object.entries(lines).map(([name, line], number) => ({
      x: line.map((p) => p[0]), y: line.map((p) => 100 * p[1]), name: inert(name), type: "scatter", mode: "lines+markers",
      text: line.map((p) => `<b>${inert(name)} r=${p[0]}</b><br>${percent(p[1])} [${percent(p[2])}, ${percent(p[3])}]`), hovertemplate: "%{text}<extra></extra>",
      error_y: { type: "data", symmetric: false, array: line.map((p) => 100 * (p[3] - p[1])), arrayminus: line.map((p) => 100 * (p[1] - p[2])), thickness: 0.8, width: 2, visible: line.every((p) => p[2] !== null) },
      line: { color: theme().of(hueOf(name)), dash: dashes[number % dashes.length] },
      marker: { symbol: SYMBOLS[number % SYMBOLS.length], size: 7 },
    }));
    for (const [name, mean] of Object.entries(panel ? panel.levels : {})) {
      if (ranks.length) traces.push(levelTrace(name, mean, [ranks[0], ranks[ranks.length - 1]], LEVELS[name] || LEVELS.full));
    }
    draw("rank", traces, layout("rank r", { type: "log", tickvals: ranks, ticktext: ranks.map(String) }));
  }

  function drawCurves() {
    const cells = data.cells[state.chosen];
    const hues = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"];
    const traces = [];
    cells.forEach((cell, number) => {
      const colour = theme().of(hues[number % hues.length]);
      const add = (values, name, dash) => traces.push({
        x: values.map((_, epoch) => epoch + 1), y: values.map((value) => (value === null ? null : 100 * value)), name, type: "scatter", mode: "lines+markers",
        line: { color: colour, dash }, hovertemplate: `${inert(cell[0])}, seed ${inert(cell[1])}<br>epoch %{x}: %{y:.1f}<extra></extra>`,
      });
      if (cell[4].length) add(cell[4], `seed ${inert(cell[1])}`, "solid");
      if (cell[5].length) add(cell[5], `seed ${inert(cell[1])}, held out`, "dash");
    });
    draw("curves", traces, layout("epoch", { dtick: Math.max(1, Math.ceil(Math.max(1, ...cells.map((cell) => cell[4].length)) / 12)) }));
  }

  // ---- a chosen setting

  function line(values, numbers) {
    const row = document.createElement("tr");
    values.forEach((value, index) => {
      const field = row.insertCell();
      field.textContent = value;
      if (numbers[index]) field.className = "n";
    });
    return row;
  }

  function choose(number) {
    state.chosen = number;
    $("chosen").textContent = words(number).join(" ");
    const body = $("members").tBodies[0];
    body.replaceChildren(...data.cells[number].map((cell) => line([cell[0], cell[1], cell[2], percent(cell[3], 2), cell[6]], [0, 1, 0, 1, 0])));
    for (const row of $("grid").tBodies[0].rows) row.classList.toggle("chosen", Number(row.dataset.setting) === number);
    drawCurves();
  }

  // ---- the table

  const heads = [...data.columns.slice(0, data.labels), "mean", "std", "median", "n", "adapter_params", "adapter_bytes", "seconds", "lost"];

  function shownValue(row, name) {
    const value = row[at[name]];
    if (name === "n") return value === row[at.seeds] ? String(value) : `${value}/${row[at.seeds]}`;
    if (["mean", "std", "median"].includes(name)) return percent(value, 2);
    if (value === null) return "";
    if (name === "task") return data.titles[value];
    if (name === "seconds") return value.toFixed(1);
    return ["adapter_params", "adapter_bytes"].includes(name) ? value.toLocaleString("en") : String(value);
  }

  const isNumber = heads.map((name) => name !== "lost" && data.settings.every((row) => row[at[name]] === null || typeof row[at[name]] === "number"));
  const searched = data.settings.map((row, number) => [
    ...words(number), row[at.task], data.metrics[row[at.task]], row[at.lost], ...data.cells[number].map((cell) => `${cell[0]} ${cell[2]}`),
  ].join(" ").toLowerCase());

  function compare(one, other) {
    const [first, second] = [one, other].map((number) => data.settings[number][at[state.sort]]);
    if (first === null || second === null) return (first === null) - (second === null) || one - other;
    const way = first < second ? -1 : first > second ? 1 : 0;
    return (state.down ? -way : way) || one - other;
  }

  function find() {
    const wanted = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const matches = (text) => wanted.every((word) => text.includes(word));
    state.matching = data.settings.map((_, number) => number).filter((number) => matches(searched[number])).sort(compare);
    show();
  }

  function show() {
    const rows = state.matching.slice(0, state.shown).map((number) => {
      const setting = data.settings[number];
      const row = line(heads.map((name) => shownValue(setting, name)), isNumber);
      row.dataset.setting = number;
      row.tabIndex = 0;
      row.title = data.cells[number].map((cell) => `${cell[0]} (seed ${cell[1]})`).join("\n");
      if (setting[at.lost]) row.lastChild.className = "lost";
      row.classList.toggle("chosen", number === state.chosen);
      return row;
    });
    $("grid").tBodies[0].replaceChildren(...rows);
    $("count").textContent = `${state.matching.length} of ${data.settings.length} settings`;
    $("more").hidden = state.matching.length <= state.shown;
    document.querySelectorAll("#grid th").forEach((head) => {
      head.setAttribute("aria-sort", head.dataset.name !== state.sort ? "none" : state.down ? "descending" : "ascending");
    });
  }

  function headings() {
    heads.forEach((name, index) => {
      const head = document.createElement("th");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = HEADS[name] || name.replace("_", " ");
      head.dataset.name = name;
      if (isNumber[index]) head.className = "n";
      button.addEventListener("click", () => {
        state.down = state.sort === name ? !state.down : isNumber[index];
        state.sort = name;
        find();
      });
      head.append(button);
      $("grid").tHead.rows[0].append(head);
    });
  }

  // ---- together

  function fill(select, values) {
    select.replaceChildren(...values.map((value) => new Option(value, value)));
    select.parentElement.hidden = values.length < 2;
  }

  // The choices of the second level follow from those of the first.
  function fillColumns() {
    fill($("column"), scopeCharts().map((chart) => chart.column));
    fillChart();
  }

  function fillChart() {
    const chart = currentChart();
    const others = [...new Set(chart.points.map((p) => p[0]))].filter((name) => ![chart.subject, chart.reference].includes(name) && !(name in LEVELS));
    const before = $("extra").value;
    $("extra").replaceChildren(new Option("none", ""), ...others.sort().map((name) => new Option(name, name)));
    if (others.includes(before)) $("extra").value = before;
    const targets = $("targets").value;
    $("by-rank").hidden = !Object.keys(chart.ranks).length;
    fill($("targets"), Object.keys(chart.ranks));
    if (targets in chart.ranks) $("targets").value = targets;
  }

  function redraw() {
    drawFrontier();
    drawRank();
    drawCurves();
  }

  fill($("scope"), [...new Set(data.charts.map((chart) => chart.scope))]);
  $("cost").options[2].textContent = `${data.seconds} a cell`;
  headings();
  find();
  if (data.charts.length) {
    fillColumns();
    drawFrontier();
    drawRank();
  }
  if (state.matching.length) choose(state.matching[0]);
  $("scope").addEventListener("change", () => { fillColumns(); redraw(); });
  $("column").addEventListener("change", () => { fillChart(); redraw(); });
  for (const id of ["cost", "extra"]) $(id).addEventListener("change", drawFrontier);
  $("targets").addEventListener("change", drawRank);
  $("filter").addEventListener("input", () => { state.shown = STEP; find(); });
  $("more").addEventListener("click", () => { state.shown += STEP; show(); });
  const pick = (event) => { const row = event.target.closest("tr"); if (row) choose(Number(row.dataset.setting)); };
  $("grid").tBodies[0].addEventListener("click", pick);
  $("grid").tBodies[0].addEventListener("keydown", (event) => { if (event.key === "Enter") pick(event); });
  $("frontier").on("plotly_click", (event) => {
    const number = event.points[0].customdata;
    if (number !== undefined && number !== null) { choose(number); $("chosen").scrollIntoView({ block: "nearest" }); }
  });
  dark.addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => {
    state.printing = true;
    document.querySelectorAll("details").forEach((element) => { element.open = true; });
    redraw();
  });
  window.addEventListener("afterprint", () => { state.printing = false; redraw(); });
  document.documentElement.dataset.ready = "yes";
})();
