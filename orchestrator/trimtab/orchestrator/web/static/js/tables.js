/** Everything of a run that is text: head, tiles and tables. */

import { DASH, ago, byId, bytes, cell, clock, count, duration, element, fixed, percent, pill, setText } from "./format.js";

const GROUPINGS = { planned: "groups planned every step", uniform: "groups of one size", probe: "groups that probe every size" };
const LOUD = { info: "ℹ", warning: "▲", critical: "✖" };

export function drawHead(data) {
  const { head } = data;
  setText("run-name", head.name);
  const state = byId("run-state");
  state.className = `pill ${head.state}`;
  setText("run-state", head.state);
  const attempt = head.attempt > 1 ? [`attempt ${head.attempt}`] : [];
  const ranks = `${head.num_ranks} ${head.num_ranks === 1 ? "rank" : "ranks"}`;
  const training = head.script == null ? [`${head.model} (${count(head.num_parameters)} parameters)`, ranks, `layout ${head.layout}`, head.cluster, head.mfu.precision, GROUPINGS[head.grouping] ?? head.grouping] : [`script: ${head.script}`, ranks];
  const facts = [...training, ...attempt, head.handle];
  setText("run-facts", facts.join("  ·  "));
  const reason = byId("run-reason");
  reason.hidden = !head.reason || head.state === "running";
  reason.className = `reason ${head.state}`;
  setText("run-reason", head.reason);
  const progress = head.script == null ? `${head.num_steps_done}/${head.num_steps}` : head.state;
  document.title = `${progress} · ${head.name} · Trimtab`;
  for (const part of document.querySelectorAll(".of-steps")) part.hidden = head.script != null;
  byId("script-note").hidden = head.script == null;
}

export function drawTiles(data) {
  const { head } = data;
  if (head.script != null) return;
  setText("tile-steps", `${head.num_steps_done} / ${head.num_steps}`);
  byId("tile-progress").value = head.num_steps_done / head.num_steps;
  const loss = data.series.loss;
  setText("tile-loss", fixed(loss.at(-1), 3));
  const evaluation = data.lastEvaluation;
  if (evaluation) setText("tile-loss-note", `held-out ${fixed(evaluation.loss, 3)} at step ${evaluation.step}`);
  else if (loss.length) setText("tile-loss-note", `first step ${fixed(loss[0], 3)}`);
  setText("tile-step", duration(data.recentMedian("step_s", 20)));
  const forecast = head.forecast_step_s == null ? "median, last 20 steps" : `forecast ${duration(head.forecast_step_s)}`;
  setText("tile-step-note", forecast);
  setText("merged-note", data.numMerged ? `Steps before the newest 100 are drawn as means over ${data.bucket} steps each.` : "");
  setText("tile-tokens", count(data.recentMean("tokens_per_s", 10)));
  setText("tile-mfu", percent(data.recentMean("mfu", 10)));
  const note = byId("tile-mfu-note");
  setText("tile-mfu-note", head.mfu.reason ?? `of ${head.mfu.peak}`);
  note.title = note.textContent;
  const ratio = data.predictionRatio;
  setText("predicted-note", ratio == null ? "" : `predicted / measured: median ${ratio.toFixed(2)}`);
}

export function drawMfu({ head }) {
  const reason = byId("mfu-reason");
  reason.hidden = !head.mfu.reason;
  byId("chart-mfu").hidden = Boolean(head.mfu.reason);
  setText("mfu-reason", head.mfu.reason ? `Left blank: ${head.mfu.reason}.` : "");
  setText("mfu-formula", head.mfu.formula);
  setText("mfu-precision", head.mfu.precision);
  setText("mfu-peak", head.mfu.peak ?? "unknown");
}

/** What changes with the clock alone; called every second. */
export function drawClock(data, now_s) {
  const { head } = data;
  if (head.submitted_s == null) return;
  const elapsed = Math.max(0, (head.ended_s ?? now_s) - head.submitted_s);
  setText("run-elapsed", `${head.ended_s == null ? "for" : "took"} ${duration(elapsed)}`);
  const goodput = head.productive_s && elapsed ? percent(Math.min(1, head.productive_s / elapsed)) : DASH;
  setText("tile-goodput", goodput);
  for (const node of document.querySelectorAll("[data-seen]")) node.textContent = heard(Number(node.dataset.seen), data, now_s);
}

function heard(seen_s, { head }, now_s) {
  if (!seen_s) return DASH;
  return head.ended_s == null ? ago(now_s - seen_s) : clock(seen_s);
}

export function drawRanks(data, now_s) {
  const ranks = [...data.ranks.values()].sort((a, b) => a.rank - b.rank);
  const rows = ranks.map((rank) => {
    const seen = cell(heard(rank.seen_s, data, now_s), "nowrap");
    seen.dataset.seen = String(rank.seen_s ?? "");
    const where = [rank.device, rank.host, rank.pid ? `pid ${rank.pid}` : ""].filter(Boolean).join(", ");
    return element("tr", {}, cell(String(rank.rank), "number"), cell(pill(stateOf(rank, data))), cell(rank.doing), cell(rank.step == null ? DASH : String(rank.step), "number"), seen, cell(where || DASH));
  });
  fill("ranks", rows);
  const running = ranks.filter((rank) => stateOf(rank, data) === "running").length;
  setText("ranks-note", ranks.length ? `${running} of ${ranks.length} running` : "");
}

/** A rank that never told its end is not running once its job has ended. */
function stateOf(rank, { head }) {
  return head.ended_s != null && (rank.state === "running" || rank.state === "starting") ? "gone" : rank.state;
}

export function drawCheckpoints(data) {
  fill("checkpoints", data.checkpoints.toReversed().map((item) =>
    element("tr", {}, cell(String(item.step), "number"), cell(clock(item.time_s)), cell(duration(item.seconds), "number"), cell(bytes(item.num_bytes), "number nowrap"), cell(item.path, "path")),
  ));
}

export function drawNotes(data) {
  const trouble = byId("notes-filter").value === "trouble";
  const shown = data.notes.filter((note) => !trouble || note.severity !== "info").toReversed();
  fill("notes", shown.map((note) =>
    element("tr", { class: note.severity }, cell(clock(note.time_s), "nowrap"), cell(element("span", { class: `severity ${note.severity}` }, `${LOUD[note.severity]} ${note.severity}`)), cell(note.step == null ? DASH : String(note.step), "number"), cell(note.text, "text")),
  ));
}

export function drawGpus(data) {
  byId("gpus-panel").hidden = data.gpus.size === 0;
  const rows = [...data.gpus.values()].map((gpu) =>
    element("tr", {}, cell(gpu.host), cell(String(gpu.index), "number"), cell(gpu.name), cell(percent(gpu.utilization_fraction), "number"), cell(bytes(gpu.memory_used_bytes), "number"), cell(`${gpu.power_w.toFixed(0)} W`, "number"), cell(`${gpu.temperature_c.toFixed(0)} °C`, "number")),
  );
  byId("gpus-table").tBodies[0].replaceChildren(...rows);
}

/** A table's rows, or the words that stand for an empty one. */
function fill(name, rows) {
  const table = byId(`${name}-table`);
  table.tBodies[0].replaceChildren(...rows);
  table.parentElement.hidden = rows.length === 0;
  byId(`${name}-empty`).hidden = rows.length > 0;
}
