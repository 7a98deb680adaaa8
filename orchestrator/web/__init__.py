"""Pages: the document, the interactive page and the reference, each made once.

Nothing here asks another host, and no page carries inline script or style.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import swagger_ui_bundle  # type: ignore[import-untyped]
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from . import reference, typeset

HERE = Path(__file__).parent
BUNDLE = Path(swagger_ui_bundle.swagger_ui_path)
ASSETS = f"/docs/assets/{BUNDLE.name}"

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}

LOCKED = "; ".join(
    f"{kind} 'none'" for kind in ("default-src", "frame-ancestors", "base-uri", "form-action")
)
CSP = {
    "/docs": f"{LOCKED}; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'",
    "/redoc": f"{LOCKED}; style-src 'self'; img-src 'self'",
}
"""What each page may load. Everything else that is served here may load nothing."""

FRESH = "no-cache"  # may be kept, and is asked for again by its ETag
FOREVER = "public, max-age=31536000, immutable"  # the version is in the URL

GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))")


class Copy(msgspec.Struct, frozen=True):
    """A file's bytes as they travel."""

    body: bytes
    headers: dict[str, str]


class File:
    """Bytes that stay the same while the process lives, made when they are first asked for."""

    def __init__(
        self, make: Callable[[], bytes], kind: str, cache: str = FRESH, csp: str = LOCKED
    ) -> None:
        self.make = make
        self.kind = TYPES[kind]
        self.headers = {
            "Cache-Control": cache,
            "Content-Security-Policy": csp,
            "Vary": "Accept-Encoding",
        }

    async def answer(self, request: Request) -> Response:
        packed = bool(GZIP.search(request.headers.get("accept-encoding", "")))
        copy = await run_in_threadpool(lambda: self.packed if packed else self.plain)
        if _knows(request, copy.headers["ETag"]):
            return Response(status_code=304, headers=copy.headers)
        return Response(copy.body, media_type=self.kind, headers=copy.headers)

    @cached_property
    def plain(self) -> Copy:
        body = self.make()
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        return Copy(body, self.headers | {"ETag": tag})

    @cached_property
    def packed(self) -> Copy:
        headers = self.plain.headers | {
            "ETag": self.plain.headers["ETag"][:-1] + '-gzip"',
            "Content-Encoding": "gzip",
        }
        return Copy(gzip.compress(self.plain.body, mtime=0), headers)


def _knows(request: Request, tag: str) -> bool:
    tags = request.headers.get("if-none-match", "").split(",")
    return any(one.strip().removeprefix("W/") in ("*", tag) for one in tags)


def routes(document: dict[str, Any]) -> list[BaseRoute]:
    """One route for each file that exists, so that no path can name another."""
    found = _pages(document) | _files()
    return [
        *(Route(path, file.answer, name=path) for path, file in found.items()),
        Route("/favicon.ico", _nothing, name="/favicon.ico"),
    ]


async def _nothing(request: Request) -> Response:
    """Every page links its icon; this is for who asks without reading one."""
    return Response(status_code=204, headers={"Cache-Control": FRESH})


def _pages(document: dict[str, Any]) -> dict[str, File]:
    def docs() -> bytes:
        return _render("docs.html", info=document["info"], assets=ASSETS)

    def redoc() -> bytes:
        return _render("reference.html", **reference.read(document))

    return {
        "/openapi.json": File(lambda: msgspec.json.encode(document), ".json"),
        "/docs": File(docs, ".html", csp=CSP["/docs"]),
        "/redoc": File(redoc, ".html", csp=CSP["/redoc"]),
    }


def _files() -> dict[str, File]:
    ours = ("pages.css", "docs.js", "icon.svg")
    theirs = ("swagger-ui.css", "swagger-ui-bundle.js")
    return {f"/web/{name}": _file(HERE / name, FRESH) for name in ours} | {
        f"{ASSETS}/{name}": _file(BUNDLE / name, FOREVER) for name in theirs
    }


def _file(path: Path, cache: str) -> File:
    return File(path.read_bytes, path.suffix, cache)


def _render(template: str, **values: Any) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "prose": typeset.prose,
        "inline": typeset.inline,
        "highlight": typeset.highlight,
    }
    return environment.get_template(template).render(values).encode()
