// Puts the page together: the live feed or a recording, the window of time, the key, the theme.

import { startChat } from "./chat.js";
import { byId } from "./dom.js";
import { showExplanation, showKnown, showProblem } from "./explain.js";
import { applyFrames, createModel, extent, fullness, fullnessNow, readTimeline, stepsBetween, windowFor } from "./model.js";
import { drawBuckets, drawCounts, drawPages, drawTree } from "./panels.js";
import { readEvents, refused } from "./sse.js";
import { drawLegend, drawTimeline } from "./timeline.js";

const RETRY_MS = 3000;
const MAX_FILE_BYTES = 256 * 2 ** 20;
const KEY = "radjax-key";
const THEME = "radjax-theme";

const live = createModel();
let recording = null;
let held = null;
let liveWindow = "10";

const headers = () => {
  const key = sessionStorage.getItem(KEY);
  return key ? { authorization: `Bearer ${key}` } : {};
};

function windowOfTime() {
  const model = recording ?? live;
  const span = Number(byId("window").value) * 1e9;
  const { from, to } = extent(model);
  if (!recording) {
    const end = held ?? model.now;
    return { model, from: end - span, to: end };
  }
  const whole = Math.max(to - from, 1);
  const length = Math.min(span, whole);
  const begin = from + ((whole - length) * Number(byId("position").value)) / 1000;
  return { model, from: begin, to: begin + length, zero: from };
}

function draw() {
  const { model, from, to, zero } = windowOfTime();
  if (to <= 0) return;
  const steps = stepsBetween(model, from, to);
  drawTimeline(model, { from, to, zero }, explain);
  drawCounts(recording ? fullness(steps) : fullnessNow(model), steps);
  drawBuckets(steps);
  if (recording) return;
  drawPages(model.pages);
  drawTree(model.tree);
}

async function explain(rid) {
  const request = (recording ?? live).requests.get(rid);
  if (recording) return showKnown(recording, request, "From a recording; what the frontend did is not in it.");
  try {
    const response = await fetch(`/explain/${encodeURIComponent(rid)}`, { headers: headers() });
    if (response.ok) return showExplanation(await response.json());
    if (response.status === 404 && request) return showKnown(live, request, "The server no longer remembers it; this is what the page has seen.");
    throw await refused(response);
  } catch (error) {
    refuse(error);
    showProblem("No explanation", error.message);
  }
}

function refuse(error) {
  if (error.status === 401 || error.status === 403) byId("key-form").hidden = false;
}

function say(state, text) {
  const status = byId("status");
  status.dataset.state = state;
  if (status.textContent !== text) status.textContent = text;
}

async function feed() {
  for (;;) {
    try {
      await readEvents("/dashboard/events", { headers: headers() }, (data) => {
        const { health, frames } = JSON.parse(data);
        applyFrames(live, frames);
        say(health.state, health.state === "starting" ? `starting: ${health.stage}` : health.state);
        if (!recording && held === null) draw();
      });
      say("lost", "The service ended the feed; trying again.");
    } catch (error) {
      refuse(error);
      say("lost", error.status === 401 ? "This service needs a key." : `No feed: ${error.message}`);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

/** Shows a recording, at first the whole of it if the window can be that long; null goes back to the live feed. */
function showRecording(model, name) {
  if (model && !recording) liveWindow = byId("window").value;
  recording = model;
  for (const id of ["recording", "kept-live"]) byId(id).hidden = model === null;
  for (const id of ["hold", "live-pages", "live-tree"]) byId(id).hidden = model !== null;
  byId("recording-name").textContent = name;
  byId("window-name").textContent = model ? "Window" : "Last";
  byId("now-title").textContent = model ? "At the end of the window" : "Now";
  byId("position").value = 0;
  byId("window").value = model ? windowFor(model, [...byId("window").options].map((option) => Number(option.value))) : liveWindow;
  draw();
}

function listen() {
  byId("window").addEventListener("change", draw);
  byId("position").addEventListener("input", draw);
  byId("timeline-text").addEventListener("toggle", draw);
  addEventListener("resize", draw);
  byId("hold").addEventListener("click", () => {
    held = held === null ? live.now : null;
    byId("hold").setAttribute("aria-pressed", String(held !== null));
    draw();
  });
  byId("file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    try {
      if (file.size > MAX_FILE_BYTES) throw new Error("The file is too large for this page.");
      showRecording(readTimeline(await file.text()), file.name);
    } catch (error) {
      showProblem("This file cannot be shown", error.message);
    }
    event.target.value = "";
  });
  byId("back").addEventListener("click", () => showRecording(null, ""));
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, byId("key").value);
    byId("key").value = "";
    byId("key-form").hidden = true;
  });
  byId("theme").addEventListener("change", (event) => setTheme(event.target.value));
}

function setTheme(theme) {
  localStorage.setItem(THEME, theme);
  byId("theme").value = theme;
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

setTheme(localStorage.getItem(THEME) ?? "auto");
drawLegend();
listen();
startChat({ headers, explain, refuse });
feed();
