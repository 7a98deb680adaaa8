"""The wheel: built, installed in an environment without this checkout, and used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ["orchestrator", "sql", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"]


def run(*command: str | Path, **environment: str) -> str:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env=kept | environment,
        cwd="/",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder appears in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--disable-pip-version-check", "--wheel-dir", folder / "dist", folder)  # fmt: skip
    (built,) = (folder / "dist").glob("orchestrator-*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and the packages that it needs, but not this checkout."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
        "--disable-pip-version-check", "--no-index", wheel)  # fmt: skip
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def test_the_wheel_has_every_sql_file_and_page_and_nothing_else(wheel: Path) -> None:
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    sql = {f"orchestrator/{p.relative_to(ROOT)}" for p in (ROOT / "sql").rglob("*.sql")}
    assert sql <= names
    web = {str(p.relative_to(ROOT)) for p in (ROOT / "orchestrator" / "web").glob("*.*")}
    assert web <= names
    guide = {str(p.relative_to(ROOT)) for p in (ROOT / "orchestrator" / "guide").glob("*.md")}
    assert guide <= names
    assert all(name.startswith("orchestrator/") for name in names)
    assert not [name for name in names if "test" in name or "__pycache__" in name]


def test_the_installed_package_is_not_this_checkout(clean: Path) -> None:
    where = run(clean / "python", "-c", "import orchestrator; print(orchestrator.__file__)")
    assert str(ROOT) not in where
    assert run(clean / "orc", "version") == run(clean / "orchestrator", "version")
    page = (ROOT / "orchestrator" / "guide" / "tools.md").read_text()
    assert run(clean / "orc", "guide", "tools") == page


def test_the_schema_is_installed_from_the_wheel(clean: Path, empty_database: str) -> None:
    first = run(clean / "orc", "db", "install", DATABASE_URL=empty_database)
    assert first.strip()
    assert run(clean / "orc", "db", "install", DATABASE_URL=empty_database) == "nothing to do\n"
    assert run(clean / "orc", "check", DATABASE_URL=empty_database) == "every invariant holds\n"
    with psycopg.connect(empty_database) as look:
        row = look.execute("select count(*) from orc.help()").fetchone()
        assert row
        assert row[0] > 5
