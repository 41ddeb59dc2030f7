// The producer's view: all streams, live.

import { call, now, sessionPath } from "./api.js";
import { confirmed } from "./confirm.js";
import { announce, button, copyable, el, newId, say } from "./dom.js";
import { head } from "./head.js";
import { Line } from "./line.js";
import { linkRow } from "./links.js";
import { gone, reduce, unknown, viewed } from "./state.js";
import { streamCard } from "./stream.js";
import { key, link, read } from "./token.js";
import { failure } from "./words.js";

const CODES_AT_ONCE = 4; // of new links; more are asked for one by one

export async function showProducer(view, name, token) {
  const top = head();
  const cards = new Map();
  const list = el("div", { class: "streams" });
  const links = peerLinks(name, token);
  const own = ownSession(name, token);
  let state = unknown();
  view.append(top.element, links.element, list, own);

  function show() {
    for (const stream of Object.keys(state.streams)) {
      if (cards.has(stream)) continue;
      const card = streamCard(name, token, stream, {
        tally: (light) => line.send({ type: "tally", stream, state: light }) || announce("Not sent: there is no connection to the server."),
        mint: () => mint(name, token, stream, links),
      });
      cards.set(stream, card);
      list.append(card.element);
    }
    for (const [stream, one] of Object.entries(state.streams)) cards.get(stream).show(one, now());
    top.show(state);
    if (state.ended) stop();
  }

  function stop() {
    line.close();
    links.element.remove();
    own.replaceWith(el("p", {}, el("a", { href: "/" }, "Create another session")));
    for (const card of cards.values()) card.stop();
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
    if (found.ok) {
      state = viewed(state, found.data);
      show();
    }
    return found;
  }

  const line = new Line(name, token, {
    open: () => top.back(),
    message(message) {
      if (message.type === "error") top.warn(`The server says: ${message.message}.`);
      state = reduce(state, message, now());
      show();
    },
    lost: (pause_ms) => top.lost(pause_ms),
    refused,
    closed: () => state.ended || top.stop("The server has ended this connection: the link was revoked."),
  }, look);

  setInterval(() => state.ended || cards.forEach((card, stream) => card.show(state.streams[stream], now())), 5000);
  const first = await look();
  if ([401, 403, 404].includes(first.status)) refused(first);
  else line.open();
}

/** The list of links; those of a new session are handed over by the page that created it, and shown until a reload. */
function peerLinks(name, token) {
  const rows = el("ul", { class: "links" });
  const hint = el("p", {}, "One link serves both peers of its stream. They stand here until this page is left or loaded again.");
  const element = el("section", { class: "card", hidden: true }, el("h2", {}, "Links for the peers"), hint, rows);
  const add = (stream, url, peer, showsCode) => {
    const label = `Link for ${stream}`;
    rows.append(linkRow({ name, url, token: peer, label, revoke: { by: token }, showsCode }));
    element.hidden = false;
  };
  const handed = JSON.parse(sessionStorage.getItem(`${key(name)}:new`) ?? "null");
  sessionStorage.removeItem(`${key(name)}:new`);
  if (handed) {
    const all = Object.entries(handed.peerTokens);
    for (const [stream, peer] of all) add(stream, handed.url, peer, all.length <= CODES_AT_ONCE);
  }
  return { element, add };
}

async function mint(name, token, stream, links) {
  const answer = await call("POST", `${sessionPath(name)}/token`, { token, body: { stream } });
  if (!answer.ok) return failure(answer);
  links.add(stream, answer.data.url, answer.data.token, true);
  announce(`A new link for ${stream} stands at the top.`);
  links.element.scrollIntoView({ block: "start" });
  return "";
}

function ownSession(name, token) {
  const problem = el("p", { class: "error", role: "alert" });
  const close = button("Close the session …", async () => {
    const words = "All peers are told, and their links become worthless. Streams that run go on.";
    if (!(await confirmed(`Close the session ${name}?`, words, "Close it"))) return;
    const answer = await call("DELETE", sessionPath(name), { token });
    say(problem, answer.ok ? "" : failure(answer));
  }, "danger");
  const own = copyable("Your own link", link(`${location.origin}/s/${encodeURIComponent(name)}`, token));
  return el(
    "section", { class: "card" },
    el("h2", {}, "This session"),
    el("p", {}, "This tab keeps your key until it is closed. To come back later, or from elsewhere, keep your own link."),
    el("details", {},
      el("summary", {}, "Your own link"),
      el("p", {}, "Whoever has it can do all that you can, and can decrypt the media. It is for no peer."),
      own.element),
    revocation(name, token),
    problem,
    el("p", {}, close),
  );
}

/** To make a link worthless that is not in the list any more. */
function revocation(name, token) {
  const id = newId("revoke");
  const box = el("input", { id, type: "text", autocomplete: "off", spellcheck: "false" });
  const problem = el("p", { class: "error", role: "alert" });
  const revoke = async () => {
    const [, peer] = /(?:^|[?#]t=)(p_[^&]+)$/.exec(box.value.trim()) ?? [];
    if (read(peer)?.role !== "peer") return say(problem, "Expected the whole link of a peer.");
    const answer = await call("DELETE", `${sessionPath(name)}/token`, { token, body: { token: peer } });
    say(problem, answer.ok ? "" : answer.error === "NOT_FOUND" ? "This link is worthless already." : failure(answer));
    if (answer.ok) {
      box.value = "";
      announce("The link is revoked.");
    }
    return undefined;
  };
  const row = el("div", { class: "row" }, box, button("Revoke", revoke));
  return el("div", { class: "copyable" }, el("label", { for: id }, "Revoke a peer's link"), row, problem);
}
