-- Agents: programs with keys. An agent that is deleted may not act any more and its name is free; what it did names it for ever.

create view orc.agents as
select p.tenant_id, p.id, p.name, p.scopes, p.webhook_url, p.disabled_at is not null as disabled, p.created_at, p.updated_at,
       (select max(k.last_used_at) from orchestrator.agent_key k where k.tenant_id = p.tenant_id and k.principal_id = p.id) as last_used_at
from orchestrator.principal p where p.kind in ('agent', 'service') and p.deleted_at is null;
comment on view orc.agents is 'Agents, and when a key of theirs was used last (to the minute).';
grant select on orc.agents to orc_reader;

create function orc.agent(tenant text, agent uuid) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_agent constant jsonb := (select to_jsonb(a) - 'tenant_id' from orc.agents a where a.tenant_id = agent.tenant and a.id = agent.agent);
begin
  perform orc._require('admin');
  if v_agent is null then
    perform orc._not_found('Agent not found: ' || agent, agent::text, 'orc.agents lists them');
  end if;
  return v_agent || jsonb_build_object('keys', coalesce((
    select jsonb_agg(jsonb_build_object('id', k.id, 'created_at', k.created_at, 'expires_at', k.expires_at,
                                        'last_used_at', k.last_used_at) order by k.created_at)
    from orchestrator.agent_key k
    where k.tenant_id = agent.tenant and k.principal_id = agent.agent and k.revoked_at is null
      and (k.expires_at <= orchestrator.now()) is not true), '[]'));
end $$;
comment on function orc.agent(text, uuid) is 'An agent as an object: its row in orc.agents, and its live keys without their secrets.';
grant execute on function orc.agent(text, uuid) to orc_api;

create function orc.create_agent(
  tenant text, name text, scopes text[] default '{any}', webhook_url text default null, expires_at timestamptz default null)
returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  v_id uuid;
  v_key record;
begin
  perform orc._require('admin');
  perform orc._refuse_name(tenant, name);
  perform orc._check_scopes(scopes);
  insert into orchestrator.tenant (id) values (tenant) on conflict do nothing;
  insert into orchestrator.principal as p (tenant_id, kind, name, scopes, webhook_url)
  values (tenant, 'agent', name, scopes, webhook_url) returning p.id into v_id;
  v_key := orc._make_key(tenant, v_id, expires_at);
  perform orc._audit(tenant, 'create_agent', v_id::text, jsonb_build_object('name', name, 'scopes', scopes, 'key', v_key.key_id));
  return orc.agent(tenant, v_id) || jsonb_build_object('key', v_key.key);
end $$;
comment on function orc.create_agent(text, text, text[], text, timestamptz) is 'Makes an agent. Its key is in the answer, and nowhere else.';
grant execute on function orc.create_agent(text, text, text[], text, timestamptz) to orc_api;

create function orc.list_agents(tenant text, "limit" integer default 50, cursor uuid default null)
returns table (items jsonb, next_cursor uuid)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform orc._require('admin');
  return query
    with page as (
      select a.id, to_jsonb(a) - 'tenant_id' as item, row_number() over (order by a.id) as n from orc.agents a
      where a.tenant_id = tenant and (cursor is null or a.id > cursor) order by a.id limit least("limit", 200) + 1)
    select coalesce(jsonb_agg(p.item order by p.id) filter (where p.n <= "limit"), '[]'),
           case when count(*) > "limit" then (array_agg(p.id order by p.id desc) filter (where p.n <= "limit"))[1] end
    from page p;
end $$;
comment on function orc.list_agents(text, integer, uuid) is 'The agents of a tenant, a page at a time.';
grant execute on function orc.list_agents(text, integer, uuid) to orc_api;

create function orc.update_agent(tenant text, agent uuid, changes jsonb) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_before constant jsonb := orc.agent(tenant, agent);
  v_scopes constant text[] := array(select jsonb_array_elements_text(changes -> 'scopes'));
begin
  if changes ? 'name' then
    perform orc._refuse_name(tenant, changes ->> 'name', agent);
  end if;
  perform orc._check_scopes(v_scopes);
  update orchestrator.principal p
  set name = coalesce(changes ->> 'name', p.name), updated_at = orchestrator.now(),
      scopes = case when changes ? 'scopes' then v_scopes else p.scopes end,
      webhook_url = case when changes ? 'webhook_url' then changes ->> 'webhook_url' else p.webhook_url end
  where p.tenant_id = update_agent.tenant and p.id = update_agent.agent;
  perform orc._audit(tenant, 'update_agent', agent::text, changes);
  return orc.agent(tenant, agent);
end $$;
comment on function orc.update_agent(text, uuid, jsonb) is 'Changes the named ones of name, scopes and webhook_url.';
grant execute on function orc.update_agent(text, uuid, jsonb) to orc_api;

create function orc.rotate_key(tenant text, agent uuid, expires_at timestamptz default null, grace_seconds double precision default 0)
returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  v_now constant timestamptz := orchestrator.now();
  v_before constant jsonb := orc.agent(tenant, agent);
  v_key record;
begin
  update orchestrator.agent_key k
  set expires_at = least(k.expires_at, v_now + make_interval(secs => grace_seconds)),
      revoked_at = case when grace_seconds = 0 then v_now end
  where k.tenant_id = tenant and k.principal_id = agent and k.revoked_at is null;
  v_key := orc._make_key(tenant, agent, expires_at);
  perform orc._audit(tenant, 'rotate_key', agent::text, jsonb_build_object('key', v_key.key_id, 'grace_seconds', grace_seconds));
  return orc.agent(tenant, agent) || jsonb_build_object('key', v_key.key);
end $$;
comment on function orc.rotate_key(text, uuid, timestamptz, double precision) is
  'A new key for an agent; the others are accepted for the grace, and then no more. The new one is in the answer, and nowhere else.';
grant execute on function orc.rotate_key(text, uuid, timestamptz, double precision) to orc_api;

create function orc.revoke_keys(tenant text, agent uuid) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_before constant jsonb := orc.agent(tenant, agent);
begin
  update orchestrator.agent_key k set revoked_at = orchestrator.now()
  where k.tenant_id = revoke_keys.tenant and k.principal_id = revoke_keys.agent and k.revoked_at is null;
  perform orc._audit(tenant, 'revoke_keys', agent::text);
  return orc.agent(tenant, agent);
end $$;
comment on function orc.revoke_keys(text, uuid) is 'Accepts no key of an agent any more, within a second.';
grant execute on function orc.revoke_keys(text, uuid) to orc_api;

create function orc._refuse_busy(tenant text, agent uuid, force boolean) returns void
language plpgsql as $$
declare
  v_tasks constant uuid[] := array(select t.id from orchestrator.task t
    where t.tenant_id = tenant and t.created_by = agent and t.status in ('active', 'paused') order by t.id);
begin
  if cardinality(v_tasks) > 0 and not force then
    perform orc._conflict(format('The agent has active tasks: %s', cardinality(v_tasks)), v_tasks[1]::text,
                          'cancel them, or delete it with force=true, which does');
  end if;
  perform orc.cancel_task(tenant, t, 'its agent was deleted') from unnest(v_tasks) as t;
end $$;
comment on function orc._refuse_busy(text, uuid, boolean) is 'Refuses an agent with active tasks, or cancels them.';

create function orc.delete_agent(tenant text, agent uuid, force boolean default false) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_before constant jsonb := orc.agent(tenant, agent);
begin
  if agent = '00000000-0000-0000-0000-000000000001' or agent::text = orc._actor() then
    perform orc._conflict('Neither the system agent nor the caller can be deleted', agent::text);
  end if;
  perform from orchestrator.principal p where p.tenant_id = delete_agent.tenant and p.id = delete_agent.agent for update;
  perform orc._refuse_busy(tenant, agent, force);
  perform orc.revoke_keys(tenant, agent);
  update orchestrator.principal p set deleted_at = orchestrator.now(), disabled_at = coalesce(p.disabled_at, orchestrator.now())
  where p.tenant_id = delete_agent.tenant and p.id = delete_agent.agent;
  perform orc._audit(tenant, 'delete_agent', agent::text, jsonb_build_object('name', v_before ->> 'name', 'force', force));
end $$;
comment on function orc.delete_agent(text, uuid, boolean) is
  'Deletes an agent that has no active tasks, or cancels them by force. What it did stays, and so do its runs.';
grant execute on function orc.delete_agent(text, uuid, boolean) to orc_api;
