"""A process that has this folder on its path believes that it is so many seconds later."""

import datetime
import os
import time
from typing import Any

SKEW = float(os.environ.get("TEST_SKEW", "0"))
_time = time.time
_datetime: Any = datetime.datetime


class _Any(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _datetime)


class Skewed(_datetime, metaclass=_Any):  # type: ignore[misc]
    __slots__ = ()

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return _datetime.now(tz) + datetime.timedelta(seconds=SKEW)


time.time = lambda: _time() + SKEW
datetime.datetime = Skewed  # type: ignore[misc]
