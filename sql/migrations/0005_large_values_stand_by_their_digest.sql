-- Large values stand by their digest, and answers of tools can be cached.

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

alter table orchestrator.run
  add column output_digest bytea,
  add column output_bytes integer,
  add constraint a_large_output_stands_elsewhere check ((output_digest is null) = (output_bytes is null)
                                                        and (output is null or output_digest is null));
comment on column orchestrator.run.output_digest is 'Of an output that is too large for this row: orc.value has it.';
comment on column orchestrator.run.output_bytes is 'How large that output is, in bytes of its binary form.';

alter table orchestrator.step
  add column output_digest bytea,
  add column output_bytes integer,
  add column is_cached boolean not null default false,
  add constraint a_large_output_stands_elsewhere check ((output_digest is null) = (output_bytes is null)
                                                        and (output is null or output_digest is null));
comment on column orchestrator.step.output_digest is 'Of a value that is too large for this row: orc.value has it.';
comment on column orchestrator.step.output_bytes is 'How large that value is, in bytes of its binary form.';
comment on column orchestrator.step.is_cached is 'Whether its value came from the cache, and nothing was called.';
