// What a token says, and where the page keeps its own: in this tab's sessionStorage, and nowhere else.
// Pure but for `take`, which is given what it works on. Whether a token is genuine, only the server knows.

const TOKEN = /^p_([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+$/;

/** {session, role: "admin"|"peer", stream: string|null, exp: seconds}; null if it is no token. */
export function read(token) {
  const parts = TOKEN.exec(token ?? "");
  if (!parts) return null;
  try {
    const bytes = Uint8Array.from(atob(parts[1].replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    const said = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    const isRight = ["admin", "peer"].includes(said?.role) && typeof said.session === "string";
    return isRight ? said : null;
  } catch {
    return null;
  }
}

/** The token in an address: after "#", where no browser sends it, or in the query. */
export function inAddress(hash, search) {
  return new URLSearchParams(hash.replace(/^#/, "")).get("t") ?? new URLSearchParams(search).get("t");
}

export const key = (session) => `punch:${session}`;

/** The page's token: out of the address bar and into `storage`, or from there. */
export function take(session, location, history, storage) {
  const given = inAddress(location.hash, location.search);
  if (location.hash || location.search) history.replaceState(null, "", location.pathname);
  if (given) storage.setItem(key(session), given);
  return given ?? storage.getItem(key(session));
}

/** A link that has a token, as it is handed out. */
export const link = (url, token) => `${url.split(/[?#]/)[0]}#t=${token}`;
