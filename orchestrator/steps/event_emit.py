"""`event.emit`: publishes an event, exactly once: it travels with the step's record."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ..wire import unkeepable
from . import Context, Done, Fail, Kind, Outcome

Topic = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Event(msgspec.Struct, forbid_unknown_fields=True):
    topic: Topic
    payload: Any = None
    source: Annotated[str, msgspec.Meta(max_length=200)] | None = None


def run(event: Event, context: Context) -> Outcome:
    if (why := unkeepable(event.payload)) is not None:
        return Fail("validation", f"the payload can't be kept: {why}")
    if event.topic.startswith("$"):
        return Fail("validation", f"{event.topic}: topics that begin with $ are the core's own")
    if "*" in event.topic:
        return Fail("validation", f"{event.topic}: * stands for a segment where somebody listens")
    source = event.source or f"run:{context.run}"
    said = {"topic": event.topic, "payload": event.payload, "source": source}
    context.events.append(said)
    return Done({"topic": event.topic})


KIND = Kind("event.emit", Event, run, stores=True)
