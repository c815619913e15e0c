// Talking with the gateway: JSON, and answers that come piece by piece.

const KEY = "callboard.key";

// What the gateway answered that is no success. `status` is 0 where it did not answer at all.
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

// The key stays in this tab alone, and goes with it.
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => {
    locked = false;
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  },
};

// Since a key was refused or missed, until there is a new one: what looks by itself now and then need not ask.
let locked = false;
export const isLocked = () => locked;

// Listeners are told when a key is needed, or the one that there is does not do.
export const doors = new EventTarget();

export async function request(path, { body, signal } = {}) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The gateway does not answer.", 0);
  }
  if (response.ok) return response;
  if (response.status === 401) {
    locked = true;
    doors.dispatchEvent(new Event("locked"));
  }
  throw new ApiError(await wordsOf(response), response.status);
}

async function wordsOf(response) {
  let said = "";
  try {
    said = (await response.json()).error?.message ?? "";
  } catch {
    // no JSON: something between here and the gateway answered
  }
  const wait = response.headers.get("retry-after");
  return `${said || `The gateway answered ${response.status}.`}${wait ? ` Try again in ${wait} s.` : ""}`;
}

export async function json(path, options) {
  return (await request(path, options)).json();
}

// The data of server-sent events, one after the other, until "[DONE]".
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it has ended already
  }
}
