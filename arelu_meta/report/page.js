"use strict";
// Sorting, charts, their numbers as tables, light and dark, print. All text goes in through textContent.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const print = matchMedia("print");
  let printing = false;
  const PRINT_WIDTH = 660, NARROW = 620, NARROW_NAME = 16;
  // Okabe and Ito's colours; on a dark page the ones that are too dark are lighter.
  const THEMES = {
    light: {
      ink: "#1b1f24", soft: "#57606a", grid: "#e3e7eb",
      series: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"],
      depth: ["#440154", "#3b528b", "#21918c", "#5ec962"],
      sequential: [[0, "#f7fbff"], [0.35, "#9ecae1"], [0.7, "#3182bd"], [1, "#08306b"]],
      diverging: [[0, "#b35806"], [0.25, "#f1a340"], [0.5, "#f7f7f7"], [0.75, "#67a9cf"], [1, "#0b4d8c"]],
    },
    dark: {
      ink: "#e8ebef", soft: "#a5adb8", grid: "#2c333c",
      series: ["#56B4E9", "#FF8A4C", "#1FC79A", "#E39CC5", "#F0E442", "#8C9EFF", "#FFFFFF"],
      depth: ["#b197fc", "#5aa9e6", "#2fc6a6", "#8ce99a"],
      sequential: [[0, "#1a2029"], [0.35, "#1f4e79"], [0.7, "#3d94d6"], [1, "#d7ecff"]],
      diverging: [[0, "#ffb066"], [0.25, "#a45a14"], [0.5, "#20252c"], [0.75, "#1f6fb2"], [1, "#9bd0ff"]],
    },
  };
  const theme = () => THEMES[dark.matches && !printing ? "dark" : "light"];

  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const faint = (hex, opacity) => `rgba(${channels(hex).join(",")},${opacity})`;
  function between(stops, share) {
    const place = share * (stops.length - 1), first = Math.min(Math.floor(place), stops.length - 2);
    const [from, to] = [channels(stops[first]), channels(stops[first + 1])];
    return `rgb(${from.map((value, i) => Math.round(value + (to[i] - value) * (place - first))).join(",")})`;
  }

  function coloured(trace, colours, width) {
    const meta = trace.meta || {};
    if (trace.type === "heatmap") {
      const textfont = width < NARROW ? { size: 10 } : trace.textfont;
      return {
        ...trace, textfont, colorscale: colours[meta.colours || "sequential"], showscale: width >= NARROW || printing,
      };
    }
    const colour = "depth" in meta ? between(colours.depth, meta.depth) : colours.series[meta.series || 0];
    if (meta.band) {
      return { ...trace, fillcolor: faint(colour, meta.faint ? 0.07 : 0.18) };
    }
    const made = { ...trace, line: { ...trace.line, color: colour }, marker: { ...trace.marker, color: colour } };
    if (trace.error_x) made.error_x = { ...trace.error_x, color: colour };
    return made;
  }

  function laidOut(chart, width, colours) {
    const axis = (given) => ({
      gridcolor: colours.grid, zerolinecolor: colours.grid, linecolor: colours.soft, automargin: true, ...given,
      title: { standoff: width < NARROW ? 4 : 10, ...given.title },
    });
    const legends = chart.traces.filter((trace) => trace.showlegend !== false).length;
    const below = width < NARROW || printing;
    // (The margin above is for the buttons that plotly lays there: they would cover the legend.)
    // Below the chart the legend gets a height of its own, so that the chart keeps its.
    const beneath = below && chart.layout.showlegend ? 24 * Math.ceil(legends / Math.max(1, Math.floor(width / 190))) : 0;
    const extra = beneath + turned(chart.layout, width);
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", uirevision: "kept", hovermode: "closest",
      margin: { l: 58, r: 12, t: 34, b: 48 }, font: { family: getComputedStyle(document.body).fontFamily, size: 13 },
      ...chart.layout,
      font: { color: colours.ink, size: 13, family: "system-ui, sans-serif" },
      xaxis: axis(width < NARROW ? upright(chart.layout.xaxis) : chart.layout.xaxis),
      yaxis: axis(width < NARROW ? namedShortly(chart.layout.yaxis) : chart.layout.yaxis),
      legend: below
        ? { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, tracegroupgap: 0 }
        : { x: 1.02, y: 1, tracegroupgap: 0 },
      hoverlabel: { font: { size: 13 } },
      height: chart.height + extra, width, autosize: false,
    };
  }

  // Numbers that plotly turns and turns back make it move the margins to and fro, and give up.
  const upright = (given) => (given.ticktext ? given : { tickangle: 0, nticks: 5, ...given });

  // In a narrow window the rows' names would leave the chart no width; hovering and the table say them whole.
  function namedShortly(given) {
    if (!given.ticktext) return given;
    const short = (name) => {
      const letters = [...plain(name)];
      return letters.length <= NARROW_NAME ? name : escaped(`${letters.slice(0, 8).join("")}…${letters.slice(-7).join("")}`);
    };
    return { ...given, ticktext: given.ticktext.map(short) };
  }

  // Names too long to stand side by side are turned by plotly: they get a height of their own too.
  function turned(layout, width) {
    const longestOf = (axis) => Math.max(0, ...(axis.ticktext || []).map((name) => plain(name).length));
    const names = layout.xaxis.ticktext || [], longest = longestOf(layout.xaxis);
    const beside = Math.max(160, 7 * longestOf(layout.yaxis) + 130);  // the rows' names, and the colours' own axis
    return longest * 7 > (width - beside) / names.length ? Math.max(0, 6.5 * longest - 30) : 0;
  }

  const holder = document.getElementById("charts");
  const charts = holder ? JSON.parse(holder.textContent) : [];
  const places = [...document.querySelectorAll(".plot")];
  const drawn = new Set();

  function draw(place) {
    const chart = charts[Number(place.dataset.chart)];
    const colours = theme(), width = printing ? PRINT_WIDTH : Math.max(place.clientWidth, 240);
    const layout = laidOut(chart, width, colours);
    place.style.height = `${layout.height}px`;
    drawn.add(place);
    return Plotly.react(place, chart.traces.map((trace) => coloured(trace, colours, width)), layout, {
      displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
  }
  const drawRest = () => places.filter((place) => !drawn.has(place)).forEach(draw);
  const redraw = () => [...drawn].forEach(draw);

  function waitForCharts() {
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
      }
      document.documentElement.setAttribute("data-opened", "true");  // what can be seen is drawn
    }, { rootMargin: "400px" });
    places.forEach((place) => seen.observe(place));
    // The others follow while nobody waits, so that scrolling never does.
    const idle = window.requestIdleCallback || ((work) => setTimeout(work, 60));
    const next = () => {
      const place = places.find((one) => !drawn.has(one));
      if (!place) return document.documentElement.setAttribute("data-drawn", "true");
      draw(place);
      idle(next);
    };
    idle(next);
    let waiting = 0, last = window.innerWidth;
    window.addEventListener("resize", () => {
      if (window.innerWidth === last) return;
      last = window.innerWidth;
      clearTimeout(waiting);
      waiting = setTimeout(redraw, 120);
    });
    dark.addEventListener("change", redraw);
    const setPrinting = (value) => {
      if (printing === value) return;
      printing = value;
      drawRest();
      redraw();
    };
    window.addEventListener("beforeprint", () => setPrinting(true));
    window.addEventListener("afterprint", () => setPrinting(false));
    print.addEventListener("change", (event) => setPrinting(event.matches));
    return setPrinting;
  }

  // -- tables ---------------------------------------------------------------------------------------------------------

  function key(row, column) {
    const cell = row.cells[column];
    if (!cell) return null;
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    return cell.textContent.trim() || null;
  }
  const order = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  function compare(one, other) {
    const numbers = typeof one === "number" && typeof other === "number";
    return numbers ? one - other : order.compare(String(one), String(other));
  }

  function sort(table, column) {
    const heads = [...table.tHead.rows[0].cells], head = heads[column];
    const rows = [...table.tBodies[0].rows];
    const numbers = rows.some((row) => typeof key(row, column) === "number");
    const before = head.getAttribute("aria-sort");
    // Numbers start with the greatest, texts with the first.
    const rising = before ? before === "descending" : !numbers;
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    rows.sort((first, second) => {
      const [one, other] = [key(first, column), key(second, column)];
      if (one === null || other === null) return (one === null) - (other === null); // empty cells stay at the end
      return rising ? compare(one, other) : compare(other, one);
    });
    table.tBodies[0].append(...rows);
    limit(table);
  }
  function limit(table) {
    const most = Number(table.dataset.shown) || Infinity;
    [...table.tBodies[0].rows].forEach((row, index) => { row.hidden = index >= most; });
  }

  function element(name, text, attributes = {}) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }
  const plain = (text) => String(text ?? "").replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const title = (axis) => plain(axis && axis.title && axis.title.text);

  function numbersOf(chart) {
    const first = chart.traces[0], { xaxis, yaxis } = chart.layout;
    if (first.type === "heatmap") {
      const names = first.customdata;
      return [[`${title(yaxis)} \\ ${title(xaxis)}`, ...names[0].map((cell) => plain(cell[0]))],
        first.text.map((row, i) => [plain(names[i][0][1]), ...row.map(plain)])];
    }
    if (first.error_x) {
      return [["", title(xaxis)], first.text.map((text) => plain(text.replace(/<\/?b>/g, "")).split("<br>"))];
    }
    const lines = chart.traces.filter((trace) => !(trace.meta || {}).band);
    const rows = new Map();
    lines.forEach((trace, column) => trace.x.forEach((x, i) => {
      if (!rows.has(x)) rows.set(x, new Array(lines.length).fill(""));
      rows.get(x)[column] = trace.y[i] ?? "";
    }));
    const sorted = [...rows].sort((one, other) => compare(one[0], other[0]));
    return [[title(xaxis), ...lines.map((trace) => plain(trace.name))], sorted.map(([x, values]) => [x, ...values])];
  }

  function fill(details) {
    if (details.querySelector("table")) return;
    const figure = details.closest("figure"), name = figure.querySelector("h3").textContent;
    const [header, rows] = numbersOf(charts[Number(figure.querySelector(".plot").dataset.chart)]);
    const table = element("table"), head = element("tr"), body = element("tbody");
    table.append(element("caption", name), element("thead"), body);
    table.tHead.append(head);
    header.forEach((text) => head.append(element("th", text, { scope: "col" })));
    for (const values of rows) {
      const row = element("tr");
      values.forEach((value, i) => row.append(i ? element("td", value, { class: "n" }) : element("th", value, { scope: "row" })));
      body.append(row);
    }
    const scroll = element("div", undefined, { class: "scroll", role: "region", "aria-label": name, tabindex: "0" });
    scroll.append(table);
    details.append(scroll);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("th button, button.more");
    if (!button) return;
    if (button.classList.contains("more")) {
      const table = button.previousElementSibling.querySelector("table");
      delete table.dataset.shown;
      limit(table);
      button.remove();
      table.closest(".scroll").focus();
    } else {
      const head = button.closest("th");
      sort(head.closest("table"), head.cellIndex);
    }
  });
  document.querySelectorAll("details.data").forEach((one) => one.addEventListener("toggle", () => fill(one)));
  // The library takes a second or two to start: text, tables and sorting do not wait for it.
  function startCharts() {
    const held = document.getElementById("plotly");
    if (!held) return () => {};
    const started = document.createElement("script");
    started.textContent = held.textContent;
    held.remove();
    document.body.append(started);
    return waitForCharts();
  }
  if (places.length) {
    window.addEventListener("beforeprint", () => startCharts()(true));
    window.addEventListener("load", () => requestAnimationFrame(() => setTimeout(startCharts)));
    setTimeout(startCharts, 3000);  // no frame comes in a tab that is not shown
  } else ["data-opened", "data-drawn"].forEach((name) => document.documentElement.setAttribute(name, "true"));
})();
