-- Verbs about principals. Whoever calls a verb has already proved who it is; these say what it may.

-- Makes tenant `default` and the system agent in it, unless they are there. Any number at once.
create function orc.ensure_system_agent() returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_id constant uuid := uuid '00000000-0000-0000-0000-000000000001';
begin
  insert into orchestrator.tenant (id) values ('default') on conflict do nothing;
  insert into orchestrator.principal (tenant_id, id, kind, name, scopes)
  values ('default', v_id, 'agent', 'system', '{admin}') on conflict do nothing;
  perform from orchestrator.principal where tenant_id = 'default' and id = v_id;
  if not found then
    perform orc._conflict('The system agent can''t be made: its name or its id is taken', 'default/system',
                          'rename the principal system of tenant default');
  end if;
  return v_id;
end $$;
comment on function orc.ensure_system_agent() is
  'Makes the tenant default with its first agent, system, who may do everything; does nothing when they exist.';

create function orc.whoami(principal uuid)
returns table (tenant_id text, id uuid, kind text, name text, scopes text[])
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return query select p.tenant_id, p.id, p.kind, p.name, p.scopes
               from orchestrator.principal p where p.id = principal and p.disabled_at is null;
  if not found then
    perform orc._not_found('There is no such principal, or it is disabled', principal::text,
                           'orchestrator.principal lists them');
  end if;
end $$;
comment on function orc.whoami(uuid) is 'The principal behind an id: its tenant, kind, name and scopes.';
grant execute on function orc.whoami(uuid) to orc_api, orc_worker;

create function orc._check_auth() returns table (invariant text, subject text, detail text)
language sql stable as $$
  select 'the_system_agent_belongs_to_the_default_tenant', p.id::text, format('it is %s of tenant %s', p.name, p.tenant_id)
  from orchestrator.principal p
  where p.id = '00000000-0000-0000-0000-000000000001' and (p.tenant_id, p.kind) <> ('default', 'agent')
$$;
comment on function orc._check_auth() is 'Invariants of tenants and principals.';
