// A link with a token: to copy, to scan, to make worthless.

import { call, qrCode, sessionPath } from "./api.js";
import { announce, button, copyable, el, say } from "./dom.js";
import { link } from "./token.js";
import { failure } from "./words.js";

/** revoke: {by: the admin's token}, or null if that is not to be offered. */
export function linkRow({ name, url, token, label, revoke = null, showsCode = false }) {
  const field = copyable(label, link(url, token));
  const code = el("div", { class: "qr" });
  const problem = el("p", { class: "error", role: "alert" });
  const show = button("QR code", async () => {
    const isShown = show.getAttribute("aria-expanded") === "true";
    show.setAttribute("aria-expanded", String(!isShown));
    if (isShown) return code.replaceChildren();
    const source = await qrCode(name, token);
    if (source === null) return say(problem, "The QR code cannot be had now.");
    const picture = el("img", { src: source, alt: `QR code of: ${label}`, width: "280", height: "280" });
    picture.addEventListener("load", () => URL.revokeObjectURL(source));
    return code.replaceChildren(picture);
  });
  show.setAttribute("aria-expanded", "false");
  const actions = el("div", { class: "row" }, show);
  const element = el("li", { class: "link" }, field.element, actions, problem, code);
  if (revoke) {
    const end = button("Revoke", async () => {
      const answer = await call("DELETE", `${sessionPath(name)}/token`, { token: revoke.by, body: { token } });
      if (!answer.ok && answer.error !== "NOT_FOUND") return say(problem, failure(answer));
      announce(`${label}: revoked.`);
      return element.replaceChildren(el("p", {}, `${label}: revoked. Whoever was connected with it is not any more.`));
    }, "quiet");
    actions.append(end);
  }
  if (showsCode) show.click();
  return element;
}
