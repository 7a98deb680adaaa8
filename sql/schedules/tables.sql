-- Tasks: what is to be run when, and what became of every instant at which it was to be.
--
--             create            pause           resume
--   (nothing) ──────► active ─────────► paused ─────────► active
--                       │ its rule ends                      │
--                       └──────────► completed               │ cancel (from any of them)
--                                                            └──────► canceled
--
-- A task is what people said. Its rules are kept by revision: which one was in force at an instant is a
-- fact that an edit doesn't change, so what was missed before an edit is caught up by the rule of then.
-- Tasks are never deleted, so rules and plans have no foreign keys to them: orc.check() looks.
--
-- Its plan is what the scheduler knows: every instant up to `through` is in the ledger, the next ones are
-- in `upcoming`, and there is none besides up to `known_to`:
--
--      ledger (occurrence)        through        upcoming         known_to
--   ──●──────●──────●──────●─────────┼───────────○──────○──────○─────┼────────►  time
--
-- Firing is SQL alone: it takes instants off the front of `upcoming` and writes the ledger and the runs in the same
-- statement. Python computes what comes next (orchestrator/schedules) and adds it at the other end.
--
-- The ledger has one row for each instant of a time rule, and one for each event that a task met. The
-- row's id is made of the task and the instant (or the event): a second row for the same can't exist.

-- A rule of one column is its domain's, which the server reads once in a session; a check of a table is read anew by each
-- statement. Measured 2026-11-21 (18), an insert: as checks these cost a task 43 of 58 µs, a rule 17 of 28.
create domain orchestrator.title as text
  constraint title_is_1_to_200_characters check (length(value) between 1 and 200);
comment on domain orchestrator.title is 'A name for people.';
create domain orchestrator.description as text
  constraint description_is_up_to_2000_characters check (length(value) <= 2000);
comment on domain orchestrator.description is 'What something is for.';
create domain orchestrator.rule_kind as text
  constraint kind_of_a_task_is_known check (value in ('cron', 'rrule', 'once', 'event', 'condition'));
comment on domain orchestrator.rule_kind is 'What a rule goes by.';
create domain orchestrator.task_status as text
  constraint status_is_known check (value in ('active', 'paused', 'canceled', 'completed'));
comment on domain orchestrator.task_status is 'Where a task stands.';
create domain orchestrator.urgency as smallint
  constraint priority_is_1_to_9 check (value between 1 and 9);
comment on domain orchestrator.urgency is 'The priority of a task: 1 is the most urgent.';
create domain orchestrator.queue_name as text
  constraint queue_has_a_name check (length(value) between 1 and 100);
comment on domain orchestrator.queue_name is 'The name of a queue.';
create domain orchestrator.task_seconds as real
  constraint timeout_is_bounded check (value > 0 and value <= 1e8);
comment on domain orchestrator.task_seconds is 'How long an attempt may take.';
create domain orchestrator.key as text
  constraint keys_have_1_to_400_characters check (length(value) between 1 and 400);
comment on domain orchestrator.key is 'What makes runs or tasks exclude each other.';
create domain orchestrator.slots as integer
  constraint concurrency_limit_is_at_least_1 check (value >= 1);
comment on domain orchestrator.slots is 'How many runs share a key.';
create domain orchestrator.span as interval
  constraint spans_are_bounded check (value between '0' and '3660 days');
comment on domain orchestrator.span is 'A span of time: up to ten years.';
create domain orchestrator.catch_up as text
  constraint catch_up_is_known check (value in ('none', 'latest', 'all'));
comment on domain orchestrator.catch_up is 'What becomes of instants that were missed.';
create domain orchestrator.catch_up_limit as smallint
  constraint catch_up_limit_is_1_to_1000 check (value between 1 and 1000);
comment on domain orchestrator.catch_up_limit is 'How many of them.';
create domain orchestrator.overlap as text
  constraint overlap_is_known check (value in ('allow', 'skip', 'queue', 'replace'));
comment on domain orchestrator.overlap is 'What happens when the last run still lives.';
create domain orchestrator.jitter as interval
  constraint jitter_is_up_to_a_day check (value between '0' and '1 day');
comment on domain orchestrator.jitter is 'How much later an instant is acted on.';
create domain orchestrator.expression as text
  constraint expression_is_bounded check (length(value) between 1 and 4000);
comment on domain orchestrator.expression is 'A rule as it was given.';
create domain orchestrator.dst_gap as text
  constraint gap_is_known check (value in ('shift', 'next_valid', 'skip'));
comment on domain orchestrator.dst_gap is 'A local time that a clock skips.';
create domain orchestrator.dst_fold as text
  constraint fold_is_known check (value in ('second', 'first', 'both'));
comment on domain orchestrator.dst_fold is 'A local time that comes twice.';

create table orchestrator.task (
  tenant_id text not null,
  id uuid not null default orchestrator.new_id(),
  title orchestrator.title not null,
  description orchestrator.description,
  kind orchestrator.rule_kind not null,
  status orchestrator.task_status not null default 'active',
  pipeline_id uuid not null,
  probe jsonb,
  probe_pipeline_id uuid,
  priority orchestrator.urgency not null default 5,
  queue orchestrator.queue_name not null default 'default',
  max_attempts orchestrator.attempts not null default 4,
  backoff orchestrator.backoff not null default 'exponential_jitter',
  timeout_seconds orchestrator.task_seconds,
  concurrency_key orchestrator.key,
  concurrency_limit orchestrator.slots,
  dedupe_key orchestrator.key,
  dedupe_window orchestrator.span not null default '0',
  catch_up orchestrator.catch_up not null default 'latest',
  catch_up_limit orchestrator.catch_up_limit not null default 100,
  grace orchestrator.span not null default '60 seconds',
  overlap orchestrator.overlap not null default 'allow',
  jitter orchestrator.jitter not null default '0',
  labels jsonb,
  created_by uuid,
  created_at timestamptz not null default orchestrator.now(),
  updated_at timestamptz not null default orchestrator.now(),
  paused_at timestamptz,
  canceled_at timestamptz,
  completed_at timestamptz,
  revision integer not null default 1,
  version integer not null default 1,
  constraint task_has_one_id primary key (tenant_id, id),
  constraint tenant_exists foreign key (tenant_id) references orchestrator.tenant (id),
  constraint creator_exists foreign key (tenant_id, created_by) references orchestrator.principal (tenant_id, id),
  constraint status_has_its_time check (
    (status = 'paused') = (paused_at is not null) and (status = 'canceled') = (canceled_at is not null)
    and (status = 'completed') = (completed_at is not null)),
  constraint a_probe_has_a_pipeline check ((probe is null) = (probe_pipeline_id is null)),
  constraint one_key_queues check (overlap <> 'queue' or concurrency_key is null)
);
comment on table orchestrator.task is 'What is to be run, and by which rules.';
comment on column orchestrator.task.tenant_id is 'Whose it is.';
comment on column orchestrator.task.id is 'The task.';
comment on column orchestrator.task.title is 'Its name, for people.';
comment on column orchestrator.task.description is 'What it is for.';
comment on column orchestrator.task.kind is 'The kind of its present rule: cron, rrule, once, event or condition.';
comment on column orchestrator.task.status is 'active, paused, canceled or completed.';
comment on column orchestrator.task.pipeline_id is 'What it runs.';
comment on column orchestrator.task.probe is 'The step that a condition looks at, as it was given.';
comment on column orchestrator.task.probe_pipeline_id is 'The pipeline that does the probe and judges its result.';
comment on column orchestrator.task.priority is '1 is the most urgent, 9 the least; a run has ten times as much.';
comment on column orchestrator.task.queue is 'The queue of its runs.';
comment on column orchestrator.task.max_attempts is 'How many attempts a run has.';
comment on column orchestrator.task.backoff is 'How delays between attempts grow.';
comment on column orchestrator.task.timeout_seconds is 'How long an attempt may take; null: as the worker says.';
comment on column orchestrator.task.concurrency_key is 'Runs with the same key share its slots.';
comment on column orchestrator.task.concurrency_limit is 'How many slots the key has; null: as it has, or one.';
comment on column orchestrator.task.dedupe_key is 'Without a window: no other live task of its creator has it. With one: no second run within it.';
comment on column orchestrator.task.dedupe_window is 'How long a run of the key stands for it; 0: the key is for the task.';
comment on column orchestrator.task.catch_up is 'What becomes of instants that were missed: none, latest (one run for all of them) or all.';
comment on column orchestrator.task.catch_up_limit is 'With all: at most so many of the latest.';
comment on column orchestrator.task.grace is 'With none: an instant is missed when it is later than that.';
comment on column orchestrator.task.overlap is 'When its last run still lives: allow, skip, queue or replace.';
comment on column orchestrator.task.jitter is 'An instant is acted on up to so much later; how much, depends on the task and the instant only.';
comment on column orchestrator.task.labels is 'Words to find it by; its runs have them, too.';
comment on column orchestrator.task.created_by is 'The principal that made it; null when it was made in SQL.';
comment on column orchestrator.task.created_at is 'When; a recurrence without a start counts from that minute.';
comment on column orchestrator.task.updated_at is 'When somebody changed it last.';
comment on column orchestrator.task.paused_at is 'Since when it is paused.';
comment on column orchestrator.task.canceled_at is 'When it was canceled.';
comment on column orchestrator.task.completed_at is 'When its rule had no more instants.';
comment on column orchestrator.task.revision is 'Its present rule.';
comment on column orchestrator.task.version is 'Grows with each change: the ETag.';
grant select on orchestrator.task to orc_reader;
create unique index task_with_a_dedupe_key on orchestrator.task (
  tenant_id, dedupe_key, coalesce(created_by, '00000000-0000-0000-0000-000000000000'))
  where dedupe_key is not null and dedupe_window = '0' and status in ('active', 'paused');
create index task_by_status on orchestrator.task (tenant_id, status, id);

create table orchestrator.rule (
  tenant_id text not null,
  task_id uuid not null,
  revision integer not null,
  kind orchestrator.rule_kind not null,
  expr orchestrator.expression not null,
  zone text not null,
  dst_gap orchestrator.dst_gap not null default 'shift',
  dst_fold orchestrator.dst_fold not null default 'second',
  starts_at timestamptz,
  ends_at timestamptz,
  from_at timestamptz not null,
  until_at timestamptz,
  topic text,
  is_pattern boolean not null default false,
  condition text,
  needed integer,
  span interval,
  constraint rule_is_written_once primary key (tenant_id, task_id, revision),
  constraint it_ends_after_it_starts check (ends_at >= starts_at),
  constraint it_was_in_force_forwards check (until_at >= from_at),
  constraint an_event_has_a_topic check (kind <> 'event' or topic is not null),
  constraint a_condition_counts_or_looks check (kind <> 'condition' or span > '0' and (topic is null) = (needed is null)
                                                and (topic is null) = (condition is not null))
);
comment on table orchestrator.rule is 'When tasks are to run: what was in force, and is.';
comment on column orchestrator.rule.tenant_id is 'Whose task it is.';
comment on column orchestrator.rule.task_id is 'The task.';
comment on column orchestrator.rule.revision is 'Which rule of it.';
comment on column orchestrator.rule.kind is 'cron, rrule, once, event or condition.';
comment on column orchestrator.rule.expr is 'The expression, as it was given.';
comment on column orchestrator.rule.zone is 'The time zone of its local times.';
comment on column orchestrator.rule.dst_gap is 'A local time that a clock skips: shift, next_valid or skip.';
comment on column orchestrator.rule.dst_fold is 'A local time that comes twice: second, first or both.';
comment on column orchestrator.rule.starts_at is 'No instant before this.';
comment on column orchestrator.rule.ends_at is 'None after this.';
comment on column orchestrator.rule.from_at is 'Since when it is in force: its instants are later.';
comment on column orchestrator.rule.until_at is 'Until when it was; null while it is.';
comment on column orchestrator.rule.topic is 'The topic that it listens to, or whose events it counts.';
comment on column orchestrator.rule.is_pattern is 'Whether the topic has a segment *.';
comment on column orchestrator.rule.condition is 'What must hold of the event, or of the probe''s result, in CEL.';
comment on column orchestrator.rule.needed is 'How many events make the condition true.';
comment on column orchestrator.rule.span is 'Within which time they are counted, or how often the probe is done.';
grant select on orchestrator.rule to orc_reader;
create index rule_of_a_topic on orchestrator.rule (tenant_id, topic) where until_at is null and topic is not null and not is_pattern;
create index rule_of_runs on orchestrator.rule (tenant_id) where until_at is null and topic like '$run.%';
create index rule_of_a_pattern on orchestrator.rule (tenant_id) where until_at is null and is_pattern;

create table orchestrator.plan (
  tenant_id text not null,
  task_id uuid not null,
  revision integer not null default 1,
  through timestamptz not null,
  known_to timestamptz not null,
  upcoming timestamptz[] not null default '{}',
  next_at timestamptz not null default 'infinity',
  wants_more boolean not null default true,
  paused_from timestamptz,
  paused_to timestamptz,
  last_at timestamptz,
  problem text,
  constraint task_has_one_plan primary key (tenant_id, task_id),
  constraint what_is_known_is_not_behind check (known_to >= through),
  constraint upcoming_is_bounded check (cardinality(upcoming) <= 4000)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
comment on table orchestrator.plan is 'The next instants of tasks: what the scheduler goes by.';
comment on column orchestrator.plan.tenant_id is 'Whose task it is.';
comment on column orchestrator.plan.task_id is 'The task.';
comment on column orchestrator.plan.revision is 'The rule that the next instants to be computed come from.';
comment on column orchestrator.plan.through is 'Every instant up to this is in the ledger.';
comment on column orchestrator.plan.known_to is 'Every later one up to this is in upcoming; infinity: the rule has no more.';
comment on column orchestrator.plan.upcoming is 'The next instants, in order.';
comment on column orchestrator.plan.next_at is 'When the first of them is acted on; infinity while nothing is to be done.';
comment on column orchestrator.plan.wants_more is 'Whether a scheduler is to compute further instants.';
comment on column orchestrator.plan.paused_from is 'When the last pause began.';
comment on column orchestrator.plan.paused_to is 'When it ended.';
comment on column orchestrator.plan.last_at is 'The last instant that made a run.';
comment on column orchestrator.plan.problem is 'Why no instants can be computed.';
grant select on orchestrator.plan to orc_reader;
create index plan_in_order on orchestrator.plan (next_at) where next_at < 'infinity';
create index plan_that_wants_more on orchestrator.plan (known_to) where wants_more;

create table orchestrator.occurrence (
  tenant_id text not null,
  id uuid not null,
  task_id uuid not null,
  nominal_at timestamptz not null,
  event_id uuid,
  state text not null,
  reason text,
  run_id uuid,
  decided_at timestamptz not null default orchestrator.now(),
  constraint instant_happens_once primary key (tenant_id, id),
  constraint state_of_an_occurrence_is_known check (state in ('undecided', 'fired', 'skipped', 'coalesced', 'backfilled')),
  constraint what_was_fired_has_a_run check (state not in ('fired', 'backfilled') or run_id is not null),
  constraint what_was_not_says_why check (state not in ('skipped', 'coalesced') or reason is not null)
) partition by range (id);
create table orchestrator.occurrence_default partition of orchestrator.occurrence default;
insert into orchestrator.partitioned (table_name, retention) values ('occurrence', '400 days');
create index occurrence_of_a_task on orchestrator.occurrence (tenant_id, task_id, nominal_at);
create index occurrence_to_be_decided on orchestrator.occurrence (id) where state = 'undecided';
comment on table orchestrator.occurrence is 'The ledger: what became of every instant of a rule, and of every event that a task met.';
comment on column orchestrator.occurrence.tenant_id is 'Whose task it is.';
comment on column orchestrator.occurrence.id is 'Made of the instant, the task, and the event if there is one: the same for the same.';
comment on column orchestrator.occurrence.task_id is 'The task.';
comment on column orchestrator.occurrence.nominal_at is 'The instant of the rule, or of the event.';
comment on column orchestrator.occurrence.event_id is 'The event; null for an instant of a time rule.';
comment on column orchestrator.occurrence.state is 'undecided (its condition is still to be evaluated), fired, skipped, coalesced or backfilled.';
comment on column orchestrator.occurrence.reason is 'Why it did not fire, or not at its time.';
comment on column orchestrator.occurrence.run_id is 'The run that it made, or the one that stood in its way.';
comment on column orchestrator.occurrence.decided_at is 'When.';
grant select on orchestrator.occurrence to orc_reader;

create table orchestrator.scheduler (
  name text not null,
  seen_at timestamptz not null,
  constraint scheduler_has_a_name primary key (name),
  constraint name_is_1_to_200_characters check (length(name) between 1 and 200)
);
comment on table orchestrator.scheduler is 'Schedulers that looked lately.';
comment on column orchestrator.scheduler.name is 'Host and process.';
comment on column orchestrator.scheduler.seen_at is 'When it looked last, to a few seconds.';
grant select on orchestrator.scheduler to orc_reader;

alter table orchestrator.due_work
  add column nominal_at timestamptz,
  add column event_id uuid,
  add column held_due_at timestamptz,
  add constraint held_runs_wait check (held_due_at is null or state = 'waiting');
comment on column orchestrator.due_work.nominal_at is 'The instant of its task''s rule that it stands for.';
comment on column orchestrator.due_work.event_id is 'The event that made it.';
comment on column orchestrator.due_work.held_due_at is 'When it was due before its task was paused; it is held until that is resumed.';
create index due_work_of_a_task on orchestrator.due_work (tenant_id, task_id) where task_id is not null;

alter table orchestrator.run
  add column nominal_at timestamptz,
  add column event_id uuid;
comment on column orchestrator.run.nominal_at is 'The instant of its task''s rule that it stood for.';
comment on column orchestrator.run.event_id is 'The event that made it.';

alter table orchestrator.event add column hops smallint not null default 0;
comment on column orchestrator.event.hops is 'How many runs lie behind it that were made by events themselves.';
