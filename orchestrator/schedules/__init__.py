"""Schedules: when a task runs. Here is time alone: text in, instants out, and no database.

zones        names of zones, and where a clock jumps
cron         five fields        propose local wall times; they know of no zone
recurrence   RRULE texts
rules        one rule of any kind: checks it, and decides what a jump of the clock does to it
"""
