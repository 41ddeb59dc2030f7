// Elements, and what the page's parts have in common. Texts of others get into the document by textContent only.

import { STATES, STATE_SHAPES } from "./words.js";

/** An element. `attributes`: text, true (set, empty), false or null (left out), or a function (on… listeners). */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name.replace(/^on/, ""), value);
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** The same in SVG. */
export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Set a text if it is another one: screen readers read what changes. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let used = 0;
/** An id that nothing else on the page has. */
export const newId = (word) => `${word}-${++used}`;

export const button = (text, onclick, kind = "") => el("button", { type: "button", class: kind, onclick }, text);

const SAID = 5; // sentences that may still be read aloud when the next one comes

/** Tell what happens to those who cannot see it. */
export function announce(text) {
  const place = document.getElementById("said");
  place.append(el("span", {}, `${text} `));
  while (place.children.length > SAID) place.firstChild.remove();
}

/** A text to copy: {element, set}. It has a label, because screen readers name a field by it. */
export function copyable(label, text = "", { rows = 1 } = {}) {
  const id = newId("copy");
  const attributes = { id, readonly: true, spellcheck: "false", class: "copied" };
  const box = rows > 1 ? el("textarea", { ...attributes, rows: String(rows) }) : el("input", { ...attributes, type: "text" });
  box.value = text;
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(box.value);
      say(copy, "Copied");
      announce(`${label}: copied.`);
    } catch {
      box.select();
      say(copy, "Selected");
      announce("The browser does not let this page copy. The text is selected: copy it with the keyboard.");
    }
    setTimeout(() => say(copy, "Copy"), 3000);
  });
  copy.setAttribute("aria-describedby", `${id}-label`);
  const element = el(
    "div", { class: "copyable" }, el("label", { for: id, id: `${id}-label` }, label), el("div", { class: "row" }, box, copy),
  );
  return { element, set: (value) => void (box.value = value) };
}

/** Show a state of a session or a stream. One of a later version of the protocol is one that works (C-21). */
export function stateBadge(element, state) {
  badge(element, ...(STATE_SHAPES[state] ?? STATE_SHAPES.CONNECTED), STATES[state] ?? state);
}

/** A word with its shape; the colour comes from `kind`. */
export function badge(element, kind, shape, word) {
  element.className = `badge ${kind}`;
  say(element, `${shape} ${word}`);
}
