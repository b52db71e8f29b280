/** Quantities as people read them, and DOM nodes without any HTML parsing. */

export const DASH = "–";

export function duration(seconds) {
  if (seconds == null) return DASH;
  if (seconds < 1e-3) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 1) return `${significant(seconds * 1e3)} ms`;
  if (seconds < 60) return `${significant(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${(seconds / 86400).toFixed(1)} d`;
}

export function count(value) {
  if (value == null) return DASH;
  for (const [name, size] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(value) >= size) return `${significant(value / size)} ${name}`;
  }
  return significant(value);
}

export function bytes(value) {
  if (value == null) return DASH;
  for (const [name, size] of [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (value >= size) return `${(value / size).toFixed(1)} ${name}`;
  }
  return `${value} B`;
}

export const percent = (value) => (value == null ? DASH : `${(100 * value).toFixed(1)} %`);

export const fixed = (value, digits) => (value == null ? DASH : value.toFixed(digits));

export function ago(seconds) {
  return seconds < 1 ? "now" : `${duration(Math.max(0, Math.floor(seconds)))} ago`;
}

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

export const clock = (time_s) => CLOCK.format(new Date(time_s * 1000));

export const day = (time_s) => DAY.format(new Date(time_s * 1000));

/** Three significant digits, never in exponent form. */
function significant(value) {
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toFixed(digits);
}

export const byId = (id) => document.getElementById(id);

export function setText(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

/** An element; `attributes` are set as given, children are nodes or text. */
export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export const cell = (content, kind = "") => element("td", kind ? { class: kind } : {}, content ?? DASH);

export const pill = (state) => element("span", { class: `pill ${state}` }, state);
