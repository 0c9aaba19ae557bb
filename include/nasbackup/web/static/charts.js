// Charts of one VM (its backups over time) and of repositories (used space and forecast), drawn by uPlot.
"use strict";
(() => {
  const HEIGHT = 190;
  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

  const bytes = (value) => {
    if (value == null) return "–";
    let unit = 0;
    while (Math.abs(value) >= 1023.5 && unit < UNITS.length - 1) [value, unit] = [value / 1024, unit + 1];
    return `${Number(value.toFixed(value < 10 && unit ? 1 : 0))} ${UNITS[unit]}`;
  };
  const seconds = (value) => {
    if (value == null) return "–";
    if (value < 60) return `${Math.round(value)} s`;
    if (value < 3600) return `${Number((value / 60).toFixed(1))} min`;
    return `${Number((value / 3600).toFixed(1))} h`;
  };
  const FORMATS = { bytes, seconds, rate: (value) => (value == null ? "–" : `${bytes(value)}/s`) };

  // As everywhere on the page: 2026-01-31. (uPlot: from which step on, the label, what is added when the year … changes.)
  const DATES = [
    [86400 * 365, "{YYYY}", null, null, null, null, null, null, 1],
    [86400 * 28, "{YYYY}-{MM}", null, null, null, null, null, null, 1],
    [86400, "{MM}-{DD}", "\n{YYYY}", null, null, null, null, null, 1],
    [1, "{HH}:{mm}", "\n{YYYY}-{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
  ];

  // Ticks at whole KiB, MiB …: thousands of 1024 read better than thousands of 1000.
  const byteSteps = [];
  for (let power = 0; power < 6; power++) for (const step of [1, 2, 5, 10, 20, 50, 100, 200, 500]) byteSteps.push(step * 1024 ** power);
  const timeSteps = [1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const font = () => `11px ${getComputedStyle(document.body).fontFamily}`;

  // Room for half a bar at both ends.
  const margins = (plot, low, high) => {
    const count = plot.data[0].length;
    const room = count > 1 ? ((high - low) / (count - 1)) * 0.6 : 43200;
    return [low - room, high + room];
  };

  const options = (box, unit, series) => ({
    width: Math.max(240, box.clientWidth),
    height: HEIGHT,
    tzDate: (stamp) => uPlot.tzDate(new Date(stamp * 1000), "Etc/UTC"),
    cursor: { y: false, drag: { x: true, y: false } },
    scales: { x: { range: margins }, y: { range: (_, __, high) => [0, high > 0 ? high * 1.08 : 1] } },
    axes: [
      { stroke: colour("--muted"), font: font(), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") }, space: 60, values: DATES },
      {
        stroke: colour("--muted"), font: font(), size: 66, incrs: unit === "seconds" ? timeSteps : byteSteps,
        grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false },
        values: (_, ticks) => ticks.map(FORMATS[unit]),
      },
    ],
    series: [{ label: "Time", value: (_, stamp) => (stamp == null ? "–" : new Date(stamp * 1000).toISOString().slice(0, 16).replace("T", " ")) }, ...series],
  });

  const line = (label, unit, changes = {}) => ({
    label, stroke: colour("--chart-1"), width: 2, fill: colour("--chart-1-soft"), spanGaps: false,
    points: { show: undefined, size: 5 }, value: (_, value) => FORMATS[unit](value), ...changes,
  });

  // What is drawn, to be drawn anew when the theme or the width changes.
  const drawn = new Map();
  const draw = (box, make) => {
    const again = () => {
      drawn.get(box)?.plot.destroy();
      box.replaceChildren();
      const [opts, data] = make();
      drawn.set(box, { plot: new uPlot(opts, data, box), again, width: box.clientWidth });
    };
    again();
    new ResizeObserver(() => {
      const entry = drawn.get(box);
      if (entry && Math.abs(entry.width - box.clientWidth) > 2) entry.again();
    }).observe(box);
  };
  document.addEventListener("theme", () => drawn.forEach((entry) => entry.again()));

  const json = async (address) => {
    const answer = await fetch(address, { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error((await answer.json()).detail ?? answer.statusText);
    return answer.json();
  };
  const failed = (boxes, error) => boxes.forEach((box) => { box.textContent = `No chart: ${error.message}`; });

  const ofVm = async (section) => {
    const boxes = [...section.querySelectorAll(".chart")];
    try {
      const series = await json(section.dataset.series);
      for (const box of boxes) {
        const { column, unit } = box.dataset;
        const bars = column === "changed" || column === "size";
        const look = bars ? { paths: uPlot.paths.bars({ size: [0.6, 40], radius: 0.15 }), fill: colour("--chart-1"), points: { show: false } } : {};
        draw(box, () => {
          const changes = bars ? { ...look, fill: colour("--chart-1"), width: 0 } : look;
          const label = box.parentElement.querySelector("figcaption").textContent;
          return [options(box, unit, [line(label, unit, changes)]), [series.time, series[column]]];
        });
      }
    } catch (error) {
      failed(boxes, error);
    }
  };

  const stamp = (text) => Date.parse(text) / 1000;
  const ofRepositories = async (boxes) => {
    try {
      const { repositories } = await json(boxes[0].dataset.source);
      for (const box of boxes) {
        const { samples, forecast } = repositories.find((one) => one.name === box.dataset.repository);
        const time = samples.map((sample) => stamp(sample.measured_at));
        const used = samples.map((sample) => sample.total - sample.free);
        const total = samples.map((sample) => sample.total);
        const expected = samples.map(() => null);
        const [last, now] = [time.at(-1), used.at(-1)];
        expected[expected.length - 1] = now;
        if (forecast?.growth_per_day > 0) {
          const ahead = Math.min(forecast.full_in_days, Math.max(30, (last - time[0]) / 86400));
          for (const share of [0.5, 1]) {
            time.push(last + ahead * share * 86400);
            used.push(null);
            total.push(total.at(-1));
            expected.push(now + forecast.growth_per_day * ahead * share);
          }
        }
        draw(box, () => [
          options(box, "bytes", [
            line("Used", "bytes", { points: { show: false } }),
            line("Forecast", "bytes", { dash: [6, 5], fill: undefined, points: { show: false } }),
            line("Capacity", "bytes", { stroke: colour("--chart-2"), width: 1.5, fill: undefined, points: { show: false } }),
          ]),
          [time, used, expected, total],
        ]);
      }
    } catch (error) {
      failed(boxes, error);
    }
  };

  document.querySelectorAll("[data-series]").forEach(ofVm);
  const repositories = [...document.querySelectorAll("[data-repository]")];
  if (repositories.length) ofRepositories(repositories);
})();
