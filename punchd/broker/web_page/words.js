// What the page says. Pure.

export const STATES = {
  WAITING: "Waiting for peers",
  READY: "Ready",
  CONNECTED: "Connected",
  CLOSED: "Closed",
};
export const STATE_SHAPES = {
  WAITING: ["plain", "○"],
  READY: ["ready", "◐"],
  CONNECTED: ["good", "●"],
  CLOSED: ["plain", "■"],
};
export const TALLY = { off: "Off", preview: "Preview", program: "Program" };
// Shapes tell the same as colours, for those who do not see the colours.
export const TALLY_SHAPES = { off: "○", preview: "△", program: "■" };
export const HEALTH = {
  healthy: ["●", "Healthy"],
  warning: ["▲", "Warning"],
  critical: ["■", "Critical"],
  none: ["○", "No reports"],
};
export const ENDED = {
  admin_closed: "The producer has closed this session.",
  ttl_expired: "The time of this session is over.",
  error: "The server had to end this session because of a fault of its own.",
  gone: "There is no such session any more: it was closed, or its time is over.",
};
export const AFTER_END = "A stream that already runs goes on: it does not pass the server. For a new one ask for a new link.";
export const REFUSED =
  "The server does not take this link: it was revoked, its time is over, it belongs to an earlier session of the same name, or it was not copied whole.";
export const PHASES = {
  joining: "Registering …",
  waiting: "Registered. Waiting for the other peer; leave this page open.",
  matched: "The other peer is there. Paste the string into your tool, but do not start it yet.",
  ready: "You are ready. Waiting for the other peer to be ready, too.",
  started: "Start your tool now.",
  running: "You said that it runs.",
  failed: "You said that it failed. Stop your tool, correct what is wrong, and start it again.",
};
export const ALONE =
  "The other peer has left the server. If your stream still runs, leave it as it is; if not, leave and register again.";
export const NOT_READY = "There is a string once both peers of the stream are registered.";
// What `punch session join` is told, as `punch session create` prints it: two ports, so that both peers may be one host.
export const WITH_TOOL = {
  "--input udp://127.0.0.1:5100": "Send, from UDP port 5100",
  "--output udp://127.0.0.1:5101": "Receive, to UDP port 5101",
};
export const FORMATS = {
  url: "URL (libsrt tools)",
  obs: "OBS Studio",
  vmix: "vMix",
  ffmpeg: "ffmpeg",
  gstreamer: "GStreamer",
  "srt-live-transmit": "srt-live-transmit",
};

/** "1 of 2 peers"; of a session all its streams' peers together. */
export const peers = (there, all) => `${there} of ${all} peers`;

/** "2 h 05 min", "12 min", "4 min 09 s", "0 s". */
export function duration(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  const [h, min, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  if (h) return `${h} h ${String(min).padStart(2, "0")} min`;
  if (min >= 10) return `${min} min`;
  return min ? `${min} min ${String(s).padStart(2, "0")} s` : `${s} s`;
}

/** Bits a second with three digits or so. */
export function bitrate(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(value < 1e7 ? 2 : 1)} Mbit/s`;
  return value >= 1e3 ? `${(value / 1e3).toFixed(0)} kbit/s` : `${value.toFixed(0)} bit/s`;
}

export const rtt = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;
export const percent = (value) => `${value.toFixed(value < 10 ? 1 : 0)} %`;

/** What to say of a failed request: {status, error, message, retryAfter}; status 0 is no answer at all. */
export function failure({ status, error, message, retryAfter }) {
  if (status === 0) return "The server cannot be reached. Is this device on the network?";
  if (status === 429) return `Too many requests from your address. Try again in ${duration(1000 * (retryAfter || 60))}.`;
  switch (error) {
    case "SESSION_EXISTS":
      return "A session of this name is open. Choose another name.";
    case "SESSION_NOT_FOUND":
      return ENDED.gone;
    case "NOT_READY":
      return NOT_READY;
    case "LIMIT_REACHED":
      return "This session has as many links as it may have.";
    case "TURNSTILE_FAILED":
      return "The captcha was not passed. Try it again.";
    case "SESSION_FULL":
      return "The server has no room for this now. Try again later.";
    default:
      return status === 401 ? REFUSED : `The server says: ${message ?? `status ${status}`}.`;
  }
}
