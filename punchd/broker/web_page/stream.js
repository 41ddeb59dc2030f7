// One stream in the producer's view.

import { announce, badge, button, el, newId, say, stateBadge } from "./dom.js";
import { plots } from "./plot.js";
import { newest } from "./series.js";
import { strings } from "./strings.js";
import { HEALTH, STATES, TALLY, TALLY_SHAPES, peers } from "./words.js";

const KINDS = { healthy: "good", warning: "warning", critical: "critical", none: "plain" };

/** do: {tally(light), mint() → sentence that says what is wrong, or ""}. {element, show(stream, now), stop()}. */
export function streamCard(name, token, stream, act) {
  const id = newId("stream");
  const state = el("span", { class: "badge plain" });
  const there = el("span");
  const health = el("span", { class: "badge plain" });
  const where = el("p", { class: "where" });
  const plot = plots();
  const lights = tally(stream, act.tally);
  const problem = el("p", { class: "error", role: "alert" });
  const more = button("New link for a peer", async () => say(problem, await act.mint()));
  const sides = ["a", "b"].map((side) => ({ label: `Side ${side.toUpperCase()}`, query: () => ({ side }) }));
  const texts = strings(name, token, stream, sides, () => match !== "null");
  const refresh = () => details.open && (match === "null" ? texts.clear() : texts.load());
  const details = el("details", { ontoggle: () => refresh() }, el("summary", {}, "Connection strings"), texts.element);
  const element = el(
    "section", { class: "card", "aria-labelledby": id },
    el("h2", { id }, stream),
    el("p", { class: "facts" }, state, there, health),
    where, lights.element, plot.element, details, problem,
    el("p", {}, more),
  );
  let match = "null"; // as JSON
  let before = "";
  return {
    element,
    show(one, now) {
      const status = newest(one.health, now)?.status ?? "none";
      const [shape, word] = HEALTH[status] ?? HEALTH.none;
      const told = `${stream}: ${STATES[one.state] ?? one.state}, ${word}`;
      if (before && told !== before) announce(told);
      before = told;
      stateBadge(state, one.state);
      say(there, peers(one.peers, 2));
      badge(health, KINDS[status] ?? "plain", shape, word);
      say(where, one.match ? `A: ${one.match.a} – B: ${one.match.b}` : "");
      lights.show(one.tally);
      plot.draw(one.health, now);
      const current = JSON.stringify(one.match);
      const isNews = current !== match;
      match = current;
      if (isNews) refresh();
    },
    stop() {
      for (const control of [lights.element, more]) control.remove();
      if (match === "null") details.remove();
      for (const select of element.querySelectorAll("select")) select.disabled = true;
    },
  };
}

/** Pressed is what the server says, not what was clicked. */
function tally(stream, set) {
  const buttons = Object.entries(TALLY).map(([light, word]) => {
    const one = button(`${TALLY_SHAPES[light]} ${word}`, () => set(light), `light ${light}`);
    return [light, one];
  });
  const element = el(
    "div", { class: "tallies", role: "group", "aria-label": `Tally of ${stream}` },
    el("span", { class: "label", "aria-hidden": "true" }, "Tally"),
    ...buttons.map(([, one]) => one),
  );
  return {
    element,
    show(current) {
      for (const [light, one] of buttons) one.setAttribute("aria-pressed", String(light === current));
    },
  };
}
