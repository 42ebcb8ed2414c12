"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const between = (one, other, share) => {
    const [a, b] = [channels(one), channels(other)];
    return `rgb(${a.map((v, i) => Math.round(v + (b[i] - v) * share)).join(",")})`;
  };
  const along = (low, mid, high, share) => share < 0.5
    ? between(color(low), color(mid), share * 2) : between(color(mid), color(high), share * 2 - 1);

  // Every text that begins with "--" is the name of a colour of the page, or a place from 0 to 1 on its ramp of losses.
  const resolved = (value) => {
    if (typeof value === "string" && value.startsWith("--ramp:")) return along("--deep", "--middle", "--light", Number(value.slice(7)));
    if (typeof value === "string") return value.startsWith("--") ? color(value) : value;
    if (Array.isArray(value)) return value.map(resolved);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolved(v)]));
    return value;
  };

  const merged = (one, other) => {
    const result = { ...one };
    for (const [key, value] of Object.entries(other)) {
      const both = value && typeof value === "object" && !Array.isArray(value) && result[key] && typeof result[key] === "object";
      result[key] = both ? merged(result[key], value) : value;
    }
    return result;
  };

  const names = ["--accent", "--second", "--good", "--fourth", "--bad", "--muted"];
  const outcomes = { winner: "--second", finished: "--accent", eliminated: "--faint", failed: "--bad", running: "--accent" };
  const colorOf = (choice, value) => {
    const place = choice.values.indexOf(value);
    if (choice.key === "outcome") return color(outcomes[value]);
    if (choice.ordered) return along("--low", "--mid", "--high", choice.values.length > 1 ? place / (choice.values.length - 1) : 0);
    return color(names[place % names.length]);
  };

  const chosen = (figure) => figure.choices.find((choice) => choice.key === document.getElementById(`${figure.id}-choice`).value);

  const legend = (figure, choice, used) => {
    const values = choice.values.filter((value) => used.has(value));
    const shown = values.length > 12 ? [values[0], values[Math.floor(values.length / 2)], values[values.length - 1]] : values;
    document.getElementById(`${figure.id}-legend`).replaceChildren(...shown.map((value) => {
      const entry = document.createElement("span");
      const line = document.createElement("i");
      line.style.background = colorOf(choice, value);
      entry.append(line, value);
      return entry;
    }));
  };

  const lossTraces = (figure) => {
    const choice = chosen(figure);
    legend(figure, choice, new Set(figure.series.map((each) => each.values[choice.key])));
    return figure.series.map((each) => ({
      type: "scatter", x: each.x, y: each.y, name: each.name, mode: each.x.length === 1 ? "markers" : "lines",
      line: { color: colorOf(choice, each.values[choice.key]), width: each.values.outcome === "winner" ? 3 : 1.5 },
      hovertemplate: "%{fullData.name}<br>step %{x}: %{y:.4f}<extra></extra>",
    })).reverse();
  };

  const base = () => {
    const axis = { gridcolor: color("--line"), zeroline: false, tickfont: { size: 11 }, automargin: true };
    return {
      margin: { l: 46, r: 14, t: 10, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: color("--muted"), size: 12 },
      xaxis: { ...axis, showgrid: false, ticks: "outside", tickcolor: color("--line"), linecolor: color("--line"), showline: true, title: { font: { size: 12 }, standoff: 6 } },
      yaxis: { ...axis, nticks: 6 },
      hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink") }, align: "left" },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    };
  };

  const layout = (figure) => {
    const made = merged(base(), titled(resolved(figure.layout)));
    if (figure.choices.length) Object.assign(made, { showlegend: false, hovermode: "closest", xaxis: { ...made.xaxis, title: { text: "step", font: { size: 12 } } } });
    if (made.showlegend) made.margin = { ...made.margin, t: 34 };
    if (made.xaxis.side === "top") made.margin = { l: 10, r: 10, t: 34, b: 6 };
    return made;
  };
  const titled = (given) => {
    for (const axis of ["xaxis", "yaxis"]) {
      if (given[axis] && typeof given[axis].title === "string") given[axis] = { ...given[axis], title: { text: given[axis].title } };
      if (given[axis] && given[axis].range === null) delete given[axis].range;
    }
    return given;
  };

  const draw = (figure) => Plotly.react(
    figure.id, figure.choices.length ? lossTraces(figure) : resolved(figure.traces), layout(figure), { displayModeBar: false, responsive: true });
  const drawAll = () => figures.forEach(draw);
  drawAll();
  figures.filter((figure) => figure.choices.length).forEach((figure) => {
    document.getElementById(`${figure.id}-choice`).addEventListener("change", () => draw(figure));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
