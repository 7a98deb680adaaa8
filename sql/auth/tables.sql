-- Who owns and who acts.
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
