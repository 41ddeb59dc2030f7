// How far a peer of this page has come. Pure: `step` gives a new value.
//
//   idle      the page holds no place
//   joining   register was sent, or will be once the connection is there
//   waiting   registered; the other place is empty, or its holder left
//   matched   the other peer is known: the string can be pasted
//   ready     the user is ready; the other one is not yet
//   started   both are: start now
//   running   the user says that it runs
//   failed    the user says that it does not
//
// A broken connection changes nothing: the page comes back and registers again, and what it then hears is a new round.
// Does the other peer turn out to be where it was, a stream that runs goes on running.

const AFTER_MATCH = ["matched", "ready", "started", "running", "failed"];

export function idle(problem = "") {
  return { phase: "idle", port: null, role: null, other: null, isAlone: false, problem };
}

/** What happened: {type: "join", port, role}, {type: "ready"}, {type: "status", srt}, {type: "leave"}, or a message. */
export function step(before, event, own) {
  switch (event.type) {
    case "join":
      return { ...idle(), phase: "joining", port: event.port, role: event.role };
    case "leave":
      return idle();
    case "ready":
      return before.phase === "matched" ? { ...before, phase: "ready" } : before;
    case "status":
      return { ...before, phase: event.srt === "connected" ? "running" : "failed" };
    case "session":
      return seated(before, event.streams[own]?.peers ?? 0);
    case "peer":
      return met(before, `${event.ip} ${event.port} ${event.localPort} ${event.passphrase}`);
    case "start":
      return before.phase === "running" ? before : { ...before, phase: "started" };
    case "error":
      return refused(before, event);
    default:
      return before;
  }
}

function seated(before, peers) {
  if (before.phase === "joining") return { ...before, phase: "waiting" };
  if (!AFTER_MATCH.includes(before.phase)) return before;
  if (peers === 2) return { ...before, isAlone: false };
  return before.phase === "running" ? { ...before, isAlone: true } : { ...before, phase: "waiting", other: null };
}

function met(before, other) {
  if (before.phase === "idle") return before;
  const goesOn = before.phase === "running" && before.other === other;
  return { ...before, phase: goesOn ? "running" : "matched", other, isAlone: false, problem: "" };
}

function refused(before, { code, message }) {
  if (before.phase === "idle") return before;
  if (code === "STREAM_TAKEN" && message.startsWith("replaced"))
    return idle("Another window or tool with this address and port took the place of this page.");
  if (code === "STREAM_TAKEN")
    return idle("Both places of this stream are taken. If one of them is yours from before, wait a minute and try again.");
  if (code === "AUTH_FAILED") return idle(`This link does not work any more: ${message}.`);
  return { ...before, problem: message };
}
