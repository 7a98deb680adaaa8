"""`python -m orchestrator.demo weather` and `… telegram [FILE]`: a server on stdin and stdout."""

from __future__ import annotations

import sys

from . import telegram, weather

SERVERS = {"weather": weather.main, "telegram": telegram.main}


def main() -> None:
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in SERVERS:
        sys.exit(f"usage: python -m orchestrator.demo {'|'.join(SERVERS)}")
    SERVERS[name]()


if __name__ == "__main__":
    main()
