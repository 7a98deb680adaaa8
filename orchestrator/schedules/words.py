"""What a recurrence says, in plain words: exact, so nothing that it says is left out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, time

from .recurrence import Recurrence, Recurrences, Times

MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August",
          "September", "October", "November", "December"]  # fmt: skip
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
UNITS = ("year", "month", "week", "day", "hour", "minute")
ORDINALS = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth", -1: "last"}
MOST_TIMES = 6


def moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M" + ":%S" * bool(at.second))


def recurrences(these: Recurrences) -> str:
    said = "; and ".join(map(_source, these.lines))
    gone = [_source(line) for line in these.not_lines]
    gone += [moment(at) for at in sorted(these.not_times)[:MOST_TIMES]]
    gone += [str(day) for day in sorted(these.not_days)[:MOST_TIMES]]
    hidden = max(0, len(these.not_times) - MOST_TIMES) + max(0, len(these.not_days) - MOST_TIMES)
    gone += [f"{hidden} more"] if hidden else []
    return f"{said}, except {_listed(gone)}" if gone else said


def _source(source: Recurrence | Times) -> str:
    if isinstance(source, Recurrence):
        return _line(source)
    shown = [moment(at) for at in source.times[:MOST_TIMES]]
    more = len(source.times) - len(shown)
    return "on " + _listed(shown + [f"{more} more times"] * bool(more))


def _line(rule: Recurrence) -> str:
    written = rule.written
    said = "every " + _plural(written.interval, UNITS[written.freq])
    said = " ".join(filter(None, [said, _days(rule), _months(rule), _clock(rule)]))
    said += _places(rule)
    if written.count:
        said += f", {_plural(written.count, 'time')} in all" if written.count > 1 else ", once"
    if written.until:
        said += f", until {moment(written.until)}"
    if written.interval > 1:
        said += f", counted from {moment(rule.phase)}"
    return said


def _plural(number: int, unit: str) -> str:
    if unit == "time":
        return f"{number} times"
    return unit if number == 1 else f"{number} {unit}s"


def _places(rule: Recurrence) -> str:
    """BYSETPOS."""
    places = rule.by.get("bysetpos", ())
    return f", of these only the {_listed([_ordinal(n) for n in places])}" if places else ""


def _days(rule: Recurrence) -> str:
    said = []
    if rule.line.days:
        said.append("on " + _weekdays(rule.line.days))
    if "bymonthday" in rule.by:
        said.append("on " + _numbered("day", rule.by["bymonthday"]) + " of the month")
    if "byyearday" in rule.by:
        said.append("on " + _numbered("day", rule.by["byyearday"]) + " of the year")
    if "byweekno" in rule.by:
        said.append("in " + _numbered("week", rule.by["byweekno"]) + " of the year")
    return " if it is also ".join(said)


def _weekdays(days: Sequence[tuple[int, int | None]]) -> str:
    if any(number for _, number in days):
        return _listed([f"the {_ordinal(number or 0)} {DAYS[day]}" for day, number in days])
    numbers = [day for day, _ in days]
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{DAYS[numbers[0]]} to {DAYS[numbers[-1]]}"
    return _listed([DAYS[day] for day in numbers])


def _numbered(unit: str, numbers: Sequence[int]) -> str:
    if all(number >= 0 for number in numbers):
        return f"{unit} {_listed(list(map(str, numbers)))}"
    return _listed([f"the {_ordinal(n)} {unit}" if n < 0 else f"{unit} {n}" for n in numbers])


def _ordinal(number: int) -> str:
    if number in ORDINALS:
        return ORDINALS[number]
    return f"{-number}. last" if number < 0 else f"{number}."


def _months(rule: Recurrence) -> str:
    months = rule.by.get("bymonth", ())
    return "in " + _listed([MONTHS[month - 1] for month in months]) if months else ""


def _clock(rule: Recurrence) -> str:
    """Times of the day; for frequent rules, which hours, minutes and seconds."""
    hours, minutes = rule.by.get("byhour", ()), rule.by.get("byminute", ())
    (second,) = rule.by["bysecond"]
    times = [time(hour, minute, second) for hour in hours for minute in minutes]
    if times and len(times) <= MOST_TIMES:
        return "at " + _listed([f"{at:%H:%M:%S}" if second else f"{at:%H:%M}" for at in times])
    said = []
    if minutes and (minutes != (0,) or hours):
        said.append("at " + _numbered("minute", minutes))
    if hours:
        said.append(f"of the hours {_listed(list(map(str, hours)))}")
    if second:
        said.append(f"at second {second}")
    return " ".join(said)


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
