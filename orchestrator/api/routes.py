"""Which endpoint a request is for: looked up by method and first word, not tried one by one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from re import Pattern
from typing import Any

from starlette.convertors import Convertor, UUIDConvertor
from starlette.routing import compile_path

from ..errors import RouteNotFound
from ..wire import Endpoint

Found = tuple[Endpoint, dict[str, str]]


class Table:
    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._fixed: dict[tuple[str, str], Endpoint] = {}
        self._open: dict[tuple[str, str], list[tuple[Pattern[str], dict[str, Any], Endpoint]]]
        self._open = defaultdict(list)
        for endpoint in endpoints:
            if "{" in endpoint.path:
                pattern, _, kinds = compile_path(endpoint.path)
                place = endpoint.method, _first_word(endpoint.path)
                self._open[place].append((pattern, kinds, endpoint))
            else:
                self._fixed[endpoint.method, endpoint.path] = endpoint

    def find(self, method: str, path: str) -> Found | None:
        """The endpoint and the values in its path."""
        if endpoint := self._fixed.get((method, path)):
            return endpoint, {}
        for pattern, kinds, endpoint in self._open.get((method, _first_word(path)), ()):
            if match := pattern.match(path):
                said = match.groupdict()
                return endpoint, {name: _plain(kinds[name], said[name]) for name in said}
        return None


def _plain(kind: Convertor[Any], said: str) -> str:
    """As a value is always written. A UUID with its dashes only needs small letters."""
    if isinstance(kind, UUIDConvertor) and len(said) == 36:
        return said.lower()
    return str(kind.convert(said))


def _first_word(path: str) -> str:
    return path[1:].partition("/")[0]


@cache
def template_of(path: str) -> str:
    """As metrics and traces name a route: without the kinds of its values."""
    return re.sub(r":\w+}", "}", path)


def refuse_nul(path: str, values: dict[str, str]) -> None:
    if any("\0" in value for value in values.values()):
        raise RouteNotFound(f"There is nothing at {path!r}")
