// The page that creates a session.

import { call } from "./api.js";
import { announce, el, say } from "./dom.js";
import { creation, field } from "./fields.js";
import { key } from "./token.js";
import { failure } from "./words.js";

const TURNSTILE = "https://challenges.cloudflare.com/turnstile/v0/api.js?render=explicit";
const FIELDS = ["name", "streams", "latency", "ttl"];

const form = document.getElementById("create");
const submit = form.querySelector("[type=submit]");
const captcha = { widget: null, token: null };

function complain(errors, other = "") {
  for (const name of FIELDS) {
    say(document.getElementById(`${name}-error`), errors[name] ?? "");
    form.elements[name].setAttribute("aria-invalid", String(name in errors));
  }
  say(document.getElementById("form-error"), other);
  const first = FIELDS.find((name) => name in errors);
  if (first) {
    form.elements[first].focus();
    announce(errors[first]);
  }
}

async function create() {
  const { name, streams, latency, ttl } = form.elements;
  const typed = { name: name.value, streams: streams.value, latency: latency.value, minutes: ttl.value };
  const { body, errors } = creation(typed);
  complain(errors);
  if (Object.keys(errors).length) return;
  if (captcha.widget !== null) {
    if (!captcha.token) return complain({}, "Expected the captcha to be passed first.");
    body.turnstileToken = captcha.token;
  }
  submit.disabled = true;
  announce("Creating the session.");
  const answer = await call("POST", "/api/session", { body });
  submit.disabled = false;
  if (answer.ok) return show(answer.data);
  if (captcha.widget !== null) {
    captcha.token = null; // good for one request
    globalThis.turnstile.reset(captcha.widget);
  }
  const about = field(answer);
  complain(about ? { [about]: failure(answer) } : {}, about ? "" : failure(answer));
}

/** The tokens go to the next document by this tab's storage; the peers' are taken out of it there. */
function show({ session, token, url, peerTokens }) {
  sessionStorage.setItem(key(session), token);
  sessionStorage.setItem(`${key(session)}:new`, JSON.stringify({ url, peerTokens }));
  location.assign(`/s/${encodeURIComponent(session)}`);
}

function ask(sitekey) {
  const place = document.getElementById("captcha");
  const script = el("script", { src: TURNSTILE });
  script.addEventListener("load", () => {
    captcha.widget = globalThis.turnstile.render(place, {
      sitekey,
      callback: (token) => (captcha.token = token),
      "expired-callback": () => (captcha.token = null),
    });
  });
  script.addEventListener("error", () => {
    say(document.getElementById("form-error"), "The captcha cannot be loaded, and without it the server creates no session.");
  });
  document.head.append(script);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  create();
});
const sitekey = document.body.dataset.captcha;
if (sitekey === "missing") {
  submit.disabled = true;
  const words = "This server wants a captcha, and its operator gave this page none to show. Sessions are created with the API.";
  say(document.getElementById("form-error"), words);
} else if (sitekey) ask(sitekey);
