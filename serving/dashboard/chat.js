// A chat that streams, to have something to watch.

import { byId, element } from "./dom.js";
import { readEvents } from "./sse.js";

const MAX_TURNS = 40;

/** `headers()` gives those of a request; `explain(id)` shows where its time went; `refuse(error)` hears of failures. */
export function startChat({ headers, explain, refuse }) {
  const turns = [];
  let stop = null;
  const form = byId("chat-form");
  const input = byId("chat-input");
  byId("chat-send").disabled = false;
  const say = (text) => (byId("chat-status").textContent = text);

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (stop) return stop.abort();
    const content = input.value.trim();
    if (!content) return;
    input.value = "";
    turns.push({ role: "user", content });
    addTurn("You", content);
    const answer = addTurn("Model", "");
    stop = new AbortController();
    byId("chat-send").textContent = "Stop";
    say("The model answers.");
    try {
      const { text, id } = await ask(turns, stop.signal, headers(), (so_far) => (answer.text.textContent = so_far));
      turns.push({ role: "assistant", content: text });
      if (id) answer.turn.append(element("button", { type: "button", class: "link", onclick: () => explain(id) }, "Where did its time go?"));
      say("The answer is complete.");
    } catch (error) {
      if (error.name === "AbortError") say("Stopped.");
      else {
        say(error.message);
        refuse(error);
      }
      turns.pop();
    }
    turns.splice(0, Math.max(0, turns.length - MAX_TURNS));
    stop = null;
    byId("chat-send").textContent = "Send";
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !stop) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
}

function addTurn(who, content) {
  const text = element("p", {}, content);
  const turn = element("div", { class: "turn" }, element("strong", {}, who), text);
  const log = byId("chat-log");
  log.append(turn);
  while (log.children.length > MAX_TURNS) log.firstChild.remove();
  log.scrollTop = log.scrollHeight;
  return { turn, text };
}

async function ask(messages, signal, headers, onText) {
  let text = "";
  let id = null;
  const body = JSON.stringify({ messages, stream: true, max_tokens: 256 });
  await readEvents("/v1/chat/completions", { method: "POST", body, signal, headers: { ...headers, "content-type": "application/json" } }, (data) => {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    id = chunk.id;
    text += chunk.choices[0]?.delta?.content ?? "";
    onText(text);
    byId("chat-log").scrollTop = byId("chat-log").scrollHeight;
  });
  return { text, id };
}
