/** Loads a run, follows it by server-sent events, and draws what changed. */

import { makeCharts } from "./charts.js";
import { byId, cell, day, element, pill, setText } from "./format.js";
import { RunData } from "./model.js";
import { PlanView } from "./plan.js";
import { drawCheckpoints, drawClock, drawGpus, drawHead, drawMfu, drawNotes, drawRanks, drawTiles } from "./tables.js";

const LIST_EVERY_MS = 3000;
const dark = matchMedia("(prefers-color-scheme: dark)");

function problem(text) {
  byId("problem").hidden = !text;
  setText("problem", text);
}

async function getJson(address) {
  const response = await fetch(address);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

class RunPage {
  #id;
  #data = null;
  #source = null;
  #frame = 0;
  #loading = 0;
  #changed = new Set();

  constructor(id) {
    this.#id = id;
    byId("run-page").hidden = false;
    this.charts = makeCharts();
    this.plan = new PlanView(id);
    byId("rank-picker").addEventListener("change", () => this.load());
    byId("notes-filter").addEventListener("change", () => this.#data && drawNotes(this.#data));
    dark.addEventListener("change", () => this.#data && this.#drawCharts());
    setInterval(() => this.#data && drawClock(this.#data, Date.now() / 1000), 1000);
  }

  async load() {
    const turn = ++this.#loading;
    this.#source?.close();
    try {
      const snapshot = await getJson(`/api/runs/${encodeURIComponent(this.#id)}?rank=${byId("rank-picker").value}`);
      if (turn !== this.#loading) return;
      problem("");
      this.#data = new RunData(snapshot);
      this.plan.forget();
      this.#pickRanks();
      this.#drawAll();
      this.#follow();
    } catch (error) {
      if (turn !== this.#loading) return;
      connection("lost", "not connected");
      problem(error instanceof TypeError ? "The dashboard's server does not answer. Is `trimtab dashboard` still running?" : error.message);
      if (error instanceof TypeError) setTimeout(() => turn === this.#loading && this.load(), LIST_EVERY_MS);
    }
  }

  #follow() {
    const rank = byId("rank-picker").value;
    const source = new EventSource(`/api/runs/${encodeURIComponent(this.#id)}/stream?after=${this.#data.id}&rank=${rank}`);
    this.#source = source;
    source.addEventListener("open", () => this.#connected());
    source.addEventListener("error", () => connection("lost", "reconnecting"));
    source.addEventListener("problem", (event) => {
      source.close();
      connection("lost", "not connected");
      problem(JSON.parse(event.data).error);
    });
    source.addEventListener("update", (event) => this.#update(JSON.parse(event.data)));
  }

  #connected() {
    if (this.#data.head.ended_s == null) connection("live", "live");
    else connection("done", "complete");
  }

  #update(changes) {
    if (!this.#data.apply(changes)) {
      this.load();
      return;
    }
    for (const name of ["ranks", "checkpoints", "notes", "gpus"]) {
      if (changes[name].length) this.#changed.add(name);
    }
    if (changes.series.step.length || changes.evaluations.length) this.#changed.add("charts");
    this.#connected();
    this.#frame ||= requestAnimationFrame(() => this.#drawChanged());
  }

  #drawChanged() {
    this.#frame = 0;
    const changed = this.#changed;
    this.#changed = new Set();
    drawHead(this.#data);
    drawTiles(this.#data);
    drawMfu(this.#data);
    drawClock(this.#data, Date.now() / 1000);
    this.plan.update(this.#data);
    if (changed.has("charts")) this.#drawCharts();
    if (changed.has("notes")) drawNotes(this.#data);
    if (changed.has("checkpoints")) drawCheckpoints(this.#data);
    if (changed.has("gpus")) drawGpus(this.#data);
    if (changed.has("ranks")) {
      drawRanks(this.#data, Date.now() / 1000);
      this.#pickRanks();
    }
  }

  #drawAll() {
    this.#changed = new Set(["charts", "notes", "checkpoints", "gpus", "ranks"]);
    this.#drawChanged();
  }

  #drawCharts() {
    for (const chart of this.charts) chart.draw(this.#data, { theme: dark.matches });
  }

  #pickRanks() {
    const picker = byId("rank-picker");
    for (let rank = picker.options.length - 1; rank < this.#data.ranks.size; rank += 1) {
      picker.append(element("option", { value: String(rank) }, `rank ${rank}`));
    }
  }
}

function connection(kind, text) {
  byId("connection").className = `connection ${kind}`;
  setText("connection", text);
}

async function listRuns(currentId) {
  let runs;
  try {
    ({ runs } = await getJson("/api/runs"));
  } catch {
    if (!currentId) connection("lost", "not connected");
    return;
  }
  if (currentId) fillPicker(runs, currentId);
  else fillList(runs);
}

function fillPicker(runs, currentId) {
  const picker = byId("run-picker");
  picker.hidden = false;
  if (document.activeElement === picker) return;
  const options = runs.map((run) => element("option", { value: run.job_id }, `${run.job_id} (${run.state})`));
  if (!runs.some((run) => run.job_id === currentId)) options.unshift(element("option", { value: currentId }, currentId));
  picker.replaceChildren(...options);
  picker.value = currentId;
}

function fillList(runs) {
  connection("live", "live");
  byId("runs-empty").hidden = runs.length > 0;
  byId("runs-table").hidden = runs.length === 0;
  const focused = document.activeElement?.getAttribute("href");
  byId("runs-table").tBodies[0].replaceChildren(
    ...runs.map((run) => {
      const link = element("a", { href: `/runs/${encodeURIComponent(run.job_id)}` }, run.name);
      return element("tr", {}, cell(pill(run.state)), cell(link), cell(run.job_id, "path"), cell(run.num_ranks == null ? null : String(run.num_ranks), "number"), cell(run.submitted_s == null ? null : day(run.submitted_s), "nowrap"), cell(run.reason || "", "text"));
    }),
  );
  if (focused) document.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
}

/** A click anywhere in a row opens its run, unless it ends the marking of text. */
function openRow(event) {
  if (event.target.closest("a") || !getSelection().isCollapsed) return;
  event.target.closest("tr")?.querySelector("a")?.click();
}

function main() {
  const match = location.pathname.match(/^\/runs\/([^/]+)$/);
  const runId = match ? decodeURIComponent(match[1]) : null;
  if (runId) new RunPage(runId).load();
  else byId("runs-page").hidden = false;
  byId("runs-table").tBodies[0].addEventListener("click", openRow);
  byId("run-picker").addEventListener("change", (event) => location.assign(`/runs/${encodeURIComponent(event.target.value)}`));
  listRuns(runId);
  setInterval(() => listRuns(runId), LIST_EVERY_MS);
}

main();
