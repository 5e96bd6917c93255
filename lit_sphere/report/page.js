"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  let printing = false;
  const isDark = () => prefersDark.matches && !printing;

  // Fixed colours are chosen for white paper; on a dark page they are mixed with white.
  const lighter = (hex) => {
    const parts = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    return `rgb(${parts.map((part) => Math.round(part + (255 - part) * 0.4)).join(",")})`;
  };
  const colourOf = (thing) => {
    if (thing.t !== undefined) {
      const palette = isDark() ? data.dark : data.light;
      return palette[Math.round(thing.t * (palette.length - 1))];
    }
    if (!thing.colour) return isDark() ? "#e6edf3" : "#1b1f24";
    return isDark() ? lighter(thing.colour) : thing.colour;
  };
  const faded = (colour, alpha) => {
    const parts = colour.startsWith("#")
      ? [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16))
      : colour.match(/\d+/g).slice(0, 3);
    return `rgba(${parts.join(",")},${alpha})`;
  };

  const DASHES = { solid: "solid", dashed: "dash", dotted: "dot" };
  const SYMBOLS = { circle: "circle", square: "square", triangle: "triangle-up", diamond: "diamond", cross: "x-thin" };
  const looks = (curve) => {
    const colour = colourOf(curve);
    if (curve.band) return { line: { width: 0 }, fillcolor: faded(colour, isDark() ? 0.25 : 0.17) };
    const size = curve.kind === "points" ? 1.6 + 2.1 * curve.width : 4.5;
    return {
      line: { color: colour, width: curve.width, dash: DASHES[curve.dash] },
      marker: {
        color: colour, size, symbol: SYMBOLS[curve.symbol], opacity: curve.x.length > 60 ? 0.6 : 0.95,
        line: { color: colour, width: curve.symbol === "cross" ? 1.6 : 0 },
      },
    };
  };
  const trace = (panel, curve, hidden) => {
    const words = [`<b>${curve.label || curve.run || panel.title}</b>`];
    if (curve.run && curve.label) words.push(curve.run);
    words.push(`${panel.xLabel} %{x:.5~g}`, `${panel.yLabel || panel.title} %{y:.4~g}`);
    if (curve.hover) words.push("%{text}");
    return {
      type: "scatter", x: curve.x, y: curve.y, name: curve.label, showlegend: false, connectgaps: false,
      mode: { line: "lines", points: "markers", both: "lines+markers" }[curve.kind],
      visible: !hidden.has(curve.entry), meta: curve.entry,
      ...(curve.band
        ? { fill: "toself", hoverinfo: "skip" }
        : { text: curve.hover, hovertemplate: `${words.join("<br>")}<extra></extra>` }),
      ...looks(curve),
    };
  };
  const shape = (mark) => {
    const colour = colourOf(mark);
    const strip = mark.to !== undefined;
    const along = mark.x !== undefined ? ["x", "y"] : ["y", "x"];
    const from = mark.x !== undefined ? mark.x : mark.y;
    return {
      type: strip ? "rect" : "line", layer: "below",
      [`${along[0]}0`]: from, [`${along[0]}1`]: strip ? mark.to : from, [`${along[1]}0`]: 0, [`${along[1]}1`]: 1,
      [`${along[1]}ref`]: "paper",
      ...(strip
        ? { fillcolor: faded(mark.colour || "#888888", isDark() ? 0.22 : 0.5), line: { width: 0 } }
        : { line: { color: colour, width: 1, dash: DASHES[mark.dash] } }),
    };
  };
  const note = (panel, mark) => {
    const place = (value, log) => (log ? Math.log10(value) : value);
    const upright = mark.x !== undefined;
    return {
      text: mark.label, showarrow: false, font: { size: 10, color: colourOf(mark) },
      ...(upright
        ? { x: place(mark.x, panel.xLog), xref: "x", y: 1, yref: "paper", xanchor: "left", yanchor: "top" }
        : { x: 1, xref: "paper", y: place(mark.y, panel.yLog), yref: "y", xanchor: "right", yanchor: "bottom" }),
    };
  };
  // Powers of ten alone, where there are several; plotly would squeeze a 2 and a 5 between them.
  const decades = (panel, name) => {
    let [low, high] = [Infinity, 0];
    panel.curves.forEach((curve) => curve[name].forEach((value) => {
      if (value > 0) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }));
    const span = Math.log10(high / low);
    return { dtick: span > 1.3 ? Math.ceil(span / 7) : "D2" };
  };
  const layout = (panel) => {
    const text = isDark() ? "#e6edf3" : "#1b1f24";
    const axis = (name, title, log, range) => ({
      title: { text: title, standoff: 6, font: { size: 12 } }, type: log ? "log" : "linear",
      gridcolor: isDark() ? "#262c35" : "#e7ebef", linecolor: isDark() ? "#565f6b" : "#8c959f", showline: true,
      zeroline: false, minexponent: 4, exponentformat: "power", ticks: "outside", ticklen: 4, tickcolor: "#8c959f", automargin: true,
      ...(log ? decades(panel, name) : {}), ...(range ? { range } : {}),
    });
    return {
      margin: { l: 52, r: 10, t: 8, b: 42 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 11, color: text }, hovermode: "closest", dragmode: "zoom",
      hoverlabel: { align: "left", bgcolor: isDark() ? "#222a35" : "#ffffff", font: { color: text } },
      xaxis: axis("x", panel.xLabel, panel.xLog, panel.xRange), yaxis: axis("y", panel.yLabel, panel.yLog),
      shapes: panel.marks.map(shape),
      annotations: panel.marks.filter((mark) => mark.label).map((mark) => note(panel, mark)),
    };
  };

  const drawn = new Map(); // element -> its panel and chart
  const draw = (element) => {
    if (drawn.has(element)) return;
    const chart = data.charts[element.dataset.chart];
    const panel = chart.panels[element.dataset.panel];
    chart.hidden = chart.hidden || new Set();
    drawn.set(element, { chart, panel });
    const config = { displayModeBar: false, responsive: true };
    Plotly.newPlot(element, panel.curves.map((curve) => trace(panel, curve, chart.hidden)), layout(panel), config);
    element.on("plotly_click", (event) => {
      const entry = event.points[0].data.meta;
      if (entry !== undefined && entry !== null) toggle(chart, entry);
    });
  };
  const redraw = () => drawn.forEach(({ chart, panel }, element) =>
    Plotly.react(element, panel.curves.map((curve) => trace(panel, curve, chart.hidden)), layout(panel)));
  const show = (chart) => {
    document.querySelectorAll(`.legend[data-chart="${data.charts.indexOf(chart)}"] button[data-entry]`).forEach((button) =>
      button.setAttribute("aria-pressed", String(!chart.hidden.has(Number(button.dataset.entry)))));
    drawn.forEach((one, element) => {
      if (one.chart === chart && one.panel.curves.length) {
        Plotly.restyle(element, { visible: one.panel.curves.map((curve) => !chart.hidden.has(curve.entry)) });
      }
    });
  };
  const toggle = (chart, entry) => {
    chart.hidden = chart.hidden || new Set();
    if (!chart.hidden.delete(entry)) chart.hidden.add(entry);
    show(chart);
  };
  const alone = (chart, entry, entries) => {
    chart.hidden = chart.hidden || new Set();
    const others = entries.filter((each) => each !== entry);
    const isAlone = !chart.hidden.has(entry) && others.every((each) => chart.hidden.has(each));
    chart.hidden = new Set(isAlone ? [] : others);
    show(chart);
  };

  const plots = [...document.querySelectorAll(".plot")];
  if ("IntersectionObserver" in window) {
    const seen = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      seen.unobserve(entry.target);
      draw(entry.target);
    }), { rootMargin: "600px" });
    plots.forEach((element) => seen.observe(element));
  } else {
    plots.forEach(draw);
  }
  document.querySelectorAll(".legend").forEach((legend) => {
    const buttons = [...legend.querySelectorAll("button[data-entry]")];
    const entries = buttons.map((button) => Number(button.dataset.entry));
    const chart = data.charts[legend.dataset.chart];
    buttons.forEach((button, i) => {
      button.addEventListener("click", (event) =>
        event.shiftKey ? alone(chart, entries[i], entries) : toggle(chart, entries[i]));
    });
  });
  prefersDark.addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => {
    printing = true;
    plots.forEach(draw);
    redraw();
    plots.forEach((element) => Plotly.Plots.resize(element));
  });
  window.addEventListener("afterprint", () => { printing = false; redraw(); });

  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const numeric = head.classList.contains("number");
      const compare = (a, b) => {
        const [one, other] = [value(a), value(b)];
        if (one === "" || other === "") return (one === "") - (other === "") || 0; // what is not known stays last
        const order = numeric ? Number(one) - Number(other) : one.localeCompare(other, undefined, { numeric: true });
        return down ? -order : order;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    }));
  });
  document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", async () => {
    const text = button.parentElement.querySelector("pre").textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "copied";
    } catch {
      const range = document.createRange(); // no clipboard: at least it is selected
      range.selectNodeContents(button.parentElement.querySelector("pre"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 2000);
  }));
})();
