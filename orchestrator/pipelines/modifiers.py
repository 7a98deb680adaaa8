"""What stands beside a step's body: retries, times, loops, resources, caches."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from .document import ERRORS, Cache, Each, Loop, Resource, Retry, Timeout
from .expressions import condition, expression, template
from .fields import Fields, choice, duration, fields, items, number, span, text, whole, wrong
from .fields import name as name_of
from .problems import At, nearest

MOST_ATTEMPTS = 100
MOST_ITERATIONS = 100_000
MOST_PARALLEL = 1000

RETRY = ("attempts", "delay", "backoff", "factor", "max_delay", "jitter", "errors", "when")
ONE_MORE = ("max_retries", "retries")
"""Spellings of `retry` that don't count the first run."""


def retry(at: At, value: Any) -> Retry:
    if at.path[-1] in ONE_MORE:
        return Retry(attempts=whole(0, MOST_ATTEMPTS - 1)(at, value) + 1)
    attempts = whole(1, MOST_ATTEMPTS)
    if not isinstance(value, dict):
        return Retry(attempts=attempts(at, value))
    given = fields(at, value, RETRY)
    plain = Retry()
    found = Retry(
        attempts=given.need("attempts", attempts, 1),
        delay=given.read("delay", duration, plain.delay),
        backoff=given.read("backoff", choice("fixed", "linear", "exponential"), plain.backoff),
        factor=given.read("factor", number(1, 100), plain.factor),
        max_delay=given.read("max_delay", duration, plain.max_delay),
        jitter=given.read("jitter", _jitter, plain.jitter),
        errors=given.read("errors", errors, None),
        when=given.read("when", lambda at, value: condition(at.seeing("error"), value), None),
    )
    if "max_delay" not in given:  # a longer delay than the usual bound is meant
        found = msgspec.structs.replace(found, max_delay=max(plain.max_delay, found.delay))
    elif found.max_delay < found.delay:
        given.place("max_delay").say("value", "max_delay is shorter than delay")
    return found


def _jitter(at: At, value: Any) -> float:
    return float(value) if isinstance(value, bool) else number(0, 1)(at, value)


def errors(at: At, value: Any) -> frozenset[str]:
    """Some of the words for what can go wrong."""
    found = set()
    for place, word in items(at, value):
        if word in ERRORS:
            found.add(word)
        else:
            hint = nearest(str(word), ERRORS) or f"known are {', '.join(ERRORS)}"
            place.say("value", f"{str(word)[:40]!r} is no type of error", hint)
    return frozenset(found)


def timeout(at: At, value: Any) -> Timeout:
    if not isinstance(value, dict):
        return Timeout(attempt=span(at, value))
    given = fields(at, value, ("attempt", "total"))
    if not given.found:
        at.say("value", "give attempt, total or both")
    attempt, total = given.read("attempt", span, None), given.read("total", span, None)
    if attempt and total and total < attempt:
        given.place("total").say("value", "the total is shorter than one attempt")
    return Timeout(attempt=attempt, total=total)


def each(given: Fields) -> Each | None:
    given.needs_beside("max_parallel", ["for_each"])
    given.needs_beside("max_failures", ["for_each"])
    if "for_each" not in given:
        return None
    return Each(
        items=expression(given.place("for_each"), _listed(given)),
        max_parallel=given.read("max_parallel", whole(1, MOST_PARALLEL), 1),
        max_failures=given.read("max_failures", whole(0, 1_000_000), 0),
    )


def _listed(given: Fields) -> Any:
    at, value = given.found["for_each"]
    if isinstance(value, str | list):
        return value
    wrong(at, "a list, or an expression that gives one", value)
    return []


def loop(given: Fields) -> Loop | None:
    conditions = [name for name in ("while", "until") if name in given]
    given.needs_beside("max_iterations", ["while", "until"])
    if not conditions:
        return None
    if len(conditions) == 2 or "for_each" in given:
        given.place(conditions[-1]).say("conflict", "a step has one of for_each, while and until")

    def asked(at: At, value: Any) -> Any:
        return condition(at.seeing("index", "result", is_after=True), value)

    return Loop(
        proceed=given.read("while", asked, None),
        until=given.read("until", asked, None),
        max_iterations=given.need("max_iterations", whole(1, MOST_ITERATIONS), 1),
    )


def resources(at: At, value: Any) -> tuple[Resource, ...]:
    """They are read for what else may be wrong, and refused: nothing leases them yet."""
    if isinstance(value, list) and value:
        way_out = "take resources out; concurrency_key limits how many runs go at once"
        at.say("unsupported", "pools are not in this release", way_out)
    found: dict[str, Resource] = {}
    for place, item in items(at, value):
        given = fields(place, item, ("pool", "select", "as", "hold"))
        pool = given.need("pool", text, "")
        name = given.read("as", name_of, pool)
        if name in found:
            place.say("duplicate", f"two resources are called {name!r}", "name them by `as`")
        found[name] = Resource(
            pool=template(given.place("pool"), pool),
            name=name,
            select=given.read("select", template, None),
            hold=given.read("hold", choice("step", "run"), "step"),
        )
    return tuple(found.values())


def cache(at: At, value: Any) -> Cache:
    given = fields(at, value, ("key", "ttl"))
    key = given.need("key", template, None)
    return Cache(key=key or template(at, None), ttl=given.need("ttl", span, 0.0))


def delay(at: At, value: Any) -> Any:
    """A duration, or a template of one."""
    is_open = isinstance(value, str) and "${" in value
    return template(at, value) if is_open else duration(at, value)


def instant(at: At, value: Any) -> Any:
    """A point in time with its zone, or a template of one."""
    given = text(at, value, 1100)
    if given and "${" not in given:
        try:
            if datetime.fromisoformat(given).tzinfo is None:
                at.say("value", "a point in time needs its zone", "such as 2026-03-01T09:00:00Z")
        except ValueError:
            at.say("value", "expected a point in time", "2026-03-01T09:00:00Z, or ${now+1h}")
    return template(at, given)
