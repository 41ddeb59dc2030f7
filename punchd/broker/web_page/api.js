// Requests to the server. Tokens travel in Authorization; the WebSocket alone has its token in the query (line.js),
// because a browser lets a page set no fields there.

let ahead_ms = 0; // of the server's clock; its Date has seconds only, so small differences mean nothing

/** The time by the server's clock, Unix ms. */
export const now = () => Date.now() + ahead_ms;

export const sessionPath = (name) => `/api/session/${encodeURIComponent(name)}`;

/** {ok: true, status, data} or {ok: false, status, error, message, retryAfter}; status 0 is no answer. */
export async function call(method, path, { token = null, body = null } = {}) {
  const headers = {};
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  let answer, text;
  try {
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store" });
    text = await answer.text();
  } catch {
    return { ok: false, status: 0 };
  }
  learnTime(answer.headers.get("Date"));
  const data = parsed(text);
  if (answer.ok) return { ok: true, status: answer.status, data };
  const { error, message } = data ?? {};
  return { ok: false, status: answer.status, error, message, retryAfter: Number(answer.headers.get("Retry-After")) };
}

/** The QR code of a session's page, as an image; of `token`'s link. Null if it cannot be had. */
export async function qrCode(name, token) {
  try {
    const answer = await fetch(`/s/${encodeURIComponent(name)}/qr`, { headers: { Authorization: `Bearer ${token}` } });
    return answer.ok ? URL.createObjectURL(await answer.blob()) : null;
  } catch {
    return null;
  }
}

function learnTime(date) {
  const difference = Date.parse(date) - Date.now();
  if (!Number.isNaN(difference)) ahead_ms = Math.abs(difference) > 2000 ? difference : 0;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
