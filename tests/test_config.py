"""The environment: what is read, and how a wrong one is refused."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from orchestrator import config
from orchestrator.errors import Misconfigured


def test_an_unknown_name_of_ours_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        Misconfigured, match="ORC_POOL_SISE is not a setting: did you mean ORC_POOL_SIZE"
    ):
        config.load({"ORC_POOL_SISE": "5"})


def test_a_name_that_resembles_none_lists_all() -> None:
    with pytest.raises(Misconfigured, match=r"ORC_ZZZ is not a setting: known: .*ORC_POOL_SIZE"):
        config.load({"ORC_ZZZ": "1"})


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(Misconfigured) as refusal:
        config.load({"ORC_NO": "1", "PORT": "70000", "LOG_LEVEL": "loud", "ORC_POOL_SIZE": "x"})
    assert len(str(refusal.value).splitlines()) == 4


def test_names_of_others_are_ignored() -> None:
    assert config.load({"HOME": "/root", "ORCHARD": "1"}) == config.Config()


@pytest.mark.parametrize(
    "url", ["postgresql+asyncpg://a@h/d", "postgres://a@h/d", "postgresql+psycopg://a@h/d"]
)
def test_a_driver_suffix_is_dropped(url: str) -> None:
    assert config.load({"DATABASE_URL": url}).database_url == "postgresql://a@h/d"


def test_database_url_wins_over_db_dsn() -> None:
    both = {"DB_DSN": "postgresql://b@h/d", "DATABASE_URL": "postgresql://a@h/d"}
    assert config.load(both).database_url == "postgresql://a@h/d"
    assert config.load({"DB_DSN": "postgresql://b@h/d"}).database_url == "postgresql://b@h/d"


@pytest.mark.parametrize(
    "text", ["https://a.example, https://b.example", '["https://a.example","https://b.example"]']
)
def test_origins_are_words_or_a_json_list(text: str) -> None:
    expected = ("https://a.example", "https://b.example")
    assert config.load({"CORS_ORIGINS": text}).cors_origins == expected


def test_every_reader_fills_a_field_and_every_field_has_a_reader() -> None:
    fields = {field.name for field in msgspec.structs.fields(config.Config)}
    assert {field for field, _ in config.READERS.values()} == fields - {"secrets"}


def test_secrets_of_the_environment_are_read_by_their_prefix_and_never_shown() -> None:
    found = config.load({"ORC_SECRET_TOKEN": "hush-hush", "ORC_SECRETS_TENANTS": "a,b"})
    assert found.secrets == {"TOKEN": "hush-hush"}
    assert found.secrets_tenants == ("a", "b")
    assert "hush" not in repr(found) and "TOKEN" in repr(found)
    assert hash(found) == hash(
        config.load({"ORC_SECRET_TOKEN": "hush-hush", "ORC_SECRETS_TENANTS": "a,b"})
    )


def test_keys_of_secrets_are_32_bytes_each_and_never_told() -> None:
    key = "A" * 43 + "="
    assert config.load({"ORC_SECRETS_KEY": f"b:{key}, a:{key}"}).secrets_key == {
        "b": bytes(32), "a": bytes(32),
    }  # fmt: skip
    for wrong in ("hush", "a:hush", f":{key}", f"a:{key},a:{key}", "a:" + "A" * 44):
        with pytest.raises(Misconfigured) as refusal:
            config.load({"ORC_SECRETS_KEY": wrong})
        assert wrong not in str(refusal.value)


def test_a_key_under_a_misspelt_name_does_not_become_a_secret() -> None:
    with pytest.raises(Misconfigured, match="did you mean ORC_SECRETS_KEY"):
        config.load({"ORC_SECRET_KEY": "x"})


def test_config_is_the_only_reader_of_the_environment() -> None:
    package = Path(config.__file__).parent
    readers = {
        path.relative_to(package).parts[0]
        for path in package.rglob("*.py")
        if re.search(r"\bos\.(environ\b|getenv)", path.read_text())
    }
    whole = {"bench", "devpg", "up", "cli"}  # hand it on to the processes that they start
    assert readers <= {"config.py"} | whole
