/** The curves: each chart is a function of a RunData, drawn by uPlot in the page's own colours. */

import uPlot from "/static/vendor/uPlot.esm.js";
import { byId, count, duration, element, fixed, percent } from "./format.js";

const HEIGHT = 230;
const MOST_BARS = 120;
const MOST_DOTS = 60;
const PART_COLOURS = ["data", "forward", "backward", "attention", "waiting", "sync", "optimizer"];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** A chart with its legend; the legend shows the point under the cursor, or the newest one. */
class Chart {
  #plot = null;
  #shape = "";
  #values = [];

  constructor(id, { label, empty, describe }) {
    this.box = byId(id);
    this.describe = describe;
    this.canvas = element("div", { class: "canvas", role: "img", "aria-label": label });
    this.label = label;
    this.legend = element("div", { class: "legend" });
    this.empty = element("p", { class: "empty" }, empty);
    this.box.append(this.canvas, this.empty, this.legend);
    new ResizeObserver(() => this.#plot?.setSize({ width: this.box.clientWidth, height: HEIGHT })).observe(this.box);
  }

  draw(data, { theme }) {
    const { x, series, format, tickFormat, bars = false, zero = false } = this.describe(data);
    this.empty.hidden = x.length > 0;
    this.canvas.hidden = x.length === 0;
    if (!x.length) return;
    const shape = JSON.stringify([theme, bars, series.map((item) => [item.label, item.colour])]);
    if (shape !== this.#shape) this.#make({ series, format, tickFormat, bars, zero, shape });
    this.#values = series.map((item) => item.shown ?? item.values);
    this.#plot.setData([x, ...series.map((item) => item.values)]);
    const newest = series.map((item, i) => `${item.label} ${format(latest(this.#values[i]))}`).join(", ");
    this.canvas.setAttribute("aria-label", `${this.label}. Step ${x.at(-1)}: ${newest}`);
  }

  #make({ series, format, tickFormat, bars, zero, shape }) {
    this.#plot?.destroy();
    this.#shape = shape;
    const axis = {
      stroke: colour("muted"),
      grid: { stroke: colour("grid"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    this.#plot = new uPlot(
      {
        width: this.box.clientWidth,
        height: HEIGHT,
        padding: [10, 20, 0, 0],
        legend: { show: false },
        cursor: { y: false, points: { size: 6 } },
        scales: {
          x: { time: false, range: (_, low, high) => (bars ? [low - 0.6, high + 0.6] : [low, Math.max(high, low + 1)]) },
          y: { range: (_, low, high) => range(low, high, zero) },
        },
        axes: [
          { ...axis, size: 28, space: 60, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000, 100000] },
          { ...axis, size: 58, space: 36, values: (_, ticks) => ticks.map((tick) => (tick === 0 ? "0" : (tickFormat ?? format)(tick))) },
        ],
        series: [{}, ...series.map((item) => seriesOptions(item, bars))],
        hooks: { setCursor: [(plot) => this.#legend(plot.cursor.idx)], setData: [(plot) => this.#legend(plot.cursor.idx)] },
      },
      [[], ...series.map(() => [])],
      this.canvas,
    );
    this.items = series.map((item) => {
      const value = element("b");
      const swatch = element("i", { class: item.dots ? "swatch dot" : item.dashed ? "swatch dashed" : "swatch" });
      swatch.style.setProperty("--swatch", item.colour);
      return { value, node: element("span", { class: "key" }, swatch, item.label, value) };
    });
    this.format = format;
    this.step = element("span", { class: "key step" });
    this.legend.replaceChildren(this.step, ...this.items.map((item) => item.node));
  }

  #legend(index) {
    const at = index ?? null;
    this.items?.forEach((item, i) => {
      const values = this.#values[i] ?? [];
      item.value.textContent = this.format(at == null ? latest(values) : values[at]);
    });
    if (!this.step) return;
    const steps = this.#plot.data[0];
    this.step.textContent = `step ${at == null ? (steps.at(-1) ?? "") : steps[at]}`;
  }
}

function seriesOptions(item, bars) {
  if (item.dots) {
    return { stroke: item.colour, paths: () => null, points: { show: true, size: 8, fill: colour("panel"), width: 2.5 } };
  }
  if (item.area) {
    const paths = bars ? { paths: uPlot.paths.bars({ size: [0.82, 44], radius: 0 }) } : {};
    return { ...paths, stroke: item.colour, fill: item.colour, width: bars ? 0 : 1, points: { show: false } };
  }
  return { stroke: item.colour, width: 1.75, spanGaps: true, dash: item.dashed ? [6, 4] : undefined, points: { show: (plot) => plot.data[0].length < 3 } };
}

function range(low, high, zero) {
  if (low == null) return [0, 1];
  const margin = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
  return [zero ? 0 : low - margin, high + margin];
}

const latest = (values) => values.findLast((value) => value != null) ?? null;

function lossCurves(data) {
  const steps = [...new Set([...data.series.step, ...data.evaluations.keys()])].sort((a, b) => a - b);
  const train = new Map(data.series.step.map((step, i) => [step, data.series.loss[i]]));
  const curves = [{ label: "training", colour: colour("series-1"), values: steps.map((step) => train.get(step) ?? null) }];
  if (data.evaluations.size) {
    const values = steps.map((step) => data.evaluations.get(step)?.loss ?? null);
    curves.push({ label: "held-out documents", colour: colour("series-2"), values, dots: data.evaluations.size <= MOST_DOTS });
  }
  return { x: steps, series: curves, format: (value) => fixed(value, 3), tickFormat: (value) => String(Number(value.toFixed(3))) };
}

/** Stacked from below; the whole of the first k parts is painted before that of k - 1. */
function partCurves(data) {
  const totals = [];
  let below = data.series.step.map(() => 0);
  data.series.parts.forEach((part) => {
    below = below.map((total, i) => total + (part[i] ?? 0));
    totals.push(below);
  });
  const curves = data.partNames.map((label, i) => ({
    label,
    colour: colour(`part-${PART_COLOURS[i]}`),
    values: totals[i],
    shown: data.series.parts[i],
    area: true,
  }));
  const bars = data.bucket === 1 && data.numPoints <= MOST_BARS;
  return { x: data.series.step, series: curves.reverse(), format: duration, bars, zero: true };
}

const predictedCurves = (data) => ({
  x: data.series.step,
  series: [
    { label: "measured", colour: colour("series-1"), values: data.series.step_s },
    { label: "predicted", colour: colour("series-2"), values: data.series.predicted_s, dashed: true },
  ],
  format: duration,
  zero: true,
});

const oneCurve = (name, label, format) => (data) => ({
  x: data.series.step,
  series: [{ label, colour: colour("series-1"), values: data.series[name] }],
  format,
  zero: true,
});

export function makeCharts() {
  const empty = "Appears with the first finished step.";
  return [
    new Chart("chart-loss", { label: "Loss by step", empty, describe: lossCurves }),
    new Chart("chart-parts", { label: "Step time by part", empty, describe: partCurves }),
    new Chart("chart-predicted", { label: "Predicted and measured step time", empty, describe: predictedCurves }),
    new Chart("chart-tokens", { label: "Tokens per second by step", empty, describe: oneCurve("tokens_per_s", "tokens/s", count) }),
    new Chart("chart-mfu", { label: "MFU by step", empty, describe: oneCurve("mfu", "MFU", percent) }),
  ];
}
