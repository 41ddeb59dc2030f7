// A question before something that cannot be undone.

import { button, el, newId } from "./dom.js";

/** Resolves to whether the user says yes. */
export function confirmed(title, words, yes) {
  const id = newId("confirm");
  return new Promise((resolve) => {
    const dialog = el("dialog", { "aria-labelledby": id });
    const answer = (value) => {
      dialog.close();
      dialog.remove();
      resolve(value);
    };
    dialog.append(
      el("h2", { id }, title),
      el("p", {}, words),
      el("div", { class: "row" }, button("Cancel", () => answer(false)), button(yes, () => answer(true), "danger")),
    );
    dialog.addEventListener("cancel", () => answer(false));
    document.body.append(dialog);
    dialog.showModal();
  });
}
