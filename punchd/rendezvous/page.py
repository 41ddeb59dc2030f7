"""The page that a person sees who opens the server's address in a browser. No scripts, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import re

from punchd import __version__
from punchd.web.messages import Request, Response

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:42rem;margin:3rem auto;padding:0 1rem}"
    "body{color:#222;background:#fff}"
    "code,pre{font:14px/1.5 ui-monospace,monospace;background:#f3f3f3;border-radius:4px}"
    "code{padding:.1em .3em}pre{padding:.8rem 1rem;overflow-x:auto}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}code,pre{background:#2a2a2a}a{color:#9cf}}"
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>punchd rendezvous server</title>
<style>{style}</style>
</head>
<body>
<h1>punchd rendezvous server</h1>
<p>Two programs behind NATs find each other here, and then talk directly: nothing that they say to each other passes
this server. It knows where its clients are, and carries short signals between them.</p>
<p><strong>{online}</strong> online now.</p>
<h2>With the tool</h2>
<pre>punch listen  --rendezvous {url}
punch connect --rendezvous {url} ADDRESS</pre>
<p>ADDRESS is what <code>punch listen</code> printed.</p>
<h2>By hand</h2>
<pre>curl -X POST {url}/register
# each 30 s: the 32 bytes of private_id in a UDP datagram to port 5024
curl -H "Authorization: Bearer PRIVATE_ID" {url}/peer/CLIENT_ID/udp</pre>
<p>A client's id is the permission to look it up: hand it only to those who may. <code>GET /health</code> says whether
the server works. Version {version}.</p>
</body>
</html>
"""


def response(online: int, request: Request) -> Response:
    """The page. The server's own name is what the browser called it."""
    host = request.headers.get("host", "")
    scheme = "https" if request.is_tls else "http"
    url = f"{scheme}://{host}" if _HOST.fullmatch(host) else f"{scheme}://THIS-SERVER:5025"
    text = _PAGE.format(
        style=_STYLE,
        online=f"{online:,} client{'' if online == 1 else 's'}",
        url=html.escape(url),
        version=html.escape(__version__),
    )
    return Response(200, _HEADERS, text.encode())
