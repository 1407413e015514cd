// Opens a page in headless Chromium and does what standard input says, for tests/serving/test_page.py.
//
// node --experimental-websocket chromium.mjs URL < steps.json
//
// A step is one of {"until": expression}, {"read": expression}, {"file": [selector, path]}. Prints what was read, and what the
// page complained of, as one JSON object.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { text } from "node:stream/consumers";

const PATIENCE_MS = 20_000;
const folder = mkdtempSync("/tmp/radjax-page-");
const flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1360,1200"];
const browser = spawn("chromium", [...flags, "--remote-debugging-port=0", `--user-data-dir=${folder}`, "about:blank"]);

/** The address that Chromium says it listens on. */
function listening() {
  return new Promise((found, failed) => {
    let said = "";
    browser.stderr.on("data", (bytes) => {
      const match = /DevTools listening on ws:\/\/([\d.:]+)/.exec((said += bytes));
      if (match) found(match[1]);
    });
    browser.on("exit", () => failed(new Error(`chromium ended: ${said}`)));
    browser.on("error", failed);
  });
}

class Page {
  #answers = new Map();
  complaints = [];

  async open(address) {
    const pages = await (await fetch(`http://${address}/json`)).json();
    this.socket = new WebSocket(pages.find((one) => one.type === "page").webSocketDebuggerUrl);
    await new Promise((opened) => this.socket.addEventListener("open", opened));
    this.socket.addEventListener("message", ({ data }) => this.#take(JSON.parse(data)));
    for (const domain of ["Page", "Runtime", "Log", "DOM"]) await this.call(`${domain}.enable`);
  }

  #take(message) {
    if (message.id) this.#answers.get(message.id)(message);
    const { entry, exceptionDetails } = message.params ?? {};
    if (entry?.level === "error") this.complaints.push(entry.text);
    if (exceptionDetails) this.complaints.push(exceptionDetails.exception?.description ?? exceptionDetails.text);
  }

  call(method, params = {}) {
    return new Promise((answered, failed) => {
      const id = this.#answers.size + 1;
      this.#answers.set(id, ({ result, error }) => (error ? failed(new Error(`${method}: ${error.message}`)) : answered(result)));
      this.socket.send(JSON.stringify({ id, method, params }));
    });
  }

  async read(expression) {
    const { result, exceptionDetails } = await this.call("Runtime.evaluate", { expression, returnByValue: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description}`);
    return result.value;
  }

  async until(expression) {
    const deadline = Date.now() + PATIENCE_MS;
    // what is not loaded yet does not hold yet
    while (!(await this.read(expression).catch(() => false))) {
      if (Date.now() > deadline) throw new Error(`it never came to hold: ${expression}`);
      await new Promise((passed) => setTimeout(passed, 50));
    }
  }

  async file(selector, path) {
    const { root } = await this.call("DOM.getDocument");
    const { nodeId } = await this.call("DOM.querySelector", { nodeId: root.nodeId, selector });
    await this.call("DOM.setFileInputFiles", { nodeId, files: [path] });
  }
}

try {
  const page = new Page();
  await page.open(await listening());
  await page.call("Page.navigate", { url: process.argv[2] });
  const read = [];
  for (const step of JSON.parse(await text(process.stdin))) {
    if (step.until) await page.until(step.until);
    if (step.read) read.push(await page.read(step.read));
    if (step.file) await page.file(...step.file);
  }
  console.log(JSON.stringify({ read, complaints: page.complaints }));
} catch (error) {
  console.error(error);
  process.exitCode = 1;
} finally {
  browser.removeAllListeners("exit");
  browser.once("exit", () => {
    rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
    process.exit();
  });
  browser.kill();
}
