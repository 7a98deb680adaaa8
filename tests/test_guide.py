"""The guide: every example on its pages runs, on the real database and through a real worker.

A page is read from top to bottom. What a fenced block is, its language and the words before it say:

    yaml        a pipeline, or a schedule; what follows says what becomes of it
    json        "gives": the output of the pipeline, or the rows of the SQL, before it
                "fails with": the run's error
                names MCP_SERVERS_PATH or TOOL_CATALOG_PATH: that file
                "input": what the tables of expressions after it see
    text        what `orc pipeline lint` says of the pipeline before it, or the command printed
    python      a module, which the words name: `shop.py`
    toml        the pyproject.toml of a distribution, which is installed, and a new worker started
    sql, sh     run as they stand; `:run` is the run before it

The words may give a run its input (with the input `{"n": 1}`) and arguments of `orc.enqueue`
(with `max_attempts => 2`). A text of what is expected may leave something out with `…`. Hosts of
other people become a server here. Rows of tables of expressions and templates are run, too.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import yaml
from aiosmtpd.smtp import SMTP
from conftest import Make, Serve
from crew import Crew, ends
from peers import Heard, Peer, peer, says
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from orchestrator import config as settings
from orchestrator import db, guide, scheduler
from orchestrator.config import Hidden
from orchestrator.pipelines import document, modifiers, read, source, steps
from orchestrator.schedules.limits import BadRule
from orchestrator.schedules.rules import compile_rule, describe
from orchestrator.steps import builtins, kinds
from orchestrator.steps.plugins import plugins

HOSTS = ("https://shop.example", "https://hooks.slack.com", "https://tools.example")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INPUT = re.compile(r"input `(.+?)`", re.S)
ARGUMENT = re.compile(r"`(\w+) => ([^`]+)`")
TABLE = re.compile(r"^\| (expression|template) \| gives \|\n\|.*\n((?:\|.*\n)+)", re.M)
LONGEST_PAGE = 275
KEY = bytes(range(32))
PATIENCE = 60.0


class Block(msgspec.Struct):
    kind: str
    text: str
    words: str  # the paragraph before it
    at: int

    def names(self, *some: str) -> bool:
        return any(one in self.words for one in some)


def blocks(page: str) -> list[Block]:
    found, before = [], 0
    for fence in FENCE.finditer(page):
        words = page[before : fence.start()].strip().split("\n\n")[-1]
        line = page[: fence.start()].count("\n") + 1
        found.append(Block(fence[1], fence[2], words, line))
        before = fence.end()
    return found


def fits(expected: Any, found: Any) -> bool:
    """Equal, but for what `…` leaves out of a text."""
    if isinstance(expected, str) and "…" in expected:
        pattern = ".*".join(re.escape(part) for part in expected.split("…"))
        text = found if isinstance(found, str) else json.dumps(found)
        return re.fullmatch(pattern, text, re.S) is not None
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(fits(expected[k], found[k]) for k in found)
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(fits, expected, found))
    return type(expected) is type(found) and bool(expected == found)


class Reader:
    """Does what a page says, and remembers what came of it."""

    def __init__(self, crew: Crew, conn: db.Connection, place: Path, world: Peer) -> None:
        self.crew, self.conn, self.place, self.world = crew, conn, place, world
        self.pipeline = ""
        self.rows: list[Any] | None = None
        self.printed = ""
        self.sql = self.run = ""
        self.input: Any = None
        self.login = self.api = ""
        self.done: Counter[str] = Counter()

    def here(self, text: str) -> str:
        for host in HOSTS:
            text = text.replace(host, self.world.url)
        return text

    def there(self, value: Any) -> Any:
        return json.loads(json.dumps(value, default=str).replace(self.world.url, HOSTS[0]))

    async def read(self, page: str) -> None:
        found = blocks(page)
        for number, block in enumerate(found):
            after = found[number + 1].kind if number + 1 < len(found) else ""
            if block.kind == "yaml" and after not in ("json", "text"):
                raise AssertionError(f"line {block.at}: nothing says what becomes of this pipeline")
            try:
                await getattr(self, f"_{block.kind}")(block)
            except Exception as error:
                raise AssertionError(f"line {block.at}, {block.words[:60]!r}: {error}") from error
            self.done[block.kind] += 1

    async def _yaml(self, block: Block) -> None:
        self.pipeline, self.rows = self.here(block.text), None

    async def _json(self, block: Block) -> None:
        expected = json.loads(self.here(block.text))
        if block.names("MCP_SERVERS_PATH", "TOOL_CATALOG_PATH"):
            name = "mcp" if block.names("MCP_SERVERS_PATH") else "catalog"
            text = self.here(block.text).replace("sent.jsonl", str(self.place / "sent.jsonl"))
            (self.place / f"{name}.json").write_text(text)
        elif block.names("gives", "fails with"):
            await self._compare(block, expected)
        else:
            assert block.names("input"), "nothing says what this is"
            self.input = expected

    async def _compare(self, block: Block, expected: Any) -> None:
        if "schedule_kind:" in self.pipeline:
            found = preview(yaml.safe_load(self.pipeline))
            assert fits(expected, found), json.dumps(found)
            return
        if self.rows is not None:
            deadline = time.monotonic() + PATIENCE
            while not fits(expected, self.rows) and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
                await self._ask(self.sql)
            assert fits(expected, self.rows), self.rows
            return
        row = await self._outcome(block)
        found = row["error"] if block.names("fails with") else row["output"]
        state = "failed" if block.names("fails with") else "succeeded"
        assert row["state"] == state, (row["state"], row["error"], row["output"])
        assert fits(json.loads(block.text), self.there(found)), json.dumps(self.there(found))

    async def _outcome(self, block: Block) -> db.Row:
        given = INPUT.search(block.words)
        options: dict[str, Any] = dict(ARGUMENT.findall(block.words))
        if given:
            options["input"] = given[1]
        if block.names("killed"):
            return await self._ended_by_processes(options)
        await self._enqueue(yaml.safe_load(self.pipeline), **options)
        return await ends(self.conn, self.run, within=PATIENCE)

    async def _enqueue(self, pipeline: Any, **options: Any) -> None:
        options = {"tenant": "acme", "pipeline": json.dumps(pipeline), **options}
        given = ", ".join(f"{name} => %({name})s" for name in options)
        cursor = await self.conn.execute(f"select * from orc.enqueue({given})".encode(), options)
        row = await cursor.fetchone()
        assert row is not None
        self.run = str(row["run_id"])

    async def _ended_by_processes(self, options: dict[str, Any]) -> db.Row:
        """By workers that are killed, one after the other: each is a process of its own."""
        await self._dismiss()
        await self._enqueue(yaml.safe_load(self.pipeline), **options)
        deadline = time.monotonic() + PATIENCE
        process = self._process()
        async with db.Pool(self.crew.config, role="orc_worker", application="guide") as pool:
            while time.monotonic() < deadline:
                cursor = await self.conn.execute("select * from orc.runs where id = %s", [self.run])
                row = await cursor.fetchone()
                if row and row["finished_at"] is not None:
                    break
                if process.poll() is not None:
                    process = self._process()
                await scheduler.Housekeeping().once(pool)
                await asyncio.sleep(0.05)
        self.crew.worker(poll=0.05)
        return await ends(self.conn, self.run)

    def _process(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "orchestrator.cli", "worker", "--lease", "2"]
        process = subprocess.Popen(command, env=self._environment(), stderr=subprocess.DEVNULL)
        self.crew.processes.append(process)
        return process

    def _environment(self) -> dict[str, str]:
        mine = {n: v for n, v in os.environ.items() if n not in settings.READERS}
        path = f"{Path(sys.executable).parent}:{mine['PATH']}"
        return {
            **{name: value for name, value in mine.items() if not name.startswith("PG")},
            "PATH": path,
            "DATABASE_URL": self.crew.config.database_url,
            "ORCHESTRATOR_URL": self.api,
            "ORC_PYTHON_MODULES": "shop",
            "ORC_ALLOW_TARGETS": f"127.0.0.1:{self.world.port}",
            "ORC_SECRETS_KEY": f"2026:{base64.b64encode(KEY).decode()}",
            "PYTHONPATH": str(self.place),
        }

    async def _text(self, block: Block) -> None:
        if block.names("`orc pipeline lint` says"):
            file = self.place / "pipeline.yaml"
            file.write_text(self.pipeline)
            said = "\n".join(map(str, source.lint(file))).replace(f"{self.place}/", "")
        else:
            assert block.names("prints"), "nothing says what this is"
            said = self.printed
        assert fits(block.text.strip(), said.strip()), said

    async def _python(self, block: Block) -> None:
        named = re.search(r"`(\w+\.py)`", block.words)
        assert named, "nothing names this module"
        (self.place / named[1]).write_text(block.text)

    async def _toml(self, block: Block) -> None:
        """As an installer leaves it."""
        project = tomllib.loads(block.text)["project"]
        info = self.place / f"{project['name']}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        points = project["entry-points"]["orchestrator.steps"]
        lines = [f"{name} = {target}" for name, target in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[orchestrator.steps]", *lines, ""]))
        await self._dismiss()
        plugins.cache_clear()
        self.crew.worker(*kinds().values(), poll=0.05)

    async def _dismiss(self) -> None:
        for worker, _ in self.crew.workers:
            worker.drain()
        await asyncio.gather(*(task for _, task in self.crew.workers))
        self.crew.workers.clear()

    async def _sh(self, block: Block) -> None:
        process = await asyncio.create_subprocess_exec(
            "sh", "-ec", block.text, cwd=self.place, env=self._environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        said, wrong = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0, wrong.decode()
        self.printed, self.rows = said.decode(), None

    async def _sql(self, block: Block) -> None:
        text = block.text.replace("reports", self.login)
        *first, self.sql = filter(str.strip, text.split(";"))
        for sentence in first:
            await self._ask(sentence)
        await self._ask(self.sql)

    async def _ask(self, sentence: str) -> None:
        cursor = await self.conn.execute(sentence.replace(":run", f"'{self.run}'").encode())
        found: list[Any] = self.there(await cursor.fetchall()) if cursor.description else []
        for row in found:
            self.run = row.get("run_id", self.run)
        self.rows = found

    async def look_up(self, kind: str, asked: str, expected: str) -> None:
        """A row of a table: the value, or the error, of an expression or a template."""
        value = "${" + asked + "}" if kind == "expression" else asked
        step = {"id": "a", "uses": "set", "with": {"value": value}}
        await self._enqueue({"pipeline": [step]}, input=json.dumps(self.input))
        row = await ends(self.conn, self.run)
        if expected.startswith("fails: "):
            assert row["error"], (asked, row["output"])
            wanted = expected.removeprefix("fails: ")
            found = row["error"]["message"].removeprefix("/pipeline/0/with/value: ")
        else:
            assert row["state"] == "succeeded", (asked, row["error"])
            wanted, found = json.loads(expected.strip("`")), row["output"]["a"]["value"]
        assert fits(wanted, found), (asked, wanted, found)
        self.done["row"] += 1


def preview(asked: dict[str, Any]) -> dict[str, Any]:
    """When a schedule runs, or which field is wrong and how."""
    instant = asked.pop("from", datetime(2026, 1, 1, tzinfo=UTC))
    n = asked.pop("n", 10)
    kind, expr = asked.pop("schedule_kind"), str(asked.pop("schedule_expr"))
    try:
        rule = compile_rule(kind, expr, asked.pop("timezone"), anchor=instant, **asked)
    except BadRule as error:
        return {"field": error.field, "message": error.detail[0]["msg"]}
    items = [moment._asdict() for moment in rule.after(instant, n).items]
    told: dict[str, Any] = msgspec.to_builtins({"text": describe(rule), "items": items})
    return told


def rows(page: str) -> list[tuple[str, str, str]]:
    """Kind, what is asked, and what it gives, of the tables of expressions."""
    found = []
    for table in TABLE.finditer(page):
        for line in table[2].splitlines():
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            asked, expected = (cell.strip().replace("\\|", "|") for cell in cells)
            found.append((table[1], asked.removeprefix("`").removesuffix("`"), expected))
    return found


# The world outside


def busy_at_first() -> Callable[..., Any]:
    answers = [says(503, retry_after="0"), says(200, '{"euro": 0.92}', "application/json")]

    async def speak(heard: Heard, writer: asyncio.StreamWriter) -> None:
        await (answers.pop(0) if len(answers) > 1 else answers[0])(heard, writer)

    return speak


async def invoice(heard: Heard, writer: asyncio.StreamWriter) -> None:
    """Makes one invoice a key, whatever is asked again."""
    asked: Any = heard.json
    made = {"invoice": "R-" + str(asked["order"]), "key": heard.headers["idempotency-key"]}
    await says(201, json.dumps(made), "application/json")(heard, writer)


async def private(heard: Heard, writer: asyncio.StreamWriter) -> None:
    sent = {"you_sent": heard.headers.get("authorization")}
    await says(200, json.dumps(sent), "application/json")(heard, writer)


async def stock(heard: Heard, writer: asyncio.StreamWriter) -> None:
    """A tool of a catalogue: JSON-RPC."""
    asked: Any = heard.json
    left = len(asked["params"]["arguments"]["sku"])
    answer = {"jsonrpc": "2.0", "id": asked["id"], "result": {"left": left}}
    await says(200, json.dumps(answer), "application/json")(heard, writer)


def answer(value: Any, status: int = 200) -> Any:
    return says(status, json.dumps(value), "application/json")


COMPLETION = {
    "model": "small",
    "choices": [{"message": {"content": "positive"}, "finish_reason": "stop"}],
    "usage": {"total_tokens": 21},
}


class Office:
    async def handle_RCPT(self, _: Any, __: Any, envelope: Any, to: str, ___: Any) -> str:
        envelope.rcpt_tos.append(to)
        return "550 unknown" if to.startswith("nobody") else "250 ok"

    async def handle_DATA(self, *_: Any) -> str:
        return "250 taken"


@pytest.fixture
async def world() -> AsyncIterator[Peer]:
    async with AsyncExitStack() as stack:
        answers: dict[str, Any] = {
            "orders/17": answer({"id": 17, "total": 40, "lines": [{"sku": "tea", "n": 2}]}),
            "orders/18": answer({"error": "gone"}, 404),
            "rates": busy_at_first(),
            "invoices": invoice,
            "hook": says(204),
            "services/T0/B0/x": says(200, "ok"),
            "v1/chat/completions": answer(COMPLETION),
            "stock": stock,
            "private": private,
        }
        yield await stack.enter_async_context(peer(says(404), **answers))


@pytest.fixture
async def reader(
    make: Make,
    conn: db.Connection,
    database: str,
    tmp_path: Path,
    world: Peer,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Reader]:
    loop = asyncio.get_running_loop()
    login = f"reports_{conninfo_to_dict(database)['dbname']}"
    post = await loop.create_server(
        lambda: SMTP(Office(), hostname="h.example", loop=loop), "127.0.0.1", 0
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "shop", None)
    monkeypatch.delitem(sys.modules, "shop")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    config = make.config(
        python_modules=("shop",),
        allow_targets=(f"127.0.0.1:{world.port}",),
        shell_commands=("wc", "sort"),
        llm_url=world.url,
        smtp_url=f"smtp://127.0.0.1:{post.sockets[0].getsockname()[1]}",
        mcp_servers_path=tmp_path / "mcp.json",
        tool_catalog_path=tmp_path / "catalog.json",
        sql_url=make_conninfo(database, user=login, password="change me"),
        secrets_key=Hidden({"2026": KEY}),
    )
    (tmp_path / "mcp.json").write_text('{"mcpServers": {}}')
    (tmp_path / "catalog.json").write_text("[]")
    crew = Crew(config)
    crew.worker(poll=0.05)
    found = Reader(crew, conn, tmp_path, world)
    await db.call(conn, "ensure_system_agent")
    found.login, found.api = login, (await serve()).url
    yield found
    await crew.end()
    post.close()
    plugins.cache_clear()
    with psycopg.connect(database, autocommit=True) as admin:
        if admin.execute("select to_regrole(%s)", [login]).fetchone() != (None,):
            admin.execute(f"drop owned by {login} cascade".encode())
            admin.execute(f"drop role {login}".encode())


@pytest.mark.parametrize("topic", guide.topics())
async def test_every_example_of_a_page_gives_what_it_says(reader: Reader, topic: str) -> None:
    page = guide.page(topic)
    await reader.read(page)
    for row in rows(page):
        await reader.look_up(*row)
    assert reader.done.pop("row", 0) == len(rows(page))
    assert reader.done.total() * 2 == len(re.findall("^ *```", page, re.M)), "a block wasn't run"
    assert reader.done["yaml"] + reader.done["sql"] >= 3


@pytest.mark.parametrize("topic", guide.topics())
def test_a_page_is_short_and_says_first_what_its_reader_can_do(topic: str) -> None:
    page = guide.page(topic)
    assert page.count("\n") <= LONGEST_PAGE
    assert page.split("\n\n")[1].startswith("After this page you can ")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page)
    assert {link for link in links if not (guide.HERE / link).exists()} == set()


def named(topic: str, section: str) -> set[str]:
    """What stands in backquotes in the first cells of a section's tables."""
    text = guide.page(topic).partition(f"## {section}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (.*?) \|", text, re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_tables_name_every_field_of_a_document_and_of_a_step() -> None:
    fields = {*read.DOCUMENT, *read.ALIASES}
    assert fields - named("pipelines", "All fields of a document") == set()
    fields = {*steps.STEP, *steps.ALIASES}
    assert fields - named("pipelines", "All fields of a step") == set()
    assert {*modifiers.RETRY} - named("pipelines", "When a step fails") == set()


def test_every_tool_has_its_section_and_every_type_of_error_is_told() -> None:
    pages = guide.page("tools") + guide.page("waits") + guide.page("sql")
    told = {name for name, kind in builtins().items() if not kind.inner}
    assert {name for name in told if f"\n## `{name}`" not in pages} == set()
    assert set(document.ERRORS) - named("tools", "Errors") == set()


def test_an_unknown_topic_names_the_known_ones() -> None:
    with pytest.raises(
        LookupError,
        match=r"did you mean tools.*expressions, tools, durability, waits, schedules, tasks",
    ):
        guide.page("tool")
