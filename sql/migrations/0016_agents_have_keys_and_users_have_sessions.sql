-- Agents have keys, users passwords and sessions, tokens keys by their kid; and no role sees rows of a tenant that it doesn't act for.

alter table orchestrator.principal drop constraint name_is_unique_within_its_tenant;
alter table orchestrator.principal
  add column subject text,
  add column webhook_url text,
  add column updated_at timestamptz,
  add column deleted_at timestamptz,
  add constraint subject_is_1_to_200_characters check (length(subject) between 1 and 200),
  add constraint webhook_url_is_up_to_2000_characters check (length(webhook_url) between 1 and 2000),
  add constraint who_is_deleted_is_disabled check (deleted_at is null or disabled_at is not null);
create unique index name_is_unique_within_its_tenant on orchestrator.principal (tenant_id, name) where deleted_at is null;
create unique index subject_is_one_principal on orchestrator.principal (tenant_id, subject) where subject is not null;
comment on column orchestrator.principal.name is 'Its name, unique among those of the tenant that are not deleted.';
comment on column orchestrator.principal.scopes is 'What it may do, such as tasks:write; any is all but admin, admin is all.';
comment on column orchestrator.principal.subject is 'What tokens of another issuer call it; null for who is known by a key or a password.';
comment on column orchestrator.principal.webhook_url is 'Where an agent wants to be told what happens.';
comment on column orchestrator.principal.updated_at is 'When it was changed last.';
comment on column orchestrator.principal.deleted_at is 'When it was deleted: its name is free again, its row stays for what it did.';

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

do $$
declare
  v_table text;
  v_column text;
begin
  for v_table, v_column in
    select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace = 'orchestrator'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
      and (a.attname = 'tenant_id' or c.relname = 'tenant' and a.attname = 'id')
  loop
    execute format('alter table orchestrator.%I enable row level security', v_table);
    execute format('create policy rows_of_the_tenant on orchestrator.%I using (%I = current_setting(''orchestrator.tenant'', true))',
                   v_table, v_column);
    execute format('create policy rows_for_readers on orchestrator.%I for select to orc_reader using (true)', v_table);
  end loop;
end $$;
