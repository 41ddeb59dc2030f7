// A peer's view. Opening it takes no place: the tool that the same link was given to may come later. So until the user
// registers here there is no WebSocket, and the page asks how the session is now and then.

import { call, now, sessionPath } from "./api.js";
import { announce, copyable, el, newId } from "./dom.js";
import { head } from "./head.js";
import { byHand } from "./by_hand.js";
import { light } from "./light.js";
import { Line } from "./line.js";
import { linkRow } from "./links.js";
import { idle, step } from "./peering.js";
import { gone, reduce, unknown, viewed } from "./state.js";
import { link } from "./token.js";
import { PHASES, WITH_TOOL, failure } from "./words.js";

const LOOK_MS = 10_000;
const LOOK_AT_LIGHT_MS = 3000; // while the light fills the screen
const STALE_MS = 15_000; // a light that was not heard of for so long is unknown

export async function showPeer(view, name, token, stream) {
  const url = `${location.origin}/s/${encodeURIComponent(name)}`;
  const top = head(stream);
  const lamp = light(stream);
  let state = unknown();
  let peering = idle();
  let heardAt = Date.now();
  let timer = null;

  const form = byHand(name, token, stream, {
    register(port, role) {
      peering = step(peering, { type: "join", port, role }, stream);
      line.open();
      show();
    },
    ready: () => line.send({ type: "ready", stream }) && go({ type: "ready" }),
    status: (srt) => line.send({ type: "status", srt, stream }) && go({ type: "status", srt }),
    leave() {
      line.close();
      go({ type: "leave" });
      top.back();
      again(0);
    },
  });
  const tool = withTool(link(url, token));
  const phone = onPhone(name, url, token);
  view.append(el("p", { class: "lead" }, "Stream ", el("strong", {}, stream)), top.element, lamp.element, tool, form.element, phone);

  function go(event) {
    const before = peering;
    peering = step(peering, event, stream);
    if (peering.phase !== before.phase && PHASES[peering.phase]) announce(PHASES[peering.phase]);
    if (event.type === "peer" && peering.phase === "running") line.send({ type: "status", srt: "connected", stream });
    if (peering.phase === "idle" && before.phase !== "idle") {
      line.close();
      again(LOOK_MS);
    }
    show();
  }

  function show() {
    top.show(state);
    const isFresh = line.isOpen || Date.now() - heardAt < STALE_MS;
    lamp.show(isFresh && !state.ended ? (state.streams[stream]?.tally ?? "off") : null);
    form.show(peering, state.streams[stream]?.peers ?? 0);
    if (state.ended) stop();
  }

  function stop() {
    line.close();
    clearTimeout(timer);
    lamp.end();
    for (const element of [tool, form.element, phone]) element.remove();
  }

  function refused(failed) {
    if (failed.status === 404) {
      state = gone(state, now());
      show();
    } else {
      stop();
      top.stop(failure(failed));
    }
  }

  async function look() {
    const found = await call("GET", sessionPath(name), { token });
    if (found.ok && !state.ended) {
      heardAt = Date.now();
      state = viewed(state, found.data);
      show();
    }
    return found;
  }

  function again(pause_ms) {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      if (peering.phase !== "idle" || state.ended) return;
      const isSeen = document.visibilityState === "visible";
      const found = isSeen ? await look() : { ok: true };
      if (peering.phase !== "idle" || state.ended) return;
      if ([401, 403, 404].includes(found.status)) return void refused(found);
      const soon_ms = Math.min(lamp.isFull() ? LOOK_AT_LIGHT_MS : LOOK_MS, Math.max(500, state.expiresAt - now()));
      const pause_ms = Math.max(soon_ms, 1000 * (found.retryAfter || 0));
      if (found.ok) top.back();
      else top.lost(pause_ms);
      show();
      again(pause_ms);
    }, pause_ms);
  }

  const line = new Line(name, token, {
    open() {
      top.back();
      const { port, role } = peering;
      line.send({ type: "register", port, stream, ...(role ? { role } : {}) });
      look(); // a light that went off meanwhile is not told
    },
    message(message) {
      heardAt = Date.now();
      state = reduce(state, message, now());
      go(message);
    },
    lost(pause_ms) {
      heardAt = 0;
      top.lost(pause_ms);
      show();
    },
    refused,
    closed() {
      if (peering.phase !== "idle" && !state.ended) go({ type: "leave" });
    },
  }, look);

  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && again(0));
  lamp.element.addEventListener("click", () => again(0));
  show();
  again(0);
}

function withTool(address) {
  const id = newId("tool");
  const command = copyable("In a terminal", "", { rows: 3 });
  const fill = () => command.set(`punch session join '${address}' ${choice.value}`);
  const options = Object.entries(WITH_TOOL).map(([value, words]) => el("option", { value }, words));
  const choice = el("select", { id, onchange: fill }, ...options);
  fill();
  return el(
    "section", { class: "card" },
    el("h2", {}, "With the tool"),
    el("p", {}, "It registers, waits for the other peer and carries the stream. Then nothing of what follows is needed here."),
    el("p", { class: "field" },
      el("label", { for: id }, "What it does"), choice,
      el("span", { class: "hint" }, "MPEG-TS at UDP ports of your own host. Files, ffmpeg and GStreamer: punch session join --help")),
    command.element,
  );
}

function onPhone(name, url, token) {
  const row = linkRow({ name, url, token, label: "Link of this page" });
  return el(
    "details", { class: "card" },
    el("summary", {}, "This page on another device"),
    el("p", {}, "A phone can be the tally light while your tool or this page holds the place. Only who shall take part may have the link."),
    el("ul", { class: "links" }, row),
  );
}
