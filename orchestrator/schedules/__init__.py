"""Schedules: when a task runs. Here is time: text in, instants out; the rest is SQL.

- rules: a rule of any kind: `compile_rule`, `describe`, and what a jump of the clock does
- cron: five fields, which propose wall times and know of no zone
- recurrence: so do the lines of RRULE; rrule_text reads and checks them
- zones: names of zones, and where a clock jumps
- limits: what a rule may cost, and how a bad one is refused
- words: a recurrence told to people
 - plan: `next_after`, the next moments of a task of any kind, and plans as the database holds them
- bulk: many tasks at once
 - tasks, shapes: what callers say of tasks over HTTP, and what they are answered
"""

from . import bulk, tasks

ENDPOINTS = [*tasks.ENDPOINTS, *bulk.ENDPOINTS]

__all__ = ["ENDPOINTS"]
