"""Secrets: values are in a tool's hands only, and nowhere else afterwards."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import msgspec
import psycopg
import pytest
from conftest import Connect, Make
from crew import Crew, ends, exit_status, look, until

from orchestrator import db, secrets, telemetry
from orchestrator.config import Hidden
from orchestrator.secrets import Masks, Missing, Vault, opened, sealed
from orchestrator.steps import Context, Done, Fail, Kind, Outcome, Park, Retry

CANARY = 'Kanari/+ä"<x>&7&%0123456789?\\end'
PLAIN = "canary-4f3a9c-token"
KEY = base64.b64encode(bytes(range(32))).decode()
KEYS = Hidden(k1=bytes(range(32)))


# Masks


def masked(value: Any, secret: str = CANARY) -> Any:
    masks = Masks()
    masks.add("K", secret)
    return masks.value(value)


SHAPES: dict[str, Callable[[str], str]] = {
    "itself": lambda s: s,
    "json": json.dumps,
    "json in unicode": lambda s: json.dumps(s, ensure_ascii=False),
    "json in json": lambda s: json.dumps(json.dumps(s)),
    "json with escaped slashes": lambda s: json.dumps(s, ensure_ascii=False).replace("/", "\\/"),
    "url": lambda s: quote(s, safe=""),
    "path": quote,
    "form": quote_plus,
    "url in lower case": lambda s: re.sub("%..", lambda hit: hit[0].lower(), quote(s, safe="")),
    "url twice": lambda s: quote(quote(s, safe=""), safe=""),
    "html": html.escape,
    "repr": repr,
    "repr of bytes": lambda s: repr(s.encode()),
    "hex": lambda s: s.encode().hex(),
    "hex in capitals": lambda s: s.encode().hex().upper(),
    "base64": lambda s: base64.b64encode(s.encode()).decode(),
    "url-safe base64": lambda s: base64.urlsafe_b64encode(s.encode()).decode(),
    "base64 without padding": lambda s: base64.b64encode(s.encode()).decode().rstrip("="),
    "base64 in a url": lambda s: quote(base64.b64encode(s.encode()).decode(), safe=""),
}


@pytest.mark.parametrize("secret", [CANARY, PLAIN, "hush", "12345678", "zeile eins\nzeile zwei"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_value_is_masked_in_every_shape(shape: str, secret: str) -> None:
    shown = SHAPES[shape](secret)
    text = masked(f"before {shown} after", secret)
    assert text.startswith("before ") and text.endswith(" after")
    assert shown not in text and "[secret K]" in text
    assert masked({"a": [{shown: shown}]}, secret) == masked({"a": [{shown: shown}]}, secret)
    assert shown not in json.dumps(masked({"a": [{shown: shown}]}, secret), ensure_ascii=False)


@pytest.mark.parametrize("user", ["", "u", "us", "use", "user", "someone@example.com"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("secret", [CANARY, PLAIN, "hush-hush"])
def test_basic_authentication_is_masked_whatever_the_user_is(
    user: str, encode: Any, secret: str
) -> None:
    text = encode(f"{user}:{secret}".encode()).decode()
    left = masked(f"Basic {text}", secret)
    assert "[secret K]" in left
    rest = left.partition("[secret K]")
    assert len(rest[2]) <= 4, "what is left of it decides nothing"
    assert len(rest[0]) <= len("Basic ") + len(encode(f"{user}:".encode()))


@pytest.mark.parametrize("around", [("", "x"), ("a", "yz"), ("ab", "xyz"), ("abc", "&more=1")])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_is_masked_with_anything_around_the_value(
    around: tuple[str, str], encode: Any
) -> None:
    for secret in (CANARY, PLAIN):
        text = encode(f"{around[0]}{secret}{around[1]}".encode()).decode()
        left = masked(text, secret)
        assert "[secret K]" in left
        assert len(left) < len("[secret K]") + 4 * (len(around[0]) + len(around[1])) / 3 + 8


def test_numbers_and_bytes_are_masked_too() -> None:
    assert masked({"pin": 12345678, "n": 5}, "12345678") == {"pin": "[secret K]", "n": 5}
    assert masked({"b": b"x12345678"}, "12345678") != {"b": b"x12345678"}
    assert "MTIzNDU2Nz" not in str(masked({"b": b"12345678"}, "12345678"))


def test_what_holds_no_secret_is_the_same_object() -> None:
    value = {"a": [1, 2.5, None, True, "text"]}
    assert masked(value) is value
    assert Masks().value(value) is value


def test_masking_twice_is_masking_once_even_when_the_mark_holds_the_value() -> None:
    for secret in ("secret", "K] [secret", "[secret K]"):
        once = masked(f"a {secret} b", secret)
        assert masked(once, secret) == once


def test_the_longer_of_two_secrets_wins() -> None:
    masks = Masks()
    masks.add("A", "canary")
    masks.add("B", "canary-long")
    assert masks.text("x canary-long canary") == "x [secret B] [secret A]"


def test_each_long_line_of_a_key_is_hidden_by_itself() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0\n-----END KEY-----"
    assert "MIIE" not in masked("bad line: MIIEvQIBADANBgkqhkiG9w0", key)


def test_a_large_result_is_searched_fast_enough() -> None:
    import time

    value = {"rows": [{"text": "x" * 90, "n": n} for n in range(10_000)]}
    masks = Masks()
    masks.add("K", CANARY)
    best = []
    for _ in range(3):
        began = time.perf_counter()
        assert masks.value(value) is value
        best.append(time.perf_counter() - began)
    assert min(best) < 0.2


def test_a_line_of_the_log_shows_nothing_that_was_revealed() -> None:
    secrets.hidden.add("LOGGED", "canary-logged")
    assert telemetry.mask("GET /?k=canary-logged") == "GET /?k=[secret LOGGED]"


# Placeholders


async def test_only_this_run_knows_its_placeholders(make: Make) -> None:
    config = make.config(secrets=Hidden(K=PLAIN), secrets_tenants=("t",))
    vault, other = Vault(config, "t", ["K"]), Vault(config, "t", ["K"])
    mine, theirs = vault.placeholders["K"], other.placeholders["K"]
    assert mine != theirs
    given = {"a": f"Bearer {mine}", "b": [theirs, "${secrets.K}", "[secret K]"], "n": 1}
    assert await vault.reveal(given) == {
        "a": f"Bearer {PLAIN}", "b": [theirs, "${secrets.K}", "[secret K]"], "n": 1,
    }  # fmt: skip
    assert vault.shown({"a": f"x {mine}"}) == {"a": "x ${secrets.K}"}
    assert vault.masks.text(f"{mine} {PLAIN}") == "[secret K] [secret K]"


async def test_a_value_that_looks_like_a_placeholder_is_not_filled_again(make: Make) -> None:
    config = make.config(secrets=Hidden(A="xxxx", B="yyyy"), secrets_tenants=("t",))
    vault = Vault(config, "t", ["A", "B"])
    config.secrets["A"] = f"<{vault.placeholders['B']}>"
    assert await vault.reveal(vault.placeholders["A"]) == f"<{vault.placeholders['B']}>"


# Where they are


async def test_the_table_comes_before_the_folder_and_the_folder_before_the_environment(
    make: Make, conn: db.Connection, tmp_path: Path
) -> None:
    config = make.config(
        secrets=Hidden(A="environment", B="environment", C="environment"),
        secrets_path=tmp_path, secrets_key=KEYS, secrets_tenants=("t",),
    )  # fmt: skip
    (tmp_path / "A").write_text("folder\n")
    (tmp_path / "B").write_text("folder\n")
    await db.call(conn, "put_secret", **sealed(config, "t", "A", "table"))
    found = await secrets.look_up(config, "t", ["A", "B", "C", "D"], [])
    await secrets.close()
    assert found == {"A": "table", "B": "folder", "C": "environment"}


@pytest.mark.parametrize("name", ["../A", "A/..", ".", "", "a b", "/etc/passwd"])
async def test_a_name_never_leaves_the_folder(make: Make, tmp_path: Path, name: str) -> None:
    (tmp_path / "A").write_text("outside")
    (tmp_path / "in").mkdir()
    config = make.config(secrets_path=tmp_path / "in", secrets_tenants=("t",))
    with pytest.raises(Missing):
        await secrets.look_up(config, "t", [name], [name])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("abc", "has 3 characters"),
        ("x" * 65_537, "has 65537"),
        ("abc\0d", "NUL"),
        (b"\xff" * 9, "UTF-8"),
    ],
)
async def test_a_value_that_can_not_be_hidden_is_refused(
    make: Make, tmp_path: Path, value: Any, words: str
) -> None:
    (tmp_path / "K").write_bytes(value if isinstance(value, bytes) else value.encode())
    config = make.config(secrets_path=tmp_path, secrets_tenants=("t",))
    with pytest.raises(Missing, match=words) as refusal:
        await secrets.look_up(config, "t", ["K"], ["K"])
    assert str(refusal.value).startswith("secret K ")


def row_of(sealed_row: dict[str, Any]) -> dict[str, Any]:
    return {**sealed_row, "tenant_id": sealed_row["tenant"]}


def test_a_row_is_bound_to_its_tenant_and_its_name(make: Make) -> None:
    config = make.config(secrets_key=KEYS)
    row = row_of(sealed(config, "a", "K", PLAIN))
    assert opened(config, row) == PLAIN
    for changed in ({"tenant_id": "b"}, {"name": "L"}, {"nonce": bytes(12)},
                    {"ciphertext": row["ciphertext"][:-1] + b"x"}):  # fmt: skip
        with pytest.raises(Missing, match="can't be decrypted"):
            opened(config, {**row, **changed})


def test_the_first_key_encrypts_and_every_key_decrypts(make: Make) -> None:
    old = make.config(secrets_key=KEYS)
    new = make.config(secrets_key=Hidden(k2=bytes(32), **KEYS))
    assert opened(new, row_of(sealed(old, "a", "K", PLAIN))) == PLAIN
    row = row_of(sealed(new, "a", "K", PLAIN))
    assert row["key_id"] == "k2"
    with pytest.raises(Missing, match="encrypted by key k2, which ORC_SECRETS_KEY doesn't have"):
        opened(old, row)


def test_two_encryptions_of_one_value_differ(make: Make) -> None:
    config = make.config(secrets_key=KEYS)
    one, two = (sealed(config, "a", "K", PLAIN) for _ in range(2))
    assert one["nonce"] != two["nonce"] and one["ciphertext"] != two["ciphertext"]


async def test_a_row_that_can_not_be_opened_is_not_replaced_by_the_operators(
    make: Make, conn: db.Connection
) -> None:
    config = make.config(secrets=Hidden(K="operator's"), secrets_key=KEYS, secrets_tenants=("t",))
    other = make.config(secrets_key=Hidden(k9=bytes(32)))
    await db.call(conn, "put_secret", **sealed(other, "t", "K", PLAIN))
    with pytest.raises(Missing, match="k9"):
        await secrets.look_up(config, "t", ["K"], ["K"])
    await secrets.close()


async def test_a_tenant_reads_its_own_secrets_only(make: Make, conn: db.Connection) -> None:
    config = make.config(secrets=Hidden(E="environment"), secrets_key=KEYS, secrets_tenants=("a",))
    await db.call(conn, "put_secret", **sealed(config, "a", "K", "a's own"))
    await db.call(conn, "put_secret", **sealed(config, "b", "K", "b's own"))
    try:
        assert await secrets.look_up(config, "a", ["K", "E"], []) == {
            "K": "a's own", "E": "environment",
        }  # fmt: skip
        assert await secrets.look_up(config, "b", ["K", "E"], []) == {"K": "b's own"}
        with pytest.raises(Missing, match="secret E is neither in the table of its tenant"):
            await secrets.look_up(config, "b", ["E"], ["E"])
    finally:
        await secrets.close()


async def test_only_workers_are_given_rows_and_nobody_reads_the_table(
    connect: Connect, make: Make, conn: db.Connection
) -> None:
    await db.call(conn, "put_secret", **sealed(make.config(secrets_key=KEYS), "t", "K", PLAIN))
    wanted = [{"tenant": "t", "name": "K"}]
    worker, api, reader = [await connect(role=f"orc_{r}") for r in ("worker", "api", "reader")]
    assert len(await db.call(worker, "secrets_of", wanted=wanted)) == 1
    for connection in (api, reader):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await db.call(connection, "secrets_of", wanted=wanted)
    for connection in (worker, api, reader):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("select ciphertext from orchestrator.secret")
    (row,) = await db.call(reader, "list_secrets", tenant="t")
    assert set(row) == {"name", "key_id", "created_at", "by"}
    await db.call(conn, "delete_secret", tenant="t", name="K")
    assert await db.call(reader, "list_secrets", tenant="t") == []


def orc(database: str, *words: str, value: str = "", **settings: str) -> Any:
    mine = {n: v for n, v in os.environ.items() if not n.startswith(("ORC_", "PG"))}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "secret", *words], input=value, text=True,
        capture_output=True, env={**mine, "DATABASE_URL": database, **settings}, check=False,
    )  # fmt: skip


def test_the_command_sets_lists_and_deletes_and_never_shows_a_value(database: str) -> None:
    key = f"k1:{KEY}"
    done = orc(database, "set", "K", "--tenant", "t", value=f"{PLAIN}\n", ORC_SECRETS_KEY=key)
    assert (done.returncode, done.stdout) == (0, "set\n"), done.stderr
    again = orc(database, "set", "K", "--tenant", "t", value=PLAIN, ORC_SECRETS_KEY=key)
    assert again.stdout == "replaced\n"
    listed = orc(database, "list", "--tenant", "t")
    assert listed.stdout.splitlines()[1].split()[:2] == ["K", "k1"]
    assert orc(database, "list", "--tenant", "t", "-o", "id").stdout == "K\n"
    assert PLAIN not in listed.stdout
    assert orc(database, "list").stdout == ""
    assert orc(database, "set", "K", value=PLAIN).returncode == 78
    assert orc(database, "set", "../K", value=PLAIN, ORC_SECRETS_KEY=key).returncode == 78
    assert orc(database, "delete", "K", "--tenant", "t", "--yes").stdout == "deleted\n"
    assert orc(database, "delete", "K", "--tenant", "t", "--yes").returncode == 1


# Pipelines


class Given(msgspec.Struct):
    how: str = "give"
    key: str = ""
    more: Any = None


seen: list[str] = []
parked: list[str] = []


async def odd(given: Given, context: Context) -> Outcome:
    """A kind that treats what it's given as badly as it can."""
    seen.append(given.key)
    key = given.key or PLAIN
    match given.how:
        case "give":
            return Done({"key": key, "deep": [{"a": (key, {key: key})}]})
        case "encode":
            return Done([shape(key) for shape in SHAPES.values()])
        case "basic":
            pairs = [f"{user}:{key}".encode() for user in ("u", "us", "use")]
            return Done([base64.b64encode(pair).decode() for pair in pairs])
        case "fail":
            return Fail("runtime", f"bad key {key}")
        case "retry":
            return Retry("communication", f"again {quote(key, safe='')}")
        case "raise":
            raise RuntimeError(f"raised {key!r}")
        case "cause":
            try:
                raise ValueError(key)
            except ValueError as error:
                raise KeyError(key) from error
        case "line":
            context.lines.append({"level": "info", "message": key, "facts": {key: [key]}})
            return Done("written")
        case "log":
            telemetry.log("odd_call", key_given=key, note=f"it is {key}")
            return Done("logged")
        case "park":
            if context.run not in parked:
                parked.append(context.run)
                return Park(f"somebody who knows {key}", "2020-01-01T00:00:00Z")
            return Done(key)
    raise AssertionError(given.how)


ODD = Kind("odd", Given, odd)
LOOSE = Kind("loose", Given, odd, recorded=False)
STORING = Kind("storing", Given, odd, stores=True)


@pytest.fixture
def tokens() -> dict[str, str]:
    seen.clear()
    parked.clear()
    return {"K": PLAIN, "C": CANARY}


@pytest.fixture
async def crew(make: Make, tokens: dict[str, str], conn: db.Connection) -> AsyncIterator[Crew]:
    config = make.config(
        python_modules=("deeds",), secrets=Hidden(tokens), secrets_tenants=("t",), secrets_key=KEYS
    )
    crew = Crew(config)
    yield crew
    await crew.end()


async def begin(conn: db.Connection, *steps: dict[str, Any], **more: Any) -> str:
    options: dict[str, Any] = {n: more.pop(n) for n in ("max_attempts", "tenant") if n in more}
    document = {"secrets": ["K", "C"], "pipeline": list(steps), **more}
    given = {"tenant": "t", "backoff": "fixed", "backoff_seconds": 0, **options}
    row = await db.call_one(conn, "enqueue", pipeline=document, **given)
    return str(row["run_id"])


def tell(how: str, key: str = "${secrets.K}", id: str = "a", **more: Any) -> dict[str, Any]:
    return {"id": id, "uses": "odd", "with": {"how": how, "key": key}, **more}


async def result(crew: Crew, conn: db.Connection, *steps: dict[str, Any], **more: Any) -> db.Row:
    run = await begin(conn, *steps, **more)
    await crew.once(ODD, STORING, LOOSE)
    return await look(conn, run)


async def test_a_tool_is_given_the_value_and_everybody_else_sees_its_name(
    crew: Crew, conn: db.Connection
) -> None:
    row = await result(crew, conn, tell("give", "Bearer ${secrets.K}"))
    assert seen == [f"Bearer {PLAIN}"]
    assert row["output"]["a"]["key"] == "Bearer [secret K]"


async def test_an_expression_may_stand_around_a_secret(crew: Crew, conn: db.Connection) -> None:
    steps = tell("give", "${'Token ' + secrets.K + (run.attempt == 1 ? '!' : '?')}")
    row = await result(crew, conn, steps)
    assert seen == [f"Token {PLAIN}!"]
    assert row["output"]["a"]["key"] == "Token [secret K]!"


async def test_data_can_not_name_a_secret(crew: Crew, conn: db.Connection) -> None:
    evil = {"id": "e", "uses": "python.call", "with": {
        "function": "deeds:say", "args": {"text": "$${secrets.K} [secret K:0]"}}}  # fmt: skip
    row = await result(crew, conn, evil, tell("give", "${steps.e}"))
    assert seen == ["${secrets.K} [secret K:0]"]
    assert row["output"]["a"]["key"] == "${secrets.K} [secret K:0]"


@pytest.mark.parametrize("uses", ["set", "assert", "log.write", "storing"])
async def test_steps_that_keep_what_they_are_given_take_no_secret(
    crew: Crew, conn: db.Connection, uses: str
) -> None:
    given = {"set": {"x": "${secrets.K}"}, "assert": {"that": "${secrets.K == 'x'}"},
             "log.write": {"message": "a ${secrets.K}"},
             "storing": {"key": "${secrets.K}"}}  # fmt: skip
    row = await result(crew, conn, {"id": "a", "uses": uses, "with": given[uses]})
    assert (row["state"], row["error"]["type"]) == ("failed", "validation")
    assert "it takes no secret" in row["error"]["message"]


async def test_a_missing_secret_fails_the_step_and_is_named(
    crew: Crew, conn: db.Connection
) -> None:
    step = {"id": "a", "uses": "odd", "with": {"key": "${secrets.NONE}"}, "retry": 3}
    row = await result(crew, conn, step, secrets=["NONE"])
    assert (row["error"]["type"], row["attempt"], seen) == ("configuration", 1, [])
    assert "secret NONE " in row["error"]["message"]


async def test_another_tenant_is_not_given_the_operators_secrets(
    crew: Crew, conn: db.Connection
) -> None:
    row = await result(crew, conn, tell("give"), tenant="other")
    assert (row["error"]["type"], seen) == ("configuration", [])


async def test_another_tenant_s_output_is_not_searched_for_a_tenant_s_secrets(
    crew: Crew, conn: db.Connection
) -> None:
    """Else it could guess, and see by the mask that it was right."""
    await begin(conn, tell("give"))
    run = await begin(conn, tell("give", f"is it {PLAIN}?"), tenant="other", secrets=[])
    await crew.once(ODD)
    assert (await look(conn, run))["output"]["a"]["key"] == f"is it {PLAIN}?"


async def test_what_a_step_left_is_masked_before_an_expression_sees_it(
    crew: Crew, conn: db.Connection
) -> None:
    cut = "${steps.a.key + '|' + state.f.error.message}"
    failing = tell("fail", id="f", continue_on_error=True)
    row = await result(crew, conn, tell("give"), failing, tell("give", cut, "b"))
    assert row["state"] == "succeeded", row["error"]
    assert seen == [PLAIN, PLAIN, "[secret K]|bad key [secret K]"]


async def test_arguments_that_do_not_fit_are_refused_without_their_values(
    crew: Crew, conn: db.Connection
) -> None:
    step = {"id": "a", "uses": "http.request", "with": {
        "url": "https://a.example", "expect": "${secrets.K}"}}  # fmt: skip
    row = await result(crew, conn, step)
    assert row["error"]["type"] == "validation"
    assert "[secret K]" in row["error"]["message"]


def python(text: str, function: str = "say", **more: Any) -> dict[str, Any]:
    given = {"function": f"deeds:{function}", "args": {"text": text}}
    return {"id": "p", "uses": "python.call", "with": given, **more}


def canaries() -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    ways = ["give", "encode", "basic", "fail", "retry", "raise", "cause", "line", "log", "park"]
    found: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []
    for key in ("${secrets.K}", "a ${secrets.C} z"):
        found += [([tell(way, key)], {}) for way in ways]
    twice = {"attempts": 2, "delay": 0, "errors": ["runtime", "communication"]}
    found += [
        ([tell("raise", retry=twice)], {}),
        ([tell("retry", retry=twice)], {"max_attempts": 2}),
        ([tell("fail", continue_on_error=True), tell("give", "${state.a.error}", "b")], {}),
        ([tell("fail", catch=[tell("give", "${error.message}", "c")])], {}),
        ([tell("give"), tell("give", "${steps.a.key}", "b")], {}),
        ([tell("give"), tell("give", "${steps.a.key + '-again'}", "b")], {}),
        ([tell("give"), {"id": "s", "uses": "set", "with": {"x": "${steps.a}"}}], {}),
        ([tell("give"), {"id": "l", "uses": "log.write",
                          "with": {"message": "${steps.a.key}"}}], {}),
        ([tell("fail")], {"on_error": [{"id": "l", "uses": "log.write",
                                        "with": {"message": "${error.message}"}}]}),
        ([tell("give")], {"finally": [tell("raise", id="f")]}),
        ([tell("give", output="${result.deep}")], {"output": {"all": "${steps.a}"}}),
        ([{"id": "e", "for_each": "${[1, 2]}", **tell("give", id="e")}], {}),
        ([tell("line", uses="loose")], {}),
        ([tell("line", uses="loose"), tell("fail", id="b")], {}),
        ([python("${secrets.C}")], {}),
        ([python("${secrets.K}", "shout_about")], {}),
        ([python("${secrets.K}", "chatter")], {}),
        ([python("${secrets.C}", "chatter")], {}),
        ([tell("give", "")], {}),  # it knows the value from elsewhere
        ([tell("give", schema={"type": "object", "required": ["x"]})], {}),
        ([{"id": "q", "uses": "http.request",
           "with": {"url": "http://${secrets.K}.invalid/"}}], {}),
        ([{"id": "q", "uses": "http.request", "with": {"url": "not a url ${secrets.K}"}}], {}),
        ([{"id": "w", "uses": "webhook.send", "with": {
            "url": "https://a.invalid", "payload": {}, "secret": "${secrets.K}"}}], {}),
    ]  # fmt: skip
    return found


ABSENT = [
    shape(secret).strip("\"'b") for secret in (PLAIN, CANARY) for shape in SHAPES.values()
]  # fmt: skip
ABSENT += [
    base64.b64encode(f"{user}:{PLAIN}".encode()).decode()[4:-4] for user in ("u", "us", "use")
]


async def dump(conn: db.Connection) -> str:
    """Every row of every table, as text."""
    cursor = await conn.execute(
        "select oid::regclass::text as name from pg_class where relkind in ('r', 'p')"
        " and relnamespace = 'orchestrator'::regnamespace and not relispartition"
    )
    texts = []
    for row in await cursor.fetchall():
        found = await conn.execute(f"select t::text as line from {row['name']} t".encode())
        texts += [line["line"] for line in await found.fetchall()]
    return "\n".join(texts)


def leaks(text: str) -> list[str]:
    return [form for form in ABSENT if form in text or form.replace('"', '\\"') in text]


async def test_canaries_are_nowhere_after_pipelines_that_do_their_worst(
    crew: Crew, conn: db.Connection, capfd: pytest.CaptureFixture[str], own_logs: None
) -> None:
    telemetry.setup("worker", "debug", "json")
    ways = canaries()
    assert len(ways) >= 30
    runs = [await begin(conn, *steps, **more) for steps, more in ways]
    worker = crew.worker(ODD, LOOSE)
    rows = [await ends(conn, run, within=60) for run in runs]
    worker.drain()
    await crew.task(worker)
    assert {row["state"] for row in rows} == {"succeeded", "failed"}
    assert {PLAIN, f"a {CANARY} z"} <= set(seen), "the tools were given them"
    said = capfd.readouterr()
    for where in (await dump(conn), said.err, said.out, json.dumps(rows, default=str)):
        assert leaks(where) == []
        assert "[secret K]" in where or where == said.out
    nonces = re.findall(r"secret [KC](?::|%3A)[0-9a-f]{8}", await dump(conn) + said.err)
    assert nonces == []


async def test_canaries_are_nowhere_after_crashes_of_real_workers(
    crew: Crew, conn: db.Connection, tokens: dict[str, str]
) -> None:
    ledger = {"function": "deeds:reveal", "args": {"text": "${secrets.K}"}}
    first = {"id": "a", "uses": "python.call", "with": ledger}
    die = {"id": "d", "uses": "python.call", "with": {"function": "deeds:die_once", "args": {
        "text": "${secrets.C}"}}}  # fmt: skip
    echo = {"id": "z", "uses": "python.call", "with": {"function": "deeds:remember"}}
    run = await begin(conn, first, {"id": "w", "wait": {"for": "1s"}}, die, echo, max_attempts=4)
    settings = {"ORC_SECRET_K": PLAIN, "ORC_SECRET_C": CANARY, "ORC_SECRETS_TENANTS": "t",
                "LOG_LEVEL": "debug"}  # fmt: skip
    told = b""
    for _ in range(10):
        process = crew.process("--lease", "1", "--once", "--poll", "0.05", environment=settings)
        await exit_status(process, within=60)
        assert process.stderr is not None
        told += process.stderr.read()
        if (await look(conn, run))["finished_at"]:
            break
        await asyncio.sleep(1.2)
        await db.call(conn, "release_expired_work")
    row = await look(conn, run)
    assert row["state"] == "succeeded", row["error"]
    assert row["output"]["z"] == "it was [secret K]"
    assert leaks(told.decode()) == leaks(await dump(conn)) == []


async def test_a_worker_reads_the_table_at_every_call(crew: Crew, conn: db.Connection) -> None:
    await db.call(conn, "put_secret", **sealed(crew.config, "t", "K", "first-value"))
    worker = crew.worker(ODD)
    await ends(conn, await begin(conn, tell("give")))
    await db.call(conn, "put_secret", **sealed(crew.config, "t", "K", "second-value"))
    row = await ends(conn, await begin(conn, tell("give")))
    assert seen == ["first-value", "second-value"]
    assert row["output"]["a"]["key"] == "[secret K]"
    assert worker.alive
    await until(lambda: not worker.hands.running)
