-- Streams: what is new, for those who watch. A process of the API asks for all of its watchers at once, some ten times a
-- second, and only while there are any; whoever publishes and whoever works does nothing for them.
--
-- Events go by position (outbox/functions.sql): each is told once, in one order, which is the same for everyone.
-- Runs and tasks have no positions: an entry is told by its time, and entries of the last seconds are told again,
-- because a transaction may commit after a later one; who hears them knows which it has heard. An entry without a time
-- is how things stand.

create function orc.event_position(tenant text, event uuid) returns bigint
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select e.position from orchestrator.event e where e.tenant_id = tenant and e.id = event
$$;
comment on function orc.event_position(text, uuid) is 'Where an event stands in the stream of its tenant; null: it isn''t there any more.';
grant execute on function orc.event_position(text, uuid) to orc_api;

create function orc.stream_head(tenant text) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  p constant record := orc._publishing();
begin
  return orc._settled(tenant, p.upto, p.tenants, p.since);
end $$;
comment on function orc.stream_head(text) is 'The position up to which nothing will be published any more.';
grant execute on function orc.stream_head(text) to orc_api;

-- Ids are made at most a day before they are published, and a minute after: `is_recent` reads the partitions of that time only.
create function orc.new_events(wanted jsonb, most integer default 500, is_recent boolean default true)
returns table (tenant text, "position" bigint, id uuid, event jsonb)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  p constant record := orc._publishing();
  v_from constant uuid := case when is_recent then orchestrator.id_floor(orchestrator.now() - interval '25 hours')
                               else '00000000-0000-0000-0000-000000000000' end;
  v_upto constant uuid := orchestrator.id_floor(orchestrator.now() + interval '2 minutes');
begin
  return query
    select w.tenant, e.position, e.id, orc._published(e)
    from jsonb_to_recordset(wanted) as w(tenant text, after bigint)
    cross join lateral (
      select * from orchestrator.event o
      where o.tenant_id = w.tenant and o.position > w.after and o.id >= v_from and o.id < v_upto
        and o.position <= orc._settled(w.tenant, p.upto, p.tenants, p.since)
      order by o.position limit most) as e
    order by w.tenant, e.position;
end $$;
comment on function orc.new_events(jsonb, integer, boolean) is 'The next events of tenants, by [{tenant, after}]: each tenant''s in the order of its stream.';
grant execute on function orc.new_events(jsonb, integer, boolean) to orc_api;

create function orc.run_exists(tenant text, run uuid) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select exists (select from orchestrator.due_work d where d.tenant_id = tenant and d.run_id = run)
      or exists (select from orchestrator.run r where r.tenant_id = tenant and r.id = run)
$$;
comment on function orc.run_exists(text, uuid) is 'Whether a tenant has such a run, live or finished.';
grant execute on function orc.run_exists(text, uuid) to orc_api;

create function orc._state_of_work(d orchestrator.due_work) returns jsonb
language sql stable as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'run_id', d.run_id, 'task_id', d.task_id, 'state', d.state, 'attempt', d.attempt, 'waiting_for', d.waiting_for,
    'due_at', orc._as_iso(nullif(d.due_at, 'infinity')), 'cancel_requested_at', orc._as_iso(d.cancel_requested_at)))
$$;
comment on function orc._state_of_work(orchestrator.due_work) is 'How a live run stands, as streams say it.';

create function orc._state_of_run(r orchestrator.run) returns jsonb
language sql stable as $$
  select jsonb_strip_nulls(jsonb_build_object(
    'run_id', r.id, 'task_id', r.task_id, 'state', r.state, 'success', r.state = 'succeeded', 'attempt', r.attempt,
    'started_at', orc._as_iso(r.started_at), 'finished_at', orc._as_iso(r.finished_at), 'error', r.error))
$$;
comment on function orc._state_of_run(orchestrator.run) is 'How a run ended, as streams say it.';

-- How it stands; each claim; each recorded step; how it ended. Outputs are left out: they may be large.
create function orc.run_changes(wanted jsonb, back double precision default 5)
returns table (tenant text, subject uuid, kind text, name text, at timestamptz, is_last boolean, data jsonb)
language sql volatile security definer set search_path = pg_catalog, pg_temp
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
  with w as materialized (
    select w.tenant, w.subject, coalesce(w.since, orchestrator.now() - make_interval(secs => back)) as since
    from jsonb_to_recordset(wanted) as w(tenant text, subject uuid, since timestamptz))
  select w.tenant, w.subject, 'state', '', null::timestamptz, false, orc._state_of_work(d)
  from w join orchestrator.due_work d on d.tenant_id = w.tenant and d.run_id = w.subject
    and (d.state <> 'running' or d.cancel_requested_at is not null)
  union all
  select w.tenant, w.subject, 'state', 'running ' || c.epoch, c.started_at, false,
         jsonb_build_object('run_id', w.subject, 'state', 'running', 'attempt', c.attempt, 'started_at', orc._as_iso(c.started_at))
  from w cross join lateral (
    select a.epoch, a.attempt, a.started_at from orchestrator.attempt a where a.tenant_id = w.tenant and a.run_id = w.subject
    union all
    select r.epoch, r.attempt, r.started_at from orchestrator.run r where r.tenant_id = w.tenant and r.id = w.subject and r.worker_id is not null
    union all
    select d.epoch, d.attempt, d.started_at from orchestrator.due_work d
    where d.tenant_id = w.tenant and d.run_id = w.subject and d.state || '' = 'running') as c
  where c.started_at > w.since
  union all
  select w.tenant, w.subject, 'step', format('%s %s %s %s', s.step_id, s.state, s.epoch, s.attempt), coalesce(s.finished_at, s.started_at),
         false, jsonb_strip_nulls(jsonb_build_object(
           'run_id', w.subject, 'step', s.step_id, 'state', s.state, 'attempt', s.attempt, 'error', s.error,
           'started_at', orc._as_iso(s.started_at), 'finished_at', orc._as_iso(s.finished_at)))
  from w join orchestrator.step s on s.tenant_id = w.tenant and s.run_id = w.subject and coalesce(s.finished_at, s.started_at) > w.since
  union all
  select w.tenant, w.subject, 'state', r.state, r.finished_at, true, orc._state_of_run(r)
  from w join orchestrator.run r on r.tenant_id = w.tenant and r.id = w.subject
  order by 1, 2, 6, 5 nulls last, 3 desc
$$;
comment on function orc.run_changes(jsonb, double precision) is
  'What happened to runs since a time, or in the last seconds, by [{tenant, subject, since}]; and how they stand.';
grant execute on function orc.run_changes(jsonb, double precision) to orc_api;

-- Finished runs are looked for among those that were live before (`known`), and those made in the last two minutes;
-- with `since`, in the day before it.
create function orc.task_changes(wanted jsonb, back double precision default 5)
returns table (tenant text, subject uuid, kind text, name text, at timestamptz, is_last boolean, data jsonb)
language sql volatile security definer set search_path = pg_catalog, pg_temp
set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
  with w as materialized (
    select w.tenant, w.subject, coalesce(w.since, orchestrator.now() - make_interval(secs => back)) as since, w.known,
           orchestrator.id_floor(coalesce(w.since - interval '1 day', orchestrator.now() - make_interval(secs => back + 120))) as made
    from jsonb_to_recordset(wanted) as w(tenant text, subject uuid, since timestamptz, known uuid[]))
  select w.tenant, w.subject, 'task', '', null::timestamptz, false, jsonb_strip_nulls(jsonb_build_object(
           'task_id', t.id, 'status', t.status, 'version', t.version, 'next_run_at', orc._as_iso(nullif(p.next_at, 'infinity'))))
  from w join orchestrator.task t on t.tenant_id = w.tenant and t.id = w.subject
  left join orchestrator.plan p on p.tenant_id = t.tenant_id and p.task_id = t.id
  union all
  select w.tenant, w.subject, 'run', d.run_id::text, null, false, orc._state_of_work(d)
  from w cross join lateral (select * from orchestrator.due_work o where o.tenant_id = w.tenant and o.task_id = w.subject
                             order by o.run_id desc limit 200) as d
  union all
  select w.tenant, w.subject, 'run', r.id::text, r.finished_at, false, orc._state_of_run(r)
  from w cross join lateral (
    select * from orchestrator.run o where o.tenant_id = w.tenant and o.task_id = w.subject and o.id >= w.made
    union all
    select * from orchestrator.run o where o.tenant_id = w.tenant and o.id = any (w.known) and o.id < w.made and o.task_id = w.subject) as r
  where r.finished_at > w.since
  order by 1, 2, 5 nulls last
$$;
comment on function orc.task_changes(jsonb, double precision) is
  'What happened to the runs of tasks since a time, or in the last seconds, by [{tenant, subject, since, known}]; and how tasks and runs stand.';
grant execute on function orc.task_changes(jsonb, double precision) to orc_api;
