"""Who was started, for whoever has to clear it away: process numbers alone are given again."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import msgspec


class Child(msgspec.Struct):
    pid: int  # and the number of its process group
    birth: str

    @property
    def lives(self) -> bool:
        """Whether it is there, or what it started: a group's number isn't given to another."""
        if now := birth(self.pid):
            return now == self.birth
        return self.birth.startswith(_boot()) and group_lives(self.pid)


class Record(msgspec.Struct):
    """A supervisor and its parts."""

    pid: int = 0
    birth: str = ""
    url: str = ""
    children: dict[str, Child] = {}

    @staticmethod
    def of(data: Path) -> Record:
        with suppress(FileNotFoundError, msgspec.MsgspecError):
            return msgspec.json.decode((data / "up.json").read_bytes(), type=Record)
        return Record()

    def keep(self, data: Path) -> None:
        new = data / "up.json.new"
        new.write_bytes(msgspec.json.encode(self))
        new.rename(data / "up.json")

    @staticmethod
    def forget(data: Path) -> None:
        (data / "up.json").unlink(missing_ok=True)

    def end_children(self, grace: float) -> bool:
        """Ends what is left of the parts. Whether there was anything."""
        left = [child for child in self.children.values() if child.lives]
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 1.0)):
            for child in left:
                if child.lives:
                    signal_group(child.pid, number)
            deadline = time.monotonic() + patience
            while any(child.lives for child in left) and time.monotonic() < deadline:
                time.sleep(0.01)
        return bool(left)


def birth(pid: int) -> str:
    """Tells a process from a later one with its number. Empty when it is gone."""
    stat = _stat(pid)
    return f"{_boot()} {stat[19]}" if stat and stat[0] not in "ZX" else ""


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on: state, parent, group, …"""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def group_lives(group: int) -> bool:
    """Whether the process group has a member that isn't merely waiting to be buried."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    if not Path("/proc/self").exists():
        return True
    stats = [_stat(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    return any(stat[2] == str(group) and stat[0] not in "ZX" for stat in stats if stat)


def signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
