"""Jobs, schedules and agents on the Postgres that you already have."""

from importlib.metadata import version

__version__ = version("orchestrator")
