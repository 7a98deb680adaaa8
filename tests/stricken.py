"""A worker that dies before or after the n-th thing that it says or hears of runs:
`python -m stricken before 7 worker …`."""

import itertools
import os
import signal
import sys
from typing import Any

from orchestrator import cli, db
from orchestrator.worker import line


def strike(moment: tuple[str, int]) -> None:
    """Only what is about runs is counted: how often an idle worker asks is up to chance."""
    ask, numbers = line._ask, itertools.count(1)

    async def struck(
        connection: db.Connection, verb: str, arguments: dict[str, Any]
    ) -> list[db.Row]:
        says = arguments.get("steps") or arguments.get("outcomes")
        number = next(numbers) if says else 0
        die_at(("before", number))
        rows = await ask(connection, verb, arguments)
        if not says and rows and rows[0].get("runs"):
            number = next(numbers)
        die_at(("after", number))
        return rows

    def die_at(here: tuple[str, int]) -> None:
        if here == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    line._ask = struck


if __name__ == "__main__":
    strike((sys.argv[1], int(sys.argv[2])))
    sys.argv[1:3] = []
    cli.main()
