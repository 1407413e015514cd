// The panels beside the timeline: counts, pages, prefixes, step times.

import { byId, cell, element, svg } from "./dom.js";
import { STEP, buckets, treeRows } from "./model.js";
import { duration, percent } from "./words.js";

const PAGES = [
  ["own", "held by one request"],
  ["shared", "cached and in use"],
  ["cached", "cached, unused"],
  ["free", "free"],
];

export function drawCounts({ running, waiting }, steps) {
  byId("running").textContent = running;
  byId("waiting").textContent = waiting;
  const [first, last] = [steps[0], steps.at(-1)];
  const span = first && last ? (last[STEP.end] - first[STEP.start]) / 1e9 : 0;
  const tokens = steps.reduce((sum, step) => sum + step[STEP.tokens], 0);
  byId("rate").textContent = span > 0 ? Math.round(tokens / span) : 0;
  byId("step-rate").textContent = span > 0 ? Math.round(steps.length / span) : 0;
  drawHistory(steps);
}

/** Running and waiting requests over the window. */
function drawHistory(steps) {
  const width = 240;
  const height = 48;
  const most = Math.max(1, ...steps.map((step) => step[STEP.running] + step[STEP.queued]));
  const from = steps[0]?.[STEP.start] ?? 0;
  const span = Math.max(1, (steps.at(-1)?.[STEP.end] ?? 1) - from);
  const line = (value) =>
    steps.map((s) => `${(((s[STEP.end] - from) / span) * width).toFixed(1)},${(height - 2 - (value(s) / most) * (height - 4)).toFixed(1)}`).join(" ");
  byId("history").replaceChildren(
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, role: "img", preserveAspectRatio: "none", "aria-label": `Running and waiting requests; at most ${most} together`, class: "history" },
      svg("polyline", { points: line((s) => s[STEP.running] + s[STEP.queued]), class: "line-queued" }),
      svg("polyline", { points: line((s) => s[STEP.running]), class: "line-running" }),
    ),
  );
}

export function drawPages(pages) {
  const total = Object.values(pages).reduce((sum, count) => sum + count, 0);
  let at = 0;
  const bars = PAGES.map(([state]) => {
    const width = total ? (300 * (pages[state] ?? 0)) / total : 0;
    const rect = svg("rect", { x: at, y: 0, width, height: 16, class: `pages-${state}` });
    at += width;
    return rect;
  });
  byId("pages-bar").replaceChildren(svg("svg", { viewBox: "0 0 300 16", preserveAspectRatio: "none", class: "pages", "aria-hidden": "true" }, ...bars));
  byId("pages-rows").replaceChildren(
    ...PAGES.map(([state, name]) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, svg("svg", { width: 12, height: 12, "aria-hidden": "true" }, svg("rect", { width: 12, height: 12, class: `pages-${state}` })), ` ${name}`),
        cell(pages[state] ?? 0, { class: "number" }),
        cell(percent(total ? (pages[state] ?? 0) / total : 0), { class: "number" }),
      ),
    ),
  );
}

export function drawBuckets(steps) {
  const rows = buckets(steps);
  byId("bucket-rows").replaceChildren(
    ...rows.map((row) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, `${row.family} ${row.size}`),
        cell(row.count, { class: "number" }),
        cell(duration(row.median), { class: "number" }),
        cell(duration(row.max), { class: "number" }),
        element("td", {}, element("meter", { min: 0, max: 1, value: row.padding, "aria-hidden": "true" }), ` ${percent(row.padding)}`),
      ),
    ),
  );
}

export function drawTree(nodes) {
  const rows = treeRows(nodes);
  const hottest = Math.max(1, ...rows.map((row) => row.uses));
  byId("tree-rows").replaceChildren(
    ...rows.map((row) =>
      element(
        "tr",
        {},
        element("th", { scope: "row", class: `depth-${Math.min(row.depth, 8)}` }, `${row.depth ? "└ " : ""}prefix ${row.number}${row.locked ? " (in use)" : ""}`),
        cell(row.pages, { class: "number" }),
        element("td", {}, element("meter", { min: 0, max: hottest, value: row.uses, "aria-hidden": "true" }), ` ${row.uses}`),
        cell(row.age, { class: "number" }),
      ),
    ),
  );
  byId("tree-none").hidden = rows.length > 0;
}
