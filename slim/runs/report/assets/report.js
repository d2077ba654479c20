// @ts-check
"use strict";
(() => {
  /** @param {string} id */
  const textOf = (id) => document.getElementById(id)?.textContent ?? "";

  /** @type {NodeListOf<HTMLElement>} */
  const charts = document.querySelectorAll(".chart");
  /** @type {{ data: object[], layout: Record<string, unknown> }[]} */
  const figures = JSON.parse(textOf("figures"));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const PAPER = 680;

  const unpacked = async () => {
    const bytes = Uint8Array.from(atob(textOf("library")), (sign) => sign.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  /** @param {boolean} onPaper */
  const ink = (onPaper) => (dark.matches && !onPaper ? "#e2e8f0" : "#1e293b");

  /** @param {boolean} onPaper */
  const repaint = (onPaper) => {
    const width = onPaper ? { width: PAPER, autosize: false } : { width: null, autosize: true };
    for (const chart of charts) Plotly.relayout(chart, { "font.color": ink(onPaper), ...width });
  };

  const draw = async () => {
    const script = document.createElement("script");
    script.textContent = await unpacked();
    document.head.append(script);
    for (const chart of charts) {
      const { data, layout } = figures[Number(chart.dataset.figure)];
      layout.font = { family: "system-ui, sans-serif", size: 12, color: ink(false) };
      await Plotly.newPlot(chart, data, layout, { displayModeBar: false, responsive: true });
    }
    dark.addEventListener("change", () => repaint(false));
    addEventListener("beforeprint", () => repaint(true));
    addEventListener("afterprint", () => repaint(false));
    document.documentElement.dataset.drawn = String(charts.length);
  };

  draw().catch(() => {
    for (const chart of charts) chart.textContent = "This browser cannot draw the chart. The tables have its figures.";
  });
})();
