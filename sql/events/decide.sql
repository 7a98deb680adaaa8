-- What becomes of events that tasks met: each is decided once, by whoever comes first.

-- What is met is an object: tenant, occurrence, task, nominal, event; and of the rule: revision, kind, condition, needed, span.

-- A tick waits for nobody: who holds a task alone may wait for rows that the tick has.
create function orc._is_shared(task uuid) returns boolean
language sql as $$
  select pg_try_advisory_xact_lock_shared(hashtextextended(format('orc task %s', task), 0))
$$;
comment on function orc._is_shared(uuid) is 'Keeps a task as it is until the end of the transaction, unless somebody is changing it.';

create function orc._open_events(of_tenant text, of_event uuid, most integer)
returns table (tenant text, occurrence uuid, task uuid, nominal timestamptz, event uuid, revision integer, kind text,
               condition text, needed integer, span interval)
language sql set enable_seqscan = off as $$
  select o.tenant_id, o.id, o.task_id, o.nominal_at, o.event_id, r.revision, r.kind, r.condition, r.needed, r.span
  from (
    select u.tenant_id, u.id, u.task_id, u.nominal_at, u.event_id from orchestrator.occurrence u
    where u.state = 'undecided' and (of_tenant is null or u.tenant_id = of_tenant and u.event_id = of_event)
    order by u.id limit most for update skip locked) as o
  join orchestrator.task t on t.tenant_id = o.tenant_id and t.id = o.task_id and t.status = 'active'
  join orchestrator.rule r on r.tenant_id = t.tenant_id and r.task_id = t.id and r.revision = t.revision
$$;
comment on function orc._open_events(text, uuid, integer) is 'Undecided occurrences that nobody else decides now, of one event or of all.';

-- Counted by the times of the events: it is complete at the one before which there were one too few. That is
-- this one, or one that was looked at before and that this one, coming late, completes; not when a later one has fired.
create function orc._completes(tenant text, task uuid, occurrence uuid, nominal timestamptz, needed integer, span interval) returns boolean
language plpgsql as $$
begin
  perform from orchestrator.plan p where p.tenant_id = $1 and p.task_id = $2 for update;
  return exists (
    with seen as materialized (
      select o.id, o.nominal_at, o.state from orchestrator.occurrence o
      where o.tenant_id = $1 and o.task_id = $2 and o.event_id is not null
        and o.nominal_at > $4 - $6 and o.nominal_at < $4 + $6
        and (o.state in ('fired', 'undecided') or o.reason like 'counted:%'))
    select from seen s
    where (s.id = $3 or s.nominal_at >= $4 and s.state <> 'undecided')
      and $5 = (select count(*) from seen b
                             where b.nominal_at > s.nominal_at - $6 and (b.nominal_at, b.id) <= (s.nominal_at, s.id))
      and not exists (select from seen f where f.state = 'fired' and (f.nominal_at, f.id) > ($4, $3)));
end $$;
comment on function orc._completes(text, uuid, uuid, timestamptz, integer, interval) is 'Whether an event makes a count complete.';

create function orc._decision(met jsonb) returns jsonb
language sql as $$
  select jsonb_build_object('tenant', m.tenant, 'task', m.task, 'nominal', m.nominal, 'event', m.event, 'due', m.nominal,
                            'decision', case when c.fires then 'fire' else 'skipped' end,
                            'reason', case when not c.fires then format('counted: not the %s. within %s', m.needed, m.span) end)
  from jsonb_to_record(met) as m(tenant text, occurrence uuid, task uuid, nominal timestamptz, event uuid, needed integer, span interval)
  cross join lateral (select m.needed is null or orc._completes(m.tenant, m.task, m.occurrence, m.nominal, m.needed, m.span) as fires) as c
$$;
comment on function orc._decision(jsonb) is 'What becomes of an event whose rule has no condition.';

-- Those that are counted go one after the other, each seeing what became of the one before it.
create function orc._decide(met jsonb) returns integer
language plpgsql as $$
declare
  v_runs integer := 0;
  m jsonb;
begin
  for m in select o from jsonb_array_elements(met) as o where o ->> 'needed' is not null order by o ->> 'occurrence'
  loop
    v_runs := v_runs + orc._fire(jsonb_build_array(orc._decision(m)));
  end loop;
  return v_runs + orc._fire((select jsonb_agg(orc._decision(o)) from jsonb_array_elements(met) as o where o ->> 'needed' is null));
end $$;
comment on function orc._decide(jsonb) is 'Decides events whose rules have no condition in CEL; answers how many runs it made.';

-- Whether an event is decided by a condition that Python evaluates. A probe's has been evaluated.
create function orc._is_open(kind text, condition text) returns boolean
language sql immutable as $$
  select kind = 'event' and condition is not null
$$;
comment on function orc._is_open(text, text) is 'Whether an event of such a rule is decided by a condition in CEL.';

create function orc._decide_events(most integer, out occurrences integer, out runs integer)
language plpgsql as $$
declare
  v_met jsonb;
begin
  select jsonb_agg(to_jsonb(m)), count(*) into v_met, occurrences from orc._open_events(null, null, most) as m
  where not orc._is_open(m.kind, m.condition) and orc._is_shared(m.task);
  runs := case when v_met is null then 0 else orc._decide(v_met) end;
end $$;
comment on function orc._decide_events(integer) is 'Decides what steps emitted and the core announced, except by conditions.';

create function orc._undecided(most integer) returns jsonb
language sql stable set enable_seqscan = off as $$
  select jsonb_agg(jsonb_build_object('tenant', o.tenant_id, 'occurrence', o.id, 'revision', r.revision, 'condition', r.condition,
                                      'event', orc._event_as_json(e)))
  from (select * from orchestrator.occurrence u where u.state = 'undecided' order by u.id limit most) as o
  join orchestrator.task t on t.tenant_id = o.tenant_id and t.id = o.task_id
  join orchestrator.rule r on r.tenant_id = t.tenant_id and r.task_id = t.id and r.revision = t.revision
  join orchestrator.event e on e.tenant_id = o.tenant_id and e.id = o.event_id
  where orc._is_open(r.kind, r.condition)
$$;
comment on function orc._undecided(integer) is 'Events whose conditions Python is to evaluate.';

create function orc._hear_verdicts(verdicts jsonb) returns integer
language plpgsql as $$
declare
  v_firings jsonb;
begin
  select jsonb_agg(jsonb_build_object(
           'tenant', o.tenant_id, 'task', o.task_id, 'nominal', o.nominal_at, 'event', o.event_id, 'due', o.nominal_at,
           'decision', case when v.holds then 'fire' else 'skipped' end,
           'reason', case when not v.holds then coalesce('the condition failed: ' || left(v.problem, 500), 'the condition doesn''t hold') end)
         order by o.id)
  into v_firings
  from jsonb_to_recordset(verdicts) as v(tenant text, occurrence uuid, revision integer, holds boolean, problem text)
  cross join lateral (select * from orchestrator.occurrence u
                      where u.tenant_id = v.tenant and u.id = v.occurrence and u.state = 'undecided' for update skip locked) as o
  join orchestrator.task t on t.tenant_id = o.tenant_id and t.id = o.task_id and t.revision = v.revision and t.status = 'active'
  where orc._is_shared(o.task_id);
  return orc._fire(v_firings);
end $$;
comment on function orc._hear_verdicts(jsonb) is 'Fires or skips events by what their conditions came to.';

-- The event, and the runs of every task that it meets and whose rule has no condition; the others are
-- answered in `open`, for `decide_event` in the same transaction, or else for the next tick.
create function orc.publish_event(tenant text, topic text, payload jsonb default null, id uuid default null, source text default null,
  out event_id uuid, out is_new boolean, out triggered integer, out open jsonb, out event jsonb, out published_at timestamptz)
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s' as $$
declare
  v_met jsonb;
begin
  perform orc._require('events:write');
  select m.event_id, m.met is not null into event_id, is_new from orc._emit(tenant, topic, payload, id, source) as m;
  triggered := 0;
  published_at := orchestrator.id_time(event_id);
  if not is_new or not exists (select from orchestrator.occurrence o where o.state = 'undecided' and o.tenant_id = tenant
                               and o.event_id = publish_event.event_id) then
    return;
  end if;
  perform orc._share_tasks(array_agg(o.task_id)) from orchestrator.occurrence o
  where o.tenant_id = tenant and o.event_id = publish_event.event_id and o.state = 'undecided';
  select jsonb_agg(to_jsonb(m)) filter (where not orc._is_open(m.kind, m.condition)),
         jsonb_agg(jsonb_build_object('tenant', m.tenant, 'occurrence', m.occurrence, 'revision', m.revision, 'condition', m.condition))
           filter (where orc._is_open(m.kind, m.condition))
  into v_met, open from orc._open_events(tenant, publish_event.event_id, 100000) as m;
  if open is not null then
    select orc._event_as_json(e) into event from orchestrator.event e where e.tenant_id = tenant and e.id = publish_event.event_id;
  end if;
  triggered := case when v_met is null then 0 else orc._decide(v_met) end;
end $$;
comment on function orc.publish_event(text, text, jsonb, uuid, text) is
  'Publishes an event and starts every task that listens to it, in one transaction. The same id again is the same event.';
grant execute on function orc.publish_event(text, text, jsonb, uuid, text) to orc_api, orc_worker;

create function orc.decide_event(verdicts jsonb) returns integer
language sql security definer set search_path = pg_catalog, pg_temp as $$
  select orc._hear_verdicts(verdicts)
$$;
comment on function orc.decide_event(jsonb) is 'Fires tasks by what their conditions came to: a list of {tenant, occurrence, revision, holds, problem}. Answers how many.';
grant execute on function orc.decide_event(jsonb) to orc_api;
