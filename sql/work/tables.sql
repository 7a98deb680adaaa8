-- Work: what is to be done, what is being done, and what became of it.
--
-- A run has two halves. Its live half is a row in due_work: small, hot, gone when the run ends. Its
-- finished half is a row in run, written once and never changed. Between them nothing is stored twice.
--
--             enqueue                 claim                settle
--   (nothing) ──────► scheduled ─due─► ready ────────► running ────────► run: succeeded, failed, canceled
--                      ▲    │           ▲ │               │  │
--                      │    └► blocked ─┘ │ (key is free) │  │ park
--                      └──── retry ───────┼───────────────┘  ▼
--                                         └◄──── wake ──── waiting
--
-- A ready row can be claimed at once; rows in any other state are not in the index that claims read.
-- A row with a concurrency key is made scheduled or blocked, and becomes ready under the key's lock:
-- so an enqueue in somebody's long transaction never holds a key. A slot of a key is held by the
-- rows that are ready or running, and is counted, not stored: what isn't stored can't leak.
--
-- The key of due_work begins with the run and not with the tenant, so that no plan made while the table
-- was small reads a whole tenant through it: found by tests/test_plans.py, 200,000 rows for one key.
--
-- The epoch grows with each claim. (run, epoch, worker) fences every write of a worker.
-- History is partitioned by the run's id: retention drops partitions.

create table orchestrator.pipeline (
  tenant_id text not null,
  id uuid not null,
  document jsonb not null,
  created_at timestamptz not null default orchestrator.now(),
  queue text generated always as (
    case when jsonb_typeof(document #> '{defaults,queue}') = 'string' then document #>> '{defaults,queue}' end) stored,
  priority smallint generated always as (
    case when document #>> '{defaults,priority}' ~ '^[0-9]{1,3}$' then (document #>> '{defaults,priority}')::smallint end) stored,
  concurrency_key text generated always as (
    case when jsonb_typeof(document #> '{concurrency,key}') = 'string' then document #>> '{concurrency,key}' end) stored,
  concurrency_limit integer generated always as (
    case when document #>> '{concurrency,limit}' ~ '^[0-9]{1,6}$' then (document #>> '{concurrency,limit}')::integer end) stored,
  on_conflict text generated always as (document #>> '{concurrency,on_conflict}') stored,
  constraint pipeline_is_known_by_its_content primary key (tenant_id, id),
  constraint tenant_exists foreign key (tenant_id) references orchestrator.tenant (id),
  constraint document_is_an_object check (jsonb_typeof(document) = 'object')
);
comment on table orchestrator.pipeline is 'What a run does. Immutable: the id is a digest of the document.';
comment on column orchestrator.pipeline.tenant_id is 'Whose it is.';
comment on column orchestrator.pipeline.id is 'The first 16 bytes of the SHA-256 of the document.';
comment on column orchestrator.pipeline.document is 'The pipeline, as it was given.';
comment on column orchestrator.pipeline.created_at is 'When it was first used.';
comment on column orchestrator.pipeline.queue is 'The queue of its runs, when enqueue names none.';
comment on column orchestrator.pipeline.priority is 'Their priority, when enqueue gives none.';
comment on column orchestrator.pipeline.concurrency_key is 'Their concurrency key, with ${…} for values of the input, when enqueue gives none.';
comment on column orchestrator.pipeline.concurrency_limit is 'The slots of that key; null: 1.';
comment on column orchestrator.pipeline.on_conflict is 'What becomes of a new run when that key is full: queue (null), skip, replace or cancel_running.';
grant select on orchestrator.pipeline to orc_reader;

alter table orchestrator.tenant
  add column weight real not null default 1,
  add constraint weight_is_a_share check (weight > 0 and weight <= 1000);
comment on column orchestrator.tenant.weight is 'Its share of the workers while others have work, too.';

-- A rule of one column is its domain's, which the server reads once in a session; a check of a table is read
-- anew by each statement. Measured 2026-11-21 (18): as checks these three cost a single insert 13 of its 40 µs.
create domain orchestrator.seconds as real
  constraint seconds_are_finite check (value between 0::real and 1e8::real);
comment on domain orchestrator.seconds is 'A span of time: up to three years.';
create domain orchestrator.backoff as text
  constraint backoff_is_known check (value in ('fixed', 'linear', 'exponential', 'exponential_jitter'));
comment on domain orchestrator.backoff is 'How delays between attempts grow.';
create domain orchestrator.attempts as smallint
  constraint attempts_are_bounded check (value between 1 and 1000);
comment on domain orchestrator.attempts is 'How many attempts a run may have.';
create domain orchestrator.trace as text
  constraint trace_is_a_traceparent check (length(value) = 55);
comment on domain orchestrator.trace is 'A trace and a span of it, as W3C Trace Context writes them.';
create domain orchestrator.request as text
  constraint request_is_short check (length(value) <= 128);
comment on domain orchestrator.request is 'The id of a request.';

create table orchestrator.due_work (
  tenant_id text not null,
  run_id uuid not null,
  pipeline_id uuid not null,
  worker_id uuid,
  retry_of uuid,
  task_id uuid,
  due_at timestamptz not null,
  started_at timestamptz,
  cancel_requested_at timestamptz,
  epoch integer not null default 0,
  backoff_seconds orchestrator.seconds,
  backoff_limit_seconds orchestrator.seconds,
  timeout_seconds orchestrator.seconds,
  attempt smallint not null default 0,
  max_attempts orchestrator.attempts not null default 1,
  priority smallint not null default 50,
  state text not null,
  queue text not null default 'default',
  kind text not null default 'run',
  backoff orchestrator.backoff,
  flow_id text,
  concurrency_key text,
  dedupe_key text,
  waiting_for text,
  input jsonb,
  labels jsonb,
  error jsonb,
  traceparent orchestrator.trace default nullif(current_setting('orchestrator.traceparent', true), ''),
  correlation_id orchestrator.request default nullif(current_setting('orchestrator.request', true), ''),
  constraint run_is_live_once primary key (run_id, tenant_id),
  constraint state_is_a_live_one check (state in ('ready', 'running', 'scheduled', 'blocked', 'waiting')),
  constraint a_worker_holds_it_exactly_while_running check ((state = 'running') = (worker_id is not null)),
  constraint blocked_by_a_key check (state <> 'blocked' or concurrency_key is not null),
  constraint waiting_for_something check (state <> 'waiting' or waiting_for is not null),
  constraint priority_is_0_to_100 check (priority between 0 and 100),
  constraint attempts_are_counted check (attempt between 0 and max_attempts),
  constraint queue_has_a_name check (queue <> '' and length(queue) <= 100)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
comment on table orchestrator.due_work is 'Live runs: one row until the run ends.';
comment on column orchestrator.due_work.tenant_id is 'Whose run it is.';
comment on column orchestrator.due_work.run_id is 'The run; its id carries the time at which it was made.';
comment on column orchestrator.due_work.pipeline_id is 'What it does.';
comment on column orchestrator.due_work.worker_id is 'The worker that holds it, exactly while it is running.';
comment on column orchestrator.due_work.retry_of is 'The finished run that it is a retry of.';
comment on column orchestrator.due_work.task_id is 'The task that it came from.';
comment on column orchestrator.due_work.due_at is 'Not before; for a waiting run, when the wait ends at the latest.';
comment on column orchestrator.due_work.started_at is 'When the present attempt began.';
comment on column orchestrator.due_work.cancel_requested_at is 'Since when it is canceled: a running attempt is told to stop; else only its finally is left.';
comment on column orchestrator.due_work.epoch is 'Grows with each claim: a write with an older one changes nothing.';
comment on column orchestrator.due_work.backoff_seconds is 'The first delay before a retry; null: 1.';
comment on column orchestrator.due_work.backoff_limit_seconds is 'The longest delay before a retry; null: 3600.';
comment on column orchestrator.due_work.timeout_seconds is 'How long an attempt may take; null: as the worker says.';
comment on column orchestrator.due_work.attempt is 'How many attempts have begun; a graceful release gives one back.';
comment on column orchestrator.due_work.max_attempts is 'How many may.';
comment on column orchestrator.due_work.priority is '0 is the most urgent, 100 the least.';
comment on column orchestrator.due_work.state is 'ready, running, scheduled, blocked or waiting.';
comment on column orchestrator.due_work.queue is 'The queue whose workers take it.';
comment on column orchestrator.due_work.kind is 'The surface that made it: run, task, flow or mission.';
comment on column orchestrator.due_work.backoff is 'How delays grow: fixed, linear, exponential, exponential_jitter (null).';
comment on column orchestrator.due_work.flow_id is 'The flow that it came from.';
comment on column orchestrator.due_work.concurrency_key is 'Runs with the same key share its slots.';
comment on column orchestrator.due_work.dedupe_key is 'The key under which it stands in orchestrator.dedupe.';
comment on column orchestrator.due_work.waiting_for is 'What a waiting run waits for.';
comment on column orchestrator.due_work.input is 'Its input.';
comment on column orchestrator.due_work.labels is 'Words to find it by.';
comment on column orchestrator.due_work.error is 'How the last attempt failed.';
comment on column orchestrator.due_work.traceparent is 'The trace that it belongs to, as W3C Trace Context writes it: by default the setting of that name.';
comment on column orchestrator.due_work.correlation_id is 'The request that it came from: by default the setting orchestrator.request.';
grant select on orchestrator.due_work to orc_reader;

-- The order of a claim. Only ready rows are in it.
create index due_work_in_claim_order on orchestrator.due_work (tenant_id, queue, priority, due_at, run_id)
  where state = 'ready';
create index due_work_by_time on orchestrator.due_work (due_at)
  where state in ('scheduled', 'waiting');
create index due_work_running on orchestrator.due_work (tenant_id, queue, worker_id)
  where state = 'running';
create index due_work_blocked on orchestrator.due_work (tenant_id, concurrency_key, priority, due_at, run_id)
  where state = 'blocked';
create index due_work_of_a_key on orchestrator.due_work (tenant_id, concurrency_key, due_at)
  where concurrency_key is not null and state in ('scheduled', 'ready', 'running');
create index due_work_of_a_kind on orchestrator.due_work (tenant_id, kind, run_id) where kind <> 'run';
create index due_work_of_a_retry on orchestrator.due_work (tenant_id, retry_of) where retry_of is not null;

create table orchestrator.run (
  tenant_id text not null,
  id uuid not null,
  pipeline_id uuid not null,
  worker_id uuid,
  retry_of uuid,
  task_id uuid,
  due_at timestamptz not null,
  started_at timestamptz,
  finished_at timestamptz not null,
  epoch integer not null,
  backoff_seconds real,
  backoff_limit_seconds real,
  timeout_seconds real,
  attempt smallint not null,
  max_attempts smallint not null,
  priority smallint not null,
  state text not null,
  queue text not null,
  kind text not null,
  backoff text,
  flow_id text,
  concurrency_key text,
  input jsonb,
  output jsonb,
  error jsonb,
  labels jsonb,
  output_digest bytea,
  output_bytes integer,
  traceparent text,
  correlation_id text,
  constraint run_ends_once primary key (tenant_id, id),
  constraint state_is_a_final_one check (state in ('succeeded', 'failed', 'canceled', 'skipped')),
  constraint a_failed_run_says_why check (state <> 'failed' or error is not null),
  constraint a_large_output_stands_elsewhere check ((output_digest is null) = (output_bytes is null)
                                                    and (output is null or output_digest is null))
) partition by range (id);
create table orchestrator.run_default partition of orchestrator.run default;
insert into orchestrator.partitioned (table_name, retention) values ('run', '90 days');
create index run_that_did_not_succeed on orchestrator.run (tenant_id, state, id) where state <> 'succeeded';
create index run_of_a_kind on orchestrator.run (tenant_id, kind, id) where kind <> 'run';
create index run_of_a_retry on orchestrator.run (tenant_id, retry_of) where retry_of is not null;
create index run_of_a_task on orchestrator.run (tenant_id, task_id, id) where task_id is not null;
comment on table orchestrator.run is 'Finished runs: written once, never changed.';
comment on column orchestrator.run.tenant_id is 'Whose run it was.';
comment on column orchestrator.run.id is 'The run; its id carries the time at which it was made.';
comment on column orchestrator.run.pipeline_id is 'What it did.';
comment on column orchestrator.run.worker_id is 'The worker of its last attempt.';
comment on column orchestrator.run.retry_of is 'The finished run that it was a retry of.';
comment on column orchestrator.run.task_id is 'The task that it came from.';
comment on column orchestrator.run.due_at is 'When its last attempt was due.';
comment on column orchestrator.run.started_at is 'When its last attempt began.';
comment on column orchestrator.run.finished_at is 'When it ended.';
comment on column orchestrator.run.epoch is 'How often it was claimed.';
comment on column orchestrator.run.backoff_seconds is 'As it was enqueued; a retry of the run has it, too.';
comment on column orchestrator.run.backoff_limit_seconds is 'As it was enqueued; a retry of the run has it, too.';
comment on column orchestrator.run.timeout_seconds is 'As it was enqueued; a retry of the run has it, too.';
comment on column orchestrator.run.attempt is 'How many attempts were counted.';
comment on column orchestrator.run.max_attempts is 'How many it had.';
comment on column orchestrator.run.priority is '0 was the most urgent.';
comment on column orchestrator.run.state is 'succeeded, failed, canceled or skipped.';
comment on column orchestrator.run.queue is 'Its queue.';
comment on column orchestrator.run.kind is 'The surface that made it.';
comment on column orchestrator.run.backoff is 'As it was enqueued; a retry of the run has it, too.';
comment on column orchestrator.run.flow_id is 'The flow that it came from.';
comment on column orchestrator.run.concurrency_key is 'Its concurrency key.';
comment on column orchestrator.run.input is 'What went in.';
comment on column orchestrator.run.output is 'What came out.';
comment on column orchestrator.run.error is 'Why it failed: type, message, and more.';
comment on column orchestrator.run.labels is 'Words to find it by.';
comment on column orchestrator.run.output_digest is 'Of an output that is too large for this row: orc.value has it.';
comment on column orchestrator.run.output_bytes is 'How large that output is, in bytes of its binary form.';
comment on column orchestrator.run.traceparent is 'The trace that it belonged to.';
comment on column orchestrator.run.correlation_id is 'The request that it came from.';
grant select on orchestrator.run to orc_reader;

create table orchestrator.ending (
  id bigint generated always as identity,
  outcome text not null,
  runs integer not null,
  constraint ending_is_noted_once primary key (id)
) with (autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0.1);
comment on table orchestrator.ending is 'Runs that ended, and aren''t in orchestrator.tally yet: one row for each transaction and outcome.';
comment on column orchestrator.ending.id is 'The row.';
comment on column orchestrator.ending.outcome is 'How they ended.';
comment on column orchestrator.ending.runs is 'How many.';
grant select on orchestrator.ending to orc_reader;

create table orchestrator.tally (
  outcome text not null,
  runs bigint not null,
  constraint outcome_is_counted_once primary key (outcome)
) with (fillfactor = 50);
comment on table orchestrator.tally is 'How many runs have ended, by outcome. It only grows, whatever becomes of history.';
comment on column orchestrator.tally.outcome is 'succeeded, failed, canceled or skipped.';
comment on column orchestrator.tally.runs is 'How many.';
grant select on orchestrator.tally to orc_reader;
insert into orchestrator.tally (outcome, runs) values ('succeeded', 0), ('failed', 0), ('canceled', 0), ('skipped', 0);

create table orchestrator.attempt (
  tenant_id text not null,
  run_id uuid not null,
  epoch integer not null,
  attempt smallint not null,
  outcome text not null,
  worker_id uuid,
  started_at timestamptz,
  finished_at timestamptz not null,
  error jsonb,
  constraint attempt_ends_once primary key (tenant_id, run_id, epoch),
  constraint outcome_is_known check (outcome in ('retried', 'lost', 'released', 'parked'))
) partition by range (run_id);
create table orchestrator.attempt_default partition of orchestrator.attempt default;
insert into orchestrator.partitioned (table_name, retention) values ('attempt', '90 days');
comment on table orchestrator.attempt is 'Attempts that did not end their run. The one that did is in the run itself.';
comment on column orchestrator.attempt.tenant_id is 'Whose run it is.';
comment on column orchestrator.attempt.run_id is 'The run.';
comment on column orchestrator.attempt.epoch is 'Which claim it was.';
comment on column orchestrator.attempt.attempt is 'Which attempt it counted as.';
comment on column orchestrator.attempt.outcome is 'retried, lost (its worker''s lease ran out), released (its worker stopped) or parked.';
comment on column orchestrator.attempt.worker_id is 'Who tried.';
comment on column orchestrator.attempt.started_at is 'When it began.';
comment on column orchestrator.attempt.finished_at is 'When it ended.';
comment on column orchestrator.attempt.error is 'Why.';
grant select on orchestrator.attempt to orc_reader;

create table orchestrator.step (
  tenant_id text not null,
  run_id uuid not null,
  step_id text not null,
  epoch integer not null,
  attempt integer not null default 1,
  state text not null,
  started_at timestamptz,
  finished_at timestamptz,
  arguments jsonb,
  output jsonb,
  error jsonb,
  output_digest bytea,
  output_bytes integer,
  is_cached boolean not null default false,
  constraint step_is_recorded_once primary key (tenant_id, run_id, step_id),
  constraint state_of_a_step_is_known check (state in ('started', 'waiting', 'succeeded', 'failed', 'skipped', 'unknown')),
  constraint a_step_ends_with_its_state check ((finished_at is null) = (state in ('started', 'waiting', 'unknown'))),
  constraint a_large_output_stands_elsewhere check ((output_digest is null) = (output_bytes is null)
                                                    and (output is null or output_digest is null))
) partition by range (run_id);
create table orchestrator.step_default partition of orchestrator.step default;
insert into orchestrator.partitioned (table_name, retention) values ('step', '90 days');
comment on table orchestrator.step is 'Recorded steps: one that succeeded is never executed again.';
comment on column orchestrator.step.tenant_id is 'Whose run it is.';
comment on column orchestrator.step.run_id is 'The run.';
comment on column orchestrator.step.step_id is 'The step: the ids from the outermost to it, with the number of each time round, such as orders[2]/pay.';
comment on column orchestrator.step.epoch is 'The claim that recorded it.';
comment on column orchestrator.step.attempt is 'Which attempt of the step, within that try of the run.';
comment on column orchestrator.step.state is
  'started (it calls the outside now), waiting, succeeded, failed, skipped, or unknown (a crash came between its call and its record).';
comment on column orchestrator.step.started_at is 'When it began.';
comment on column orchestrator.step.finished_at is 'When it ended.';
comment on column orchestrator.step.arguments is 'What it was called with; secrets stand by their names.';
comment on column orchestrator.step.output is 'Its value.';
comment on column orchestrator.step.error is 'Why it failed.';
comment on column orchestrator.step.output_digest is 'Of a value that is too large for this row: orc.value has it.';
comment on column orchestrator.step.output_bytes is 'How large that value is, in bytes of its binary form.';
comment on column orchestrator.step.is_cached is 'Whether its value came from the cache, and nothing was called.';
grant select on orchestrator.step to orc_reader;

create table orchestrator.log (
  tenant_id text not null,
  id uuid not null default orchestrator.new_id(),
  run_id uuid not null,
  level text not null,
  message text not null,
  facts jsonb,
  constraint line_is_written_once primary key (tenant_id, id),
  constraint level_is_known check (level in ('debug', 'info', 'warning', 'error'))
) partition by range (id);
create table orchestrator.log_default partition of orchestrator.log default;
insert into orchestrator.partitioned (table_name, retention) values ('log', '30 days');
create index log_of_a_run on orchestrator.log (tenant_id, run_id, id);
comment on table orchestrator.log is 'Lines that runs wrote.';
comment on column orchestrator.log.tenant_id is 'Whose run it is.';
comment on column orchestrator.log.id is 'The line; its id carries its time.';
comment on column orchestrator.log.run_id is 'The run that wrote it.';
comment on column orchestrator.log.level is 'debug, info, warning or error.';
comment on column orchestrator.log.message is 'The line.';
comment on column orchestrator.log.facts is 'What it is about.';
grant select on orchestrator.log to orc_reader;

create table orchestrator.worker (
  id uuid not null default orchestrator.new_id(),
  name text not null,
  queues text[] not null,
  slots integer not null,
  lease interval not null,
  registered_at timestamptz not null default orchestrator.now(),
  expires_at timestamptz not null,
  is_idle boolean not null default false,
  ended_at timestamptz,
  ended_how text,
  constraint worker_registers_once primary key (id),
  constraint slots_are_1_to_100000 check (slots between 1 and 100000),
  constraint queues_are_named check (cardinality(queues) between 1 and 100),
  constraint lease_is_bounded check (lease between '100 milliseconds' and '1 hour'),
  constraint ended_somehow check ((ended_at is null) = (ended_how is null)),
  constraint end_is_known check (ended_how in ('stopped', 'expired'))
) with (fillfactor = 50, autovacuum_vacuum_threshold = 200);
comment on table orchestrator.worker is 'Workers: each holds one lease, whatever number of runs it has.';
comment on column orchestrator.worker.id is 'A new one for each start: an ended worker never comes back.';
comment on column orchestrator.worker.name is 'Host and process, for people.';
comment on column orchestrator.worker.queues is 'The queues that it takes from.';
comment on column orchestrator.worker.slots is 'How many runs it takes at once.';
comment on column orchestrator.worker.lease is 'How long it may be silent.';
comment on column orchestrator.worker.registered_at is 'When it started.';
comment on column orchestrator.worker.expires_at is 'When its runs are given to others unless it renews.';
comment on column orchestrator.worker.is_idle is 'Whether it has said that it waits for work: enqueues then send a hint.';
comment on column orchestrator.worker.ended_at is 'When it stopped or was given up.';
comment on column orchestrator.worker.ended_how is 'stopped or expired.';
grant select on orchestrator.worker to orc_reader;
create index worker_that_lives on orchestrator.worker (expires_at) where ended_at is null;

create table orchestrator.queue (
  tenant_id text not null,
  name text not null,
  max_running integer,
  lowered_from integer,
  paused_at timestamptz,
  paused_by text,
  constraint queue_has_one_name primary key (tenant_id, name),
  constraint tenant_exists foreign key (tenant_id) references orchestrator.tenant (id),
  constraint limit_is_not_negative check (max_running >= 0),
  constraint paused_by_someone check ((paused_at is null) = (paused_by is null))
);
comment on table orchestrator.queue is 'Queues about which something was said; others have neither pause nor limit.';
comment on column orchestrator.queue.tenant_id is 'Whose queue it is.';
comment on column orchestrator.queue.name is 'Its name.';
comment on column orchestrator.queue.max_running is 'How many of its runs may run at once; null: any number.';
comment on column orchestrator.queue.lowered_from is 'How many ran when the limit was set: what ran goes on, even over the limit.';
comment on column orchestrator.queue.paused_at is 'Since when nothing of it is claimed.';
comment on column orchestrator.queue.paused_by is 'Who paused it.';
grant select on orchestrator.queue to orc_reader;

create table orchestrator.lane (
  tenant_id text not null,
  queue text not null,
  priority smallint not null,
  low_water timestamptz not null default '-infinity',
  idle_since timestamptz,
  constraint lane_is_listed_once primary key (tenant_id, queue, priority)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 500);
comment on table orchestrator.lane is 'Where ready rows may be: the directory that claims read.';
comment on column orchestrator.lane.tenant_id is 'Whose lane it is.';
comment on column orchestrator.lane.queue is 'Its queue.';
comment on column orchestrator.lane.priority is 'Its priority.';
comment on column orchestrator.lane.low_water is 'No ready row is due before this, except late ones: claims start here and skip the dead rows below.';
comment on column orchestrator.lane.idle_since is 'Since when no ready row was seen; after a minute the lane is retired.';
grant select on orchestrator.lane to orc_reader;

create table orchestrator.concurrency (
  tenant_id text not null,
  key text not null,
  max_running integer not null default 1,
  lowered_from integer,
  constraint key_has_one_limit primary key (tenant_id, key),
  constraint max_running_is_at_least_1 check (max_running >= 1)
);
comment on table orchestrator.concurrency is 'Concurrency keys: their limit, and the row that is locked when a slot is given.';
comment on column orchestrator.concurrency.tenant_id is 'Whose key it is.';
comment on column orchestrator.concurrency.key is 'The key.';
comment on column orchestrator.concurrency.max_running is 'How many of its runs may be ready or running.';
comment on column orchestrator.concurrency.lowered_from is 'The limit before it was lowered: who had a slot keeps it.';
grant select on orchestrator.concurrency to orc_reader;

create table orchestrator.dedupe (
  tenant_id text not null,
  key text not null,
  run_id uuid not null,
  expires_at timestamptz not null,
  constraint key_stands_for_one_run primary key (tenant_id, key)
);
comment on table orchestrator.dedupe is 'Dedupe keys: the run that each one stands for.';
comment on column orchestrator.dedupe.tenant_id is 'Whose key it is.';
comment on column orchestrator.dedupe.key is 'The key.';
comment on column orchestrator.dedupe.run_id is 'The newest run that was made with it.';
comment on column orchestrator.dedupe.expires_at is 'Until when it stands for that run, even a finished one; a live run stands in any case.';
grant select on orchestrator.dedupe to orc_reader;

create table orchestrator.audit (
  tenant_id text not null,
  id uuid not null default orchestrator.new_id(),
  actor text not null,
  action text not null,
  subject text not null,
  request_id text,
  details jsonb,
  constraint audit_is_written_once primary key (tenant_id, id)
) partition by range (id);
create table orchestrator.audit_default partition of orchestrator.audit default;
insert into orchestrator.partitioned (table_name, retention) values ('audit', '400 days');
comment on table orchestrator.audit is 'Who changed what, in the transaction of the change.';
comment on column orchestrator.audit.tenant_id is 'Whose it was.';
comment on column orchestrator.audit.id is 'The row; its id carries its time.';
comment on column orchestrator.audit.actor is 'Who: the setting orchestrator.actor, or the login.';
comment on column orchestrator.audit.action is 'What: the verb.';
comment on column orchestrator.audit.subject is 'To what.';
comment on column orchestrator.audit.request_id is 'The request that asked for it.';
comment on column orchestrator.audit.details is 'What else.';
grant select on orchestrator.audit to orc_reader;
