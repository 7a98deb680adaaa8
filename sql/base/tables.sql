-- The ledger of migrations, and the register of partitioned tables.
--
-- A table whose rows come in time order is partitioned by range of a UUIDv7 (its id, or the id of
-- its run) and registers itself in its own tables.sql:
--
--   create table orchestrator.run (…) partition by range (id);
--   create table orchestrator.run_default partition of orchestrator.run default;
--   insert into orchestrator.partitioned (table_name, retention) values ('run', '90 days');
--
-- Partitions of their span (run_2026_11_21) are made ahead of time by orc.keep_partitions(), which
-- also runs at the end of each installation. A row for which there's no partition lands in the
-- default one and is moved out by the next keeping, so a housekeeper that stood still loses nothing.
-- Retention counts from the instant in the id: a partition goes when all of it is older.

create table orchestrator.migration (
  name text not null,
  digest text not null,
  breaking boolean not null,
  applied_at timestamptz not null default clock_timestamp(),
  applied_by text not null default session_user,
  program_version text not null,
  constraint migration_is_applied_once primary key (name),
  constraint name_is_a_number_and_a_sentence check (name ~ '^[0-9]{4}_[a-z0-9_]+$'),
  constraint digest_is_a_sha256 check (digest ~ '^[0-9a-f]{64}$')
);
comment on table orchestrator.migration is 'The migrations that this schema has seen, applied or contained in it.';
comment on column orchestrator.migration.name is 'Its file name without .sql: a number and a sentence.';
comment on column orchestrator.migration.digest is 'SHA-256 of its text: an applied migration never changes.';
comment on column orchestrator.migration.breaking is 'Whether programs that do not know it must stop.';
comment on column orchestrator.migration.applied_at is 'When it was applied here.';
comment on column orchestrator.migration.applied_by is 'The login that applied it.';
comment on column orchestrator.migration.program_version is 'The version of the program that applied it.';
grant select on orchestrator.migration to orc_api, orc_worker, orc_reader;

create table orchestrator.partitioned (
  table_name text not null,
  span interval not null default '1 day',
  ahead integer not null default 7,
  retention interval,
  constraint table_is_registered_once primary key (table_name),
  constraint table_name_leaves_room_for_a_date check (length(table_name) between 1 and 40),
  constraint span_is_whole_hours_up_to_31_days check (
    date_part('epoch', span)::bigint % 3600 = 0 and date_part('month', span) = 0
    and span between '1 hour' and '31 days'),
  constraint ahead_is_1_to_400_spans check (ahead between 1 and 400),
  constraint retention_is_not_shorter_than_a_span check (retention >= span)
);
comment on table orchestrator.partitioned is 'The tables that are partitioned by the time in a UUIDv7.';
comment on column orchestrator.partitioned.table_name is 'The table, in schema orchestrator.';
comment on column orchestrator.partitioned.span is 'How much time one partition holds.';
comment on column orchestrator.partitioned.ahead is 'How many spans ahead of now partitions are made.';
comment on column orchestrator.partitioned.retention is 'How long rows stay, counted from the instant in their id; null: for ever.';
grant select on orchestrator.partitioned to orc_reader;

create table orchestrator.reply (
  tenant_id text not null,
  principal text not null,
  route text not null,
  key text not null,
  fingerprint bytea not null,
  status smallint not null,
  headers jsonb not null,
  content_type text not null,
  body bytea,
  run_id uuid,
  answered_at timestamptz not null default orchestrator.now(),
  constraint key_has_one_answer primary key (tenant_id, principal, route, key),
  constraint key_is_1_to_255_characters check (length(key) between 1 and 255),
  constraint fingerprint_has_32_bytes check (length(fingerprint) = 32),
  constraint only_success_is_kept check (status between 200 and 299)
);
comment on table orchestrator.reply is 'Answers to requests with an Idempotency-Key: for 24 hours the same request is answered the same again.';
comment on column orchestrator.reply.tenant_id is 'Whose request it was; empty for one without a principal.';
comment on column orchestrator.reply.principal is 'Who asked; empty for nobody known.';
comment on column orchestrator.reply.route is 'What was asked for: the verb; for nobody known, with a digest of the path.';
comment on column orchestrator.reply.key is 'The key, as it was sent.';
comment on column orchestrator.reply.fingerprint is 'SHA-256 of method, path, query and body.';
comment on column orchestrator.reply.status is 'The status of the answer.';
comment on column orchestrator.reply.headers is 'Its own headers.';
comment on column orchestrator.reply.content_type is 'Its content type.';
comment on column orchestrator.reply.body is 'Its body; null when it is shown only once, or is too large.';
comment on column orchestrator.reply.run_id is 'The run that it started.';
comment on column orchestrator.reply.answered_at is 'When; after 24 hours the key is free, and orc.purge deletes the row.';
grant select (tenant_id, principal, route, key, status, run_id, answered_at) on orchestrator.reply to orc_reader;
create index reply_by_age on orchestrator.reply (answered_at);
