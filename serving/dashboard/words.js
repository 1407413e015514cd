// Names, colours (as classes) and numbers for people.

/** Reasons in the order of the legend: [reason, name, whether it is work]. */
export const REASONS = [
  ["prefill", "prefill piece", true],
  ["cached", "prefix from the cache", true],
  ["decode", "decode", true],
  ["queued_behind", "queued behind others", false],
  ["no_slot", "no free slot", false],
  ["no_pages", "no pages", false],
  ["token_budget", "no room in the step", false],
  ["piece_limit", "too many prompts in the step", false],
  ["in_flight", "its own step is not read", false],
  ["prefix_pending", "prefix being computed by another", false],
  ["loading", "cached pages are loaded", false],
  ["draining", "steps in flight are read first", false],
  ["retracted", "retracted: pages taken", false],
  ["preempted", "gave way to another", false],
  ["paused", "paused", false],
  ["tokenizing", "read and tokenized", false],
  ["new", "on the way to the engine", false],
  ["stalled_reader", "client does not read", false],
];

const NAMES = new Map(REASONS.map(([reason, name]) => [reason, name]));
const WORK = new Set(REASONS.filter(([, , work]) => work).map(([reason]) => reason));

export const reasonName = (reason) => NAMES.get(reason) ?? reason;
export const isWork = (reason) => WORK.has(reason);

/** Nanoseconds, short. */
export function duration(ns) {
  const ms = ns / 1e6;
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  if (ms < 1000) return `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
  return `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}

export const seconds = (s) => duration(s * 1e9);
export const percent = (share) => `${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
export const shortId = (id) => (id.length > 18 ? `${id.slice(0, 7)}…${id.slice(-8)}` : id);
