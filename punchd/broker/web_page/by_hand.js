// Registering by hand, for tools that are given a string: which port, wait, paste, start together, say how it went.

import { button, el, newId, say } from "./dom.js";
import { port } from "./fields.js";
import { strings } from "./strings.js";
import { ALONE, PHASES } from "./words.js";

const DEFAULT_PORT = "5000";
const WITH_STRINGS = ["matched", "ready", "started", "running", "failed"];

/** act: {register(port, role), ready(), status(srt), leave()}. {element, show(peering, peers)}. */
export function byHand(name, token, stream, act) {
  const form = registration(stream, act.register);
  const progress = el("p", { class: "progress", tabindex: "-1" });
  const problem = el("p", { class: "error", role: "alert" });
  let current = null;
  const texts = strings(name, token, stream, [{ label: "Connection string", query: () => ({ port: current.port }) }], () => true);
  const ready = button("I am ready", act.ready, "main");
  const runs = button("It runs", () => act.status("connected"), "main");
  const failed = button("It failed", () => act.status("error"));
  const leave = button("Leave the session", act.leave, "quiet");
  const steps = el("div", { class: "steps" }, progress, texts.element, el("div", { class: "row" }, ready, runs, failed, leave));
  const element = el(
    "section", { class: "card" },
    el("h2", {}, "By hand, with OBS, vMix or another tool"),
    problem, form.element, steps,
  );
  return {
    element,
    show(peering, peers) {
      const before = current;
      current = peering;
      const { phase } = peering;
      form.element.hidden = phase !== "idle";
      steps.hidden = phase === "idle";
      form.show(peers);
      say(problem, peering.problem);
      const words = PHASES[phase] ?? "";
      say(progress, peering.isAlone ? ALONE : words);
      progress.className = phase === "started" ? "progress now" : "progress";
      texts.element.hidden = !WITH_STRINGS.includes(phase);
      ready.hidden = phase !== "matched";
      runs.hidden = !["started", "failed"].includes(phase);
      failed.hidden = !["started", "running"].includes(phase);
      if (WITH_STRINGS.includes(phase) && peering.other !== before?.other) texts.load();
      if (before && before.phase !== phase) moveFocus();
    },
  };

  /** A button that was just used may be gone: the keyboard goes on at the sentence that says what to do now. */
  function moveFocus() {
    const lost = document.activeElement === document.body || document.activeElement?.closest("[hidden]");
    if (!lost) return;
    (steps.hidden ? form.first : progress).focus();
  }
}

function registration(stream, register) {
  const [portId, roleId] = [newId("port"), newId("role")];
  const box = el("input", {
    id: portId, type: "text", inputmode: "numeric", value: DEFAULT_PORT, "aria-describedby": `${portId}-hint ${portId}-error`,
  });
  const role = el("select", { id: roleId }, el("option", { value: "sender" }, "I send"), el("option", { value: "receiver" }, "I receive"));
  const error = el("span", { class: "error", id: `${portId}-error` });
  const taken = el("p", { class: "hint" });
  const element = el(
    "form", { novalidate: true },
    el("div", { class: "pair" },
      el("p", { class: "field" },
        el("label", { for: portId }, "Local UDP port"), box,
        el("span", { class: "hint", id: `${portId}-hint` }, "The port that your tool will bind on this network, 1024 to 65535."), error),
      el("p", { class: "field" }, el("label", { for: roleId }, "Direction"), role)),
    taken,
    el("p", {}, el("button", { type: "submit", class: "main" }, "Register")),
  );
  element.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = port(box.value);
    say(error, chosen === null ? "Expected a whole number from 1024 to 65535." : "");
    box.setAttribute("aria-invalid", String(chosen === null));
    if (chosen === null) box.focus();
    else register(chosen, role.value);
  });
  const show = (peers) => {
    const words = ["Nobody is registered for this stream yet.", "One peer is registered.", "Both places are taken: perhaps by your own tool."];
    say(taken, `${words[peers]} Registering takes one of its two places, until you leave or close this page.`);
  };
  return { element, show, first: box };
}
