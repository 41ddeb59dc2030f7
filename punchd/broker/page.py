"""The web page: two documents, and the scripts, the style and the picture that they name.

A producer creates a session at `/`; `/s/NAME` is its page for producer and peers, whose token stands in the address's
fragment, which no browser sends. The files are read once, from `web_page/` of the package, and served as they are:
nothing is built, nothing comes from elsewhere. The policy lets a browser run no other script than these, none that
stands in the document, and turn no text into HTML. Only the page that creates sessions lets Turnstile in, and only
where it is configured; its rules are those of developers.cloudflare.com/turnstile/reference/content-security-policy.

Documents are not stored by anybody; files are, and asked for again by their ETag (RFC 9110 §8.8.3, §13.1.2).

Source: broker specification §6.2.8, C-40, C-56.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from importlib.resources import files

import segno

from punchd.broker.names import is_name
from punchd.broker.settings import Settings
from punchd.web.messages import Request, Response

HTML = "text/html; charset=utf-8"
KINDS: Mapping[str, str] = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_FOLDER = files("punchd.broker") / "web_page"
_TURNSTILE = "https://challenges.cloudflare.com"
_STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NO_HTML_FROM_TEXT = "; require-trusted-types-for 'script'; trusted-types 'none'"
_QR_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
_QR_BORDER = 4  # modules of white around it, ISO/IEC 18004


class WebPage:
    """The documents and files, ready to be sent."""

    def __init__(self, settings: Settings) -> None:
        captcha = settings.turnstile_site_key or "missing"
        policy = _STRICT + _NO_HTML_FROM_TEXT
        create = _text("create.html")
        if settings.turnstile_secret is None:
            self._create = _document(create, policy)
        else:
            told = create.replace('data-captcha=""', f'data-captcha="{captcha}"')
            self._create = _document(told, _with_turnstile())
        self._session = _document(_text("session.html"), policy)
        read = {one.name: one.read_bytes() for one in _FOLDER.iterdir() if _kind(one.name) in KINDS}
        self._files = {name: (body, f'"{hashlib.sha256(body).hexdigest()[:32]}"') for name, body in read.items()}

    def answer(self, request: Request, name: str) -> Response | None:
        """A document or a file; `name` is the session's or the file's. None if there is no such thing."""
        if request.path.startswith("/page/"):
            return self._file(name, request)
        if request.path.startswith("/s/"):
            return self._session if is_name(name) else None
        return self._create

    def _file(self, name: str, request: Request) -> Response | None:
        if name not in self._files:
            return None
        body, tag = self._files[name]
        fields = (("ETag", tag), ("Cache-Control", "no-cache"), ("Cross-Origin-Resource-Policy", "same-origin"))
        known = request.headers.get("if-none-match", "")
        if tag in (one.strip().removeprefix("W/") for one in known.split(",")):
            return Response(304, fields)
        return Response(200, (("Content-Type", KINDS[_kind(name)]), *fields), body)


def qr(text: str) -> Response:
    """A QR code, dark on light whatever the page's colours are, since many readers take no other."""
    drawn = io.BytesIO()
    segno.make(text, error="l", micro=False).save(
        drawn, kind="svg", border=_QR_BORDER, light="#fff", omitsize=True, xmldecl=False, svgclass=None, lineclass=None
    )
    fields = (
        ("Content-Type", KINDS["svg"]),
        ("Content-Security-Policy", _QR_POLICY),
        ("Cache-Control", "no-store"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
    )
    return Response(200, fields, drawn.getvalue())


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _with_turnstile() -> str:
    return _STRICT.replace("script-src 'self'", f"script-src 'self' {_TURNSTILE}; frame-src {_TURNSTILE}")


def _document(text: str, policy: str) -> Response:
    fields = (
        ("Content-Type", HTML),
        ("Content-Security-Policy", policy),
        ("Cache-Control", "no-store"),
        ("Referrer-Policy", "no-referrer"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
    )
    return Response(200, fields, text.encode())
