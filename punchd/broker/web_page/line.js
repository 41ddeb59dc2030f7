// The WebSocket of a session: says `punch.ping` so that it is not thought dead, and comes back when it breaks.
//
// A browser does not tell why an upgrade was refused. So before each try after the first the server is asked for the
// session by HTTP: is it gone, or the token no good, there is no coming back.

import { comesBack, delay } from "./backoff.js";

const PING_MS = 30_000;
const ANSWER_MS = 15_000; // a ping is answered at once: without an answer for so long nothing comes any more
const LOOK_MS = 5000;

export class Line {
  #socket = null;
  #timer = null;
  #pinger = null;
  #failures = 0;
  #isWanted = false;
  #heardAt = 0;

  /**
   * on: {open(), message(members), lost(ms until the next try), refused(failure), closed()}.
   * look: asks for the session by HTTP; gives what `call` gives.
   */
  constructor(name, token, on, look) {
    this.name = name;
    this.token = token;
    this.on = on;
    this.look = look;
    addEventListener("online", () => this.#timer && this.#again());
    addEventListener("offline", () => this.#isWanted && this.#socket && this.#drop());
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  open() {
    this.#isWanted = true;
    this.#failures = 0;
    this.#connect();
  }

  /** Go; nothing more is heard. */
  close() {
    this.#isWanted = false;
    clearTimeout(this.#timer);
    clearInterval(this.#pinger);
    this.#timer = null;
    this.#socket?.close(1000);
    this.#socket = null;
  }

  /** Whether it could be said. */
  send(members) {
    if (this.isOpen) this.#socket.send(JSON.stringify(members));
    return this.isOpen;
  }

  #connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const path = `/api/ws/${encodeURIComponent(this.name)}?t=${encodeURIComponent(this.token)}`;
    this.#socket?.close();
    const socket = new WebSocket(`${scheme}://${location.host}${path}`);
    this.#socket = socket;
    socket.onopen = () => {
      if (socket !== this.#socket) return;
      let pingedAt = (this.#heardAt = Date.now());
      clearInterval(this.#pinger);
      // Nobody sees the window: then timers fire once a minute, and the time without news means nothing by itself.
      this.#pinger = setInterval(() => {
        if (this.#heardAt < pingedAt && Date.now() - pingedAt > ANSWER_MS) this.#drop();
        else if (Date.now() - pingedAt >= PING_MS) {
          pingedAt = Date.now();
          socket.send("punch.ping");
        }
      }, LOOK_MS);
      this.on.open();
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.#socket) return;
      this.#heardAt = Date.now();
      this.#failures = 0;
      if (data !== "punch.pong") this.on.message(JSON.parse(data));
    };
    socket.onclose = ({ code }) => {
      if (socket !== this.#socket) return;
      clearInterval(this.#pinger);
      if (comesBack(code)) this.#wait();
      else {
        this.close();
        this.on.closed();
      }
    };
  }

  /** Give up a connection that does not know yet that it is broken. */
  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    clearInterval(this.#pinger);
    socket.close();
    this.#wait();
  }

  #wait() {
    const pause_ms = 1000 * delay(this.#failures++, Math.random());
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#again(), pause_ms);
    this.on.lost(pause_ms);
  }

  async #again() {
    clearTimeout(this.#timer);
    this.#timer = null;
    const found = await this.look();
    if (!this.#isWanted || this.isOpen) return;
    if (found.ok) this.#connect();
    else if ([401, 403, 404].includes(found.status)) {
      this.close();
      this.on.refused(found);
    } else this.#wait();
  }
}
