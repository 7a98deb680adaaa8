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

create function orc._occurrence_id(task uuid, nominal timestamptz, event uuid) returns uuid
language sql immutable parallel safe as $$
  select encode(int8send(orchestrator._id_head(nominal)) || set_byte(h.hash, 0, get_byte(h.hash, 0) & 63 | 128), 'hex')::uuid
  from (select substring(decode(md5(concat_ws(' ', task, event)), 'hex') from 1 for 8) as hash) as h
$$;
comment on function orc._occurrence_id(uuid, timestamptz, uuid) is 'The id of an occurrence: the same for the same, and in the partition of its instant.';

create function orc._topic_fits(pattern text, topic text) returns boolean
language sql immutable parallel safe as $$
  select (left(pattern, 1) = '$') = (left(topic, 1) = '$')
    and topic ~ ('^' || replace(regexp_replace(pattern, '([.+?^${}()|\[\]\\])', '\\\1', 'g'), '*', '[^.]+') || '$')
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

-- After 16 runs that made each other by events, the chain is cut.
create function orc._meet_tasks(events orchestrator.event[]) returns integer
language plpgsql set enable_seqscan = off as $$
declare
  v_met integer;
begin
  insert into orchestrator.occurrence (tenant_id, id, task_id, nominal_at, event_id, state, reason)
  select e.tenant_id, orc._occurrence_id(t.id, orchestrator.id_time(e.id), e.id), t.id, orchestrator.id_time(e.id), e.id,
         case when w.reason is null then 'undecided' else 'skipped' end, w.reason
  from unnest(events) as e
  cross join lateral orc._listeners(e.tenant_id, e.topic) as r
  join orchestrator.task t on t.tenant_id = r.tenant_id and t.id = r.task_id and t.status in ('active', 'paused')
  cross join lateral (select case
    when t.status = 'paused' then 'paused: events are not caught up'
    when orchestrator.id_time(e.id) < r.starts_at or orchestrator.id_time(e.id) > r.ends_at then 'outside its start and end'
    when e.hops >= 16 then 'a chain of 16 runs that events made' end as reason) as w
  on conflict do nothing;
  get diagnostics v_met = row_count;
  return v_met;
end $$;
comment on function orc._meet_tasks(orchestrator.event[]) is 'Writes down which tasks events meet.';

-- How many runs that events made lie behind what a run publishes.
create function orc._hops_of(tenant text, run uuid) returns integer
language sql stable as $$
  select coalesce((select e.hops + 1 from orchestrator.due_work d
                   join orchestrator.event e on e.tenant_id = d.tenant_id and e.id = d.event_id
                   where d.tenant_id = tenant and d.run_id = run and d.event_id is not null), 0)
$$;
comment on function orc._hops_of(text, uuid) is 'How long the chain of events behind a run is.';

-- What the core says of runs that ended, when somebody listens.
create function orc._announce(tenants text[], runs uuid[]) returns void
language plpgsql set enable_seqscan = off as $$
declare
  v_events orchestrator.event[];
begin
  if not exists (select from orchestrator.rule r where r.tenant_id = any (tenants) and r.until_at is null and r.topic like '$run.%')
     and not exists (select from orchestrator.wait w where w.tenant_id = any (tenants) and w.state = 'waiting'
                     and w.topic in ('$run.succeeded', '$run.failed', '$run.canceled')) then
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
    returning event)
  select array_agg(t.event) into v_events from told t;
  if v_events is not null then
    perform orc._meet_tasks(v_events);
    perform pg_notify('orc_events', '');
  end if;
end $$;
comment on function orc._announce(text[], uuid[]) is 'Publishes that runs ended, to those who listen.';

-- A probe has looked. When its condition has become true, the task fires; not again before it was false.
create function orc._judge(tenant text, run uuid, said jsonb) returns void
language plpgsql as $$
declare
  v_task uuid;
  e orchestrator.event;
begin
  select d.task_id into v_task from orchestrator.due_work d where d.tenant_id = tenant and d.run_id = run and d.kind = 'probe';
  update orchestrator.plan p set holds = (said ->> 'holds')::boolean
  where p.tenant_id = tenant and p.task_id = v_task and p.holds is distinct from (said ->> 'holds')::boolean
    and exists (select from orchestrator.task t where t.tenant_id = tenant and t.id = v_task and t.status = 'active' and t.kind = 'condition');
  if found and (said ->> 'holds')::boolean then
    insert into orchestrator.event (tenant_id, topic, source, payload, position)
    values (tenant, '$condition', 'orchestrator', jsonb_build_object('task_id', v_task, 'run_id', run, 'result', said -> 'result'),
            orc._next_position(tenant))
    returning * into e;
    insert into orchestrator.occurrence (tenant_id, id, task_id, nominal_at, event_id, state)
    values (tenant, orc._occurrence_id(v_task, orchestrator.id_time(e.id), e.id), v_task, orchestrator.id_time(e.id), e.id, 'undecided');
    perform pg_notify('orc_events', '');
  end if;
end $$;
comment on function orc._judge(text, uuid, jsonb) is 'Takes what a probe found; a condition that has become true fires its task.';
