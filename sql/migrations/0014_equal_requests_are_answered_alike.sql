-- Requests with an Idempotency-Key are answered again as they were.

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
