-- Events and the tasks that listen to them.
--
--   published ──► an occurrence for each task that listens: undecided ──► fired
--                                                             └─────────► skipped: its condition doesn't hold
--
-- The occurrences are written in the event's own transaction, so an event is never there without them,
-- and never meets a task twice: an occurrence's id is made of the event and the task. Tasks without a
-- condition are decided in the same transaction when the event is published by `publish_event`; all
-- others, and what steps of pipelines emit, by the next tick. Conditions are CEL, and Python evaluates them.
--
-- `*` stands for one segment of a topic. Topics that begin with $ are ours: `$run.succeeded`, `$run.failed`,
-- `$run.canceled`, `$condition`; only rules that begin with $ listen to them.
--
-- A chain of runs that make each other by events is cut after 16: an event counts those behind it (`hops`), through
-- the run that emits it or is announced, and that run's parents.

create function orc._timed_id(instant timestamptz, name text) returns uuid
language sql immutable parallel safe as $$
  select encode(int8send(orchestrator._id_head(instant)) || set_byte(h.hash, 0, get_byte(h.hash, 0) & 63 | 128), 'hex')::uuid
  from (select substring(decode(md5(name), 'hex') from 1 for 8) as hash) as h
$$;
comment on function orc._timed_id(timestamptz, text) is 'An id of an instant that is the same for the same name.';

create function orc._occurrence_id(task uuid, nominal timestamptz, event uuid) returns uuid
language sql immutable parallel safe as $$
  select orc._timed_id(nominal, concat_ws(' ', task, event))
$$;
comment on function orc._occurrence_id(uuid, timestamptz, uuid) is 'The id of an occurrence: the same for the same, and in the partition of its instant.';

-- Both have the same number of dots, so no `*` can stand for two segments.
create function orc._topic_fits(pattern text, topic text) returns boolean
language sql immutable parallel safe as $$
  select (left(pattern, 1) = '$') = (left(topic, 1) = '$')
    and topic like replace(regexp_replace(pattern, '([%_\\])', '\\\1', 'g'), '*', '_%')
    and length(pattern) - length(replace(pattern, '.', '')) = length(topic) - length(replace(topic, '.', ''))
$$;
comment on function orc._topic_fits(text, text) is 'Whether a topic fits a pattern.';

create function orc._listeners(tenant text, topic text) returns setof orchestrator.rule
language sql stable rows 1 as $$
  select * from orchestrator.rule r
  where r.tenant_id = _listeners.tenant and r.topic = _listeners.topic and r.until_at is null and not r.is_pattern
  union all
  select * from orchestrator.rule r
  where r.tenant_id = _listeners.tenant and r.until_at is null and r.is_pattern and orc._topic_fits(r.topic, _listeners.topic)
$$;
comment on function orc._listeners(text, text) is 'The rules that listen to a topic.';

create function orc._paused() returns text
language sql immutable as $$
  select 'paused: events are not caught up'
$$;
comment on function orc._paused() is 'Why an event of a paused task did not fire.';

-- The tasks that are to be decided; null when nobody listens.
create function orc._meet_tasks(events orchestrator.event[]) returns uuid[]
language plpgsql set jit = off set enable_seqscan = off as $$
declare
  v_met uuid[];
begin
  if not exists (select from unnest(events) as e cross join lateral orc._listeners(e.tenant_id, e.topic)) then
    return null;
  end if;
  with met as (
    insert into orchestrator.occurrence (tenant_id, id, task_id, nominal_at, event_id, state, reason)
    select e.tenant_id, orc._occurrence_id(t.id, i.nominal, e.id), t.id, i.nominal, e.id,
           case when w.reason is null then 'undecided' else 'skipped' end, w.reason
    from unnest(events) as e
    cross join lateral orc._listeners(e.tenant_id, e.topic) as r
    join orchestrator.task t on t.tenant_id = r.tenant_id and t.id = r.task_id and t.status in ('active', 'paused')
    cross join lateral (select orchestrator.id_time(e.id) as nominal) as i
    cross join lateral (select case
      when t.status = 'paused' then orc._paused()
      when i.nominal < r.starts_at or i.nominal > r.ends_at then 'outside its start and end'
      when e.hops >= 16 then 'a chain of 16 runs that events made' end as reason) as w
    on conflict do nothing
    returning task_id, state)
  select array_agg(m.task_id) into v_met from met m where m.state = 'undecided';
  return v_met;
end $$;
comment on function orc._meet_tasks(orchestrator.event[]) is 'Writes down which tasks events meet; answers those that are to be decided.';

-- How many runs that events made lie behind what a run publishes.
create function orc._hops_of(tenant text, run uuid) returns integer
language sql stable as $$
  select coalesce((select e.hops + 1 from orchestrator.due_work d
                   join orchestrator.event e on e.tenant_id = d.tenant_id and e.id = d.event_id
                   where d.tenant_id = tenant and d.run_id = run and d.event_id is not null), 0)
$$;
comment on function orc._hops_of(text, uuid) is 'How long the chain of events behind a run is.';

create function orc._is_heard(tenant text, topic text) returns boolean
language sql stable as $$
  select exists (select from orc._listeners(tenant, topic))
    or exists (select from orchestrator.wait w where w.tenant_id = $1 and w.topic = $2 and w.state = 'waiting')
$$;
comment on function orc._is_heard(text, text) is 'Whether a task listens to a topic, or a run waits for it.';

-- What the core says of runs that ended, to tenants that listen, and only what they listen to.
create function orc._announce(tenants text[], runs uuid[]) returns void
language plpgsql set jit = off set enable_seqscan = off as $$
declare
  v_events orchestrator.event[];
begin
  if not exists (select from orchestrator.rule r where r.tenant_id = any (tenants) and r.until_at is null and r.topic like '$run.%')
     and not (exists (select from orchestrator.tenant t where t.id = any (tenants) and t.waits_for_ends)
              and exists (select from orchestrator.wait w where w.tenant_id = any (tenants) and w.state = 'waiting'
                          and w.topic in ('$run.succeeded', '$run.failed', '$run.canceled'))) then
    return;
  end if;
  with told as (
    insert into orchestrator.event (tenant_id, topic, source, payload, hops, position)
    select r.tenant_id, '$run.' || r.state, 'orchestrator',
           jsonb_build_object('run_id', r.id, 'task_id', r.task_id, 'kind', r.kind, 'state', r.state, 'queue', r.queue, 'labels', r.labels,
                              'error', r.error, 'finished_at', r.finished_at,
                              'output', case when pg_column_size(r.output) < 100000 then r.output end),
           coalesce((select e.hops + 1 from orchestrator.event e where e.tenant_id = r.tenant_id and e.id = r.event_id), 0),
           orc._next_position(r.tenant_id)
    from (select distinct * from unnest(tenants, runs) as u(tenant, run)) as u
    join orchestrator.run r on r.tenant_id = u.tenant and r.id = u.run and r.kind <> 'probe'
    where orc._is_heard(r.tenant_id, '$run.' || r.state)
    returning event)
  select array_agg(t.event) into v_events from told t;
  if v_events is not null then
    perform orc._meet_tasks(v_events);
    perform pg_notify('orc_events', '');
  end if;
end $$;
comment on function orc._announce(text[], uuid[]) is 'Publishes that runs ended, to those who listen.';

-- Remembers what the last probe found; answers whether the condition has become true. An earlier probe that comes
-- late changes nothing. Workers come here with rows of runs: they wait for other probes of the task, and for nobody else.
create function orc._find(t orchestrator.task, holds boolean, looked_at timestamptz) returns boolean
language plpgsql as $$
declare
  f orchestrator.finding;
begin
  insert into orchestrator.finding (tenant_id, task_id, revision, holds, looked_at)
  values (t.tenant_id, t.id, t.revision, false, '-infinity') on conflict do nothing;
  select * into f from orchestrator.finding o where o.tenant_id = t.tenant_id and o.task_id = t.id for update;
  if f.revision > t.revision or f.looked_at > _find.looked_at then
    return false;
  end if;
  update orchestrator.finding o set revision = t.revision, holds = _find.holds, looked_at = _find.looked_at
  where o.tenant_id = t.tenant_id and o.task_id = t.id;
  return _find.holds and not (f.holds and f.revision = t.revision);
end $$;
comment on function orc._find(orchestrator.task, boolean, timestamptz) is 'Remembers what a probe found; says whether that has become true.';

-- A probe has looked. When its condition has become true, the task fires; not again before it was false. What a
-- probe of another condition says, one that has been edited since, is of no interest.
create function orc._judge(tenant text, run uuid, said jsonb) returns void
language plpgsql as $$
declare
  t orchestrator.task;
  e orchestrator.event;
  v_at timestamptz;
begin
  select d.nominal_at into v_at from orchestrator.due_work d where d.tenant_id = tenant and d.run_id = run and d.kind = 'probe';
  select o.* into t from orchestrator.due_work d
  join orchestrator.task o on o.tenant_id = d.tenant_id and o.id = d.task_id and o.probe_pipeline_id = d.pipeline_id
  where d.tenant_id = tenant and d.run_id = run and o.status = 'active' and o.kind = 'condition';
  if v_at is null or t.id is null or not orc._find(t, (said ->> 'holds')::boolean, v_at) then
    return;
  end if;
  insert into orchestrator.event (tenant_id, topic, source, payload, position)
  values (tenant, '$condition', 'orchestrator', jsonb_build_object('task_id', t.id, 'run_id', run, 'revision', t.revision, 'result', said -> 'result'),
          orc._next_position(tenant))
  returning * into e;
  insert into orchestrator.occurrence (tenant_id, id, task_id, nominal_at, event_id, state)
  values (tenant, orc._occurrence_id(t.id, orchestrator.id_time(e.id), e.id), t.id, orchestrator.id_time(e.id), e.id, 'undecided');
  perform pg_notify('orc_events', '');
end $$;
comment on function orc._judge(text, uuid, jsonb) is 'Takes what a probe found; a condition that has become true fires its task.';
