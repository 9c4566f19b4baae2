// Draws the plots in the colours of the style sheet, and searches the table of a report. Nothing here is needed to read the page.
"use strict";
(() => {
  const property = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // "--kind-added" is a property of the style sheet, wherever a colour stands.
  const coloured = (value, key = "") => {
    if (Array.isArray(value)) return value.map((item) => coloured(item, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, coloured(item, name)]));
    }
    return /color$/.test(key) && String(value).startsWith("--") ? property(value) : value;
  };

  const axis = (own) => ({
    automargin: true,
    color: property("--quiet"),
    gridcolor: property("--line"),
    linecolor: property("--line"),
    zerolinecolor: property("--line"),
    fixedrange: true,
    ...own,
  });

  const draw = (plot) => {
    const { data, layout } = coloured(JSON.parse(document.getElementById(plot.dataset.figure).textContent));
    const clear = "rgba(0,0,0,0)";
    plot.hidden = false;
    Plotly.react(
      plot,
      data,
      {
        height: 320,
        margin: { t: 8, r: 8, b: 40, l: 48 },
        paper_bgcolor: clear,
        plot_bgcolor: clear,
        font: { family: "system-ui, sans-serif", size: 13, color: property("--ink") },
        legend: { orientation: "h", traceorder: "normal", y: 1.02, yanchor: "bottom", x: 0 },
        hoverlabel: { bgcolor: property("--surface"), bordercolor: property("--line"), font: { color: property("--ink") } },
        showlegend: true,
        ...layout,
        xaxis: axis(layout.xaxis),
        yaxis: axis(layout.yaxis),
        ...(layout.yaxis2 ? { yaxis2: axis(layout.yaxis2) } : {}),
      },
      { displayModeBar: false, responsive: true },
    );
  };

  const drawAll = () => document.querySelectorAll("[data-figure]").forEach(draw);

  const search = (field) => {
    const rows = document.getElementById(field.dataset.table).tBodies[0].rows;
    const found = field.parentElement.querySelector("output");
    field.parentElement.hidden = false;
    field.addEventListener("input", () => {
      const sought = field.value.toLowerCase().split(/\s+/);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !sought.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
      }
      found.textContent = field.value ? `${shown} found` : "";
    });
  };

  // The reader's own time stands first, UTC beside it; where the reader's zone is UTC, once.
  const inZone = () => {
    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    const local = new Intl.DateTimeFormat("sv-SE", { dateStyle: "short", timeStyle: "medium" });
    for (const time of document.querySelectorAll("time[datetime]")) {
      const moment = new Date(time.dateTime);
      if (moment.getTimezoneOffset() === 0) continue;
      const utc = time.textContent;
      const here = document.createElement("span");
      here.textContent = local.format(moment);
      time.replaceChildren(here, " ");
      time.className = "both";
      const beside = document.createElement("small");
      beside.className = "quiet utc";
      beside.textContent = `${utc.slice(0, 10) === here.textContent.slice(0, 10) ? utc.slice(11) : utc} UTC`;
      time.append(beside);
    }
    const said = document.getElementById("zone");
    if (said && !/^(Etc\/)?(UTC|GMT)$/.test(zone)) said.textContent = ` where it says so, and else in your zone (${zone}); what you type is UTC`;
  };

  inZone();
  document.querySelectorAll("[data-table]").forEach(search);
  if (window.Plotly) {
    drawAll();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  }
})();
