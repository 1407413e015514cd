// What the page knows: frames of the engines, merged. No DOM here; every list has a bound.

export const MAX_STEPS = 4000;
export const MAX_REQUESTS = 400;
const KEEP_ENDED_NS = 180e9;

// Steps and phases come as arrays; these are their places.
export const STEP = { number: 0, start: 1, end: 2, family: 3, size: 4, tokens: 5, decodeRows: 6, pieces: 7, running: 8, queued: 9 };
export const PHASE = { reason: 0, start: 1, end: 2, first: 3, last: 4, by: 5 };

export function createModel(maxSteps = MAX_STEPS, maxRequests = MAX_REQUESTS, keepEnded = KEEP_ENDED_NS) {
  return { steps: [], requests: new Map(), pages: {}, tree: [], now: 0, omitted: 0, maxSteps, maxRequests, keepEnded };
}

/** Takes what one look at all engines brought. */
export function applyFrames(model, frames) {
  if (!frames.length) return;
  const seen = new Set();
  model.pages = {};
  model.omitted = 0;
  for (const frame of frames) {
    model.now = Math.max(model.now, frame.now_ns);
    model.omitted += frame.omitted;
    for (const [state, count] of Object.entries(frame.pages)) model.pages[state] = (model.pages[state] ?? 0) + count;
    addSteps(model, frame);
    for (const story of frame.stories) {
      seen.add(story.rid);
      mergeStory(model.requests, story);
    }
  }
  const trees = frames.filter((frame) => frame.tree).map((frame) => frame.tree);
  if (trees.length) model.tree = trees[0];
  if (!model.omitted) {
    for (const request of model.requests.values()) {
      // it ended, and the engine has forgotten it already
      if (request.state !== "ended" && !seen.has(request.rid)) request.state = "ended";
    }
  }
  forget(model);
}

function addSteps(model, frame) {
  const last = lastEnd(model.steps, frame.replica);
  for (const step of frame.steps) {
    if (step[STEP.end] > last) model.steps.push(Object.assign([...step], { replica: frame.replica }));
  }
  if (model.steps.length > model.maxSteps) model.steps.splice(0, model.steps.length - model.maxSteps);
}

function lastEnd(steps, replica) {
  for (let i = steps.length - 1; i >= 0; i--) if (steps[i].replica === replica) return steps[i][STEP.end];
  return 0;
}

function mergeStory(requests, story) {
  const { times, ...rest } = story;
  const known = requests.get(story.rid);
  const fresh = times.phases ?? [];
  const first = fresh.length ? fresh[0][PHASE.start] : Infinity;
  const kept = known ? known.phases.filter((phase) => phase[PHASE.start] < first) : [];
  requests.set(story.rid, {
    ...rest,
    reason: times.reason ?? "new",
    arrived: times.arrived_ns,
    finished: times.finished_ns,
    phases: [...kept, ...fresh],
  });
}

function forget(model) {
  for (const [rid, request] of model.requests) {
    const old = request.state === "ended" && model.now - request.finished > model.keepEnded;
    const many = model.requests.size > model.maxRequests && request.state === "ended";
    if (old || many) model.requests.delete(rid);
  }
}

/** The requests that show in [from, to), in order of arrival, at most `max`, the newest of them if there are more. */
export function rowsBetween(model, from, to, max) {
  const rows = [...model.requests.values()].filter((r) => r.arrived < to && endOf(model, r) >= from);
  rows.sort((a, b) => a.arrived - b.arrived || (a.rid < b.rid ? -1 : 1));
  return { rows: rows.slice(-max), hidden: Math.max(0, rows.length - max) };
}

export const endOf = (model, request) => (request.state === "ended" ? request.finished : model.now);

export const stepsBetween = (model, from, to) => model.steps.filter((s) => s[STEP.end] >= from && s[STEP.start] < to);

/** First and last moment that is known. */
export function extent(model) {
  const starts = [...model.requests.values()].map((r) => r.arrived).concat(model.steps.length ? [model.steps[0][STEP.start]] : []);
  return { from: starts.length ? Math.min(...starts) : 0, to: model.now };
}

/** Requests that run and that wait now, those that were too many to be shown among them. */
export function fullnessNow(model) {
  const requests = [...model.requests.values()];
  const count = (state) => requests.filter((request) => request.state === state).length;
  return { running: count("running"), waiting: count("waiting") + model.omitted };
}

/** Requests that ran and that waited after the last of some steps. */
export function fullness(steps) {
  const last = steps.at(-1);
  return { running: last?.[STEP.running] ?? 0, waiting: last?.[STEP.queued] ?? 0 };
}

/** Of several lengths in seconds, ascending, the first that holds all of a model; the last if none does. */
export function windowFor(model, lengths) {
  const { from, to } = extent(model);
  return lengths.find((length) => length * 1e9 >= to - from) ?? lengths.at(-1);
}

/** Step times and padding by program, the smallest first. */
export function buckets(steps) {
  const groups = new Map();
  for (const step of steps) {
    const key = `${step[STEP.family]} ${step[STEP.size]}`;
    const group = groups.get(key) ?? { family: step[STEP.family], size: step[STEP.size], times: [], tokens: 0 };
    group.times.push(step[STEP.end] - step[STEP.start]);
    group.tokens += step[STEP.tokens];
    groups.set(key, group);
  }
  return [...groups.values()]
    .map(({ family, size, times, tokens }) => {
      times.sort((a, b) => a - b);
      return {
        family,
        size,
        count: times.length,
        median: times[Math.floor((times.length - 1) / 2)],
        max: times[times.length - 1],
        padding: 1 - tokens / (size * times.length),
      };
    })
    .sort((a, b) => (a.family < b.family ? -1 : a.family > b.family ? 1 : a.size - b.size));
}

/** The prefixes in the order of a tree, each with its depth; those whose parent is not among them stand at the top. */
export function treeRows(nodes) {
  const known = new Set(nodes.map(([number]) => number));
  const children = new Map();
  for (const node of nodes) {
    const parent = known.has(node[1]) ? node[1] : 0;
    children.set(parent, [...(children.get(parent) ?? []), node]);
  }
  const rows = [];
  const walk = (parent, depth) => {
    for (const node of (children.get(parent) ?? []).sort((a, b) => b[3] - a[3])) {
      const [number, , pages, uses, age, locked] = node;
      rows.push({ number, pages, uses, age, locked, depth });
      walk(number, depth + 1);
    }
  };
  walk(0, 0);
  return rows;
}

/** A recording's file as a model. Throws an Error that says what is wrong with it. */
export function readTimeline(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("The file is no JSON; write it with: radjax replay FILE --timeline OUT.json");
  }
  if (file?.format !== "radjax-timeline" || file.version !== 1 || !Array.isArray(file.frames)) {
    throw new Error("The file is no timeline; write it with: radjax replay FILE --timeline OUT.json");
  }
  const model = createModel(Infinity, Infinity, Infinity);
  applyFrames(model, file.frames);
  return model;
}
