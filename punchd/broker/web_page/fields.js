// The form that creates a session: from what was typed to what the API takes, or to what is wrong with it. Pure.

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
const MAX_STREAMS = 16;
const NAME_WORDS = "1 to 64 letters, digits, “.”, “_” or “-”, the first a letter or a digit";

/** {body, errors}: `errors` maps a field to a sentence, and is empty if `body` can be sent. */
export function creation({ name, streams, latency, minutes }) {
  const errors = {};
  const names = streams.split(/[\s,]+/).filter(Boolean);
  if (!NAME.test(name.trim())) errors.name = `Expected ${NAME_WORDS}.`;
  const wrong = names.find((one) => !NAME.test(one));
  if (wrong !== undefined) errors.streams = `“${wrong.slice(0, 70)}” is no name: expected ${NAME_WORDS}.`;
  else if (new Set(names).size < names.length) errors.streams = "Each name once.";
  else if (names.length < 1 || names.length > MAX_STREAMS) errors.streams = `Expected 1 to ${MAX_STREAMS} names.`;
  const latency_ms = whole(latency, 20, 8000);
  if (latency_ms === null) errors.latency = "Expected a whole number from 20 to 8000.";
  const lifetime = whole(minutes, 1, 1440);
  if (lifetime === null) errors.ttl = "Expected a whole number from 1 to 1440.";
  return { body: { name: name.trim(), streams: names, latency: latency_ms, ttl: lifetime * 60 }, errors };
}

/** A local UDP port, or null. */
export const port = (text) => whole(text, 1024, 65535);

/** Which field the server's message is about: its messages about a field begin with the field's name. */
export function field({ error, message }) {
  if (error === "SESSION_EXISTS") return "name";
  const found = /^(name|streams|latency|ttl)\b/.exec(message ?? "");
  return found ? found[1] : null;
}

function whole(text, least, most) {
  const number = /^\s*[0-9]{1,6}\s*$/.test(text) ? Number(text) : NaN;
  return number >= least && number <= most ? number : null;
}
