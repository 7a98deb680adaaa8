"""The nouns: the same routes, filters and words as REST has, and what people are told."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest
from acts import Tool
from conftest import Make, Serve
from crew import Crew, until
from terminal import Terminal, environment

from orchestrator import api, db
from orchestrator.cli import core, remote, tail
from orchestrator.cli.commands import Command, instant, words
from orchestrator.cli.nouns import AUDIT, FAILURES, FILTER, NOUNS
from orchestrator.steps import Fail
from orchestrator.wire import Endpoint

ROWS = [*(row for _, rows in NOUNS.values() for row in rows), FAILURES, AUDIT]
ONE_STEP: dict[str, Any] = {"pipeline": [{"id": "a", "uses": "do", "with": {"name": "a"}}]}
BY_ITSELF = {"limit", "offset", "cursor"}
"""Pages are turned by the command."""


# The table


def endpoint(row: Command) -> Endpoint:
    path = re.sub(r"{(\w+)(:\w+)?}", r"{\1}", row.path)
    found = [
        one
        for one in api.ENDPOINTS
        if one.method == row.method and re.sub(r"{(\w+)(:\w+)?}", r"{\1}", one.path) == path
    ]
    assert len(found) == 1, f"there is no {row.method} {row.path}"
    return found[0]


def fields(row: Command) -> dict[str, msgspec.structs.FieldInfo]:
    one = endpoint(row)
    asked = one.query if row.method in ("GET", "DELETE") else one.body
    return {field.encode_name: field for field in msgspec.structs.fields(asked)} if asked else {}


def choices(kind: Any) -> set[str]:
    if get_origin(kind) is Literal:
        return set(get_args(kind))
    return {word for inner in get_args(kind) for word in choices(inner)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.path}")
def test_a_row_asks_for_what_the_api_takes(row: Command) -> None:
    known = fields(row)
    for word in words(row):
        assert word.field in known
        said = set(word.kind.split("|")) if "|" in word.kind else set()
        assert said == choices(known[word.field].type), word.field
        assert not known[word.field].required or word.is_required or row.file, word.field
    missing = {name for name, field in known.items() if field.required}
    assert missing <= {word.field for word in words(row)}


@pytest.mark.parametrize("row", [r for r in ROWS if r.pages], ids=lambda row: str(row.path))
def test_a_list_has_every_filter_of_its_route(row: Command) -> None:
    assert {word.field for word in words(row)} == fields(row).keys() - BY_ITSELF


@pytest.mark.parametrize("row", [r for r in ROWS if r.columns], ids=lambda row: str(row.path))
def test_the_columns_are_fields_of_the_answer(row: Command) -> None:
    returns = endpoint(row).returns
    items = {f.name: f.type for f in msgspec.structs.fields(returns)}.get("items") if isinstance(
        returns, type) and issubclass(returns, msgspec.Struct) else returns  # fmt: skip
    (item,) = get_args(items)
    names = {field.encode_name for field in msgspec.structs.fields(item)}
    assert set(row.columns.split()) <= names
    assert row.key in names


def test_what_is_done_for_good_asks_first() -> None:
    asking = {(name, row.name) for name, (_, rows) in NOUNS.items() for row in rows if row.asks}
    assert asking == {
        ("task", "cancel"), ("run", "cancel"), ("agent", "delete"), ("agent", "rotate-key"),
        ("agent", "revoke-keys"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", -7200), ("90s", -90), ("1w", -604800), ("+30m", 1800)]
)
def test_a_time_may_be_so_long_ago_or_ahead(text: str, seconds: float) -> None:
    found = datetime.fromisoformat(instant(text))
    assert abs((found - datetime.now(UTC)).total_seconds() - seconds) < 30


def test_a_time_has_its_zone_when_it_is_sent() -> None:
    assert instant("2026-03-01T08:30:00+02:00") == "2026-03-01T06:30:00+00:00"
    assert instant("2026-03-01T08:30:00Z") == "2026-03-01T08:30:00+00:00"
    assert datetime.fromisoformat(instant("2026-03-01")).tzinfo is not None
    with pytest.raises(ValueError, match=r"'soon' isn't a time: .* 2h \(ago\)"):
        instant("soon")


# Against an API


class Shop:
    """An API, a worker with a tool of the test, and a terminal."""

    def __init__(self, orc: Terminal, conn: db.Connection, tool: Tool, folder: Path) -> None:
        self.orc, self.conn, self.tool, self.folder = orc, conn, tool, folder

    async def task(self, title: str = "Report", **more: Any) -> str:
        body = {"title": title, "schedule_kind": "cron", "schedule_expr": "@daily",
                "payload": ONE_STEP, "max_retries": 0, **more}  # fmt: skip
        file = self.folder / "task.json"
        file.write_bytes(msgspec.json.encode(body))
        done = await self.orc("task", "create", str(file), "-o", "id")
        assert done.status == 0, done
        return done.out.strip()

    async def ran(self, task: str) -> str:
        """The id of a run of it that has ended."""
        done = await self.orc("task", "run", task, "--wait", "30", "-o", "id")
        assert done.status == 0, done
        return done.out.strip()


@pytest.fixture
async def shop(
    serve: Serve, make: Make, conn: db.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shop]:
    terminal = Terminal(tmp_path, monkeypatch)
    await db.call(conn, "ensure_system_agent")
    running = await serve()
    terminal.set(ORCHESTRATOR_URL=running.url)
    tool = Tool()
    crew = Crew(make.config())
    crew.worker(tool.kind, poll=0.05)
    yield Shop(terminal, conn, tool, tmp_path)
    await crew.end()
    terminal.leave()


async def test_a_task_is_made_of_a_file_and_read_back_in_every_form(shop: Shop) -> None:
    task = await shop.task("Morning report")
    assert (await shop.orc("task", "show", task, "-o", "json")).json["title"] == "Morning report"
    assert (await shop.orc("task", "list", "-o", "id")).lines == [task]
    (listed,) = (await shop.orc("task", "list", "-o", "json")).json
    assert listed["id"] == task
    assert (await shop.orc("task", "list", "-o", "jsonl")).json == listed
    head, line = (await shop.orc("task", "list")).lines
    assert head.split() == [
        "id",
        "status",
        "schedule",
        "kind",
        "schedule",
        "expr",
        "next",
        "run",
        "at",
        "title",
    ]
    assert line.split()[:4] == [task, "active", "cron", "@daily"]
    shown = (await shop.orc("task", "show", task)).out
    assert re.search(r"^title +Morning report$", shown, re.M)
    assert re.search(r"^next run at +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$", shown, re.M)


async def test_options_make_a_task_of_a_pipeline_and_say_more_than_its_file(shop: Shop) -> None:
    file = shop.folder / "report.yaml"
    file.write_text("pipeline:\n  - {id: a, uses: set, with: {x: 1}}\n")
    done = await shop.orc(
        "task", "create", str(file), "--title", "Weekly", "--schedule-kind", "cron",
        "--schedule-expr", "0 8 * * mon", "--timezone", "UTC", "--priority", "2",
        "--labels", '{"team": "ops"}', "-o", "json",
    )  # fmt: skip
    made = done.json
    assert made["payload"]["pipeline"][0]["with"] == {"x": 1}
    assert (made["priority"], made["labels"], made["timezone"]) == (2, {"team": "ops"}, "UTC")
    changed = await shop.orc("task", "update", made["id"], "--title", "Monthly", "-o", "json")
    assert changed.json["title"] == "Monthly"
    assert changed.json["labels"] == {"team": "ops"}


async def test_every_problem_of_a_task_is_a_line(shop: Shop) -> None:
    done = await shop.orc("task", "create", "--title", "", "--payload", "{}", "--priority", "12")
    assert done.status == 2
    assert "schedule_kind: this field is required" in done.err
    assert re.search(r"^ +priority: .*<= 9", done.err, re.M)
    assert done.out == ""


async def test_a_file_that_is_none_is_named(shop: Shop) -> None:
    done = await shop.orc("task", "create", str(shop.folder / "no.yaml"))
    assert done.status == 2
    assert "no.yaml:1: can't be read: No such file" in done.err
    bad = shop.folder / "bad.json"
    bad.write_text("[1]")
    assert "holds no object" in (await shop.orc("task", "create", str(bad))).err
    done = await shop.orc("task", "create", "--payload", "{")
    assert (done.status, "--payload: " in done.err) == (2, True)


async def test_a_run_is_listed_by_filters_shown_and_explained(shop: Shop) -> None:
    task = await shop.task()
    shop.tool.answer("a", Fail("runtime", "the printer is on fire"))
    failed, fine = await shop.ran(task), await shop.ran(task)
    listed = await shop.orc("run", "list", "--task-id", task, "-o", "id")
    assert listed.lines == [fine, failed]
    assert (await shop.orc("run", "list", "--no-success", "-o", "id")).lines == [failed]
    assert (await shop.orc("run", "list", "--state", "succeeded", "-o", "id")).lines == [fine]
    assert (await shop.orc("run", "list", "--start-time", "+1h", "-o", "id")).out == ""
    assert (await shop.orc("run", "list", "--queue", "none")).out == "there are none\n"
    shown = await shop.orc("run", "show", failed)
    assert re.search(r"^state +failed$", shown.out, re.M)
    assert "\nattempts\n" in shown.out
    assert "the printer is on fire" in shown.out
    assert (await shop.orc("run", "output", fine)).json is not None
    assert (await shop.orc("explain", failed, "-o", "json")).json[0]["cause"]


async def test_a_list_turns_pages_until_it_has_as_many_as_were_asked_for(shop: Shop) -> None:
    items = [
        {"title": f"t{n}", "schedule_kind": "cron", "schedule_expr": "@daily",
         "payload": {"pipeline": [{"id": "a", "uses": "set", "with": {}}]}}
        for n in range(230)
    ]  # fmt: skip
    async with remote.remote() as there:
        await there.ask("POST", "/tasks/bulk", body={"items": items})
    all_ids = (await shop.orc("task", "list", "--limit", "1000", "-o", "id")).lines
    assert len(set(all_ids)) == 230
    assert (await shop.orc("task", "list", "--limit", "201", "-o", "id")).lines == all_ids[:201]
    some = await shop.orc("task", "list", "--limit", "3")
    assert len(some.lines) == 4
    assert "there are more: --limit 12" in some.err


async def test_tasks_are_paused_snoozed_resumed_previewed_and_backfilled(shop: Shop) -> None:
    task = await shop.task()
    assert (await shop.orc("task", "pause", task)).lines[0] == "Task 'Report' is paused"
    assert (await shop.orc("task", "show", task, "-o", "json")).json["status"] == "paused"
    assert (await shop.orc("task", "resume", task, "-o", "id")).out.strip() == task
    snoozed = await shop.orc("task", "snooze", task, "--delay-seconds", "60")
    assert "is snoozed by 60 s" in snoozed.out
    assert (await shop.orc("task", "snooze", task)).status == 2
    preview = await shop.orc("task", "preview", task, "--n", "3")
    assert len(preview.lines) == 4
    assert preview.err != ""
    wanted = await shop.orc("task", "backfill", task, "--from", "2d", "--to", "1h", "-o", "jsonl")
    assert 1 <= len(wanted.lines) <= 2
    assert (await shop.orc("task", "occurrences", task)).status == 0


@pytest.mark.parametrize(
    "words",
    [("task", "cancel"), ("run", "cancel"), ("agent", "delete"), ("agent", "rotate-key"),
     ("agent", "revoke-keys")],
)  # fmt: skip
async def test_nothing_is_destroyed_unasked_where_nobody_can_be_asked(
    shop: Shop, words: tuple[str, str]
) -> None:
    id = "01a1fe85-b214-7c38-bf9c-8640f8b3fc77"
    done = await shop.orc(*words, id)
    assert done.status == 2
    assert id in done.err
    assert "say --yes" in done.err
    done = await shop.orc(*words, id, "--yes")
    assert (done.status, "not found" in done.err.lower()) == (1, True)


async def test_a_canceled_task_is_canceled_with_yes_only(shop: Shop) -> None:
    task = await shop.task()
    await shop.orc("task", "cancel", task)
    assert (await shop.orc("task", "show", task, "-o", "json")).json["status"] == "active"
    assert (await shop.orc("task", "cancel", task, "--yes")).status == 0
    assert (await shop.orc("task", "show", task, "-o", "json")).json["status"] == "canceled"
    done = await shop.orc("task", "resume", task)
    assert (done.status, "canceled" in done.err) == (1, True)


@pytest.mark.parametrize(("answer", "status"), [("y", "canceled"), ("n", "active"), ("", "active")])
async def test_on_a_terminal_it_asks_and_does_as_it_is_told(
    shop: Shop, answer: str, status: str
) -> None:
    task = await shop.task()
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "orchestrator.cli", "task", "cancel", task, stdin=theirs,
        stdout=theirs, stderr=theirs,
        env=environment(shop.folder, ORCHESTRATOR_URL=os.environ["ORCHESTRATOR_URL"]),
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    assert (await asyncio.wait_for(process.wait(), 60) == 0) is (answer == "y")
    said = b""
    with suppress(OSError):  # the end, as the other side is closed
        while data := os.read(ours, 65536):
            said += data
    os.close(ours)
    assert f"Task {task} ends for good. Sure?".encode() in said
    assert (await shop.orc("task", "show", task, "-o", "json")).json["status"] == status


async def test_events_are_published_listed_and_tailed(shop: Shop) -> None:
    for n in (1, 2):
        sent = await shop.orc(
            "event", "publish", "--topic", "orders.created", "--payload", f'{{"n": {n}}}', "-o",
            "id",
        )  # fmt: skip
        assert sent.status == 0
    newest = await shop.orc("event", "list", "--topic", "orders.created", "-o", "jsonl")
    assert [msgspec.json.decode(line)["payload"]["n"] for line in newest.lines] == [2, 1]
    none = await shop.orc("event", "publish", "--topic", "$orders", "--payload", "1")
    assert none.status == 2


async def test_an_agent_is_made_and_its_key_is_good_until_it_is_revoked(shop: Shop) -> None:
    made = (await shop.orc("agent", "create", "--name", "mailer", "--scopes", "tasks:read",
                           "-o", "json")).json  # fmt: skip
    assert made["scopes"] == ["tasks:read"]
    shop.orc.set(ORCHESTRATOR_KEY=made["key"])
    assert "mailer" in (await shop.orc("whoami")).out
    assert (await shop.orc("task", "list")).status == 0
    refused = await shop.orc("run", "list")
    assert (refused.status, "runs:read" in refused.err) == (77, True)
    shop.orc.unset("ORCHESTRATOR_KEY")
    assert (await shop.orc("agent", "revoke-keys", made["id"], "--yes")).status == 0
    shop.orc.set(ORCHESTRATOR_KEY=made["key"])
    await asyncio.sleep(0.6)  # how long keys are believed, and a little
    refused = await shop.orc("task", "list")
    assert refused.status == 77
    assert "is not accepted (any more): run `orc login`" in refused.err
    shop.orc.unset("ORCHESTRATOR_KEY")
    assert (await shop.orc("agent", "delete", made["id"], "--yes")).status == 0
    assert "mailer" not in (await shop.orc("agent", "list")).out


# Failures, retry, explain


async def test_failures_are_grouped_and_retried_by_a_filter(shop: Shop) -> None:
    task = await shop.task()
    shop.tool.answer("a", Fail("runtime", "no paper"), Fail("runtime", "no paper"))
    failed = {await shop.ran(task), await shop.ran(task)}
    (group,) = (await shop.orc("failures", "-o", "json")).json
    assert (group["runs"], "no paper" in group["message"]) == (2, True)
    assert (await shop.orc("failures", "-o", "id")).lines == [group["fingerprint"]]
    where = ("--where", f"fingerprint={group['fingerprint']}")
    dry = await shop.orc("retry", *where, "--dry-run", "-o", "id")
    assert set(dry.lines) == failed
    refused = await shop.orc("retry", *where)
    assert (refused.status, "2 runs are retried" in refused.err) == (2, True)
    assert len((await shop.orc("run", "list", "-o", "id")).lines) == 2
    done = await shop.orc("retry", *where, "--yes", "-o", "id")
    assert len(done.lines) == 2

    async def retried() -> bool:
        listed = await shop.orc("run", "list", "--state", "succeeded", "-o", "id")
        return set(listed.lines) == set(done.lines)

    await until(retried)
    assert (await shop.orc("retry", *where, "-o", "id")).out == ""


async def test_retries_start_no_faster_than_was_said(shop: Shop) -> None:
    task = await shop.task()
    shop.tool.answer("a", Fail("runtime", "x"), Fail("runtime", "x"), Fail("runtime", "x"))
    for _ in range(3):
        await shop.ran(task)
    done = await shop.orc("retry", "--where", f"task_id={task}", "--per-second", "0.01",
                          "--most", "2", "--yes", "-o", "id")  # fmt: skip
    assert len(done.lines) == 2
    due = [(await shop.orc("run", "show", id, "-o", "json")).json["due_at"] for id in done.lines]
    first, second = map(datetime.fromisoformat, due)
    assert round((second - first).total_seconds()) == 100


async def test_a_filter_has_the_words_of_lists(shop: Shop) -> None:
    wrong = await shop.orc("retry", "--where", "colour=red", "--dry-run")
    assert wrong.status == 2
    assert all(word.field in wrong.err for word in words(Command("", "", "", "", FILTER)))
    wrong = await shop.orc("retry", "--where", "state=green", "--dry-run")
    assert (wrong.status, "succeeded" in wrong.err) == (2, True)
    assert (await shop.orc("retry", "--dry-run")).status == 2


async def test_a_run_and_a_task_are_explained(shop: Shop) -> None:
    shop.tool.hold("a")
    task = await shop.task(concurrency_key="one")
    await shop.orc("task", "run", task)
    blocked = (await shop.orc("task", "run", task, "-o", "id")).out.strip()
    said = await shop.orc("explain", blocked)
    assert said.status == 0
    assert "one" in said.lines[0]
    assert said.lines[1].startswith("  clears when ")
    shop.tool.free()
    why = await shop.orc("explain", task, "--at", "2020-01-01T00:00:00Z")
    assert why.status == 0
    assert why.out
    lost = await shop.orc("explain", task)
    assert (lost.status, "--at says which instant" in lost.err) == (1, True)
    assert (await shop.orc("explain", "nonsense")).status == 2
    assert "isn't a time" in (await shop.orc("explain", task, "--at", "soon")).err


# Tail


async def test_tail_follows_a_run_to_its_end_and_its_status_says_how(shop: Shop) -> None:
    task = await shop.task()
    fine = await shop.ran(task)
    done = await shop.orc("tail", "--run", fine)
    assert done.status == 0
    assert done.lines[-1].endswith(f"run {fine} succeeded")
    shop.tool.answer("a", Fail("runtime", "no paper"))
    failed = await shop.ran(task)
    done = await shop.orc("tail", "--run", failed)
    assert (done.status, "no paper" in done.lines[-1]) == (1, True)
    told = [msgspec.json.decode(line) for line in (await shop.orc("tail", "--run", failed, "-o",
                                                                  "jsonl")).lines]  # fmt: skip
    assert told[-1]["state"] == "failed"
    done = await shop.orc("tail", "--run", task)
    assert (done.status, "There is no run" in done.err) == (1, True)
    assert (await shop.orc("tail", "--run", fine, "--task", task)).status == 2


async def test_tail_tells_the_log_of_a_run_in_its_place_and_logs_lists_it(shop: Shop) -> None:
    steps = [
        {"id": "say", "uses": "log.write", "with": {"message": "counting", "facts": {"n": 3}}},
        {"id": "wait", "uses": "do", "with": {"name": "a"}},
        {"id": "end", "uses": "log.write", "with": {"level": "warning", "message": "counted"}},
    ]
    shop.tool.hold("a")
    task = await shop.task(payload={"pipeline": steps})
    run = (await shop.orc("task", "run", task, "-o", "id")).out.strip()
    heard = asyncio.create_task(shop.orc("tail", "--run", run))
    await until(lambda: shop.tool.inside, within=30)
    shop.tool.free()
    lines = (await heard).lines
    places = [n for n, line in enumerate(lines) if "counting" in line or "counted" in line]
    assert len(places) == 2
    assert lines[places[0]].endswith('info: counting {"n":3}')
    assert places[1] < len(lines) - 1
    assert lines[-1].endswith(f"run {run} succeeded")
    listed = (await shop.orc("run", "logs", run, "-o", "json")).json
    assert [(one["level"], one["message"]) for one in listed] == [
        ("info", "counting"), ("warning", "counted"),
    ]  # fmt: skip
    assert len((await shop.orc("run", "logs", run, "--limit", "1", "-o", "id")).lines) == 1


async def test_the_last_lines_of_a_log_are_told_before_the_end(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was, or wasn't, looked at meanwhile."""

    async def never(_: object) -> None: ...

    monkeypatch.setattr(tail.Lines, "keep_looking", never)
    said = {"id": "a", "uses": "log.write", "with": {"message": "the last word"}}
    run = await shop.ran(await shop.task(payload={"pipeline": [said]}))
    lines = (await shop.orc("tail", "--run", run)).lines
    assert lines[-2].endswith("info: the last word")
    assert lines[-1].endswith("succeeded")


async def test_a_tail_that_was_cut_off_goes_on_and_tells_nothing_twice(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream breaks after one entry, then after two, …; its last seconds are told each time."""
    told, count = remote.Remote.events, 0

    async def broken(self: remote.Remote, *asked: Any) -> AsyncIterator[tuple[str, str, Any]]:
        nonlocal count
        left = count = count + 1
        async for event in told(self, *asked):
            yield event
            if (left := left - 1) == 0:
                raise core.Failure("cut off", core.Exit.UNAVAILABLE)

    task = await shop.task()
    run = await shop.ran(task)
    whole = (await shop.orc("tail", "--run", run)).lines
    monkeypatch.setattr(remote.Remote, "events", broken)
    assert (await shop.orc("tail", "--run", run)).lines == whole
    assert count == len(whole) > 2


async def test_tail_hears_of_events_as_they_come(shop: Shop) -> None:
    heard = asyncio.create_task(shop.orc("tail", "--topic", "orders.*", "-n", "2", "-o", "jsonl"))

    async def publish() -> bool:
        for topic in ("bills.paid", "orders.made"):
            await db.call(shop.conn, "emit_event", tenant="default", topic=topic, payload={})
        return heard.done()

    await until(publish, within=30)
    told = [msgspec.json.decode(line) for line in (await heard).lines]
    assert [event["topic"] for event in told] == ["orders.made"] * 2
