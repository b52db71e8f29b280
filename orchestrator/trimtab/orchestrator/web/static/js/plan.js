/** The plan of one step: time to the right, ranks downwards, a block for each group. */

import { byId, cell, count, duration, element, setText, svg } from "./format.js";

const LEFT = 58;
const TOP = 24;
const MOST_WAVE_GAP = 8;
const LATEST_PAUSE_MS = 400;

export class PlanView {
  #runId;
  #step = null;
  #shown = "";
  #document = null;
  #busy = false;
  #wanted = null;

  constructor(runId) {
    this.#runId = runId;
    this.slider = byId("plan-step");
    this.follow = byId("plan-follow");
    this.slider.addEventListener("input", () => this.#choose(Number(this.slider.value)));
    byId("plan-back").addEventListener("click", () => this.#choose(this.#step - 1));
    byId("plan-next").addEventListener("click", () => this.#choose(this.#step + 1));
    this.follow.addEventListener("change", () => this.follow.checked && this.data && this.update(this.data));
    this.#buttons();
    new ResizeObserver(() => this.#draw()).observe(byId("plan-drawing"));
  }

  update(data) {
    this.data = data;
    const last = data.head.last_planned_step;
    if (!last) return;
    this.slider.max = String(last);
    if (this.follow.checked || this.#step == null || this.#step > last) this.#show(last);
    else if (this.#document?.measured_s == null) this.#show(this.#step);
    this.#buttons();
  }

  /** Plans may have changed: the run began again. */
  forget() {
    this.#shown = "";
  }

  #choose(step) {
    const last = Number(this.slider.max);
    this.follow.checked = false;
    this.#show(Math.min(Math.max(step, 1), last));
  }

  #show(step) {
    this.#step = step;
    this.slider.value = String(step);
    setText("plan-number", String(step));
    this.#buttons();
    const finished = step <= this.data.head.num_steps_done;
    const key = `${step} ${finished}`;
    if (key !== this.#shown) this.#fetch(step, key);
  }

  /** One request at a time; the newest wish is served next. */
  async #fetch(step, key) {
    if (this.#busy) {
      this.#wanted = [step, key];
      return;
    }
    this.#busy = true;
    try {
      const response = await fetch(`/api/runs/${encodeURIComponent(this.#runId)}/plans/${step}`);
      const answer = await response.json();
      if (this.#step === step || this.follow.checked) {
        this.#shown = key;
        this.#document = response.ok ? answer : null;
        if (response.ok) this.#draw();
        else setText("plan-caption", answer.error);
      }
    } catch {
      this.#shown = "";
    }
    if (this.follow.checked) await new Promise((resolve) => setTimeout(resolve, LATEST_PAUSE_MS));
    this.#busy = false;
    const next = this.#wanted;
    this.#wanted = null;
    if (next && next[1] !== this.#shown) this.#fetch(...next);
  }

  #buttons() {
    this.slider.disabled = this.#step == null;
    byId("plan-back").disabled = this.#step == null || this.#step <= 1;
    byId("plan-next").disabled = this.#step == null || this.#step >= Number(this.slider.max);
  }

  #draw() {
    const plan = this.#document;
    if (!plan) return;
    setText("plan-caption", caption(plan));
    const box = byId("plan-drawing");
    const width = box.clientWidth;
    if (width > 0) box.replaceChildren(drawing(plan, width));
    byId("plan-legend").replaceChildren(...legend(plan));
    byId("plan-table").tBodies[0].replaceChildren(...tableRows(plan));
  }
}

function caption(plan) {
  const gap = (100 * (plan.predicted_s - plan.lower_bound_s)) / plan.lower_bound_s;
  const measured = plan.measured_s == null ? "" : `, measured ${duration(plan.measured_s)}`;
  return (
    `${plan.num_sequences} sequences, ${count(plan.num_tokens)} tokens, longest ${count(plan.longest)}. ` +
    `Predicted ${duration(plan.predicted_s)}${measured}; at most ${gap.toFixed(1)} % above the best possible. ` +
    `Method: ${plan.method}, found in ${duration(plan.solve_s)}.`
  );
}

function drawing(plan, width) {
  const rowHeight = Math.max(1, Math.min(34, 300 / plan.num_ranks));
  const height = TOP + plan.num_ranks * rowHeight + 4;
  const timed = plan.waves.every((wave) => wave.seconds != null);
  const total = timed ? plan.waves.reduce((sum, wave) => sum + wave.seconds, 0) : plan.waves.length;
  const gap = Math.min(MOST_WAVE_GAP, (0.2 * width) / plan.waves.length);
  const scale = (width - LEFT - gap * (plan.waves.length - 1) - 2) / total;
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Plan of step ${plan.step}: ${plan.waves.length} waves over ${plan.num_ranks} ranks; the table below has every group` });
  root.append(...rankLabels(plan.num_ranks, rowHeight));
  let left = LEFT;
  plan.waves.forEach((wave, number) => {
    const waveWidth = (timed ? wave.seconds : 1) * scale;
    root.append(svg("rect", { class: "idle", x: left, y: TOP, width: waveWidth, height: plan.num_ranks * rowHeight, rx: 3 }));
    const time = timed ? ` · ${duration(wave.seconds)}` : "";
    const title = waveWidth > 110 ? `wave ${number + 1}${time}` : waveWidth > 24 ? String(number + 1) : "";
    root.append(svg("text", { class: "wave", x: left, y: 14 }, title));
    for (const group of wave.groups) {
      const groupWidth = timed ? group.seconds * scale : waveWidth;
      root.append(groupNode(group, { left, width: groupWidth, rowHeight, wave: number + 1 }));
    }
    left += waveWidth + gap;
  });
  return root;
}

function rankLabels(numRanks, rowHeight) {
  const every = Math.max(1, Math.ceil(14 / rowHeight));
  const labels = [];
  for (let rank = 0; rank < numRanks; rank += every) {
    const y = TOP + (rank + Math.min(every, numRanks - rank) / 2) * rowHeight;
    labels.push(svg("text", { class: "rank", x: LEFT - 10, y, "text-anchor": "end", "dominant-baseline": "central" }, every === 1 ? `rank ${rank}` : String(rank)));
  }
  return labels;
}

function groupNode(group, { left, width, rowHeight, wave }) {
  const kind = degreeClass(group.degree);
  const node = svg("g", { class: `group ${kind}` });
  const time = group.seconds == null ? "" : `, predicted ${duration(group.seconds)}`;
  node.append(svg("title", {}, `Wave ${wave}, ranks ${spans(group.ranks)}: degree ${group.degree}, ${group.num_sequences} sequences, ${group.num_tokens} tokens, longest ${group.longest}${time}`));
  for (const [first, size] of runsOf(group.ranks)) {
    const inset = rowHeight > 8 ? 1.5 : 0;
    const y = TOP + first * rowHeight + inset;
    const height = size * rowHeight - 2 * inset;
    node.append(svg("rect", { x: left, y, width: Math.max(1, width), height, rx: Math.min(4, height / 4) }));
    const text = blockText(group, width, height);
    if (text) node.append(svg("text", { x: left + width / 2, y: y + height / 2, "text-anchor": "middle", "dominant-baseline": "central" }, text));
  }
  return node;
}

function blockText(group, width, height) {
  if (height < 13) return "";
  const sequences = group.num_sequences === 1 ? "1 seq" : `${group.num_sequences} seqs`;
  const texts = [`${sequences} · ${count(group.num_tokens)} tokens`, `${sequences} · ${count(group.num_tokens)}`, count(group.num_tokens)];
  return texts.find((text) => 6.4 * text.length + 8 < width) ?? "";
}

function legend(plan) {
  const degrees = [...new Set(plan.waves.flatMap((wave) => wave.groups.map((group) => group.degree)))].sort((a, b) => a - b);
  const keys = degrees.map((degree) => element("span", { class: "key" }, element("i", { class: `swatch ${degreeClass(degree)}` }), degree === 1 ? "degree 1 (one rank)" : `degree ${degree}`));
  return [...keys, element("span", { class: "key" }, element("i", { class: "swatch idle" }), "waiting for the wave to end")];
}

function tableRows(plan) {
  return plan.waves.flatMap((wave, number) =>
    wave.groups.map((group) =>
      element("tr", {}, cell(String(number + 1), "number"), cell(String(group.degree), "number"), cell(spans(group.ranks)), cell(String(group.num_sequences), "number"), cell(String(group.num_tokens), "number"), cell(String(group.longest), "number"), cell(duration(group.seconds), "number")),
    ),
  );
}

const degreeClass = (degree) => `degree-${Math.min(7, Math.round(Math.log2(degree)))}`;

/** [first, size] of each stretch of neighbouring ranks. */
function runsOf(ranks) {
  const runs = [];
  for (const rank of ranks) {
    const last = runs.at(-1);
    if (last && last[0] + last[1] === rank) last[1] += 1;
    else runs.push([rank, 1]);
  }
  return runs;
}

const spans = (ranks) => runsOf(ranks).map(([first, size]) => (size === 1 ? `${first}` : `${first}–${first + size - 1}`)).join(", ");
