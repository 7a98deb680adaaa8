-- Who acts. The API says so in the statement that calls a verb, for that transaction only:
--
--   select * from orc.cancel_task(tenant => orc.acting('acme', '<principal>', 'tasks:write', '<request id>'), task => …)
--
-- An argument is evaluated before the verb begins, so this costs no round trip, and a transaction pooler can't hand it
-- to somebody else. (Measured 2026-11-21 on a busy machine: 6 µs.) Verbs then ask orc._require whether
-- the actor has a scope, and orc._sees whether something is theirs.
-- Where nobody is bound so (psql, triggers, workers) a verb does what its grants allow. There `set orchestrator.actor`
-- signs what one does, and limits nothing.
--
-- Scopes are words such as tasks:write. `any` is all of them but admin; `admin` is all, and sees what others made.
-- Runs that are made meanwhile keep the request and the trace (columns correlation_id and traceparent of due_work).
-- Row-level security (ops/tables.sql) goes by the same setting, orchestrator.tenant.

create function orc.acting(tenant text, actor text, scopes text, request text, trace text default null) returns text
language plpgsql as $$
declare
  v_said constant text[] := array[  -- one expression: a query would cost more than all that it does
    set_config('orchestrator.tenant', tenant, true), set_config('orchestrator.actor', actor, true),
    set_config('orchestrator.scopes', ' ' || scopes, true), set_config('orchestrator.request', request, true)];
begin
  if trace is not null then
    perform set_config('orchestrator.traceparent', trace, true);
  end if;
  return tenant;
end $$;
comment on function orc.acting(text, text, text, text, text) is
  'Says who acts for the rest of the transaction, and in which trace, and answers the tenant: the argument of a verb, as the API gives it.';
grant execute on function orc.acting(text, text, text, text, text) to orc_api, orc_worker;

create function orc._actor() returns text
language sql stable as $$
  select nullif(current_setting('orchestrator.actor', true), '')
$$;
comment on function orc._actor() is 'The principal that acts, or null where nobody does.';

create function orc._is_bound() returns boolean
language sql stable as $$
  select coalesce(current_setting('orchestrator.scopes', true), '') <> ''
$$;
comment on function orc._is_bound() is 'Whether the transaction is bound to the scopes of a caller, be there none.';

create function orc._covers(own text[], wanted text[]) returns boolean
language sql immutable as $$
  select own && wanted or 'admin' = any (own) or 'any' = any (own) and wanted <> '{admin}'
$$;
comment on function orc._covers(text[], text[]) is 'Whether some scopes are enough where one of others is wanted.';

create function orc._has_scope(variadic wanted text[]) returns boolean
language plpgsql stable as $$
declare
  v_own constant text[] := string_to_array(nullif(current_setting('orchestrator.scopes', true), ''), ' ');
begin
  return v_own is null or orc._covers(v_own, wanted);
end $$;
comment on function orc._has_scope(text[]) is 'Whether the actor has one of these scopes.';

create function orc._owner(owner uuid) returns uuid
language plpgsql stable as $$
begin
  return case when owner is not null or not orc._is_bound() or orc._has_scope('admin') then owner else orc._actor()::uuid end;
end $$;
comment on function orc._owner(uuid) is 'Whose things alone may be seen: those of the owner who is named, else the actor''s own, and all where an admin or nobody acts.';

create function orc._require(variadic wanted text[]) returns void
language plpgsql stable as $$
begin
  if not orc._has_scope(variadic wanted) then
    perform orc._forbidden(format('This needs the scope %s, which the caller doesn''t have', wanted[1]), wanted[1],
                           'use a key that has it, or let an admin add it to yours');
  end if;
end $$;
comment on function orc._require(text[]) is 'Raises OR403 unless the actor has one of these scopes.';

create function orc._sees(created_by uuid) returns boolean
language sql stable as $$
  select orc._has_scope('admin') or coalesce(orc._actor() = created_by::text, false)
$$;
comment on function orc._sees(uuid) is 'Whether the actor may see what this principal made: their own, and for an admin everything.';

create function orc._sees_task(tenant text, task uuid) returns boolean
language sql stable as $$
  select task is null or orc._has_scope('admin')
         or exists (select from orchestrator.task t where t.tenant_id = tenant and t.id = task and t.created_by::text = orc._actor())
$$;
comment on function orc._sees_task(text, uuid) is 'Whether the actor may see a task and its runs; runs without a task are their tenant''s.';

create function orc._audit(tenant text, action text, subject text, details jsonb default null) returns void
language sql as $$
  insert into orchestrator.audit (tenant_id, actor, action, subject, request_id, details)
  values (tenant, coalesce(orc._actor(), session_user), action, subject,
          nullif(current_setting('orchestrator.request', true), ''), details)
$$;
comment on function orc._audit(text, text, text, jsonb) is 'Writes down who did what.';

-- Newest first. `cursor` is the id of the last row of the page before.
create function orc.list_audit(
  tenant text, "limit" integer default 50, cursor uuid default null, actor text default null, action text default null,
  subject text default null, since timestamptz default null, until timestamptz default null)
returns table (items jsonb, next_cursor uuid)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  perform orc._require('admin');
  return query
    with page as (
      select a.id, a.actor, a.action, a.subject, a.request_id, a.details, row_number() over (order by a.id desc) as n
      from orchestrator.audit a
      where a.tenant_id = list_audit.tenant and a.id < coalesce(list_audit.cursor, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
        and (list_audit.actor is null or a.actor = list_audit.actor)
        and (list_audit.action is null or a.action = list_audit.action)
        and (list_audit.subject is null or a.subject = list_audit.subject)
        and (list_audit.since is null or a.id >= orchestrator.id_floor(list_audit.since))
        and (list_audit.until is null or a.id < orchestrator.id_floor(list_audit.until))
      order by a.id desc limit least(list_audit."limit", 200) + 1)
    select coalesce(jsonb_agg(jsonb_build_object(
             'id', p.id, 'at', orchestrator.id_time(p.id), 'actor', p.actor, 'actor_name', w.name, 'action', p.action,
             'subject', p.subject, 'request_id', p.request_id, 'details', p.details) order by p.id desc)
             filter (where p.n <= least(list_audit."limit", 200)), '[]'),
           (array_agg(p.id order by p.id) filter (where p.n <= least(list_audit."limit", 200)))[
             case when count(*) > least(list_audit."limit", 200) then 1 end]
    from page p left join orchestrator.principal w on w.tenant_id = list_audit.tenant and w.id::text = p.actor;
end $$;
comment on function orc.list_audit(text, integer, uuid, text, text, text, timestamptz, timestamptz) is
  'Who changed what in a tenant, the newest first, a page at a time.';
grant execute on function orc.list_audit(text, integer, uuid, text, text, text, timestamptz, timestamptz) to orc_api, orc_reader;
