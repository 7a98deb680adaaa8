"""The only reader of the environment.

Names that other software set for years are accepted as they are; our own start with `ORC_`,
and an unknown one of those is an error, because a typo in a setting must not be a silent default.
"""

from __future__ import annotations

import base64
import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import limits
import msgspec

from .errors import Misconfigured


def _root() -> Path:
    """The checkout, or for an installed package the folder that one stands in."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "Procfile").exists() else Path.cwd()


ROOT = _root()


def _database_url(text: str) -> str:
    """Drops a driver suffix: `postgresql+asyncpg://` is `postgresql://`."""
    return re.sub(r"^postgres(?:ql)?(?:\+\w+)?://", "postgresql://", text)


def _names(text: str) -> tuple[str, ...]:
    """A JSON list or comma-separated words."""
    if text.lstrip().startswith("["):
        return msgspec.json.decode(text, type=tuple[str, ...])
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _flag(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError("is neither on nor off")


def _positive(text: str) -> float:
    if (number := float(text)) <= 0:
        raise ValueError("must be more than 0")
    return number


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError("must be 1 or more")
    return number


MOST_VALUE = 67_108_864
"""Bytes of a value: Postgres holds more, but one exchange has to carry it within its timeout."""


def _value_limit(text: str) -> int:
    if not 65_536 <= (number := int(text)) <= MOST_VALUE:
        raise ValueError(f"must be 65,536 to {MOST_VALUE:,} bytes")
    return number


class Hidden(dict[str, Any]):
    """A mapping that doesn't show what it holds, and never changes."""

    def __repr__(self) -> str:
        return f"<{', '.join(self)}>"

    __str__ = __repr__

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


def _keys(text: str) -> Hidden:
    """`id:base64,id:base64`, each of 32 bytes; the first one encrypts."""
    keys = Hidden()
    for word in _names(text):
        id, _, encoded = word.partition(":")
        try:
            key = base64.b64decode(encoded, validate=True)
        except ValueError:
            key = b""
        if not id or id in keys or len(key) != 32:
            raise ValueError("must be id:base64 of 32 bytes, more of them after commas")
        keys[id] = key
    return keys


def _port(text: str) -> int:
    if not 0 <= (port := int(text)) <= 65535:
        raise ValueError("is not a port (0 to 65535)")
    return port


def _rate(text: str) -> str:
    """`100/minute`, or `none`."""
    if text.lower() == "none":
        return "none"
    try:
        limits.parse(text)
    except ValueError:
        raise ValueError("must be a rate such as 100/minute, or none") from None
    return text


def _choice(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text.lower()

    return read


def _algorithm(text: str) -> str:
    known = {"hs256": "HS256", "eddsa": "EdDSA"}
    if text.lower() not in known:
        raise ValueError("must be HS256 or EdDSA")
    return known[text.lower()]


TARGET = re.compile(
    r"(\*\.)?[\w-]+(\.[\w-]+)*\.?(:\d{1,5})?|\[[\da-fA-F:.]+\](:\d{1,5})?", re.ASCII
)


def _targets(text: str) -> tuple[str, ...]:
    """Names, addresses and networks, each as an operator writes it."""
    for target in (targets := _names(text)):
        try:
            ipaddress.ip_network(target)
        except ValueError:
            if not TARGET.fullmatch(target):
                shapes = "host, host:port, *.example.com or 10.0.0.0/8"
                raise ValueError(f"has {target!r}, which is none of {shapes}") from None
    return targets


def _attributes(text: str) -> Hidden:
    """`name=value,name=value`, as OpenTelemetry writes what a process is."""
    pairs = [word.partition("=") for word in _names(text)]
    if not all(name.strip() and is_pair for name, is_pair, _ in pairs):
        raise ValueError("must be name=value, more of them after commas")
    return Hidden((name.strip(), unquote(value.strip())) for name, _, value in pairs)


def _url(*schemes: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        try:
            parts = urlsplit(text)
            is_fine = parts.scheme in schemes and parts.hostname and parts.port != 0
        except ValueError:  # its words may be a part of a password
            is_fine = False
        if not is_fine:
            raise ValueError(f"must be a URL such as {schemes[0]}://host:port")
        return text

    return read


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment says, checked. The field comments are the manual."""

    database_url: str = ""  # empty: the embedded server of this folder, when it runs
    database_pooler: bool = (
        False  # behind PgBouncer in transaction mode: no roles, no settings, no LISTEN
    )
    database_timeout: float = 5.0  # seconds that a call may take on the server
    pool_size: int = 10
    redis_url: str = ""
    app_name: str = "Orchestrator"
    app_env: str = "production"  # development lets the system agent's id work as a key, on loopback
    api_host: str = "127.0.0.1"
    port: int = 8080
    api_url: str = ""  # where the command line asks; empty: where it logged in, or this machine
    api_key: str = ""  # the key that it shows there; empty: what `orc login` keeps
    cors_origins: tuple[str, ...] = ("http://localhost:3000",)
    body_limit: int = 1_048_576  # bytes of a request's body
    body_timeout: float = 10.0  # seconds for a request's head, and again for its body
    connection_limit: int = 1000
    stream_limit: int = 50  # server-sent streams of one principal in one process
    data: Path = ROOT / ".data"  # the embedded server, pid files and logs
    python_modules: tuple[str, ...] = ()  # modules whose functions python.call may call
    allow_targets: tuple[str, ...] = ()  # places that steps may call although they aren't public
    llm_url: str = ""  # an OpenAI-compatible server, with or without /v1
    llm_key: str = ""  # sent to that server only
    sql_url: str = (
        ""  # a login for what users write, see steps/sql_query.py; empty: sql.query is off
    )
    smtp_url: str = ""  # smtp://user:password@host:port?starttls, or smtps://
    shell_commands: tuple[str, ...] = ()  # programs that shell.run may run, as they are written
    mcp_servers_path: Path | None = None  # a file of MCP servers, in the format of MCP clients
    tool_catalog_path: Path | None = None
    value_limit: int = 16_777_216  # bytes of a step's value, and of a run's output
    secrets: Hidden = Hidden()  # by name: what ORC_SECRET_<NAME> says
    secrets_key: Hidden = Hidden()  # by id: the keys of the table of secrets, 32 bytes each
    secrets_path: Path | None = None  # a folder with one file a secret
    secrets_tenants: tuple[str, ...] = ("default",)  # whose runs are given the operator's secrets
    jwt_secret: str = ""  # signs tokens: 32 random bytes or more, or an Ed25519 key in PEM
    jwt_algorithm: str = "HS256"  # or EdDSA
    jwt_expire_minutes: int = 30
    rate_limit: str = ""  # of a caller; empty: 100/minute, and none in development
    log_level: str = "info"
    otlp_endpoint: str = ""  # where traces go, by OTLP over HTTP; empty: nowhere
    otel_attributes: Hidden = Hidden()  # what traces say of this process, by name
    otel_service_name: str = ""  # empty: orchestrator-api, orchestrator-worker
    log_format: str = "auto"  # json, console, or auto: json when the output is no terminal

    @property
    def development(self) -> bool:
        return self.app_env == "development"

    @property
    def limits_rates(self) -> bool:
        """As it is said; else a usual one, and in development none."""
        return self.rate_limit != "none" and bool(self.rate_limit or not self.development)


READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "DATABASE_URL": ("database_url", _database_url),
    "DB_DSN": ("database_url", _database_url),
    "REDIS_URL": ("redis_url", str),
    "RATE_LIMIT": ("rate_limit", _rate),
    "APP_NAME": ("app_name", str),
    "APP_ENV": ("app_env", str.lower),
    "API_HOST": ("api_host", str),
    "PORT": ("port", _port),
    "CORS_ORIGINS": ("cors_origins", _names),
    "JWT_SECRET": ("jwt_secret", str),
    "JWT_SECRET_KEY": ("jwt_secret", str),
    "JWT_ALGORITHM": ("jwt_algorithm", _algorithm),
    "JWT_EXPIRE_MINUTES": ("jwt_expire_minutes", _count),
    "LOG_LEVEL": ("log_level", _choice("debug", "info", "warning", "error")),
    "LOG_FORMAT": ("log_format", _choice("auto", "json", "console")),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("otlp_endpoint", _url("http", "https")),
    "OTEL_RESOURCE_ATTRIBUTES": ("otel_attributes", _attributes),
    "OTEL_SERVICE_NAME": ("otel_service_name", str),
    "ORCHESTRATOR_KEY": ("api_key", str),
    "ORCHESTRATOR_URL": ("api_url", _url("https", "http")),
    "ORC_ALLOW_TARGETS": ("allow_targets", _targets),
    "MCP_SERVERS_PATH": ("mcp_servers_path", lambda text: ROOT / text),
    "TOOL_CATALOG_PATH": ("tool_catalog_path", lambda text: ROOT / text),
    "ORC_BODY_LIMIT": ("body_limit", _count),
    "ORC_BODY_TIMEOUT": ("body_timeout", _positive),
    "ORC_CONNECTION_LIMIT": ("connection_limit", _count),
    "ORC_DATA": ("data", lambda text: ROOT / text),
    "ORC_DATABASE_POOLER": ("database_pooler", _flag),
    "ORC_DATABASE_TIMEOUT": ("database_timeout", _positive),
    "ORC_LLM_KEY": ("llm_key", str),
    "ORC_LLM_URL": ("llm_url", _url("https", "http")),
    "ORC_PYTHON_MODULES": ("python_modules", _names),
    "ORC_POOL_SIZE": ("pool_size", _count),
    "ORC_SECRETS_KEY": ("secrets_key", _keys),
    "ORC_SECRETS_PATH": ("secrets_path", Path),
    "ORC_SECRETS_TENANTS": ("secrets_tenants", _names),
    "ORC_SQL_URL": ("sql_url", _database_url),
    "ORC_SMTP_URL": ("smtp_url", _url("smtp", "smtps")),
    "ORC_SHELL_COMMANDS": ("shell_commands", _names),
    "ORC_STREAM_LIMIT": ("stream_limit", _count),
    "ORC_VALUE_LIMIT": ("value_limit", _value_limit),
}
"""Every name that is read, its field, and how. Where two name one field, the first wins."""

SECRET = {
    "JWT_SECRET",
    "JWT_SECRET_KEY",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "ORCHESTRATOR_URL",
    "ORC_LLM_URL",
    "ORC_SECRETS_KEY",
    "ORC_SMTP_URL",
    "ORC_SQL_URL",
}
"""Their values may hold passwords: a problem is told without them."""

SECRETS = "ORC_SECRET_"
"""What begins so is a secret of the operator. Its name is the rest."""

MEANT = {"ORC_SECRET_KEY", "ORC_SECRET_PATH", "ORC_SECRET_TENANTS"}
"""Settings with a letter missing: a key must not become a secret that pipelines can name."""

FOR_TESTS = {"ORC_TEST_PG"}


def load(environ: Mapping[str, str] | None = None) -> Config:
    """The configuration, or `Misconfigured` with every problem at once."""
    environ = os.environ if environ is None else environ
    problems = [_unknown(name) for name in environ if _is_unknown(name)]
    fields: dict[str, Any] = {}
    for name, (field, read) in READERS.items():
        if not environ.get(name) or field in fields:
            continue
        try:
            fields[field] = read(environ[name])
        except (ValueError, msgspec.MsgspecError) as error:
            given = name if name in SECRET else f"{name}={environ[name]!r}"
            problems.append(f"{given} {error}")
    if problems:
        raise Misconfigured("\n".join(problems))
    named = [name for name in environ if name.startswith(SECRETS)]
    secrets = Hidden((name.removeprefix(SECRETS), environ[name]) for name in named)
    return Config(secrets=secrets, **fields)


def bare_environment() -> dict[str, str]:
    """What a child process gets of ours: nothing that is a setting or a secret."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


def _is_unknown(name: str) -> bool:
    is_secret = name.startswith(SECRETS) and name != SECRETS and name not in MEANT
    known = is_secret or name in READERS or name in FOR_TESTS
    return name.startswith("ORC_") and not known


def _unknown(name: str) -> str:
    ours = [known for known in READERS if known.startswith("ORC_")]
    near = difflib.get_close_matches(name, ours, n=1)
    way_out = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(ours))}"
    return f"{name} is not a setting: {way_out}"
