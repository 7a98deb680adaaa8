"""The library: what is in `sql/`, as pages in the order of install.sql."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from ..errors import Unfit


class Page(msgspec.Struct, frozen=True):
    """A file below `sql/`."""

    name: str
    text: str


class Migration(msgspec.Struct, frozen=True):
    name: str
    page: Page
    digest: str
    breaking: str | None  # why older programs must stop

    @property
    def number(self) -> int:
        return int(self.name[:4])


class Library(msgspec.Struct, frozen=True):
    """What is in `sql/`."""

    ground: list[Page]
    facts: list[Page]
    verbs: list[Page]
    migrations: list[Migration]

    @property
    def digest(self) -> str:
        return _digest(*(part for page in self.verbs for part in (page.name, page.text)))


def sql_folder() -> Path:
    """`orchestrator/sql` where the package is installed, `sql` in a checkout."""
    here = Path(__file__).resolve().parent.parent
    installed = here / "sql"
    return installed if (installed / "install.sql").exists() else here.parent / "sql"


def read_library(folder: Path | None = None) -> Library:
    """The pages in the order of install.sql, and the migrations; refuses a gap or a double."""
    folder = folder or sql_folder()
    contents = _read(folder, "install.sql").text
    pages = [_read(folder, name) for name in re.findall(r"^\\ir\s+(\S+)", contents, re.M)]
    kinds: dict[str, list[Page]] = {"ground": [], "facts": [], "verbs": []}
    for page in pages:
        kinds[_kind(page.name)].append(page)
    files = sorted((folder / "migrations").glob("*.sql"))
    migrations = [_migration(_read(folder, f"migrations/{file.name}")) for file in files]
    _require_numbers_in_a_row(migrations)
    return Library(**kinds, migrations=migrations)


def _read(folder: Path, name: str) -> Page:
    try:
        return Page(name, (folder / name).read_text("utf-8").replace("\r\n", "\n"))
    except OSError as error:
        raise Unfit(
            f"sql/{name} can't be read: {error.strerror}; install the program again"
        ) from error


def _kind(name: str) -> str:
    file = name.rpartition("/")[2]
    if file == "roles.sql":
        return "ground"
    return "facts" if file == "facts.sql" or file.endswith("tables.sql") else "verbs"


def _migration(page: Page) -> Migration:
    name = page.name.removeprefix("migrations/").removesuffix(".sql")
    if not re.fullmatch(r"\d{4}_[a-z0-9_]+", name):
        raise Unfit(
            f"sql/{page.name} must be named by a number and a sentence: 0002_runs_have_labels.sql"
        )
    breaking = re.match(r"--\s*breaking:\s*(.+)", page.text)
    return Migration(name, page, _digest(page.text), breaking.group(1) if breaking else None)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _require_numbers_in_a_row(migrations: list[Migration]) -> None:
    for expected, migration in enumerate(migrations, 1):
        if migration.number != expected:
            raise Unfit(
                f"sql/migrations: {migration.name} should have number {expected:04}; "
                "numbers are unique and leave no gap"
            )
