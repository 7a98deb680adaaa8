"""Files of pipelines: what YAML would change unseen is said, with its line and the way out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner, Result

from orchestrator import cli
from orchestrator.pipelines import source
from orchestrator.pipelines.bodies import KINDS

STEP = "pipeline:\n  - id: a\n    uses: set\n"


def write(folder: Path, text: str, name: str = "p.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def told(folder: Path, text: str, name: str = "p.yaml") -> list[tuple[int | None, str, str]]:
    found = source.lint(write(folder, text, name))
    return [(problem.line, problem.pointer, problem.message) for problem in found]


def value(folder: Path, written: str) -> Any:
    """What a plain value becomes, when nothing is wrong with it."""
    loaded = source.load(write(folder, f"x: {written}\n"))
    assert loaded.problems == []
    return loaded.document["x"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("5", 5),
        ("-5", -5), ("0", 0), ("1.5", 1.5), ("1.0e+3", 1000.0), ("text", "text"),
        ("'no'", "no"), ('"10:30"', "10:30"), ("'010'", "010"), ("[1, a]", [1, "a"]),
        ("{a: b}", {"a": "b"}), ("${steps.a.b}", "${steps.a.b}"),
        ("|\n  two\n  lines", "two\nlines\n"),
        ("5m", "5m"), ("1h30m", "1h30m"), ("1.2.3", "1.2.3"), ("!!str 5", "5"),
    ],
)  # fmt: skip
def test_a_plain_value_is_read_as_it_looks(tmp_path: Path, written: str, read: Any) -> None:
    assert value(tmp_path, written) == read


TRAPS = [
    ("no", "no is false in YAML", 'write "no" for the text, or false', "error"),
    ("Yes", "Yes is true in YAML", 'write "Yes" for the text, or true', "error"),
    ("on", "on is true in YAML", 'write "on" for the text, or true', "error"),
    ("OFF", "OFF is false in YAML", 'write "OFF" for the text, or false', "error"),
    ("08:30", "08:30 may be read as a number of base 60", 'write "08:30"', "error"),
    ("10:30", "10:30 may be read as a number of base 60", 'write "10:30"', "error"),
    ("1:02:03", "1:02:03 may be read as a number of base 60", 'write "1:02:03"', "error"),
    ("010", "010 is the octal number 8 in YAML", 'write "010"', "error"),
    ("0x1F", "0x1F is a number in YAML", 'write "0x1F" for the text, or plain digits', "error"),
    ("1_000", "1_000 is a number in YAML", 'write "1_000" for the text, or plain digits', "error"),
    (".inf", ".inf is no number in JSON", 'write ".inf"', "error"),
    (".NaN", ".NaN is no number in JSON", 'write ".NaN"', "error"),
    ("1.10", "1.10 is the number 1.1 in YAML", 'write "1.10" for the text, or 1.1', "warning"),
    ("1e3", "1e3 is text in YAML", 'write "1e3", or 1000.0 for the number', "warning"),
    ("2026-01-02", "2026-01-02 is a date in YAML; here it's taken as text",
     'write "2026-01-02"', "warning"),
    ("!!int '5'", "the tag tag:yaml.org,2002:int isn't read", None, "error"),
    ("!!int 09", "09 isn't what its tag says", None, "error"),
    ("!!python/name:os.system x", "the tag tag:yaml.org,2002:python/name:os.system isn't read",
     None, "error"),
    ("!thing {a: 1}", "the tag !thing isn't read", None, "error"),
    ("!!binary aGk=", "the tag tag:yaml.org,2002:binary isn't read", None, "error"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "message", "hint", "severity"), TRAPS)
def test_a_trap_is_named_with_its_line_and_the_quoting(
    tmp_path: Path, written: str, message: str, hint: str | None, severity: str
) -> None:
    (problem,) = source.lint(write(tmp_path, f"{STEP}params:\n  x: {written}\n"))
    assert (problem.line, problem.pointer) == (5, "/params/x")
    assert (problem.message, problem.hint, problem.severity) == (message, hint, severity)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{STEP}    on: 1\n", (4, "/pipeline/0/on", "the key on isn't text in YAML")),
        (f"{STEP}params: {{5: x}}\n", (4, "/params/5", "the key 5 isn't text in YAML")),
        (f"{STEP}params: {{? [a] : x}}\n", (4, "/params", "a key must be text")),
        (f"{STEP}    uses: x\n", (4, "/pipeline/0/uses", "the key 'uses' again")),
        (f"{STEP}params:\n  a: &a {{x: 1}}\n  b: {{<<: *a}}\n",
         (6, "/params/b", "<< isn't read: write the fields out")),
        ("pipeline:\n\t- id: a\n", (2, "", "a tab can't indent YAML")),
        (f"{STEP}---\nx: 1\n", (4, "", "a file holds one document")),
        ("a: [1\nb: 2\n", (2, "", "not YAML: expected ',' or ']', but got ':'")),
        ("", (None, "", "is empty")),
        ("x: &x [*x]\n", (1, "", "more than 100000 values, or 100 levels of them")),
    ],
)  # fmt: skip
def test_what_is_no_plain_yaml_is_named(
    tmp_path: Path, text: str, found: tuple[int | None, str, str]
) -> None:
    assert found in told(tmp_path, text)


def test_aliases_cannot_grow_without_end(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert told(tmp_path, "\n".join(lines))[0][2].startswith("more than 100000 values")


def test_deep_nesting_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    assert told(tmp_path, "x: " + "[" * 1500)[0][2].startswith("not YAML")
    assert told(tmp_path, "[" * 200_000, "p.json")[0][2].startswith("not JSON")


def test_problems_of_the_language_have_their_lines(tmp_path: Path) -> None:
    text = f"{STEP}    timeout: soon\n    with:\n      x: ${{steps.b}}\n  - id: c\n"
    assert told(tmp_path, text) == [
        (4, "/pipeline/0/timeout", "'soon' is no duration: write 250ms, 30s, 1h30m or PT5M"),
        (6, "/pipeline/0/with/x", "there is no step 'b'"),
        (7, "/pipeline/1", f"a step has one of {', '.join(KINDS)}; this one has none"),
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": \n x}', (2, "", "not JSON: Expecting value")),
        ('{"pipeline": [], "pipeline": [{"id": "a", "uses": "set"}]}',
         (None, "", "the key 'pipeline' stands twice in an object")),
        ('{"pipeline": [{"id": "a", "uses": "set", "timeout": NaN}]}',
         (None, "/pipeline/0/timeout", "a number must be finite")),
    ],
)  # fmt: skip
def test_json_is_read_as_strictly(
    tmp_path: Path, text: str, found: tuple[int | None, str, str]
) -> None:
    assert told(tmp_path, text, "p.json") == [found]


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"x: \xff")
    (tmp_path / "large.yaml").write_text("x" * 2**21)
    said = {
        name: source.lint(tmp_path / name)[0].message for name in ("latin.yaml", "large.yaml", "no")
    }
    assert said == {
        "latin.yaml": "isn't UTF-8",
        "large.yaml": "is larger than 1024 KiB",
        "no": "can't be read: No such file or directory",
    }


def test_the_pipelines_in_the_readme_are_fine(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    texts = re.findall(r"```yaml\n(.*?)```", readme, re.S)
    assert len(texts) >= 1
    assert [told(tmp_path, text) for text in texts] == [[]] * len(texts)


def orc(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.app, ["pipeline", "lint", *map(str, words)])


def test_the_command_prints_a_line_for_each_problem(tmp_path: Path) -> None:
    good = write(tmp_path, STEP, "good.yaml")
    odd = write(tmp_path, f"{STEP}params: {{day: 2026-01-02}}\n", "odd.yaml")
    bad = write(tmp_path, f"{STEP}    tiemout: 3\n", "bad.yaml")
    assert (orc(good).stdout, orc(good).exit_code) == ("nothing is wrong\n", 0)
    done = orc(good, odd, bad)
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        f"{odd}:4: /params/day: warning: 2026-01-02 is a date in YAML; here it's taken as text"
        ' (write "2026-01-02")',
        f"{bad}:4: /pipeline/0/tiemout: there is no field 'tiemout' here (did you mean timeout?)",
    ]
    assert orc(odd).exit_code == 0


def test_the_command_answers_json_for_programs(tmp_path: Path) -> None:
    file = write(tmp_path, f"{STEP}    timeout: soon\n")
    (problem,) = msgspec.json.decode(orc("-o", "json", file).stdout)
    assert problem == {
        "file": str(file),
        "line": 4,
        "pointer": "/pipeline/0/timeout",
        "type": "duration",
        "message": "'soon' is no duration: write 250ms, 30s, 1h30m or PT5M",
    }


def test_an_unknown_tool_is_a_warning_and_an_error_when_strict(tmp_path: Path) -> None:
    file = write(tmp_path, "pipeline:\n  - uses: stt\n  - uses: shop.order\n    with: {n: x}\n")
    done = orc(file)
    assert (done.exit_code, done.stdout.splitlines()) == (0, [
        f"{file}:2: /pipeline/0/uses: warning: there is no tool 'stt' (did you mean set?)",
        f"{file}:3: /pipeline/1/uses: warning: there is no tool 'shop.order'",
    ])  # fmt: skip
    assert orc("--strict", file).exit_code == 1


def test_the_catalogue_says_which_tools_there_are_and_what_they_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = [{
        "address": "shop.order", "transport": "http", "endpoint": "http://127.0.0.1:1/",
        "input_schema": {"properties": {"n": {"type": "integer"}}},
    }]  # fmt: skip
    (tmp_path / "catalog.json").write_bytes(msgspec.json.encode(catalog))
    monkeypatch.setenv("TOOL_CATALOG_PATH", str(tmp_path / "catalog.json"))
    file = write(tmp_path, "pipeline:\n  - uses: shop.order\n    with: {n: x}\n")
    done = orc("--strict", file)
    assert (done.exit_code, done.stdout.count("\n")) == (1, 1)
    assert f"{file}:3: /pipeline/0/with/n:" in done.stdout


def test_a_server_is_asked_when_a_file_mentions_it(
    tmp_path: Path,
) -> None:
    servers = {
        "weather": {"command": sys.executable, "args": ["-m", "orchestrator.demo", "weather"]},
        "mute": {"command": "/nonexistent/program"},
    }
    (tmp_path / "mcp.json").write_bytes(msgspec.json.encode({"mcpServers": servers}))
    environment = {**os.environ, "MCP_SERVERS_PATH": str(tmp_path / "mcp.json")}

    def lint(text: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestrator.cli", "pipeline", "lint"]
        return subprocess.run(
            [*command, write(tmp_path, text)], capture_output=True, text=True, env=environment
        )

    assert lint(STEP).stderr == ""
    steps = "pipeline:\n  - uses: weather.get_forecast\n    with: {city: 5}\n  - uses: mute.x\n"
    done = lint(steps)
    assert "the server mute didn't say which tools it has" in done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[1] for line in lines] == ["3", "4"]
    assert "there is no tool 'mute.x'" in lines[1]


def test_everything_wrong_in_one_text_is_named(tmp_path: Path) -> None:
    steps = "    with:\n      x: ${nope.a} ${1 +} ${steps.b} ${vars.c} ${params.d}\n"
    text = f"inputs: {{e: {{type: integer}}}}\nparams: {{e: x, f: 1}}\n{STEP}{steps}"
    found = [message for _, _, message in told(tmp_path, text)]
    for words in ["'nope'", "1 +", "no step 'b'", "no constant 'c'", "no input 'd'",
                  "integer", "no input 'f'"]:  # fmt: skip
        assert any(words in message for message in found), (words, found)
    assert len(found) == 7
