-- Secrets of tenants, encrypted before they come here.

create table orchestrator.secret (
  tenant_id text not null,
  name text not null,
  key_id text not null,
  nonce bytea not null,
  ciphertext bytea not null,
  created_at timestamptz not null default orchestrator.now(),
  by text not null default current_user,
  constraint secret_is_set_once_for_its_tenant primary key (tenant_id, name),
  constraint tenant_exists foreign key (tenant_id) references orchestrator.tenant (id),
  constraint name_is_a_word check (name ~ '^[A-Za-z_][A-Za-z0-9_-]{0,63}$'),
  constraint key_id_is_1_to_100_characters check (length(key_id) between 1 and 100),
  constraint nonce_has_12_bytes check (length(nonce) = 12),
  constraint ciphertext_is_bounded check (length(ciphertext) between 17 and 1000000)
);
comment on table orchestrator.secret is 'Secrets of tenants, encrypted: who has this table without the key of the workers has nothing.';
comment on column orchestrator.secret.tenant_id is 'Whose it is; no other tenant''s runs are given it.';
comment on column orchestrator.secret.name is 'Its name: ${secrets.NAME} in the arguments of a tool.';
comment on column orchestrator.secret.key_id is 'Which key of ORC_SECRETS_KEY encrypted it.';
comment on column orchestrator.secret.nonce is 'Random, for this value only.';
comment on column orchestrator.secret.ciphertext is 'The value by AES-256-GCM, bound to its tenant and name.';
comment on column orchestrator.secret.created_at is 'When this value was set.';
comment on column orchestrator.secret.by is 'Who set it.';
grant select (tenant_id, name, key_id, created_at, by) on orchestrator.secret to orc_reader;
