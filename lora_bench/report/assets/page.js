"use strict";
// Charts, table and learning curves of the report; everything comes from the JSON above. Text is set as text, never as HTML.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = Object.fromEntries(data.columns.map((name, place) => [name, place]));
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const STEP = 100;
  const HEADS = {
    adapter_params: "adapter params", adapter_bytes: "adapter bytes", seconds: data.seconds, mean: "mean ×100",
    std: "std", median: "median", n: "scores", lost: "without score",
  };
  const state = { sort: "mean", down: true, shown: STEP, chosen: 0, found: [], printing: false };
  const $ = (id) => document.getElementById(id);
  const percent = (value, digits = 1) => (value === null || value === undefined ? "—" : (100 * value).toFixed(digits));

  // Plotly reads a little HTML in its texts: names from outside must not be that.
  const inert = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function words(number) {
    const row = data.settings[number];
    const parts = data.columns.slice(0, data.labels).map((name, place) => [name, row[place]]);
    const short = { rank: "r" };
    return parts.filter(([, value]) => value !== null)
      .map(([name, value]) => (name === "task" ? data.titles[value] : name === "method" ? value : `${short[name] || name}=${value}`));
  }

  function hover(number) {
    const row = data.settings[number];
    const cells = data.cells[number];
    const ids = cells.slice(0, 8).map((cell) => `seed ${cell[1]}: ${cell[0]} ${cell[3] === null ? cell[2] : percent(cell[3])}`);
    if (cells.length > 8) ids.push(`and ${cells.length - 8} more`);
    const spread = row[at.std] === null ? "" : ` ± ${percent(row[at.std])}`;
    const head = `${percent(row[at.mean])}${spread} (${row[at.n]}/${row[at.seeds]})`;
    return [`<b>${inert(words(number).join(" "))}</b>`, head, ...ids.map(inert)].join("<br>");
  }

  // ---- charts

  function colours() {
    const night = dark.matches && !state.printing;
    return {
      night, text: night ? "#e6e9ec" : "#1c2126", line: night ? "#37404a" : "#d7dce1", back: night ? "#1d2329" : state.printing ? "#ffffff" : "#f6f7f9",
      of: (colour) => (night ? { "#000000": "#ffffff", "#666666": "#b5bcc4", "#0072B2": "#4aa8e0" }[colour] || colour : colour),
    };
  }

  function layout(across, extra) {
    const theme = colours();
    const axis = { gridcolor: theme.line, zerolinecolor: theme.line, linecolor: theme.line, automargin: true };
    return {
      paper_bgcolor: theme.back, plot_bgcolor: theme.back, font: { color: theme.text, size: 12 }, hovermode: "closest",
      margin: { l: 50, r: 14, t: 14, b: 100 }, legend: { orientation: "h", yref: "container", y: 0.01, yanchor: "bottom", x: 0 }, hoverlabel: { align: "left" },
      xaxis: { ...axis, title: { text: across }, ...extra }, yaxis: { ...axis, title: { text: "score ×100" } },
    };
  }

  // On paper a chart cannot follow its column: it is drawn for the width of a page.
  const paper = () => (state.printing ? { width: 680, height: 320 } : {});
  const draw = (id, traces, shape) => Plotly.react(id, traces, { ...shape, ...paper() }, { responsive: true, displaylogo: false, displayModeBar: false });

  function chart() {
    const title = $("piece").value;
    const found = data.charts.filter((each) => each.piece === title);
    return found.find((each) => each.task === $("task").value) || found[0];
  }

  function points(each, label, x) {
    const mine = each.points.filter((point) => point[0] === label && point[x] !== null && point[x] > 0);
    return { x: mine.map((p) => p[x]), y: mine.map((p) => 100 * p[6]), customdata: mine.map((p) => p[1]), text: mine.map((p) => hover(p[1])) };
  }

  function dots(each, look, x, shape) {
    return {
      ...points(each, look[0], x), name: inert(look[0]), legendgroup: look[0], type: "scatter", mode: "markers",
      hovertemplate: "%{text}<extra></extra>", marker: { color: colours().of(look[1]), symbol: look[2], ...shape },
    };
  }

  function level(each, look, ends) {
    const mine = each.points.find((point) => point[0] === look[0]);
    const y = 100 * mine[6];
    return {
      x: ends, y: ends.map(() => y), customdata: ends.map(() => mine[1]), text: ends.map(() => hover(mine[1])), name: inert(look[0]), type: "scatter",
      mode: "lines", line: { color: colours().of(look[1]), dash: look[3], width: 1.5 }, hovertemplate: "%{text}<extra></extra>",
    };
  }

  function bandOf(look, line) {
    const up = line.map((p) => 100 * (p[1] + (p[2] || 0)));
    const down = line.map((p) => 100 * (p[1] - (p[2] || 0)));
    const ranks = line.map((p) => p[0]);
    return {
      x: [...ranks, ...ranks.slice().reverse()], y: [...up, ...down.reverse()], fill: "toself", type: "scatter", mode: "lines", line: { width: 0 },
      fillcolor: colours().of(look[1]), opacity: 0.15, hoverinfo: "skip", showlegend: false, legendgroup: look[0],
    };
  }

  function lineOf(look, line) {
    const said = line.map((p) => `<b>${inert(look[0])} r=${p[0]}</b><br>${percent(p[1])}${p[2] === null ? "" : ` ± ${percent(p[2])}`} (${p[3]} seeds)`);
    return {
      x: line.map((p) => p[0]), y: line.map((p) => 100 * p[1]), text: said, hovertemplate: "%{text}<extra></extra>", name: inert(look[0]),
      legendgroup: look[0], type: "scatter", mode: "lines+markers", line: { color: colours().of(look[1]), dash: look[3] }, marker: { symbol: look[2], size: 8 },
    };
  }

  function drawRank() {
    const each = chart();
    const lines = each.rank ? each.rank.lines : {};
    const ranks = [...new Set(Object.values(lines).flat().map((p) => p[0]))].sort((one, other) => one - other);
    const traces = [];
    for (const look of each.looks) {
      if (lines[look[0]]) {
        traces.push(bandOf(look, lines[look[0]]), { ...dots(each, look, 2, { size: 6, opacity: 0.45 }), showlegend: false }, lineOf(look, lines[look[0]]));
      } else if (each.rank && look[0] in each.rank.levels) {
        traces.push(level(each, look, [ranks[0], ranks[ranks.length - 1]]));
      }
    }
    draw("rank", traces, layout("rank r", { type: "log", tickvals: ranks, ticktext: ranks.map(String) }));
  }

  function drawPareto() {
    const each = chart();
    const x = Number($("cost").value);
    const front = each.fronts[["params", "bytes", "seconds"][x - 3]];
    const costs = each.points.map((p) => p[x]).filter((value) => value > 0);
    const ends = [Math.min(...costs), Math.max(...costs)];
    const traces = [{
      x: front.map((p) => p[0]), y: front.map((p) => 100 * p[1]), name: "Pareto front", type: "scatter", mode: "lines",
      line: { shape: "hv", color: colours().night ? "#aab3bc" : "#555555", width: 1.2 }, hoverinfo: "skip",
    }];
    for (const look of each.looks) {
      const free = each.points.some((point) => point[0] === look[0] && point[x] === 0);
      if (free && costs.length) traces.push(level(each, look, ends));
      else traces.push(dots(each, look, x, { size: 8, opacity: 0.8 }));
    }
    draw("pareto", traces, layout($("cost").selectedOptions[0].textContent, { type: "log", tickformat: "~s", dtick: ends[1] < 300 * ends[0] ? "D2" : 1 }));
  }

  function drawCurves() {
    const cells = data.cells[state.chosen];
    const hues = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"];
    const traces = [];
    cells.forEach((cell, number) => {
      const colour = colours().of(hues[number % hues.length]);
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
    values.forEach((value, place) => {
      const field = row.insertCell();
      field.textContent = value;
      if (numbers[place]) field.className = "n";
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
    state.found = data.settings.map((_, number) => number).filter((number) => matches(searched[number])).sort(compare);
    show();
  }

  function show() {
    const rows = state.found.slice(0, state.shown).map((number) => {
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
    $("count").textContent = `${state.found.length} of ${data.settings.length} settings`;
    $("more").hidden = state.found.length <= state.shown;
    document.querySelectorAll("#grid th").forEach((head) => {
      head.setAttribute("aria-sort", head.dataset.name !== state.sort ? "none" : state.down ? "descending" : "ascending");
    });
  }

  function headings() {
    heads.forEach((name, place) => {
      const head = document.createElement("th");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = HEADS[name] || name.replace("_", " ");
      head.dataset.name = name;
      if (isNumber[place]) head.className = "n";
      button.addEventListener("click", () => {
        state.down = state.sort === name ? !state.down : isNumber[place];
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

  function tasks() {
    fill($("task"), data.charts.filter((each) => each.piece === $("piece").value).map((each) => each.task));
  }

  function redraw() {
    drawRank();
    drawPareto();
    drawCurves();
  }

  fill($("piece"), [...new Set(data.charts.map((each) => each.piece))]);
  tasks();
  $("cost").options[2].textContent = `${data.seconds} a cell`;
  headings();
  find();
  drawRank();
  drawPareto();
  choose(state.found[0]);
  $("piece").addEventListener("change", () => { tasks(); redraw(); });
  $("task").addEventListener("change", redraw);
  $("cost").addEventListener("change", drawPareto);
  $("filter").addEventListener("input", () => { state.shown = STEP; find(); });
  $("more").addEventListener("click", () => { state.shown += STEP; show(); });
  const pick = (event) => { const row = event.target.closest("tr"); if (row) choose(Number(row.dataset.setting)); };
  $("grid").tBodies[0].addEventListener("click", pick);
  $("grid").tBodies[0].addEventListener("keydown", (event) => { if (event.key === "Enter") pick(event); });
  for (const id of ["rank", "pareto"]) {
    $(id).on("plotly_click", (event) => { const number = event.points[0].customdata; if (number !== undefined) choose(number); });
  }
  dark.addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => {
    state.printing = true;
    document.querySelectorAll("details").forEach((each) => { each.open = true; });
    redraw();
  });
  window.addEventListener("afterprint", () => { state.printing = false; redraw(); });
  document.documentElement.dataset.ready = "yes";
})();
