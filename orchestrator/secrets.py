"""Secrets: names in what is stored and shown, values only while a tool is called.

`${secrets.NAME}` in the arguments of a tool renders as a placeholder that only this run knows, so
no data can name a secret. Right before the call the placeholders become values; whatever comes back
(results, errors, lines) is searched for them, and `[secret NAME]` stands in their place: as they
are, escaped as in JSON, URLs, HTML and reprs, in hex, and in base64 at any offset (Basic auth).

A value is looked up for each call: in the table of the tenant (`orc secret set NAME`), then in the
folder ORC_SECRETS_PATH, then in the environment. Folder and environment are the operator's, and are
for the tenants that ORC_SECRETS_TENANTS names.
"""

from __future__ import annotations

import asyncio
import base64
import html
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import quote, quote_plus
from weakref import WeakKeyDictionary

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from . import db, telemetry
from .config import Config

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
PLACEHOLDER = re.compile(r"\[secret ([A-Za-z0-9_-]+):[0-9a-f]{24}\]")
SHORTEST = 4
LARGEST = 65_536
"""Characters of a value. What is shorter can't be told from other text."""

MOST_REMEMBERED = 200
NONCE_BYTES = 12


class Missing(Exception):
    """A secret can't be had. The message names it, and never says what it is."""


# Masks

_changing = threading.Lock()
"""Threads of functions write to the log, too, and what is revealed meanwhile must not be missed."""


class Masks:
    """What must not be seen, and what stands in its place."""

    def __init__(self) -> None:
        self.names: OrderedDict[str, str] = OrderedDict()  # by value
        self._marks: dict[str, str] | None = None
        self._needles: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.names)

    def add(self, name: str, value: str) -> None:
        with _changing:
            if value in self.names:
                self.names.move_to_end(value)
                return
            self.names[value] = name
            while len(self.names) > MOST_REMEMBERED:
                self.names.popitem(last=False)
            self._marks = None

    @property
    def marks(self) -> dict[str, str]:
        """What stands in the place of each form, the longest first."""
        if (marks := self._marks) is not None:
            return marks
        with _changing:
            found = {form: f"[secret {n}]" for v, n in self.names.items() for form in forms(v)}
            marks = {form: found[form] for form in sorted(found, key=len, reverse=True)}
            self._needles = sorted({escaped(form) for form in found} | found.keys())
            self._marks = marks
            return marks

    @property
    def needles(self) -> list[str]:
        """The forms, and how they look in JSON."""
        return self._needles if self.marks else []

    def text(self, text: str) -> str:
        marks = self.marks
        found = [form for form in marks if form in text]
        if not found:
            return text
        pattern = "|".join([r"\[secret [\w-]{1,64}\]", *map(re.escape, found)])
        return re.sub(pattern, lambda hit: marks.get(hit[0], hit[0]), text)

    def value(self, value: Any) -> Any:
        """The same value, or a copy of it without what must not be seen."""
        if not self.names:
            return value
        try:
            text = msgspec.json.encode(value).decode()
        except Exception:  # whoever keeps it will say what is wrong
            return self._copy(value)
        return self._copy(value) if any(needle in text for needle in self.needles) else value

    def _copy(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self._copy(key): self._copy(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._copy(item) for item in value]
        if isinstance(value, bytes | bytearray | memoryview):
            return self.text(base64.b64encode(value).decode())
        if value is None or isinstance(value, bool):
            return value
        shown = self.text(str(value))
        return value if shown == str(value) else shown


def escaped(text: str) -> str:
    return msgspec.json.encode(text).decode()[1:-1]


@lru_cache(maxsize=1000)
def forms(value: str) -> frozenset[str]:
    """How a value may look when it comes back. A placeholder has less to hide."""
    if PLACEHOLDER.fullmatch(value):
        return frozenset({value, quote(value), quote_plus(value), quote(value, safe="")})
    data = value.encode(errors="surrogatepass")
    found = {value, value.strip(), html.escape(value), repr(value)[1:-1], repr(data)[2:-1]}
    found |= {escaped(value), escaped(escaped(value)), json.dumps(value)[1:-1]}
    found |= {escaped(value).replace("/", "\\/"), json.dumps(json.dumps(value)[1:-1])[1:-1]}
    for text in (quote(data, safe=""), quote(data), quote_plus(data)):
        found |= {text, re.sub("%[0-9A-F]{2}", lambda hit: hit[0].lower(), text), quote(text)}
    found |= {data.hex(), data.hex().upper()}
    found |= {line.strip() for line in value.splitlines() if len(line.strip()) >= 16}
    for offset in range(3):
        for encoded in _inside_base64(data, offset):
            found |= {encoded, quote(encoded, safe=""), encoded.replace("/", "\\/")}
    return frozenset(form for form in found if len(form) >= SHORTEST)


def _inside_base64(data: bytes, offset: int) -> Iterator[str]:
    """What base64 makes of it, that many bytes after a multiple of three: the characters that it
    decides alone, and all of them when nothing stands around it."""
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(b"\0" * offset + data).decode()
        start = -(-offset * 8 // 6)
        end = (offset + len(data)) * 8 // 6
        if end - start >= SHORTEST:
            yield text[start:end]
        if not offset:
            yield text
            yield text.rstrip("=")
        else:
            yield text[start:]


hidden = Masks()
"""Everything that this process has revealed lately: no line of its log shows it."""

telemetry.also_mask(hidden.text)


# A run's secrets


class Vault:
    """The secrets that a pipeline names, for one run. What was revealed stays hidden."""

    def __init__(self, config: Config, tenant: str, names: Iterable[str]) -> None:
        self.config = config
        self.tenant = tenant
        self.nonce = token_hex(12)
        self.placeholders = {name: f"[secret {name}:{self.nonce}]" for name in sorted(names)}
        self.pattern = re.compile(rf"\[secret ([A-Za-z0-9_-]+):{self.nonce}\]")
        self.masks = Masks()
        for name, placeholder in self.placeholders.items():
            self.masks.add(name, placeholder)

    async def reveal(self, arguments: Any) -> Any:
        """The arguments with values in them. All that the run may name is looked up, because what
        an earlier call has given away, before a crash perhaps, may come back from this one."""
        wanted = {name for text in _texts(arguments) for name in self.pattern.findall(text)}
        values = await look_up(self.config, self.tenant, list(self.placeholders), wanted)
        for name, value in values.items():
            self.masks.add(name, value)
            hidden.add(name, value)
        return self._filled(arguments, values) if wanted else arguments

    def _filled(self, value: Any, values: Mapping[str, str]) -> Any:
        if isinstance(value, str):
            return self.pattern.sub(lambda found: values[found[1]], value)
        if isinstance(value, dict):
            return {key: self._filled(item, values) for key, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item, values) for item in value]
        return value

    def shown(self, arguments: Any) -> Any:
        """The arguments as they may be stored: `${secrets.NAME}` again."""
        return self._filled(arguments, {name: f"${{secrets.{name}}}" for name in self.placeholders})


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


# Where they are


async def look_up(
    config: Config, tenant: str, names: list[str], wanted: Iterable[str]
) -> dict[str, str]:
    """The values that there are; `Missing` when there's none of one that is wanted."""
    rows = await _rows(config, tenant, names) if config.secrets_key else {}
    found: dict[str, str] = {}
    problems: dict[str, str] = {}
    for name in names:
        try:
            value = (
                opened(config, rows[name]) if name in rows else _of_operator(config, tenant, name)
            )
            if value is None:
                raise Missing("is neither in the table of its tenant, nor given by the operator")
            found[name] = _usable(value)
        except Missing as error:
            problems[name] = str(error)
    for name in sorted(set(wanted) & problems.keys()):
        raise Missing(f"secret {name} {problems[name]}")
    return found


def _usable(value: str) -> str:
    if not SHORTEST <= len(value) <= LARGEST:
        raise Missing(f"has {len(value)} characters; {SHORTEST} to {LARGEST:,} are allowed")
    if "\0" in value:
        raise Missing("has a NUL character")
    return value


def _of_operator(config: Config, tenant: str, name: str) -> str | None:
    if tenant not in config.secrets_tenants:
        return None
    if config.secrets_path is not None:
        value = _of_file(config.secrets_path, name)
        if value is not None:
            return value
    return config.secrets.get(name)


def _of_file(folder: Path, name: str) -> str | None:
    """One file a secret, as containers mount them. One end of line belongs to the file."""
    if not NAME.fullmatch(name):
        return None
    try:
        with (folder / name).open("rb") as file:
            data = file.read(4 * LARGEST + 1)
        return data.decode().removesuffix("\n").removesuffix("\r")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise Missing("isn't UTF-8 text") from None
    except OSError as error:
        raise Missing(f"can't be read from its file: {os.strerror(error.errno or 0)}") from None


# The table


def sealed(config: Config, tenant: str, name: str, value: str) -> dict[str, Any]:
    """What the table takes: encrypted by the first key, bound to its tenant and name."""
    if not NAME.fullmatch(name):
        raise Missing("a name has letters, digits, _ and -, and begins with a letter or _")
    if not config.secrets_key:
        raise Missing("can't be encrypted: set ORC_SECRETS_KEY")
    (key_id, key), nonce = next(iter(config.secrets_key.items())), os.urandom(NONCE_BYTES)
    data = AESGCM(key).encrypt(nonce, _usable(value).encode(), _bond(tenant, name))
    return {"tenant": tenant, "name": name, "key_id": key_id, "nonce": nonce, "ciphertext": data}


def opened(config: Config, row: db.Row) -> str:
    key = config.secrets_key.get(row["key_id"])
    if key is None:
        raise Missing(f"is encrypted by key {row['key_id']}, which ORC_SECRETS_KEY doesn't have")
    try:
        bond = _bond(row["tenant_id"], row["name"])
        return AESGCM(key).decrypt(row["nonce"], row["ciphertext"], bond).decode()
    except (InvalidTag, ValueError):
        raise Missing(f"can't be decrypted by key {row['key_id']}: set it again") from None


def _bond(tenant: str, name: str) -> bytes:
    return json.dumps(["orchestrator.secret", tenant, name]).encode()


_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, db.Pool]] = WeakKeyDictionary()


async def _rows(config: Config, tenant: str, names: list[str]) -> dict[str, db.Row]:
    pools = _pools.setdefault(asyncio.get_running_loop(), {})
    if config.database_url not in pools:
        few = msgspec.structs.replace(config, pool_size=min(4, config.pool_size))
        pool = db.Pool(few, role="orc_worker", application="orchestrator secrets")
        pools[config.database_url] = pool
        await pool.open()
    wanted = [{"tenant": tenant, "name": name} for name in names]
    rows = await pools[config.database_url].call("secrets_of", wanted=wanted)
    return {row["name"]: row for row in rows}


async def close() -> None:
    for pool in _pools.pop(asyncio.get_running_loop(), {}).values():
        await pool.close()
