"""What the runs of tests do, when they call Python: the allowed module of their workers."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from orchestrator.steps import current

meeting = threading.Barrier(20)


def add(a: int, b: int) -> int:
    return a + b


def shout() -> None:
    raise RuntimeError("no luck")


def leave() -> None:
    sys.exit(3)


def die() -> None:
    os._exit(9)


def confuse() -> object:
    return object()


def say(text: str) -> str:
    return text


def nul() -> str:
    return "a\0b"


def rest(seconds: float) -> None:
    time.sleep(seconds)


def meet() -> int:
    return meeting.wait(10)


async def later() -> str:
    return current.get().run


def note(path: str, seconds: float = 0) -> None:
    """A line in a ledger outside the database: this run was executed under this epoch."""
    me: Any = current.get()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{me.run} {me.epoch}\n".encode())
    os.close(file)
    time.sleep(seconds)


def note_until(path: str, end: str) -> None:
    """Works until there is such a file."""
    note(path)
    while not os.path.exists(end):
        time.sleep(0.01)


def strike(ledger: str, step: str) -> str:
    """A call to the outside. Its worker dies before or after it, if `<ledger>.<run>` says so."""
    me: Any = current.get()
    token = Path(f"{ledger}.{me.run}")
    moment = token.read_text() if token.exists() else ""
    if moment == f"before {step}":
        _die_at(token)
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{me.run} {step} {me.epoch} {me.key}\n".encode())
    os.close(file)
    if moment == f"after {step}":
        _die_at(token)
    return step


def _die_at(token: Path) -> None:
    token.unlink()
    os.kill(os.getpid(), signal.SIGKILL)


def shout_about(text: str) -> None:
    raise RuntimeError(f"{text} and {text!r}")


def chatter(text: str, lines: int = 1) -> str:
    """Prints in every way that there is."""
    print("it is", text)
    print(text, file=sys.stderr, end="")
    for letter in text:
        sys.stdout.write(letter)
    sys.stdout.buffer.write(f" in bytes {text}\n".encode())
    sys.stdout.flush()
    stranger = threading.Thread(target=lambda: print("stranger", text, flush=True))
    stranger.start()
    stranger.join()
    for number in range(lines):
        print("line", number)
    return "done"


def place_of_run() -> str:
    me: Any = current.get()
    return os.path.join(tempfile.gettempdir(), f"orc-deed-{me.run}")


def reveal(text: str) -> str:
    """Keeps what it's given outside, as another service would."""
    with open(place_of_run(), "w") as file:
        file.write(text)
    return text


def die_once(text: str) -> str:
    if not os.path.exists(place_of_run() + "-died"):
        open(place_of_run() + "-died", "w").close()
        os._exit(9)
    return text


def remember() -> str:
    with open(place_of_run()) as file:
        text = file.read()
    os.unlink(place_of_run())
    os.unlink(place_of_run() + "-died")
    return f"it was {text}"


def vast(ledger: str, length: int) -> str:
    """A large answer; its worker dies a moment later, if `<ledger>.<run>` says so."""
    me: Any = current.get()
    token = Path(f"{ledger}.{me.run}")
    if token.exists():
        seconds = float(token.read_text())
        token.unlink()
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return str(me.run)[-1] * length
