"""What the steps of a run stand at: times, events, callbacks, people, other runs.

A wait is written down when its step is reached, and answered in the database. A run all of whose
steps stand still parks, and goes on at once when something came meanwhile: the answer is heard when
it is taken up again. While other branches are at work, the worker asks for answers every second.
What fits an event's `match` is decided here, in batches.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from ..expr import ExpressionError, Template
from ..pipelines import durations
from ..pipelines.document import (
    Approval,
    Callback,
    Event,
    Sleep,
    Timeout,
    Until,
    Wait,
)
from ..steps import Fail, Park
from .engine import Broken, Unknown
from .memory import Memory
from .news import Record
from .watch import Watch

Scope = Mapping[str, Any]
Asked = dict[str, Any]
INDEX = re.compile(r"\[\d+\]")


class Waits:
    def __init__(self, memory: Memory, watch: Watch, key: bytes = b"") -> None:
        self.run = memory.run
        self.memory = memory
        self.watch = watch
        self.key = key
        self.asleep: dict[str, Park] = {}
        self.ears: dict[str, asyncio.Future[Record]] = {}  # of waits that may be met meanwhile
        self.stands: dict[str, dict[str, Any]] = {}  # with how far events were looked at
        self.limits: list[datetime] = []  # of what is being done
        self.any = any(record.get("wait") for record in memory.records.values())

    # Times

    def now(self) -> datetime:
        """By the worker's clock, which isn't before the time that the database woke the run at."""
        return max(instant(self.run.due_at), datetime.now(UTC))

    def left(self, until: datetime) -> float:
        return (until - self.now()).total_seconds()

    async def rest(self, place: str, until: str, words: str) -> None:
        """Sleeps until then, here or parked."""
        self.asleep[place] = Park(words, until)
        try:
            await self.watch.asleep(asyncio.sleep(max(0.0, self.left(instant(until)))))
        finally:
            del self.asleep[place]

    # Parking

    def park(self) -> Park:
        untils = [instant(park.until) for park in self.asleep.values() if park.until]
        waiting_for = ", ".join(sorted({park.waiting_for for park in self.asleep.values()}))
        until = min((*untils, *self.limits), default=None)
        return Park(waiting_for[:200], until.isoformat() if until else None)

    def listed(self) -> list[dict[str, Any]]:
        """The waits that the run stands at, as a parked outcome says them."""
        return [{"step": place, **cursor} for place, cursor in self.stands.items()]

    async def sleep(self, place: str, park: Park) -> None:
        """For ever: when all sleep, the run parks."""
        self.asleep[place] = park
        try:
            await self.watch.for_ever()
        finally:
            del self.asleep[place]

    async def met(
        self, place: str, asked: Asked, words: str, fits: Callable[[Any], bool] | None = None
    ) -> Record:
        """The wait as it ended. It is registered the first time, and asked for every time."""
        self.any = True
        record = self.memory.records.get(place) or {}
        state = "unknown" if asked["kind"] == "unknown" else "waiting"
        found = record.get("wait") if record.get("state") in (None, "failed", state) else None
        if found is None:
            reached = {**asked, "reached": time.monotonic()}
            self.memory.record(place, state, 1, wait=reached, error=record.get("error"))
        self.stands[place] = {}
        try:
            while found is None or (answer := self._answer(found, place, fits)) is None:
                found = await self._hear(place, Park(words))
            return answer
        finally:
            self.stands.pop(place)

    def _answer(
        self, found: Record, place: str, fits: Callable[[Any], bool] | None
    ) -> Record | None:
        if found["state"] != "waiting":
            return dict(found)
        if found["kind"] == "event":
            for event in found["events"]:
                if fits is None or fits(event):
                    return {"state": "met", "event": event}
            self.stands[place] = {"upto": found["upto"], "after": found["after"]}
        return None

    async def _hear(self, place: str, park: Park) -> Record:
        """What the worker hears of it while other branches are at work. If all sleep, the run
        parks, and is told when it is taken up."""
        self.asleep[place] = park
        self.ears[place] = ear = asyncio.get_running_loop().create_future()
        try:
            return await self.watch.asleep(ear)
        finally:
            del self.asleep[place], self.ears[place]

    def tell(self, place: str, wait: Record) -> None:
        ear = self.ears.get(place)
        if ear is not None and not ear.done():
            ear.set_result(wait)

    # Waits of the language

    async def wait(self, wait: Wait, scope: Scope, place: str) -> Any:
        record = self.memory.records.get(place)
        if record is not None and record["state"] == "succeeded":
            return record["output"]
        if isinstance(wait.what, Sleep | Until):
            return await self._time(wait.what, scope, place)
        asked, words = self._asked(wait.what, scope, place)
        asked["timeout"] = wait.timeout
        fits = self._match(wait.what, scope, place)
        met = await self.met(place, asked, words, fits)
        try:
            value = _value(wait, met)
        except Broken as broken:
            self.memory.record(place, "failed", 1, error=broken.error)
            raise
        chosen = {"wait": {"event": met["event"]["id"]}} if "event" in met else {}
        self.memory.record(place, "succeeded", 1, output=value, **chosen)
        return value

    def _asked(
        self, what: Event | Callback | Approval, scope: Scope, place: str
    ) -> tuple[Asked, str]:
        match what:
            case Event(topic=template):
                topic = template.render(scope)
                if not isinstance(topic, str) or not 0 < len(topic) <= 200:
                    raise Broken(Fail("validation", "a topic is a text of 1 to 200 characters"))
                if "*" in topic:
                    raise Broken(Fail("validation", f"{topic}: a run waits for one topic"))
                return {"kind": "event", "topic": topic}, f"an event {topic}"
            case Callback():
                return {"kind": "callback", "token": self._token(place)}, "a callback"
            case Approval(by=by, count=needed, form=form):
                who = None if by is None else by.render(scope)
                who = [who] if isinstance(who, str) else who
                if who is not None and not (who and all(isinstance(one, str) for one in who)):
                    raise Broken(Fail("validation", "approvers are a text, or a list of them"))
                schema = None if form is None else form.schema
                asked = {"kind": "approval", "who": who, "needed": needed, "form": schema}
                return {name: v for name, v in asked.items() if v is not None}, "an approval"

    def _match(self, what: Any, scope: Scope, place: str) -> Callable[[Any], bool] | None:
        if not isinstance(what, Event) or (match := what.match) is None:
            return None

        def fits(event: Any) -> bool:
            try:
                return match.holds({**scope, "event": event})
            except ExpressionError:  # somebody else's event is no reason to fail
                return False

        return fits

    # Callbacks

    def _token(self, place: str) -> str:
        """The same whenever it is made; `orc.answer_callback` knows its own by the signature."""
        if not self.key:
            raise Broken(Fail("configuration", "this worker has no key for callbacks"))
        run, step = UUID(self.run.id).bytes, place.encode()
        signature = hmac.digest(self.key, run + step, "sha256")[:16]
        return "orc_cb_" + urlsafe_b64encode(run + signature + step).decode().rstrip("=")

    def callbacks(self, paths: Mapping[str, str], place: str) -> dict[str, str]:
        """By the ids of steps, where they are answered: of the same time round every loop."""
        here = place.split("/")
        bare = [INDEX.sub("", part) for part in here]
        found = {}
        for id, path in paths.items():
            parts = path.split("/")
            plain = [part.removesuffix("[]") for part in parts]
            same = 0
            while same < min(len(bare), len(plain) - 1) and bare[same] == plain[same]:
                same += 1
            if not any(part.endswith("[]") for part in parts[same:]):
                found[id] = "/callbacks/" + self._token("/".join(here[:same] + plain[same:]))
        return found

    # Times

    async def _time(self, what: Sleep | Until, scope: Scope, place: str) -> Any:
        record = self.memory.records.get(place)
        until = record["output"]["until"] if record else _until(what, scope)
        if self.left(instant(until)) > 0:
            self.memory.record(place, "waiting", 1, output={"until": until})
            await self.rest(place, until, f"the time {until}")
        self.memory.record(place, "succeeded", 1, output={"until": until})
        return {"until": until}

    # Waits of tools

    async def parked(self, place: str, park: Park, timeout: Timeout) -> Any:
        """The value of a step whose tool parks."""
        if park.wait is None:
            await self.sleep(place, park)
        asked = {**(park.wait or {}), "timeout": timeout.total or timeout.attempt}
        met = await self.met(place, asked, park.waiting_for)
        if met["state"] == "expired":
            raise Broken(Fail("timeout", f"{park.waiting_for} took too long"))
        child = met["answer"] or {}
        if child.get("state", "succeeded") == "succeeded":
            return child  # its output may be a digest still
        error = child.get("error") or {}
        what = f"the child run {child.get('run_id', '')} {child['state']}".replace("  ", " ")
        kind = "canceled" if child["state"] == "canceled" else error.get("type", "runtime")
        raise Broken(Fail(kind, f"{what}: {error['message']}" if error.get("message") else what))

    async def ask(self, place: str) -> None:
        """What to do about a call whose outcome nobody knows. Returns when it is to be repeated."""
        met = await self.met(place, {"kind": "unknown"}, "a decision about an unknown outcome")
        last = met["answer"][-1]
        if last["decision"] != "approve":
            text = f"nobody knows what its call did, and {last['by']} said to fail"
            raise Unknown(Fail("unknown", text))


def _value(wait: Wait, met: Record) -> Any:
    """What an ended wait answers; a refusal breaks its step."""
    if "event" in met:
        return met["event"]
    if met["state"] == "expired":
        match wait.on_timeout:
            case "continue":
                return None
            case "reject":
                raise Broken(Fail("authorization", "nobody approved in time"))
        raise Broken(Fail("timeout", f"nothing came within {wait.timeout:g} s"))
    if met["state"] != "met":
        raise Broken(Fail("canceled", "the wait was canceled"))
    if not isinstance(wait.what, Approval):
        return met["answer"]
    last = met["answer"][-1]
    if last["decision"] != "approve":
        raise Broken(Fail("authorization", f"{last['by']} rejected it"))
    return {"decision": "approve", "form": last["form"], "approvals": met["answer"]}


def _until(what: Sleep | Until, scope: Scope) -> str:
    if isinstance(what, Until):
        return instant(what.instant.render(scope), "wait.until: ").isoformat()
    return (datetime.now(UTC) + timedelta(seconds=_seconds(what.delay, scope))).isoformat()


def _seconds(delay: float | Template, scope: Scope) -> float:
    if isinstance(delay, float):
        return delay
    try:
        return durations.seconds(delay.render(scope))
    except ValueError as error:
        raise Broken(Fail("validation", f"wait.for: {error}")) from None


def instant(text: Any, field: str = "") -> datetime:
    try:
        found = datetime.fromisoformat(text)
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    except (TypeError, ValueError):
        raise Broken(Fail("validation", f"{field}no instant: {str(text)[:100]}")) from None
