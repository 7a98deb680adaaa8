-- What runs wait for, and what is published.
--
-- A wait is a row from the moment that its step is reached; it ends once and stays as it ended:
--
--   (reached) ──► waiting ──► met        it was answered: by an event, a callback, a person, a child
--                    ├──────► expired    its deadline passed
--                    └──────► canceled   its run ended, or went on without it
--
-- Time is no wait of this kind: a run that sleeps has its due time, and needs nothing else.
--
-- An event is a row with the number of the transaction that published it. Ids say when an event was
-- published, but not when it could be seen: a transaction may commit late. So what a wait has seen is
-- a snapshot, and what is new is what that snapshot doesn't show.

create table orchestrator.wait (
  tenant_id text not null,
  run_id uuid not null,
  step_id text not null,
  kind text not null,
  state text not null default 'waiting',
  topic text,
  since timestamptz,
  seen pg_snapshot,
  upto pg_snapshot,
  after uuid,
  is_called boolean not null default false,
  token_hash bytea,
  who text[],
  needed smallint,
  form jsonb,
  child_run uuid,
  deadline timestamptz,
  registered_at timestamptz not null default orchestrator.now(),
  answer jsonb,
  answered_by text,
  answered_at timestamptz,
  constraint step_waits_once primary key (tenant_id, run_id, step_id),
  constraint kind_of_a_wait_is_known check (kind in ('event', 'callback', 'approval', 'child', 'unknown')),
  constraint state_of_a_wait_is_known check (state in ('waiting', 'met', 'expired', 'canceled')),
  constraint an_event_has_a_topic_and_a_beginning check (kind <> 'event' or topic is not null and since is not null),
  constraint what_was_not_seen_is_being_looked_at check (kind <> 'event' or seen is not null or upto is not null),
  constraint a_callback_has_a_token check ((kind = 'callback') = (token_hash is not null)),
  constraint an_approval_says_how_many check (kind <> 'approval' or needed between 1 and 100),
  constraint a_child_is_a_run check (kind <> 'child' or child_run is not null or state = 'met'),
  constraint answered_at_exactly_when_met check ((state = 'met') = (answered_at is not null))
) partition by range (run_id);
create table orchestrator.wait_default partition of orchestrator.wait default;
insert into orchestrator.partitioned (table_name, retention) values ('wait', '90 days');
-- Its condition says topic and not kind, so that no plan for the waits of a run can use it.
create index wait_for_a_topic on orchestrator.wait (tenant_id, topic, run_id) where state = 'waiting' and topic is not null;
create index wait_for_the_end_of_runs on orchestrator.wait (tenant_id)
  where state = 'waiting' and topic in ('$run.succeeded', '$run.failed', '$run.canceled');
alter table orchestrator.tenant add column waits_for_ends boolean not null default false;
comment on column orchestrator.tenant.waits_for_ends is 'Whether one of its runs has ever waited for the end of others, or may have.';
create index wait_of_a_token on orchestrator.wait (token_hash) where token_hash is not null;
create index wait_that_calls on orchestrator.wait (tenant_id, run_id) where is_called;
comment on table orchestrator.wait is 'What steps of runs wait for, and how it ended.';
comment on column orchestrator.wait.tenant_id is 'Whose run it is.';
comment on column orchestrator.wait.run_id is 'The run.';
comment on column orchestrator.wait.step_id is 'The step, as in orchestrator.step.';
comment on column orchestrator.wait.kind is
  'event, callback, approval, child, or unknown: a person says what to do about a call whose outcome nobody knows.';
comment on column orchestrator.wait.state is 'waiting, met, expired or canceled.';
comment on column orchestrator.wait.topic is 'The topic of the event.';
comment on column orchestrator.wait.since is 'When the step was reached: events from then on count.';
comment on column orchestrator.wait.seen is 'Events that this snapshot shows were looked at; null: those since it was reached are still to be.';
comment on column orchestrator.wait.upto is 'The snapshot whose events are being looked at, batch by batch; null: all that there are.';
comment on column orchestrator.wait.after is 'How far, in the batches of upto.';
comment on column orchestrator.wait.is_called is 'Whether its run is to be woken: something came, or it was met. A park takes that back.';
comment on column orchestrator.wait.token_hash is 'SHA-256 of the token of its callback.';
comment on column orchestrator.wait.who is 'Who may approve, by id or name of the principal; null: anyone who may approve at all.';
comment on column orchestrator.wait.needed is 'How many must approve.';
comment on column orchestrator.wait.form is 'JSON Schema of what an approval says.';
comment on column orchestrator.wait.child_run is 'The run that it waits for; null when it could not be made, and the answer says why.';
comment on column orchestrator.wait.deadline is 'When it expires; null: never. It stays, however often the run parks.';
comment on column orchestrator.wait.registered_at is 'When it was written down, or answered before that.';
comment on column orchestrator.wait.answer is 'The answer; for an approval a list, one for each who spoke.';
comment on column orchestrator.wait.answered_by is 'Who gave it.';
comment on column orchestrator.wait.answered_at is 'When it was met.';
grant select on orchestrator.wait to orc_reader;

create table orchestrator.event (
  tenant_id text not null,
  id uuid not null default orchestrator.new_id(),
  transaction_id xid8 not null default pg_current_xact_id(),
  topic text not null,
  source text,
  payload jsonb,
  constraint event_is_published_once primary key (tenant_id, id),
  constraint topic_is_1_to_200_characters check (length(topic) between 1 and 200)
) partition by range (id);
create table orchestrator.event_default partition of orchestrator.event default;
insert into orchestrator.partitioned (table_name, retention) values ('event', '30 days');
create index event_of_a_topic on orchestrator.event (tenant_id, topic, id);
create index event_of_a_topic_by_transaction on orchestrator.event (tenant_id, topic, transaction_id);
create index event_by_transaction on orchestrator.event (transaction_id);
comment on table orchestrator.event is 'What was published.';
comment on column orchestrator.event.tenant_id is 'Whose it is.';
comment on column orchestrator.event.id is 'The event; its id carries its time.';
comment on column orchestrator.event.transaction_id is 'The transaction that published it: it says since when the event can be seen.';
comment on column orchestrator.event.topic is 'What it is about.';
comment on column orchestrator.event.source is 'Who says so.';
comment on column orchestrator.event.payload is 'What it says.';
grant select on orchestrator.event to orc_reader;

create table orchestrator.event_cursor (
  is_the_one boolean not null default true,
  done pg_snapshot not null,
  pending pg_snapshot not null,
  constraint there_is_one_cursor primary key (is_the_one),
  constraint it_is_the_one check (is_the_one)
);
comment on table orchestrator.event_cursor is 'How far housekeeping has brought events to waits: one row.';
comment on column orchestrator.event_cursor.is_the_one is 'True.';
comment on column orchestrator.event_cursor.done is 'What this snapshot shows was brought, and nobody who parked at that time is still under way.';
comment on column orchestrator.event_cursor.pending is 'What this snapshot shows was brought once; it is done when all transactions of its time are over.';
insert into orchestrator.event_cursor (done, pending) values (pg_current_snapshot(), pg_current_snapshot());
grant select on orchestrator.event_cursor to orc_reader;

-- Nobody but the owner reads it; workers get it from a verb.
create table orchestrator.callback_key (
  is_the_one boolean not null default true,
  key bytea not null,
  constraint there_is_one_key primary key (is_the_one),
  constraint it_is_the_one_key check (is_the_one),
  constraint key_has_32_bytes check (length(key) = 32)
);
comment on table orchestrator.callback_key is 'The key that signs tokens of callbacks: one row, made at random with this table.';
comment on column orchestrator.callback_key.is_the_one is 'True.';
comment on column orchestrator.callback_key.key is 'The key.';
insert into orchestrator.callback_key (key)
values (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));

alter table orchestrator.due_work add column parent_id uuid;
comment on column orchestrator.due_work.parent_id is 'The run that waits for this one.';
create index due_work_of_a_parent on orchestrator.due_work (tenant_id, parent_id) where parent_id is not null;

-- Values that are too large for the row that they belong to (verbs: values.sql). Known by their content within a tenant
-- and the day of their run: equal ones are stored once, and they go when the history of that day goes.
create table orchestrator.value (
  tenant_id text not null,
  day uuid not null,
  digest bytea not null,
  bytes integer not null,
  body jsonb not null,
  created_at timestamptz not null default orchestrator.now(),
  constraint value_is_stored_once_a_day primary key (tenant_id, day, digest),
  constraint digest_has_32_bytes check (length(digest) = 32)
) partition by range (day);
create table orchestrator.value_default partition of orchestrator.value default;
insert into orchestrator.partitioned (table_name, retention) values ('value', '90 days');
comment on table orchestrator.value is 'Large values of steps and runs, by digest: orc.value reads one.';
comment on column orchestrator.value.tenant_id is 'Whose it is.';
comment on column orchestrator.value.day is 'The first id of the day (UTC) on which its runs were made.';
comment on column orchestrator.value.digest is 'The SHA-256 of its text, as jsonb writes it.';
comment on column orchestrator.value.bytes is 'How large it is, in bytes of its binary form.';
comment on column orchestrator.value.body is 'The value.';
comment on column orchestrator.value.created_at is 'When it was first stored.';
grant select on orchestrator.value to orc_reader;

create table orchestrator.cache (
  tenant_id text not null,
  digest bytea not null,
  tool text not null,
  value jsonb not null,
  created_at timestamptz not null default orchestrator.now(),
  expires_at timestamptz not null,
  constraint cache_has_one_value_for_a_key primary key (tenant_id, digest)
);
create index cache_by_end on orchestrator.cache (expires_at);
comment on table orchestrator.cache is 'What tools answered, for steps that say how long an answer serves.';
comment on column orchestrator.cache.tenant_id is 'Whose it is; no other tenant''s steps are given it.';
comment on column orchestrator.cache.digest is 'The SHA-256 of the tool and the key: the key itself isn''t kept.';
comment on column orchestrator.cache.tool is 'The tool that answered.';
comment on column orchestrator.cache.value is 'The value of the step, as it was recorded: without what a secret says.';
comment on column orchestrator.cache.created_at is 'When it was put here.';
comment on column orchestrator.cache.expires_at is 'When it serves no more; orc.purge deletes it.';
grant select on orchestrator.cache to orc_reader;

-- Tools of MCP servers: a worker asks each server once in a while, whatever number of workers there are.
create table orchestrator.tool_server (
  name text not null,
  asked_at timestamptz not null default orchestrator.now(),
  seen_at timestamptz,
  tools jsonb not null default '[]',
  problem text,
  constraint server_is_asked_under_one_name primary key (name),
  constraint name_of_a_server_is_bounded check (length(name) between 1 and 200),
  constraint tools_are_a_list check (jsonb_typeof(tools) = 'array'),
  constraint problem_is_bounded check (length(problem) <= 1000)
);
comment on table orchestrator.tool_server is 'MCP servers of the operator, and the tools that a worker saw there. They are no tenant''s.';
comment on column orchestrator.tool_server.name is 'As in the file of MCP servers.';
comment on column orchestrator.tool_server.asked_at is 'When a worker took it upon itself to ask.';
comment on column orchestrator.tool_server.seen_at is 'When it answered last.';
comment on column orchestrator.tool_server.tools is 'What it answered: [{name, description, input_schema, output_schema}].';
comment on column orchestrator.tool_server.problem is 'Why it didn''t answer the last time.';
grant select on orchestrator.tool_server to orc_reader;
