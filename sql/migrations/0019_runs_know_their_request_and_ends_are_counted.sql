-- Runs carry the trace and the request that they came from, and how many have ended is counted.

create domain orchestrator.trace as text
  constraint trace_is_a_traceparent check (length(value) = 55);
comment on domain orchestrator.trace is 'A trace and a span of it, as W3C Trace Context writes them.';
create domain orchestrator.request as text
  constraint request_is_short check (length(value) <= 128);
comment on domain orchestrator.request is 'The id of a request.';
alter table orchestrator.due_work add column traceparent orchestrator.trace, add column correlation_id orchestrator.request;
alter table orchestrator.due_work
  alter column traceparent set default nullif(current_setting('orchestrator.traceparent', true), ''),
  alter column correlation_id set default nullif(current_setting('orchestrator.request', true), '');
comment on column orchestrator.due_work.traceparent is 'The trace that it belongs to, as W3C Trace Context writes it: by default the setting of that name.';
comment on column orchestrator.due_work.correlation_id is 'The request that it came from: by default the setting orchestrator.request.';

alter table orchestrator.run add column traceparent text, add column correlation_id text;
comment on column orchestrator.run.traceparent is 'The trace that it belonged to.';
comment on column orchestrator.run.correlation_id is 'The request that it came from.';

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
