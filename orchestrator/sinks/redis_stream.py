"""Redis Streams: an entry for each message. The address is the stream: events go to `events`.

A batch is one script, so a connection that breaks in the middle leaves all of it or nothing, and
what comes after a refused message of the same key isn't added. Streams are cut to about
`LONGEST` entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec

from . import Answer, Down, Message
from .redis import connect, reached

LONGEST = 100_000

ADD = """
local stopped, said, i = {}, {}, 2
while i <= #ARGV do
  local key, count = ARGV[i], tonumber(ARGV[i + 1])
  if stopped[key] then
    said[#said + 1] = '-'
  else
    local answer = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*',
                               unpack(ARGV, i + 2, i + 1 + count))
    stopped[key] = type(answer) == 'table' and answer.err or nil
    said[#said + 1] = stopped[key] or ''
  end
  i = i + 2 + count
end
return said
"""
"""Answers, for each message: nothing, why it was refused, or `-`: not tried."""

MESSAGE_IS_WRONG = ("WRONGTYPE", "ERR")
"""What else Redis says (OOM, READONLY, NOAUTH, …) isn't about one message."""


class RedisStream:
    name = "redis_stream"
    takes_events = True

    def __init__(self, url: str, longest: int = LONGEST) -> None:
        self.redis = connect(url)
        self.longest = longest
        self.add = self.redis.register_script(ADD)

    async def send(self, messages: Sequence[Message]) -> Answer:
        """Stream by stream. The order within a key holds, as a key has one stream."""
        answer = Answer()
        for stream, some in _by_address(messages):
            usable = [message for message in some if has_fields(message.body)]
            arguments = [self.longest, *(word for one in usable for word in words(one))]
            with reached():
                said = await self.add(keys=[stream], args=arguments)
            _note(answer, usable, [text.decode() for text in said])
            unusable = (one.position for one in some if not has_fields(one.body))
            answer.refused |= dict.fromkeys(unusable, "an entry has 1 to 100 fields")
        return answer

    async def close(self) -> None:
        await self.redis.aclose()


def _by_address(messages: Sequence[Message]) -> Iterator[tuple[str, list[Message]]]:
    for address, some in groupby(sorted(messages, key=_address), key=_address):
        yield address, list(some)


def _address(message: Message) -> str:
    return message.address


def has_fields(body: Any) -> bool:
    return isinstance(body, dict) and 0 < len(body) <= 100


def words(message: Message) -> Iterator[Any]:
    """Its key, how many words follow, and the fields of its entry."""
    yield "\n".join(message.line)
    yield 2 * len(message.body)
    for name, value in message.body.items():
        yield name
        yield _text(name, value)


def _text(name: str, value: Any) -> str | bytes:
    """Texts stand as they are, but a payload is JSON even when it is a text."""
    if value is None and name != "payload":
        return ""
    return value if isinstance(value, str) and name != "payload" else msgspec.json.encode(value)


def _note(answer: Answer, messages: Sequence[Message], said: Sequence[str]) -> None:
    for message, problem in zip(messages, said, strict=True):
        if not problem:
            answer.delivered.append(message.position)
        elif problem != "-" and not problem.startswith(MESSAGE_IS_WRONG):
            raise Down(problem)
        elif problem != "-":
            answer.refused[message.position] = problem
