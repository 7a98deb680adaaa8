"""One class for each SQLSTATE of ours, and for what goes wrong before a verb is reached.

Verbs raise `OR404` and its siblings; psycopg raises the class that claims the code.
A class knows its HTTP status, so nobody translates.
"""

from __future__ import annotations

from typing import Any, ClassVar

import psycopg
from psycopg import errors as pg


class Problem(Exception):
    """Something the caller can understand: what, which, and what to do next."""

    status: int = 500
    error: str = "internal"
    always: ClassVar[dict[str, str]] = {}  # headers of every answer of its kind

    def __init__(
        self,
        message: str,
        *,
        detail: Any = None,
        hint: str | None = None,
        headers: dict[str, str] | None = None,
        which: str | None = None,
        kind: type[Refused] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = message if detail is None else detail
        self.headers = {**self.always, **(headers or {})}
        given = {"hint": hint, "which": which}
        self.details = {name: text for name, text in given.items() if text}
        if kind is not None:
            self.status, self.error = kind.status, kind.error


class Malformed(Problem):
    status, error = 422, "malformed"


class BadRequest(Problem):
    status, error = 400, "bad_request"


class Unauthorized(Problem):
    status, error = 401, "unauthorized"


class NotAllowed(Problem):
    status, error = 403, "forbidden"


class MethodNotAllowed(Problem):
    status, error = 405, "method_not_allowed"


class RouteNotFound(Problem):
    status, error = 404, "not_found"


class Slow(Problem):
    status, error = 408, "request_timeout"


class Stale(Problem):
    """If-Match names a version that is no more."""

    status, error = 412, "stale"


class TooLarge(Problem):
    status, error = 413, "too_large"


class WrongContentType(Problem):
    status, error = 415, "unsupported_media_type"


class HeadersTooLarge(Problem):
    status, error = 431, "headers_too_large"


class Unavailable(Problem):
    """The database can't be reached, or did not answer in time."""

    status, error = 503, "unavailable"
    always: ClassVar[dict[str, str]] = {"Retry-After": "1"}


class Refused(psycopg.DatabaseError):
    """A verb said no. Message, detail and hint are the verb's own words."""

    status: int = 500
    error: str = "internal"


class NotFound(Refused, code="OR404"):
    status, error = 404, "not_found"


class Conflict(Refused, code="OR409"):
    status, error = 409, "conflict"


class Invalid(Refused, code="OR422"):
    status, error = 422, "invalid"


class Forbidden(Refused, code="OR403"):
    status, error = 403, "forbidden"


class TooMany(Refused, code="OR429"):
    status, error = 429, "too_many"


class Gone(Refused, code="OR410"):
    """A stale lease: whoever gets this drops its work."""

    status, error = 410, "gone"


class Misconfigured(Exception):
    """The environment is wrong. One line each, with the way out."""


class Unfit(Exception):
    """The server or its schema can't serve this program; the message says what to do."""


ROLLED_BACK = (
    pg.SerializationFailure,
    pg.DeadlockDetected,
    pg.LockNotAvailable,
)
"""The transaction left nothing behind: run it again."""

LOST = (
    pg.AdminShutdown,
    pg.CrashShutdown,
    pg.CannotConnectNow,
    pg.TooManyConnections,
    pg.ReadOnlySqlTransaction,
    pg.IdleInTransactionSessionTimeout,
)
"""The server went away, is coming up, or is no longer the primary: connect again."""


def is_rolled_back(error: BaseException) -> bool:
    return isinstance(error, ROLLED_BACK)


def is_lost(error: BaseException) -> bool:
    """Whether the connection is gone. psycopg says so by an OperationalError without a SQLSTATE."""
    if isinstance(error, LOST):
        return True
    if not isinstance(error, psycopg.OperationalError):
        return False
    return error.sqlstate is None or error.sqlstate.startswith("08")
