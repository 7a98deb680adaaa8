"""Schedules: when a task runs. Here is time: text in, instants out; the rest is SQL.

zones        names of zones, and where a clock jumps
cron         five fields        propose local wall times; they know of no zone
recurrence   RRULE texts
rules        one rule of any kind: checks it, and decides what a jump of the clock does to it
plan         the next instants, as plans in the database hold them
tasks        what callers say of tasks over HTTP
"""

from .tasks import ENDPOINTS

__all__ = ["ENDPOINTS"]
