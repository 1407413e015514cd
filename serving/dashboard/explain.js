// The explanation of one request, in a dialog.

import { byId, cell, element, svg } from "./dom.js";
import { endOf, PHASE } from "./model.js";
import { isWork, reasonName, seconds, shortId } from "./words.js";

/** Shows what `/explain` said. */
export function showExplanation(body) {
  byId("explain-title").textContent = `Request ${shortId(body.choices[0].id)}`;
  byId("explain-body").replaceChildren(...body.choices.flatMap(choice));
  open();
}

/** Shows what the page knows itself, of a recording or of a request that the server has forgotten. */
export function showKnown(model, request, note) {
  const wall = (endOf(model, request) - request.arrived) / 1e9;
  const waits = {};
  for (const phase of request.phases) waits[phase[PHASE.reason]] = (waits[phase[PHASE.reason]] ?? 0) + (phase[PHASE.end] - phase[PHASE.start]) / 1e9;
  const phases = request.phases.map((phase) => ({
    start_s: (phase[PHASE.start] - request.arrived) / 1e9,
    duration_s: (phase[PHASE.end] - phase[PHASE.start]) / 1e9,
    reason: phase[PHASE.reason],
    detail: phase[PHASE.last] ? `tokens ${phase[PHASE.first]} to ${phase[PHASE.last]} of ${request.prompt_tokens}` : reasonName(phase[PHASE.reason]),
  }));
  byId("explain-title").textContent = `Request ${shortId(request.group ?? request.rid)}`;
  byId("explain-body").replaceChildren(...choice({ ...request, request_id: request.rid, sentence: note, wall_s: wall, waits, phases }));
  open();
}

export function showProblem(title, message) {
  byId("explain-title").textContent = title;
  byId("explain-body").replaceChildren(element("p", {}, message));
  open();
}

function open() {
  const dialog = byId("explain");
  if (!dialog.open) dialog.showModal();
}

function choice(one) {
  const waits = Object.entries(one.waits).sort((a, b) => b[1] - a[1]);
  return [
    element("p", { class: "sentence" }, one.sentence),
    element(
      "p",
      { class: "faint" },
      `${one.request_id}: ${seconds(one.wall_s)} in all, ${one.prompt_tokens} prompt tokens (${one.cached_tokens} from the cache), ${one.output_tokens} output tokens, ${one.retractions} retractions`,
    ),
    strip(one),
    table("By reason", ["reason", "time", "share"], waits.map(([reason, spent]) => [reasonName(reason), seconds(spent), `${Math.round((100 * spent) / Math.max(one.wall_s, 1e-9))} %`])),
    table("Phase by phase", ["start", "time", "reason", "detail"], one.phases.map((phase) => [seconds(phase.start_s), seconds(phase.duration_s), reasonName(phase.reason), phase.detail])),
  ];
}

function strip(one) {
  const scale = 600 / Math.max(one.wall_s, 1e-9);
  const bars = one.phases.map((phase) => {
    const work = isWork(phase.reason);
    return svg("rect", { x: phase.start_s * scale, y: work ? 2 : 8, width: Math.max(phase.duration_s * scale, 0.8), height: work ? 20 : 8, class: `fill-${phase.reason}` });
  });
  return svg("svg", { viewBox: "0 0 600 24", preserveAspectRatio: "none", class: "strip", "aria-hidden": "true" }, ...bars);
}

function table(caption, heads, rows) {
  return element(
    "table",
    {},
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text) => cell(text))))),
  );
}
