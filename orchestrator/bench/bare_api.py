"""The floor of the HTTP figures: Starlette and msgspec that echo JSON, served as the API is.

`python -m orchestrator.bench.bare_api PORT`
"""

from __future__ import annotations

import sys

import msgspec
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .. import httpd
from ..config import Config


async def echo(request: Request) -> Response:
    body = msgspec.json.decode(await request.body())
    return Response(msgspec.json.encode(body), media_type="application/json")


async def main(port: int) -> None:
    app = Starlette(routes=[Route("/", echo, methods=["POST"])])
    listener = httpd.bind("127.0.0.1", port)
    await httpd.server(app, Config(database_url=""), lambda: None).serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
