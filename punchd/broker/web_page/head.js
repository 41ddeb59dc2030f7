// What both views begin with: state, peers, time left, and whether what stands there is news.

import { now } from "./api.js";
import { announce, el, say, stateBadge } from "./dom.js";
import { AFTER_END, ENDED, STATES, duration, peers } from "./words.js";

const WARNED_MS = 10_000;
const HURRY_MS = 5 * 60_000;

/** Of the session, or of one stream of it. {element, show(state), lost(ms), back(), warn(sentence), stop(sentence)}. */
export function head(stream = null) {
  const state = el("span", { class: "badge plain" }, "○ …");
  const there = el("span");
  const left = el("span");
  const notice = el("p", { class: "notice", role: "alert", hidden: true });
  const element = el("div", { class: "head" }, el("p", { class: "facts" }, state, there, left), notice);
  let shown = null;
  let before = null;
  let isOver = false;
  let until = null; // the next try

  function tell(words) {
    notice.hidden = !words;
    say(notice, words);
  }

  function tick() {
    const rest_ms = (shown?.expiresAt ?? NaN) - now();
    say(left, isOver || Number.isNaN(rest_ms) ? "" : `${duration(rest_ms)} left`);
    left.className = rest_ms < HURRY_MS && !isOver ? "hurry" : "";
    if (until !== null) {
      const wait = Math.max(0, Math.ceil((until - Date.now()) / 1000));
      tell(`No connection to the server; ${wait ? `trying again in ${wait} s` : "trying now"}. What stands here may be old.`);
    }
  }
  const clock = setInterval(tick, 1000);

  function stop(words) {
    isOver = true;
    until = null;
    clearInterval(clock);
    tick();
    tell(words);
  }

  return {
    element,
    show(found) {
      const own = found.state === "CLOSED" ? null : found.streams[stream];
      const current = own?.state ?? found.state;
      if (current && current !== before) announce(STATES[current] ?? current);
      if (current) stateBadge(state, current);
      if (own) say(there, peers(own.peers, 2));
      else say(there, found.total && found.state !== "CLOSED" ? peers(found.connected, found.total) : "");
      before = current;
      shown = found;
      if (found.ended && !isOver) stop(`${ENDED[found.ended] ?? ENDED.gone} ${AFTER_END}`);
      tick();
    },
    lost(pause_ms) {
      until = Date.now() + pause_ms;
      tick();
    },
    back() {
      until = null;
      if (!isOver) tell("");
    },
    /** Of what passes: shown for a while. */
    warn(words) {
      if (isOver || until !== null) return;
      tell(words);
      setTimeout(() => notice.textContent === words && tell(""), WARNED_MS);
    },
    stop,
  };
}
