"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const width = { faint: 1, muted: 1.5 };

  const traces = (figure) => figure.traces.map((trace) => ({
    x: trace.x, y: trace.y, name: trace.name, mode: trace.x.length === 1 ? "markers" : trace.mode, type: "scatter",
    line: { color: color(trace.color), width: width[trace.color] || 2, dash: trace.dash || "solid" },
    marker: { color: color(trace.color), size: 6 },
    hovertemplate: "%{y:.5~g}",
  }));

  const layout = (figure) => {
    const axis = { gridcolor: color("line"), zeroline: false, tickfont: { size: 11 }, automargin: true };
    return {
      margin: { l: 46, r: 10, t: figure.traces.length > 1 ? 30 : 10, b: 34 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: color("muted"), size: 12 },
      xaxis: { ...axis, showgrid: false, ticks: "outside", tickcolor: color("line"), linecolor: color("line"), showline: true },
      yaxis: { ...axis, rangemode: "tozero", nticks: 6, exponentformat: "e" },
      hovermode: "x unified", showlegend: figure.traces.length > 1,
      hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    };
  };

  const draw = () => figures.forEach((figure) => Plotly.react(
    figure.id, traces(figure), layout(figure), { displayModeBar: false, responsive: true }));
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
