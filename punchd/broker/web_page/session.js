// The page of a session: whose token it is decides what is shown.

import { el, say } from "./dom.js";
import { showPeer } from "./peer.js";
import { showProducer } from "./producer.js";
import { read, take } from "./token.js";
import { REFUSED } from "./words.js";

const name = decodeURIComponent(location.pathname.split("/")[2]);
const view = document.getElementById("view");

function begin() {
  const token = take(name, location, history, sessionStorage);
  const said = read(token);
  say(document.getElementById("title"), `Session ${name}`);
  document.title = `${name} – Punch broker`;
  if (token === null) {
    view.append(
      el("p", { class: "notice" }, "This address is without its key. Ask the producer for the whole link; it goes on after “#”."),
      el("p", {}, el("a", { href: "/" }, "Create a session of your own")),
    );
  } else if (said === null || said.session !== name) view.append(el("p", { class: "notice" }, REFUSED));
  else if (said.role === "admin") showProducer(view, name, token);
  else showPeer(view, name, token, said.stream);
}

// Another link of the same session, pasted into this window, changes the fragment only.
addEventListener("hashchange", () => location.hash.startsWith("#t=") && location.reload());
begin();
