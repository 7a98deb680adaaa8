"""Reads RRULE texts. Everything is checked here, so that dateutil never sees what it mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime
from zoneinfo import ZoneInfo

from .limits import FIRST, LAST, bad_expression
from .recurrence import Frequency, Line
from .zones import wall, zone

LONGEST = 10_000
MOST_COUNT = 10_000
MOST_INTERVAL = 1_000_000
MOST_LINES = 10
PROPERTIES = ("DTSTART", "RRULE", "RDATE", "EXDATE", "EXRULE")
NAMED = "|".join(PROPERTIES)
BETWEEN = re.compile(rf"[\r\n]+|[ \t]+(?=(?:{NAMED})[:;])", re.I)
PROPERTY = re.compile(rf"({NAMED})((?:;[^:]*)?):(.*)", re.I)
FREQUENCIES: dict[str, Frequency] = {
    "YEARLY": 0, "MONTHLY": 1, "WEEKLY": 2, "DAILY": 3, "HOURLY": 4, "MINUTELY": 5,
}  # fmt: skip
DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
RANGES = {
    "BYMONTH": (1, 12, False), "BYMONTHDAY": (1, 31, True), "BYYEARDAY": (1, 366, True),
    "BYWEEKNO": (1, 53, True), "BYSETPOS": (1, 366, True), "BYHOUR": (0, 23, False),
    "BYMINUTE": (0, 59, False), "BYSECOND": (0, 59, False),
}  # fmt: skip
KNOWN = ("FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST", "BYDAY", *RANGES)
WEEKDAY = re.compile(r"([+-]?[0-9]{1,2})?(MO|TU|WE|TH|FR|SA|SU)")
NUMBER = re.compile(r"[+-]?[0-9]{1,9}")


@dataclass(slots=True)
class Text:
    """What a text says, with all times on the wall of its zone."""

    zone: ZoneInfo
    start: datetime | None = None
    lines: list[Line] = field(default_factory=list)
    not_lines: list[Line] = field(default_factory=list)
    times: list[datetime] = field(default_factory=list)
    not_times: list[datetime] = field(default_factory=list)
    not_days: list[date] = field(default_factory=list)


def read(text: str, zone: ZoneInfo) -> Text:
    properties = list(_properties(text))
    said = Text(zone)
    starts = [(parameters, value) for name, parameters, value in properties if name == "DTSTART"]
    if len(starts) > 1:
        raise bad_expression("DTSTART stands there more than once")
    for parameters, value in starts:  # first, as it may change the zone
        said.zone, said.start = _start(parameters, value, zone)
    for name, parameters, value in properties:
        _READERS[name](said, parameters, value)
    if not said.lines and not said.times:
        raise bad_expression("there is no RRULE", "for example FREQ=DAILY;BYHOUR=9;BYMINUTE=0")
    return said


def _properties(text: str) -> Iterable[tuple[str, str, str]]:
    if len(text) > LONGEST:
        raise bad_expression(f"a rule has at most {LONGEST:,} characters", "use EXRULE, or CEL")
    unfolded = re.sub(r"\r?\n[ \t]", "", text.strip())
    lines = [line.strip() for line in BETWEEN.split(unfolded) if line and line.strip()]
    if len(lines) > MOST_LINES * 10:
        raise bad_expression(f"a rule has at most {MOST_LINES * 10} lines")
    for line in lines:
        found = PROPERTY.fullmatch(line)
        if found:
            yield found[1].upper(), found[2], found[3].strip()
        elif "=" in line.partition(":")[0].partition(";")[0]:
            yield "RRULE", "", line
        else:
            said = f"{line[:40]!r} isn't a line of a rule"
            raise bad_expression(said, f"known: {', '.join(PROPERTIES)}")


def _start(parameters: str, value: str, zone: ZoneInfo) -> tuple[ZoneInfo, datetime]:
    """RFC 5545: a rule lives in the zone of its DTSTART. Without one it's the task's."""
    there = _zone(parameters, "DTSTART") or zone
    start, _ = _time(value, "DTSTART")
    if start.tzinfo is not None:
        return ZoneInfo("UTC"), wall(start, ZoneInfo("UTC"))
    return there, start


def _zone(parameters: str, name: str) -> ZoneInfo | None:
    found = None
    for parameter in filter(None, parameters.split(";")):
        key, _, value = parameter.partition("=")
        if key.upper() == "TZID":
            found = zone(value.strip('"'), "schedule_expr")
        elif key.upper() != "VALUE" or value.upper() not in ("DATE", "DATE-TIME"):
            raise bad_expression(f"{name} can't have {parameter[:40]!r}", "only TZID and VALUE")
    return found


def _time(value: str, name: str) -> tuple[datetime, bool]:
    """A time, and whether it's only a date."""
    try:
        time = datetime.fromisoformat(value.strip())
    except ValueError:
        hint = "write 20260131T083000, or 2026-01-31T08:30Z"
        raise bad_expression(f"{name}: {value[:40]!r} isn't a time", hint) from None
    if not FIRST.year < time.year < LAST.year - 1:
        said = f"{name}: {value[:40]!r} is outside the years {FIRST.year + 1} to {LAST.year - 2}"
        raise bad_expression(said)
    return time.replace(microsecond=0), "T" not in value.upper() and ":" not in value


def _local(said: Text, parameters: str, value: str, name: str) -> tuple[datetime, bool]:
    """On the wall of the rule's zone."""
    there = _zone(parameters, name)
    time, is_date = _time(value, name)
    if time.tzinfo is None and there is not None and not is_date:
        time = time.replace(tzinfo=there)
    return (time if time.tzinfo is None else wall(time, said.zone)), is_date


def _read_dates(said: Text, parameters: str, value: str) -> None:
    for one in value.split(","):
        time, is_date = _local(said, parameters, one, "RDATE")
        if is_date:
            raise bad_expression(f"RDATE: {one[:40]!r} has no time", "write 20260131T083000")
        said.times.append(time)


def _read_exceptions(said: Text, parameters: str, value: str) -> None:
    """A date alone takes its whole day away."""
    for one in value.split(","):
        time, is_date = _local(said, parameters, one, "EXDATE")
        if is_date:
            said.not_days.append(time.date())
        else:
            said.not_times.append(time)


def _read_rule(said: Text, parameters: str, value: str) -> None:
    said.lines.append(_line(said, parameters, value))


def _read_not_rule(said: Text, parameters: str, value: str) -> None:
    said.not_lines.append(_line(said, parameters, value))


_READERS: dict[str, Callable[[Text, str, str], None]] = {
    "DTSTART": lambda said, parameters, value: None,
    "RRULE": _read_rule,
    "RDATE": _read_dates,
    "EXRULE": _read_not_rule,
    "EXDATE": _read_exceptions,
}


def _line(said: Text, parameters: str, value: str) -> Line:
    if len(said.lines) + len(said.not_lines) >= MOST_LINES:
        raise bad_expression(f"there are more than {MOST_LINES} RRULE and EXRULE lines")
    parts = _parts(value)
    if parameters:
        raise bad_expression(f"RRULE can't have {parameters[:40]!r}")
    freq, interval = _frequency(parts)
    by = {
        name.lower(): _numbers(name, parts[name], *bounds)
        for name, bounds in RANGES.items()
        if name in parts
    }
    start = parts.get("WKST", "MO")
    if start not in DAYS:
        raise bad_expression(f"WKST={start[:20]} isn't a day", f"one of {', '.join(DAYS)}")
    until = _until(said, parts["UNTIL"]) if "UNTIL" in parts else None
    count = _number("COUNT", parts["COUNT"], MOST_COUNT) if "COUNT" in parts else None
    line = Line(freq, interval, DAYS.index(start), by, _weekdays(parts), count, until)
    _check(line)
    return line


def _parts(value: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in value.upper().split(";"))):
        name, equals, given = (part.strip() for part in pair.partition("="))
        if name not in KNOWN:
            hint = f"known: {', '.join(KNOWN)}"
            raise bad_expression(f"{name[:40]!r} isn't a part of RRULE (RFC 5545)", hint)
        if not equals or not given:
            raise bad_expression(f"{name} has no value")
        if name in parts:
            raise bad_expression(f"{name} stands there twice")
        parts[name] = given
    if "COUNT" in parts and "UNTIL" in parts:
        raise bad_expression("COUNT and UNTIL can't be together: RFC 5545 forbids it")
    return parts


def _frequency(parts: dict[str, str]) -> tuple[Frequency, int]:
    name = parts.get("FREQ", "")
    interval = _number("INTERVAL", parts.get("INTERVAL", "1"), MOST_INTERVAL)
    if name == "SECONDLY":
        if interval % 60:
            said = f"FREQ=SECONDLY;INTERVAL={interval} is too frequent, or not in whole minutes"
            raise bad_expression(said, "write FREQ=MINUTELY")
        name, interval = "MINUTELY", interval // 60
    if name not in FREQUENCIES:
        known = ", ".join(FREQUENCIES)
        raise bad_expression(f"FREQ={name[:20]} isn't known" if name else "FREQ is missing", known)
    return FREQUENCIES[name], interval


def _number(name: str, given: str, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", given) or not 1 <= int(given) <= most:
        hint = "write UNTIL for more" if name == "COUNT" else None
        raise bad_expression(f"{name} is a number from 1 to {most:,}, not {given[:20]!r}", hint)
    return int(given)


def _numbers(name: str, given: str, low: int, high: int, signed: bool) -> tuple[int, ...]:
    numbers = set()
    for one in given.split(","):
        number = int(one) if NUMBER.fullmatch(one.strip()) else high + 1
        if not low <= (abs(number) if signed else number) <= high:
            either = " or its negative" if signed else ""
            raise bad_expression(f"{name} is {low} to {high}{either}, not {one[:20]!r}")
        numbers.add(number)
    return tuple(sorted(numbers, key=lambda number: (number < 0, number)))


def _weekdays(parts: dict[str, str]) -> tuple[tuple[int, int | None], ...]:
    days = set()
    for one in parts["BYDAY"].split(",") if "BYDAY" in parts else ():
        found = WEEKDAY.fullmatch(one.strip())
        if not found or (found[1] and int(found[1]) == 0):
            raise bad_expression(f"BYDAY: {one[:20]!r} isn't a day", "write MO, 1MO or -1FR")
        days.add((DAYS.index(found[2]), int(found[1]) if found[1] else None))
    return tuple(sorted(days, key=lambda day: (day[1] or 0, day[0])))


def _until(said: Text, value: str) -> datetime:
    """A date alone has its whole day."""
    time, is_date = _local(said, "", value, "UNTIL")
    return time.replace(hour=23, minute=59, second=59) if is_date else time


def _check(line: Line) -> None:
    """Combinations that RFC 5545 forbids, or for which dateutil would do something else."""
    numbered = {number is not None for _, number in line.days}
    freq = next(name for name, number in FREQUENCIES.items() if number == line.freq)
    most = 53 if freq == "YEARLY" and "bymonth" not in line.by else 5
    wrong = {
        "BYWEEKNO needs FREQ=YEARLY": "byweekno" in line.by and freq != "YEARLY",
        f"BYYEARDAY can't be with FREQ={freq}": "byyearday" in line.by
        and freq in ("DAILY", "WEEKLY", "MONTHLY"),
        "BYMONTHDAY can't be with FREQ=WEEKLY": "bymonthday" in line.by and freq == "WEEKLY",
        "BYDAY with numbers needs FREQ=MONTHLY or YEARLY": True in numbered
        and freq not in ("MONTHLY", "YEARLY"),
        "BYDAY with numbers can't be with BYWEEKNO": True in numbered and "byweekno" in line.by,
        "BYDAY with and without numbers needs two RRULE lines": len(numbered) == 2,
        f"BYDAY has numbers up to {most} here": any(abs(n or 0) > most for _, n in line.days),
        "BYSETPOS needs another BY part": "bysetpos" in line.by
        and len(line.by) == 1
        and not line.days,
        "seconds are too frequent: BYSECOND has one value": len(line.by.get("bysecond", ())) > 1,
    }
    for said, is_so in wrong.items():
        if is_so:
            raise bad_expression(said)
