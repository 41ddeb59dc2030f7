// The tally light of a peer's stream: on the page, or over the whole screen, which then does not go dark.

import { button, el, say } from "./dom.js";
import { TALLY, TALLY_SHAPES } from "./words.js";

/** {element, isFull(), show(light or null), end()}; null is that nobody knows, which must not look like a light that is off. */
export function light(stream) {
  const shape = el("span", { class: "shape", "aria-hidden": "true" });
  const word = el("span", { class: "word" });
  const lamp = el("div", { class: "lamp", role: "status" }, shape, word, el("span", { class: "of" }, stream));
  const toggle = button("Tally over the whole screen", () => (isFull ? leave() : enter()));
  const element = el("section", { class: "tally", "aria-label": "Tally light" }, lamp, toggle);
  let isFull = false;
  let lock = null;

  async function stayAwake() {
    try {
      lock = isFull && !lock ? await navigator.wakeLock.request("screen") : lock;
      lock?.addEventListener("release", () => (lock = null));
    } catch {
      lock = null; // no such thing here, or the battery is low: the screen goes dark as always
    }
  }

  /** What is behind it cannot be reached by keyboard then. */
  function cover(isCovered) {
    element.classList.toggle("full", isCovered);
    for (const one of element.parentElement.children) one.inert = isCovered && one !== element;
  }

  async function enter() {
    isFull = true;
    cover(true);
    say(toggle, "Back to the page");
    stayAwake();
    try {
      await element.requestFullscreen();
    } catch {
      // Some phones let only films have the whole screen; then it fills the window.
    }
  }

  function leave() {
    isFull = false;
    cover(false);
    say(toggle, "Tally over the whole screen");
    lock?.release();
    if (document.fullscreenElement) document.exitFullscreen();
  }

  document.addEventListener("fullscreenchange", () => isFull && !document.fullscreenElement && leave());
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && stayAwake());
  element.addEventListener("keydown", (event) => event.key === "Escape" && isFull && leave());
  return {
    element,
    isFull: () => isFull,
    end() {
      if (isFull) leave();
      element.remove();
    },
    show(current) {
      const words = current === null ? "No connection" : (TALLY[current] ?? current);
      lamp.dataset.light = String(current);
      say(shape, current === null ? "?" : (TALLY_SHAPES[current] ?? "?"));
      say(word, words);
    },
  };
}
