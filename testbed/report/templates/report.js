"use strict";
(function () {
  const options = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };
  const read = (id) => {
    const element = document.getElementById(id);
    return element ? JSON.parse(element.textContent) : null;
  };

  const figures = read("figures-data") || {};
  for (const [name, spec] of Object.entries(figures)) {
    Plotly.newPlot("picture-" + name, spec.data, spec.layout, options);
  }

  document.querySelectorAll("select[data-figure]").forEach((select) => {
    const all = JSON.parse(select.dataset.all);
    select.addEventListener("change", () => {
      const chosen = new Set(JSON.parse(select.value));
      Plotly.restyle("picture-" + select.dataset.figure, { visible: all.map((index) => chosen.has(index)) }, all);
    });
  });

  const story = read("rounds-data");
  if (!story) { return; }
  const numbers = Object.keys(story.rounds).map(Number).sort((a, b) => a - b);
  const slider = document.getElementById("round-slider");
  const said = document.getElementById("round-words");
  const heights = story.lanes.map((lane) => lane[1]);
  const labels = story.lanes.map((lane) => lane[0].replace(/&/g, "&amp;").replace(/</g, "&lt;"));
  const nearest = (height) => {
    let best = 0;
    heights.forEach((other, index) => {
      if (Math.abs(other - height) < Math.abs(heights[best] - height)) { best = index; }
    });
    return labels[best];
  };

  function traces(entry) {
    return story.looks.map(([phase, colour, pattern], index) => {
      const bars = entry.bars.filter((bar) => bar[0] === index);
      return {
        type: "bar", orientation: "h", name: phase,
        y: bars.map((bar) => bar[1]), base: bars.map((bar) => bar[2]), x: bars.map((bar) => bar[3]),
        width: bars.map((bar) => bar[4]),
        text: bars.map(() => phase), textposition: "inside", insidetextanchor: "middle", textangle: 0,
        customdata: bars.map((bar) => [nearest(bar[1]), bar[2], bar[2] + bar[3], bar[3]]),
        hovertemplate: "%{customdata[0]}: " + phase +
          "<br>%{customdata[1]:.2f} to %{customdata[2]:.2f} ms (%{customdata[3]:.2f} ms)<extra></extra>",
        marker: {
          color: colour, line: { color: "#333", width: 0.5 },
          pattern: { shape: pattern, fgcolor: "rgba(255,255,255,0.55)", size: 6, solidity: 0.25, fillmode: "overlay" },
        },
        // The legend keeps all phases, so that it does not jump from round to round.
        showlegend: true,
      };
    });
  }

  const layout = {
    barmode: "overlay", height: Math.round(144 + 25 * (Math.max(...heights) + 1)),
    margin: { l: 40, r: 24, t: 84, b: 50 }, paper_bgcolor: "white", plot_bgcolor: "white",
    font: { size: 13, color: "#1f2430", family: "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif" },
    uniformtext: { minsize: 10, mode: "hide" },
    legend: { orientation: "h", x: 0, y: 1.0, yanchor: "bottom", traceorder: "normal", entrywidth: 128 },
    xaxis: { title: { text: "experiment time since the round's decision [ms]", font: { size: 13 } }, gridcolor: "#e3e6ea", zeroline: true,
      zerolinecolor: "#9aa0aa", ticks: "outside" },
    yaxis: { tickvals: heights, ticktext: labels, range: [Math.max(...heights) + 0.6, -0.6], automargin: true,
      showgrid: false, zeroline: false, tickfont: { size: 12 } },
    hoverlabel: { font: { size: 13 } },
  };

  function show(index) {
    const number = numbers[index];
    const entry = story.rounds[number];
    slider.value = index;
    said.textContent = "round " + number + ": " + entry.words;
    Plotly.react("picture-round", traces(entry), layout, options);
  }

  slider.max = numbers.length - 1;
  slider.addEventListener("input", () => show(Number(slider.value)));
  document.querySelectorAll("button[data-step]").forEach((button) => {
    button.addEventListener("click", () => {
      const wanted = Number(slider.value) + Number(button.dataset.step);
      show(Math.min(numbers.length - 1, Math.max(0, wanted)));
    });
  });
  show(Math.max(0, numbers.indexOf(story.firstShown)));
})();
