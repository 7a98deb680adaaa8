-- Who owns and who acts, and secrets that owners have.
--
-- A tenant owns rows; its id is opaque text that somebody else may have chosen. A principal acts for
-- one tenant: an agent (a program with a key), a user (a person with a password) or a service. Its
-- scopes say what it may do; `admin` is all of them. Principals are disabled, not deleted, because
-- what they did names them for ever.
-- A credential names a principal before the tenant is known, so an id belongs to one principal only.

create table orchestrator.tenant (
  id text not null,
  created_at timestamptz not null default orchestrator.now(),
  constraint tenant_has_one_id primary key (id),
  constraint id_is_1_to_200_characters check (length(id) between 1 and 200)
);
comment on table orchestrator.tenant is 'Who owns rows.';
comment on column orchestrator.tenant.id is 'Opaque text, chosen by whoever made the tenant.';
comment on column orchestrator.tenant.created_at is 'When it was first named.';
grant select on orchestrator.tenant to orc_reader;

create table orchestrator.principal (
  tenant_id text not null,
  id uuid not null default orchestrator.new_id(),
  kind text not null,
  name text not null,
  scopes text[] not null default '{}',
  created_at timestamptz not null default orchestrator.now(),
  disabled_at timestamptz,
  constraint principal_is_known_within_its_tenant primary key (tenant_id, id),
  constraint id_belongs_to_one_principal unique (id),
  constraint name_is_unique_within_its_tenant unique (tenant_id, name),
  constraint tenant_exists foreign key (tenant_id) references orchestrator.tenant (id),
  constraint kind_is_agent_user_or_service check (kind in ('agent', 'user', 'service')),
  constraint name_is_1_to_100_characters check (length(name) between 1 and 100),
  constraint scopes_are_plain_words check (
    array_position(scopes, null) is null and cardinality(scopes) <= 100
    and array_to_string(scopes, ' ') ~ '^([a-z][a-z0-9_.:*-]*( |$))*$'
    and cardinality(string_to_array(array_to_string(scopes, ' '), ' ')) = cardinality(scopes))
);
comment on table orchestrator.principal is 'Who acts: agents, users and services.';
comment on column orchestrator.principal.tenant_id is 'The tenant that it acts for.';
comment on column orchestrator.principal.id is 'Its id, of one principal only among all tenants.';
comment on column orchestrator.principal.kind is 'agent, user or service.';
comment on column orchestrator.principal.name is 'Its name, unique within the tenant.';
comment on column orchestrator.principal.scopes is 'What it may do, such as tasks:write; admin may do all.';
comment on column orchestrator.principal.created_at is 'When it was made.';
comment on column orchestrator.principal.disabled_at is 'Since when it may not act any more; null while it may.';
grant select on orchestrator.principal to orc_reader;

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
