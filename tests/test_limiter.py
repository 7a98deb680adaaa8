"""How often callers may ask."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conftest import Make, Serve
from crew import own_clock
from valkeys import valkey

from orchestrator import auth, config, db, limiter
from orchestrator.errors import Misconfigured, Problem
from orchestrator.limiter import Limiter

KEY = {"Authorization": f"Bearer {auth.SYSTEM_AGENT}"}
# Limits are of a day: windows begin with the clock's minutes, and what is asked in the last moment
# of one and in the first of the next counts for less.


async def test_who_asks_too_often_is_told_when_to_come_again(
    serve: Serve, conn: db.Connection
) -> None:
    await db.call(conn, "ensure_system_agent")
    app = await serve(rate_limit="3/day")
    answers = [await app.client.get("/auth/me", headers=KEY) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[0].headers["ratelimit-policy"] == '"read";q=3;w=86400'
    assert answers[1].headers["ratelimit"].startswith('"read";r=1;t=')
    refused = answers[3]
    assert refused.json()["error"] == "too_many"
    assert 1 <= int(refused.headers["retry-after"]) <= 86400
    event = {"topic": "x"}
    other = await app.client.post("/events", json=event, headers=KEY)
    assert other.status_code == 202, "writes are counted apart"


async def test_probes_are_never_refused_and_strangers_are_counted_by_address(serve: Serve) -> None:
    app = await serve(rate_limit="2/day")
    assert {(await app.client.get("/health/live")).status_code for _ in range(9)} == {200}
    wrong = [await app.client.get("/auth/me", headers={"Authorization": "Bearer x"}) for _ in "abc"]
    assert [answer.status_code for answer in wrong] == [401, 401, 429]


@pytest.mark.parametrize(
    ("settings", "is_limited"),
    [
        ({"app_env": "production"}, True),
        ({"app_env": "development"}, False),
        ({"app_env": "production", "rate_limit": "none"}, False),
        ({"app_env": "development", "rate_limit": "5/second"}, True),
    ],
)
def test_development_has_no_limit_unless_it_is_said(
    make: Make, settings: dict[str, Any], is_limited: bool
) -> None:
    assert (Limiter(make.config(**settings)).limit is not None) == is_limited


async def test_a_redis_that_is_down_refuses_nobody(make: Make) -> None:
    alone = Limiter(make.config(rate_limit="2/day", redis_url="redis://127.0.0.1:1/0"))
    assert await alone.take("a", "GET")
    began = own_clock()
    await alone.take("a", "GET")
    assert own_clock() - began < 1
    with pytest.raises(Problem, match="More than 2 read requests in 86400 s"):
        await alone.take("a", "GET")
    await alone.take("b", "GET")


async def test_processes_count_together_in_redis_and_each_by_itself_while_it_is_gone(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiter, "REST_SECONDS", 0.0)
    monkeypatch.setattr(limiter, "REDIS_SECONDS", 20.0)
    with valkey() as shared:
        settings = make.config(rate_limit="3/day", redis_url=shared.url)
        one, other = Limiter(settings), Limiter(settings)
        for it in (one, other, one):
            await it.take("a", "GET")
        with pytest.raises(Problem, match="More than 3 read requests"):
            await other.take("a", "GET")
        await other.take("a", "POST")
        await asyncio.to_thread(shared.kill)
        for it in (one, other) * 3:
            await it.take("a", "GET")
        with pytest.raises(Problem):
            await other.take("a", "GET")
        await asyncio.to_thread(shared.start)
        with pytest.raises(Problem):
            await one.take("a", "GET")
        assert int((await one.take("b", "GET"))["RateLimit"].split(";")[1][2:]) == 2
        assert int((await other.take("b", "GET"))["RateLimit"].split(";")[1][2:]) == 1
        for it in (one, other):
            redis: Any = it.shared and it.shared.storage
            await redis.bridge.storage.aclose()


def test_a_rate_that_is_none_is_refused_at_the_start() -> None:
    with pytest.raises(Misconfigured, match="RATE_LIMIT='often' must be a rate such as 100/minute"):
        config.load({"RATE_LIMIT": "often"})
