"""What is done over HTTP, a row each: the same routes, filters and words as REST has."""

from __future__ import annotations

import typer

from . import core, runs
from .commands import Command, command

FILTER = (
    "kind:task|flow|mission|run|all task_id flow_id queue"
    " state:scheduled|ready|blocked|running|waiting|succeeded|failed|canceled|skipped"
    " success:bool start_time:time end_time:time error_type fingerprint label"
)
KIND = "schedule_kind:cron|rrule|once|event|condition"
TASK = (
    f"title {KIND} schedule_expr timezone priority:int queue max_retries:int"
    " backoff_strategy:fixed|linear|exponential|exponential_jitter catch_up:none|latest|all"
    " overlap:allow|skip|queue|replace timeout_seconds:float concurrency_key"
    " concurrency_limit:int labels:json description payload:json"
)
STATUS = "status:active|paused|canceled|completed"

TASKS = [
    Command("list", "GET", "/tasks", "Tasks, newest first.",
            f"{STATUS} created_by {KIND} q label",
            "id status schedule_kind schedule_expr next_run_at title", pages=True),
    Command("show", "GET", "/tasks/{task}", "A task, with its rule and its next run."),
    Command("create", "POST", "/tasks",
            "Make a task of a file as POST /tasks takes it, or of a pipeline's and options.",
            TASK, file="payload"),
    Command("update", "PUT", "/tasks/{task}", "Change what is named; a new rule holds at once.",
            TASK, file="payload"),
    Command("run", "POST", "/tasks/{task}/run_now", "Run it once, now.", key="details.run_id",
            waits=True),
    Command("snooze", "POST", "/tasks/{task}/snooze", "Move the next run, and only that.",
            "delay_seconds:int! reason", key="details.task_id"),
    Command("pause", "POST", "/tasks/{task}/pause",
            "Hold what is queued; running work is finished.", key="details.task_id"),
    Command("resume", "POST", "/tasks/{task}/resume", "Let a paused task go on.",
            key="details.task_id"),
    Command("cancel", "POST", "/tasks/{task}/cancel", "End a task for good.",
            key="details.task_id", asks="Task {task} ends for good. Sure?"),
    Command("backfill", "POST", "/tasks/{task}/backfill",
            "Run what did not run in the past; says what, until --no-dry-run.",
            "from:time! to:time! dry_run:bool", "nominal_at state run_id", key="run_id"),
    Command("preview", "GET", "/tasks/{task}/preview", "When it will run.", "n:int from:time",
            "at local mark", key="at"),
    Command("occurrences", "GET", "/tasks/{task}/occurrences", "What became of its instants.",
            "before:time limit:int", "nominal_at state run_id reason"),
]  # fmt: skip

RUNS = [
    Command("list", "GET", "/runs", "Runs, newest first.", FILTER,
            "id state kind attempt created_at finished_at error", pages=True),
    Command("show", "GET", "/runs/{run}", "A run with its steps and attempts."),
    Command("output", "GET", "/runs/{run}/output", "What came out, whole, as JSON.", "step",
            key=""),
    Command("logs", "GET", "/runs/{run}/logs", "The lines that it wrote; `orc tail` follows them.",
            "", "at level message facts", pages=True),
    Command("why", "GET", "/runs/{run}/why", "Why it is where it is.", "",
            "cause evidence clears", key="cause"),
    Command("cancel", "POST", "/runs/{run}/cancel", "End it, or tell a running one to stop.",
            key="run_id", asks="Run {run} is canceled. Sure?"),
    Command("retry", "POST", "/runs/{run}/retry", "Make a new run like a finished one.",
            waits=True),
    Command("retry-from", "POST", "/runs/{run}/retry_from/{step}",
            "The same from a step on: what came before it isn't done again.", waits=True),
    Command("approve", "POST", "/runs/{run}/approve", "Approve or reject what a run asks.",
            "decision:approve|reject step form:json", key="step_id"),
]  # fmt: skip

EVENTS = [
    Command("list", "GET", "/events", "What was published, newest first.", "topic since:time",
            "event_id topic published_at source payload", key="event_id", pages=True),
    Command("publish", "POST", "/events", "Publish an event; tasks that listen to it start.",
            "topic! payload:json source_agent_id event_id", key="details.event_id"),
]  # fmt: skip

AGENTS = [
    Command("list", "GET", "/agents", "The agents of the tenant.", "",
            "id name disabled scopes last_used_at", pages=True),
    Command("show", "GET", "/agents/{agent}", "An agent and its live keys."),
    Command("create", "POST", "/agents", "Make an agent; its key is shown this once.",
            "name! scopes:list webhook_url expires_at:time"),
    Command("update", "PUT", "/agents/{agent}", "Change what is named.",
            "name scopes:list webhook_url"),
    Command("rotate-key", "POST", "/agents/{agent}/rotate_key", "A new key, shown this once.",
            "expires_at:time grace_seconds:float",
            asks="The keys that agent {agent} has now are no longer good. Sure?"),
    Command("revoke-keys", "POST", "/agents/{agent}/revoke_keys", "Accept none of its keys.",
            asks="No key of agent {agent} is good any more. Sure?"),
    Command("delete", "DELETE", "/agents/{agent}", "Delete an agent; its runs stay.",
            "force:bool", asks="Agent {agent} goes, with its keys. Sure?"),
]  # fmt: skip

FAILURES = Command(
    "failures", "GET", "/runs/failures", "Failed runs, grouped by what went wrong.", FILTER,
    "fingerprint runs type last_at latest_run message", key="fingerprint", pages=True,
)  # fmt: skip
AUDIT = Command(
    "audit", "GET", "/audit", "Who changed what, newest first.",
    "actor action subject since:time until:time", "at actor_name action subject details",
    pages=True,
)  # fmt: skip

NOUNS = {
    "task": (core.group("Tasks: what runs, and when."), TASKS),
    "run": (runs.app, RUNS),
    "event": (core.group("Events: what was published."), EVENTS),
    "agent": (core.group("Agents and their keys (scope admin)."), AGENTS),
}

app = typer.Typer()
for name, (noun, rows) in NOUNS.items():
    for row in rows:
        noun.command(row.name)(command(row))
    app.add_typer(noun, name=name)
for row in (FAILURES, AUDIT):
    app.command(row.name)(command(row))
