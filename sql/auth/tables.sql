-- Who owns and who acts, what proves it, and secrets that owners have.
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
  subject text,
  webhook_url text,
  created_at timestamptz not null default orchestrator.now(),
  updated_at timestamptz,
  disabled_at timestamptz,
  deleted_at timestamptz,
  constraint principal_is_known_within_its_tenant primary key (tenant_id, id),
  constraint id_belongs_to_one_principal unique (id),
  constraint tenant_exists foreign key (tenant_id) references orchestrator.tenant (id),
  constraint kind_is_agent_user_or_service check (kind in ('agent', 'user', 'service')),
  constraint name_is_1_to_100_characters check (length(name) between 1 and 100),
  constraint scopes_are_plain_words check (
    array_position(scopes, null) is null and cardinality(scopes) <= 100
    and array_to_string(scopes, ' ') ~ '^([a-z][a-z0-9_.:*-]*( |$))*$'
    and cardinality(string_to_array(array_to_string(scopes, ' '), ' ')) = cardinality(scopes)),
  constraint subject_is_1_to_200_characters check (length(subject) between 1 and 200),
  constraint webhook_url_is_up_to_2000_characters check (length(webhook_url) between 1 and 2000),
  constraint who_is_deleted_is_disabled check (deleted_at is null or disabled_at is not null)
);
create unique index name_is_unique_within_its_tenant on orchestrator.principal (tenant_id, name) where deleted_at is null;
create unique index subject_is_one_principal on orchestrator.principal (tenant_id, subject) where subject is not null;
comment on table orchestrator.principal is 'Who acts: agents, users and services.';
comment on column orchestrator.principal.tenant_id is 'The tenant that it acts for.';
comment on column orchestrator.principal.id is 'Its id, of one principal only among all tenants.';
comment on column orchestrator.principal.kind is 'agent, user or service.';
comment on column orchestrator.principal.name is 'Its name, unique among those of the tenant that are not deleted.';
comment on column orchestrator.principal.scopes is 'What it may do, such as tasks:write; any is all but admin, admin is all.';
comment on column orchestrator.principal.subject is 'What tokens of another issuer call it; null for who is known by a key or a password.';
comment on column orchestrator.principal.webhook_url is 'Where an agent wants to be told what happens.';
comment on column orchestrator.principal.updated_at is 'When it was changed last.';
comment on column orchestrator.principal.deleted_at is 'When it was deleted: its name is free again, its row stays for what it did.';
comment on column orchestrator.principal.created_at is 'When it was made.';
comment on column orchestrator.principal.disabled_at is 'Since when it may not act any more; null while it may.';
grant select on orchestrator.principal to orc_reader;

create table orchestrator.agent_key (
  tenant_id text not null,
  id text not null,
  principal_id uuid not null,
  hash bytea not null,
  created_at timestamptz not null default orchestrator.now(),
  expires_at timestamptz,
  revoked_at timestamptz,
  last_used_at timestamptz,
  constraint key_has_one_id primary key (tenant_id, id),
  constraint id_belongs_to_one_key unique (id),
  constraint holder_exists foreign key (tenant_id, principal_id) references orchestrator.principal (tenant_id, id),
  constraint id_is_16_hex_digits check (id ~ '^[0-9a-f]{16}$'),
  constraint hash_is_a_sha256 check (length(hash) = 32)
);
create index agent_key_of_a_principal on orchestrator.agent_key (tenant_id, principal_id);
comment on table orchestrator.agent_key is 'Keys of agents: ork_<id>_<secret>. The secret isn''t here.';
comment on column orchestrator.agent_key.tenant_id is 'The tenant of its agent.';
comment on column orchestrator.agent_key.id is 'The part of the key that may be shown.';
comment on column orchestrator.agent_key.principal_id is 'Whose key it is.';
comment on column orchestrator.agent_key.hash is 'SHA-256 of the whole key.';
comment on column orchestrator.agent_key.created_at is 'When it was made, and shown.';
comment on column orchestrator.agent_key.expires_at is 'Until when it is accepted; null: until it is revoked.';
comment on column orchestrator.agent_key.revoked_at is 'Since when it isn''t accepted any more.';
comment on column orchestrator.agent_key.last_used_at is 'When it was used last, to the minute.';
grant select (tenant_id, id, principal_id, created_at, expires_at, revoked_at, last_used_at) on orchestrator.agent_key to orc_reader;

create table orchestrator.password (
  tenant_id text not null,
  principal_id uuid not null,
  hash text not null,
  changed_at timestamptz not null default orchestrator.now(),
  constraint user_has_one_password primary key (tenant_id, principal_id),
  constraint user_exists foreign key (tenant_id, principal_id) references orchestrator.principal (tenant_id, id),
  constraint hash_is_argon2id check (hash like '$argon2id$%' and length(hash) <= 500)
);
comment on table orchestrator.password is 'Passwords of users, hashed.';
comment on column orchestrator.password.tenant_id is 'The tenant of the user.';
comment on column orchestrator.password.principal_id is 'The user.';
comment on column orchestrator.password.hash is 'Argon2id, with its parameters and salt.';
comment on column orchestrator.password.changed_at is 'When the password was changed last.';

create table orchestrator.session (
  tenant_id text not null,
  id uuid not null default gen_random_uuid(),
  principal_id uuid not null,
  generation integer not null default 1,
  lifetime interval not null,
  created_at timestamptz not null default orchestrator.now(),
  rotated_at timestamptz,
  expires_at timestamptz not null,
  ended_at timestamptz,
  ended_how text,
  constraint session_has_one_id primary key (tenant_id, id),
  constraint id_belongs_to_one_session unique (id),
  constraint session_is_of_a_user foreign key (tenant_id, principal_id) references orchestrator.principal (tenant_id, id),
  constraint generation_is_at_least_1 check (generation >= 1),
  constraint an_end_says_how check ((ended_at is null) = (ended_how is null))
);
create index session_of_a_principal on orchestrator.session (tenant_id, principal_id);
comment on table orchestrator.session is 'Sessions of users: a family of refresh tokens, of which none is kept.';
comment on column orchestrator.session.tenant_id is 'The tenant of the user.';
comment on column orchestrator.session.id is 'The session; its tokens name it.';
comment on column orchestrator.session.principal_id is 'The user.';
comment on column orchestrator.session.generation is 'The generation of the refresh token that can be redeemed.';
comment on column orchestrator.session.lifetime is 'How long it lasts after each renewal.';
comment on column orchestrator.session.created_at is 'When the user logged in.';
comment on column orchestrator.session.rotated_at is 'When a refresh token was redeemed last.';
comment on column orchestrator.session.expires_at is 'When it ends unless it is renewed.';
comment on column orchestrator.session.ended_at is 'When it was ended.';
comment on column orchestrator.session.ended_how is 'By what: logged out, a token used twice, a new password.';
grant select on orchestrator.session to orc_reader;

create table orchestrator.token_key (
  kid text not null,
  algorithm text not null,
  material bytea not null,
  for_tenant text,
  created_at timestamptz not null default orchestrator.now(),
  retired_at timestamptz,
  constraint kid_is_used_once primary key (kid),
  constraint kid_is_a_plain_word check (kid ~ '^[A-Za-z0-9._-]{1,100}$'),
  constraint algorithm_is_known check (algorithm in ('HS256', 'EdDSA')),
  constraint material_has_32_bytes check (length(material) = 32)
);
comment on table orchestrator.token_key is 'Keys of tokens, by the kid that tokens name. Nothing in it is secret.';
comment on column orchestrator.token_key.kid is 'What tokens call it.';
comment on column orchestrator.token_key.algorithm is 'The only algorithm that it is used with: HS256 or EdDSA.';
comment on column orchestrator.token_key.material is 'EdDSA: the public key. HS256: what makes its key from JWT_SECRET.';
comment on column orchestrator.token_key.for_tenant is 'The only tenant that its tokens may name; null: any.';
comment on column orchestrator.token_key.created_at is 'When it was added; the service signs with the newest.';
comment on column orchestrator.token_key.retired_at is 'Since when its tokens aren''t accepted any more.';

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
