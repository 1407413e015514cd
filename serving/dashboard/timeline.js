// The timeline: one row a request, one stretch a phase, the steps above. Arrow keys move, Enter explains.

import { byId, cell, element, svg } from "./dom.js";
import { PHASE, STEP, endOf, rowsBetween, stepsBetween } from "./model.js";
import { REASONS, duration, isWork, reasonName, shortId } from "./words.js";

const LABEL = 150;
const ROW = 20;
const TOP = 46;
const MAX_ROWS = 40;
const MAX_MARKS = 600;
const MAX_TABLE_ROWS = 200;
const CACHED_WIDTH = 28;

export function drawLegend() {
  byId("legend").replaceChildren(
    ...REASONS.map(([reason, name, work]) =>
      element("li", {}, svg("svg", { width: 14, height: 12, "aria-hidden": "true" }, bar(reason, 0, work ? 1 : 3, 14, work ? 10 : 6)), ` ${name}`),
    ),
  );
}

/** Draws [from, to), with times since `zero` where it is given and before `to` where not; a chosen row is explained. */
export function drawTimeline(model, { from, to, zero }, explain) {
  const figure = byId("timeline");
  const focused = document.activeElement?.dataset?.rid;
  const width = Math.max(figure.clientWidth, 320);
  const { rows, hidden } = rowsBetween(model, from, to, MAX_ROWS);
  const scale = (width - LABEL - 8) / (to - from);
  const x = (ns) => LABEL + Math.min(Math.max(ns - from, 0), to - from) * scale;
  const height = TOP + Math.max(rows.length, 1) * ROW + 6;
  const drawing = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Timeline of requests" });
  drawing.append(...axis({ from, to, zero }, x, height), ...stepMarks(stepsBetween(model, from, to), x));
  rows.forEach((request, index) => drawing.append(requestRow(model, request, index, x, width, explain)));
  if (!rows.length) drawing.append(svg("text", { x: LABEL, y: TOP + 14, class: "faint" }, "No request in this stretch of time."));
  figure.replaceChildren(drawing);
  const again = focused && [...drawing.querySelectorAll("[data-rid]")].find((row) => row.dataset.rid === focused);
  if (again) again.focus();
  byId("timeline-note").textContent = hidden ? `${hidden} earlier requests are not shown.` : "";
  if (byId("timeline-text").open) drawTable(model, rows, from);
}

function axis({ from, to, zero }, x, height) {
  const step = niceStep((to - from) / 6);
  const marks = ticks(from, to, zero ?? to, step).flatMap((ns) => [
    svg("line", { x1: x(ns), x2: x(ns), y1: 16, y2: height, class: "grid" }),
    svg("text", { x: x(ns) + 3, y: 12, class: "faint" }, zero === undefined ? `−${duration(to - ns)}` : duration(ns - zero)),
  ]);
  marks.push(svg("text", { x: 0, y: 32, class: "label" }, "steps"));
  return marks;
}

/** The moments inside (from, to) that lie whole steps from `origin`, in order. */
export function ticks(from, to, origin, step) {
  const first = Math.floor((from - origin) / step) + 1;
  const count = Math.max(0, Math.ceil((to - origin) / step) - first);
  return Array.from({ length: count }, (_, index) => origin + (first + index) * step);
}

export function niceStep(raw) {
  const base = 10 ** Math.floor(Math.log10(Math.max(raw, 1)));
  return [1, 2, 5, 10].map((factor) => factor * base).find((step) => step >= raw);
}

function stepMarks(steps, x) {
  // of more steps than can be told apart, every n-th is drawn
  const every = Math.ceil(steps.length / MAX_MARKS);
  return steps
    .filter((_, index) => index % every === 0)
    .map((step) =>
      svg(
        "rect",
        {
          x: x(step[STEP.start]),
          y: 20,
          width: Math.max(x(step[STEP.end]) - x(step[STEP.start]) - 0.5, 0.5),
          height: 16,
          class: step[STEP.pieces] ? "fill-prefill" : "fill-decode",
        },
        svg("title", {}, stepWords(step)),
      ),
    );
}

export function stepWords(step) {
  const padding = step[STEP.size] - step[STEP.tokens];
  const time = duration(step[STEP.end] - step[STEP.start]);
  return `step ${step[STEP.number]}: ${step[STEP.family]} ${step[STEP.size]}, ${step[STEP.tokens]} tokens, ${padding} padding, ${time}`;
}

function requestRow(model, request, index, x, width, explain) {
  const y = TOP + index * ROW;
  const group = svg("g", {
    class: "row",
    tabindex: index ? -1 : 0,
    role: "button",
    "data-rid": request.rid,
    "aria-label": rowWords(model, request),
    onclick: () => explain(request.rid),
    onkeydown: (event) => onKey(event, group, () => explain(request.rid)),
  });
  group.append(svg("rect", { x: 0, y, width, height: ROW - 2, class: "row-back" }));
  group.append(svg("text", { x: 4, y: y + 13, class: "label" }, shortId(request.group ?? request.rid)));
  let cached = request.cached_tokens > 0;
  for (const phase of request.phases) {
    const start = x(phase[PHASE.start]);
    const reason = phase[PHASE.reason];
    const length = x(phase[PHASE.end]) - start;
    if (length <= 0) continue;
    const work = isWork(reason);
    const drawn = bar(reason, start, work ? y + 2 : y + 6, Math.max(length, 1), work ? ROW - 6 : ROW - 14);
    drawn.append(svg("title", {}, phaseWords(phase, request)));
    group.append(drawn);
    if (cached && reason === "prefill") {
      // a prefix from the cache takes no time: a cap as long as its share of the prompt
      const share = Math.min(1, request.cached_tokens / request.prompt_tokens);
      const cap = bar("cached", start, y + 2, Math.max(1, Math.min(CACHED_WIDTH, length) * share), ROW - 6);
      cap.append(svg("title", {}, `${request.cached_tokens} of ${request.prompt_tokens} prompt tokens came from the cache`));
      group.append(cap);
      cached = false;
    }
  }
  return group;
}

function bar(reason, x, y, width, height) {
  return svg("rect", { x, y, width, height, rx: 1.5, class: `fill-${reason}` });
}

function phaseWords(phase, request) {
  const time = duration(phase[PHASE.end] - phase[PHASE.start]);
  const name = reasonName(phase[PHASE.reason]);
  const by = phase[PHASE.by] ? ` (${phase[PHASE.by]})` : "";
  const piece = phase[PHASE.last] ? ` ${phase[PHASE.first]} to ${phase[PHASE.last]} of ${request.prompt_tokens}` : "";
  return `${name}${piece}${by}: ${time}`;
}

export function rowWords(model, request) {
  const time = duration(endOf(model, request) - request.arrived);
  const now = request.state === "ended" ? `ended: ${request.outcome || "unknown"}` : `${request.state}: ${reasonName(request.reason)}`;
  const cached = request.cached_tokens ? `, ${request.cached_tokens} of them cached` : "";
  return `${request.group ?? request.rid}, ${now}, ${time}, ${request.prompt_tokens} prompt tokens${cached}, ${request.output_tokens} output tokens`;
}

function onKey(event, group, choose) {
  const rows = [...group.parentNode.querySelectorAll(".row")];
  const at = rows.indexOf(group);
  const next = { ArrowDown: rows[at + 1], ArrowUp: rows[at - 1], Home: rows[0], End: rows.at(-1) }[event.key];
  if (event.key === "Enter" || event.key === " ") choose();
  else if (next) {
    group.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  } else return;
  event.preventDefault();
}

function drawTable(model, rows, from) {
  const lines = rows.flatMap((request) =>
    request.phases
      .filter((phase) => phase[PHASE.end] > from)
      .map((phase) => [shortId(request.group ?? request.rid), phaseWords(phase, request).split(": ")[0], duration(phase[PHASE.start] - from), duration(phase[PHASE.end] - phase[PHASE.start])]),
  );
  byId("timeline-rows").replaceChildren(
    ...lines.slice(-MAX_TABLE_ROWS).map((line) => element("tr", {}, ...line.map((text) => cell(text)))),
  );
}
