// What the page knows of a session, and how each message of the server changes it. Pure: `reduce` gives a new value.
// Types and members of messages that are not known change nothing. `streams` has no prototype: "constructor" is a name.

import { push } from "./series.js";

/** Before anything is known. `ended` is why it is over: admin_closed, ttl_expired, error, gone; null while it is not. */
export function unknown() {
  return { state: null, streams: { __proto__: null }, connected: 0, total: 0, latency: null, expiresAt: null, ended: null };
}

const stream = () => ({ state: "WAITING", peers: 0, tally: "off", health: [], match: null });

/** After GET /api/session/NAME. */
export function viewed(before, view) {
  const after = overview({ ...before, latency: view.latency, expiresAt: view.expiresAt }, view);
  for (const [name, tally] of Object.entries(view.tally ?? {})) after.streams[name].tally = tally;
  return { ...after, warnings: view.warnings ?? [] };
}

/** After a message over the WebSocket, at `now` (ms). */
export function reduce(before, message, now) {
  switch (message.type) {
    case "session":
      return overview(before, message);
    case "tally":
      return within(before, message.stream, { tally: message.state });
    case "peer_match":
      return within(before, message.stream, { match: { a: address(message.peer_a), b: address(message.peer_b) } });
    case "health_report": {
      let after = before;
      for (const [name, entry] of Object.entries(message.streams)) {
        const series = push(before.streams[name]?.health ?? [], { at: now, ...entry });
        after = within(after, name, { health: series });
      }
      return after;
    }
    case "session_closed":
      return ended(before, message.reason);
    default:
      return before;
  }
}

/** The session is over; the first reason stays. */
export function ended(before, reason) {
  return { ...before, state: "CLOSED", ended: before.ended ?? reason };
}

/** The server has no such session any more, at `now`: its time is over, or else somebody closed it. */
export const gone = (before, now) => ended(before, before.expiresAt && now >= before.expiresAt - 1000 ? "ttl_expired" : "gone");

/** ip and port as one text. */
export const address = ({ ip, port }) => (ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}`);

function overview(before, said) {
  const streams = { __proto__: null };
  for (const [name, { state, peers }] of Object.entries(said.streams)) {
    const known = before.streams[name] ?? stream();
    const stays = peers === 2 || said.state === "CLOSED"; // strings may still be read when the session is over
    streams[name] = { ...known, state, peers, match: stays ? known.match : null };
  }
  return { ...before, state: said.state, streams, connected: said.connected, total: said.total };
}

function within(before, name, change) {
  const one = { ...(before.streams[name] ?? stream()), ...change };
  return { ...before, streams: { __proto__: null, ...before.streams, [name]: one } };
}
