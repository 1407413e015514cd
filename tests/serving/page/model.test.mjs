// The pure functions of the live page. Run with: node --test tests/serving/page/
import assert from "node:assert/strict";
import { test } from "node:test";

import { applyFrames, buckets, createModel, extent, fullness, fullnessNow, readTimeline, rowsBetween, stepsBetween, treeRows, windowFor } from "../../../serving/dashboard/model.js";
import { ticks } from "../../../serving/dashboard/timeline.js";
import { eventParser } from "../../../serving/dashboard/sse.js";
import { duration, percent, shortId } from "../../../serving/dashboard/words.js";

const story = (rid, state, phases, more = {}) => ({
  rid, group: null, state, outcome: "", prompt_tokens: 8, cached_tokens: 0, computed_tokens: 0, output_tokens: 0, retractions: 0,
  times: { arrived_ns: phases[0]?.[1] ?? 0, finished_ns: phases.at(-1)?.[2] ?? 0, phases, reason: "decode" }, ...more,
});
const step = (number, start, end, size = 4, tokens = 3) => [number, start, end, "decode", size, tokens, tokens, 0, 1, 0];
const frame = (now, steps, stories, more = {}) => ({ replica: 0, now_ns: now, steps, stories, omitted: 0, pages: { free: 3 }, tree: null, ...more });

test("events come whole, however the bytes are cut", () => {
  const text = 'data: {"a":1}\n\n: keep-alive\n\ndata: [DONE]\r\n\r\n';
  for (let cut = 0; cut <= text.length; cut++) {
    const parse = eventParser();
    assert.deepEqual([...parse(text.slice(0, cut)), ...parse(text.slice(cut))], ['{"a":1}', "[DONE]"]);
  }
});

test("phases of later frames go on where earlier ones ended, and the open one grows", () => {
  const model = createModel();
  applyFrames(model, [frame(20, [], [story("a", "running", [["no_pages", 0, 10, 0, 0, null], ["prefill", 10, 20, 0, 8, null]])])]);
  applyFrames(model, [frame(40, [], [story("a", "running", [["prefill", 10, 30, 0, 8, null], ["decode", 30, 40, 0, 0, null]])])]);
  assert.deepEqual(model.requests.get("a").phases.map((p) => p.slice(0, 3)), [["no_pages", 0, 10], ["prefill", 10, 30], ["decode", 30, 40]]);
});

test("a step is taken once, and the oldest go first", () => {
  const model = createModel(3);
  applyFrames(model, [frame(20, [step(1, 0, 10), step(2, 10, 20)], [])]);
  applyFrames(model, [frame(40, [step(2, 10, 20), step(3, 20, 30), step(4, 30, 40)], [])]);
  assert.deepEqual(model.steps.map((s) => s[0]), [2, 3, 4]);
  assert.deepEqual(stepsBetween(model, 25, 31).map((s) => s[0]), [3, 4]);
});

test("a request that the engine no longer names has ended, and the ended are forgotten", () => {
  const model = createModel(10, 2);
  applyFrames(model, [frame(5, [], [story("a", "running", [["decode", 0, 5, 0, 0, null]])])]);
  applyFrames(model, [frame(9, [], [])]);
  assert.equal(model.requests.get("a").state, "ended");
  applyFrames(model, [frame(12, [], ["b", "c"].map((rid) => story(rid, "running", [["decode", 9, 12, 0, 0, null]])))]);
  assert.deepEqual([...model.requests.keys()], ["b", "c"]);
  applyFrames(model, []);
  assert.equal(model.requests.size, 2);
});

test("rows stand in the order of arrival, the newest if there are too many", () => {
  const model = createModel();
  applyFrames(model, [frame(50, [], [3, 1, 2].map((n) => story(`r${n}`, "running", [["decode", n, 50, 0, 0, null]])))]);
  const { rows, hidden } = rowsBetween(model, 0, 60, 2);
  assert.deepEqual(rows.map((r) => r.rid), ["r2", "r3"]);
  assert.equal(hidden, 1);
  assert.deepEqual(extent(model), { from: 1, to: 50 });
});

test("padding is the share of computed tokens that nobody asked for", () => {
  const rows = buckets([step(1, 0, 10, 4, 3), step(2, 10, 40, 4, 1), step(3, 40, 50, 8, 8)]);
  assert.deepEqual(rows.map((r) => [r.size, r.count, r.median, r.max, r.padding]), [[4, 2, 10, 30, 0.5], [8, 1, 10, 10, 0]]);
});

test("prefixes stand below what they continue, the hottest first, and none is lost", () => {
  const rows = treeRows([[1, 0, 4, 9, 0, false], [2, 1, 2, 3, 1, true], [3, 1, 2, 5, 0, false], [9, 77, 1, 1, 4, false]]);
  assert.deepEqual(rows.map((r) => [r.number, r.depth]), [[1, 0], [3, 1], [2, 1], [9, 0]]);
});

test("a file that is no timeline is refused with what to do", () => {
  for (const text of ["", "{}", "[]", '{"format":"radjax-timeline","version":2,"frames":[]}']) {
    assert.throws(() => readTimeline(text), /radjax replay FILE --timeline/);
  }
  const model = readTimeline(JSON.stringify({ format: "radjax-timeline", version: 1, frames: [frame(9, [step(1, 0, 9)], [])] }));
  assert.equal(model.steps.length, 1);
  const old = story("a", "ended", [["decode", 0, 5, 0, 0, null]]);
  const long = readTimeline(JSON.stringify({ format: "radjax-timeline", version: 1, frames: [frame(9e12, [], [old])] }));
  assert.equal(long.requests.size, 1, "a recording is kept whole");
});

test("a recording is shown whole if a window can be that long", () => {
  const model = createModel();
  applyFrames(model, [frame(9e9, [step(1, 2e9, 9e9)], [])]);
  assert.deepEqual([[1, 7, 10], [1, 5], [8]].map((lengths) => windowFor(model, lengths)), [7, 5, 8]);
});

test("how full it is now is counted in requests, how full it was is what the last step says", () => {
  const model = createModel();
  const stories = ["running", "waiting", "ended"].map((state) => story(state, state, [["decode", 0, 5, 0, 0, null]]));
  applyFrames(model, [frame(9, [step(1, 0, 9)], stories, { omitted: 2 })]);
  assert.deepEqual(fullnessNow(model), { running: 1, waiting: 3 });
  assert.deepEqual(fullness(model.steps), { running: 1, waiting: 0 });
  assert.deepEqual(fullness([]), { running: 0, waiting: 0 });
});

test("marks of the axis lie whole steps from their origin, inside the window", () => {
  assert.deepEqual(ticks(0, 10, 10, 4), [2, 6]);
  assert.deepEqual(ticks(5, 25, 0, 10), [10, 20]);
  assert.deepEqual(ticks(0, 20, 0, 10), [10]);
  assert.deepEqual(ticks(0, 3, 3, 4), []);
});

test("numbers are short", () => {
  assert.deepEqual([duration(500), duration(2.5e6), duration(45e6), duration(1.5e9)], ["1 µs", "2.5 ms", "45 ms", "1.50 s"]);
  assert.deepEqual([percent(0), percent(0.034), percent(0.5)], ["0 %", "3.4 %", "50 %"]);
  assert.equal(shortId("chatcmpl-0123456789abcdef"), "chatcmp…89abcdef");
});
