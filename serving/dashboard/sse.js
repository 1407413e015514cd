// Server-sent events over fetch, so that a key can go with the request (EventSource sends no headers).

/** Splits a stream of text into the data of events; keeps what is not complete yet. Comments are skipped. */
export function eventParser() {
  let rest = "";
  return (text) => {
    const parts = (rest + text).replaceAll("\r\n", "\n").split("\n\n");
    rest = parts.pop();
    return parts
      .map((part) => part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n"))
      .filter((data) => data !== "");
  };
}

/** Reads events until the end; `onData` gets the data of each. Throws a `Refused` when the answer is none. */
export async function readEvents(url, options, onData) {
  const response = await fetch(url, options);
  if (!response.ok) throw await refused(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const parse = eventParser();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    for (const data of parse(value)) onData(data);
  }
}

/** An answer that is an error, with its status and words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function refused(response) {
  let message = `The server answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // the body is no error of ours: the status says enough
  }
  return new Refused(response.status, message);
}
