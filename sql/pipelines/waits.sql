-- Waits: registered when a step is reached, judged when its run parks, met by whoever has the answer.
--
-- Nothing is lost between a park and an answer, because one of the two sees the other:
--   callback, approval   they lock the run's row in due_work first, then the wait. So does the park, which
--                        looks at its waits in a later statement: who comes second sees what was first.
--   child, event         they come in crowds, from transactions that hold rows of other runs. They lock
--                        the wait alone, mark it as calling, and wake the run unless its row is locked.
--                        The park takes the wait's lock before it looks. Whom they couldn't wake,
--                        orc.meet_events wakes: a run that is parked and has a wait that calls.
-- An event is found by looking, and what has been looked at is a snapshot (tables.sql). A wait and an event that
-- commit at the same time don't see each other: orc.meet_events (events.sql) introduces them.
--
-- `d.state || ''` keeps the index of due times out of plans: made while nothing waited, they would read all that
-- waits (tests/test_meetings.py).
--
-- Lock order: due_work rows, waits in the order of their key, then keys (claim.sql). Whoever holds a wait
-- never waits for a row of due_work.
--
-- A wait for an event counts the events since its step was reached: those of before are not its business, and
-- one that commits later than that is, even if it was published earlier.

create function orc._wake(tenant text, run uuid) returns boolean
language plpgsql as $$
declare
  v_queue text;
begin
  update orchestrator.due_work d set state = 'scheduled', due_at = orchestrator.now(), waiting_for = null
  where d.tenant_id = tenant and d.run_id = run and d.state || '' = 'waiting' and d.held_due_at is null
  returning d.queue into v_queue;
  if v_queue is not null then
    perform orc._hint(v_queue);
  end if;
  return v_queue is not null;
end $$;
comment on function orc._wake(text, uuid) is 'Lets a waiting run go on; false when it doesn''t wait.';

-- Wakes parked runs, except those whose row is locked: who holds it sees the wait, or meet_events comes again.
-- Callers hold rows of other runs, or many: none of them may wait.
create function orc._wake_unlocked(tenants text[], runs uuid[]) returns integer
language plpgsql set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
  v_woken integer;
  v_hinted text[];
begin
  with parked as materialized (
    select p.* from (select distinct * from unnest(tenants, runs) as u(tenant, run)) as u
    cross join lateral (
      select d.tenant_id, d.run_id from orchestrator.due_work d
      where d.tenant_id = u.tenant and d.run_id = u.run and d.state || '' = 'waiting'
      for update skip locked) as p),
  woken as (
    update orchestrator.due_work d set state = 'scheduled', due_at = orchestrator.now(), waiting_for = null
    from parked p where d.tenant_id = p.tenant_id and d.run_id = p.run_id
    returning d.queue)
  select (select count(*) from woken), array_agg(orc._hint(q.queue)::text) into v_woken, v_hinted
  from (select distinct queue from woken) as q;
  return v_woken;
end $$;
comment on function orc._wake_unlocked(text[], uuid[]) is 'Wakes parked runs whose rows nobody has locked.';

-- Events that a wait has not looked at, in the order of their ids.
create function orc._candidates(w orchestrator.wait, most integer) returns setof orchestrator.event
language plpgsql stable set jit = off set enable_seqscan = off as $$
begin
  if w.seen is null then
    return query select e.* from orchestrator.event e
    where e.tenant_id = w.tenant_id and e.topic = w.topic
      and e.id >= greatest(orchestrator.id_floor(w.since), w.after) and e.id is distinct from w.after
      and pg_visible_in_snapshot(e.transaction_id, w.upto)
    order by e.id limit most;
  else
    return query select e.* from orchestrator.event e
    where e.tenant_id = w.tenant_id and e.topic = w.topic
      and e.transaction_id >= pg_snapshot_xmin(w.seen) and not pg_visible_in_snapshot(e.transaction_id, w.seen)
      and (w.upto is null or pg_visible_in_snapshot(e.transaction_id, w.upto))
      and (w.after is null or e.id > w.after)
    order by e.id limit most;
  end if;
end $$;
comment on function orc._candidates(orchestrator.wait, integer) is 'Events of its topic that a wait has not looked at.';

create function orc._event_as_json(e orchestrator.event) returns jsonb
language sql stable as $$
  select jsonb_build_object('id', e.id, 'topic', e.topic, 'payload', e.payload, 'source', e.source,
                            'created_at', orchestrator.id_time(e.id))
$$;
comment on function orc._event_as_json(orchestrator.event) is 'An event as expressions see it.';

-- With a batch of up to 100 events, or a megabyte of them. `upto` and `after` are what the worker says when none of them fits.
create function orc._wait_as_json(w orchestrator.wait) returns jsonb
language plpgsql stable as $$
declare
  v_wait jsonb := jsonb_strip_nulls(jsonb_build_object('kind', w.kind, 'state', w.state, 'deadline', w.deadline))
    || jsonb_build_object('answer', w.answer, 'answered_by', w.answered_by);
  v_events jsonb[] := '{}';
  v_bytes integer := 0;
  v_event orchestrator.event;
begin
  if w.kind = 'event' and w.state = 'waiting' then
    w.upto := coalesce(w.upto, pg_current_snapshot());
    for v_event in select * from orc._candidates(w, 100) loop
      v_events := v_events || orc._event_as_json(v_event);
      v_bytes := v_bytes + coalesce(pg_column_size(v_event.payload), 0);
      exit when v_bytes > 1000000;
    end loop;
    v_wait := v_wait || jsonb_build_object('events', to_jsonb(v_events), 'upto', w.upto::text,
      'after', case when cardinality(v_events) = 100 or v_bytes > 1000000 then v_event.id end);
  end if;
  return v_wait;
end $$;
comment on function orc._wait_as_json(orchestrator.wait) is 'A wait as a worker sees it.';

-- The child run of a wait. One that can't be made has failed.
create function orc._make_child(tenant text, parent uuid, wait jsonb, out child uuid, out answer jsonb)
language plpgsql as $$
declare
  d orchestrator.due_work;
begin
  select * into d from orchestrator.due_work o where o.tenant_id = tenant and o.run_id = parent;
  select e.run_id into child from orc.enqueue(
    tenant => tenant, pipeline => wait -> 'pipeline', input => wait -> 'input', queue => coalesce(wait ->> 'queue', d.queue),
    priority => d.priority, labels => d.labels, on_conflict => 'queue') as e;
  if (wait ->> 'detached')::boolean then
    answer := jsonb_build_object('run_id', child);
  end if;
  update orchestrator.due_work o
  set parent_id = case when answer is null then parent end, event_id = d.event_id,
      traceparent = coalesce(wait ->> 'traceparent', d.traceparent), correlation_id = d.correlation_id
  where o.tenant_id = tenant and o.run_id = child;
exception when sqlstate 'OR404' or sqlstate 'OR422' or data_exception or integrity_constraint_violation then
  child := null;
  answer := jsonb_build_object('state', 'failed', 'error', jsonb_build_object('type', 'validation', 'message', sqlerrm));
end $$;
comment on function orc._make_child(text, uuid, jsonb) is 'Enqueues the run that a wait waits for.';

-- Once: a step that is reached again, in a later attempt, has its wait already. Only the question
-- what to do about an unknown outcome is asked anew, when it comes up anew.
-- The caller holds the lock of the run.
create function orc._register_wait(tenant text, run uuid, step text, wait jsonb) returns void
language plpgsql as $$
declare
  v_now constant timestamptz := orchestrator.now() - make_interval(secs => coalesce((wait ->> 'age')::double precision, 0));
  v_kind constant text := wait ->> 'kind';
  v_child record;
begin
  if exists (select from orchestrator.wait w where w.tenant_id = tenant and w.run_id = run and w.step_id = step
             and (w.kind <> 'unknown' or w.state = 'waiting')) then
    return;
  end if;
  if v_kind = 'child' then
    v_child := orc._make_child(tenant, run, wait);
  else
    select null::uuid as child, null::jsonb as answer into v_child;
  end if;
  if wait ->> 'topic' like '$run.%' then
    update orchestrator.tenant t set waits_for_ends = true where t.id = tenant and not t.waits_for_ends;
  end if;
  insert into orchestrator.wait as w (
    tenant_id, run_id, step_id, kind, state, topic, since, upto, token_hash, who, needed, form, child_run, deadline,
    answer, answered_at)
  values (
    tenant, run, step, v_kind, case when v_child.answer is null then 'waiting' else 'met' end, wait ->> 'topic', v_now,
    case v_kind when 'event' then pg_current_snapshot() end,
    case v_kind when 'callback' then sha256(convert_to(wait ->> 'token', 'UTF8')) end,
    case when wait -> 'who' is not null then array(select jsonb_array_elements_text(wait -> 'who')) end,
    (wait ->> 'needed')::smallint, wait -> 'form', v_child.child,
    v_now + make_interval(secs => (wait ->> 'timeout')::double precision),
    v_child.answer, case when v_child.answer is not null then v_now end)
  on conflict (tenant_id, run_id, step_id) do update
  set state = 'waiting', deadline = excluded.deadline, answer = null, answered_by = null, answered_at = null;
end $$;
comment on function orc._register_wait(text, uuid, text, jsonb) is 'Writes a wait down, when its step is reached for the first time.';

-- The event that a worker chose: its step has succeeded.
create function orc._met_by(tenant text, run uuid, step text, event uuid) returns void
language sql as $$
  update orchestrator.wait w set state = 'met', answer = to_jsonb(event), answered_at = orchestrator.now(), is_called = false
  where w.tenant_id = tenant and w.run_id = run and w.step_id = step and w.state = 'waiting'
$$;
comment on function orc._met_by(text, uuid, text, uuid) is 'Says which event met a wait.';

-- `rows 1`, and not inlined, as orc._outcomes is: a plan that was made while few runs waited starts from these.
create function orc._ended(tenants text[], runs uuid[], parents uuid[]) returns table (tenant text, run uuid, parent uuid)
language plpgsql stable rows 1 as $$
begin
  return query select * from unnest(tenants, runs, parents);
end $$;
comment on function orc._ended(text[], uuid[], uuid[]) is 'Runs that ended, or whose time is over, as rows.';

create function orc._stands(listed jsonb) returns table (tenant text, run uuid, step text, upto pg_snapshot, after uuid)
language plpgsql stable rows 1 as $$
begin
  return query select * from jsonb_to_recordset(listed) as l(tenant text, run uuid, step text, upto pg_snapshot, after uuid);
end $$;
comment on function orc._stands(jsonb) is 'The waits at which runs stand, as rows.';

create function orc._expire_waits(tenants text[], runs uuid[]) returns void
language sql set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
  update orchestrator.wait w set state = 'expired', is_called = false from orc._ended(tenants, runs, null) as u
  where w.tenant_id = u.tenant and w.run_id = u.run and w.state = 'waiting' and w.deadline <= orchestrator.now()
$$;
comment on function orc._expire_waits(text[], uuid[]) is 'Ends the waits of runs whose deadline has passed.';

-- Ends what runs still wait for, and tells those who wait for them. Each run with its parent, or null.
create function orc._end_waits(tenants text[], runs uuid[], parents uuid[]) returns void
language plpgsql set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
  v_tenants text[];
  v_parents uuid[];
begin
  perform from (
    select u.tenant, u.run as ended, its.run from orc._ended(tenants, runs, parents) as u
    cross join lateral (values (u.run), (u.parent)) as its(run) order by u.tenant, its.run) as o
  cross join lateral (
    select from orchestrator.wait w
    where w.tenant_id = o.tenant and w.run_id = o.run and w.state = 'waiting' and (o.run = o.ended or w.child_run = o.ended)
    order by w.step_id for update) as l;
  update orchestrator.wait w set state = 'canceled', is_called = false
  from orc._ended(tenants, runs, parents) as u
  where w.tenant_id = u.tenant and w.run_id = u.run and w.state = 'waiting';
  with told as (
    update orchestrator.wait w
    set state = 'met', is_called = true, answered_at = orchestrator.now(), answered_by = u.run::text,
        answer = (select jsonb_build_object('run_id', r.id, 'state', r.state, 'output', r.output, 'error', r.error)
                         || jsonb_strip_nulls(jsonb_build_object('digest', encode(r.output_digest, 'hex'), 'bytes', r.output_bytes))
                  from orchestrator.run r where r.tenant_id = u.tenant and r.id = u.run)
    from orc._ended(tenants, runs, parents) as u
    where w.tenant_id = u.tenant and w.run_id = u.parent and w.child_run = u.run and w.state = 'waiting'
    returning w.tenant_id, w.run_id)
  select array_agg(tenant_id), array_agg(run_id) into v_tenants, v_parents from told;
  if v_parents is not null then
    perform orc._wake_unlocked(v_tenants, v_parents);
  end if;
end $$;
comment on function orc._end_waits(text[], uuid[], uuid[]) is 'Cancels the waits of runs that ended, and meets those for them.';

-- A batch of events that is through is seen.
create function orc._end_batches(listed jsonb) returns void
language sql set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
  update orchestrator.wait w set seen = w.upto, upto = null, after = null
  from orc._stands(listed) as l
  where w.tenant_id = l.tenant and w.run_id = l.run and w.step_id = l.step
    and w.kind = 'event' and w.state = 'waiting' and w.upto is not null and not exists (select from orc._candidates(w, 1))
$$;
comment on function orc._end_batches(jsonb) is 'Moves the cursor of waits past batches without further events.';

-- A park says which waits the run stands at: [{step, upto, after}], the cursor when events were looked
-- at and none fits. Other waits of the run are over, all of them when there is none in the list. A run whose wait has ended, or has something to
-- look at, goes on at once; else it goes on at its first deadline at the latest.
-- The runs' rows are locked; the waits are locked here, and looked at in later statements.
create function orc._stand_at_waits(outcomes jsonb, parked uuid[]) returns void
language plpgsql set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_listed constant jsonb := (
    select jsonb_agg(w || jsonb_build_object('tenant', o ->> 'tenant', 'run', o ->> 'run'))
    from jsonb_array_elements(outcomes) as o cross join lateral jsonb_array_elements(o -> 'waits') as w
    where (o ->> 'run')::uuid = any (parked));
  v_tenants text[];
  v_runs uuid[];
begin
  select array_agg(o ->> 'tenant'), array_agg((o ->> 'run')::uuid) into v_tenants, v_runs
  from jsonb_array_elements(outcomes) as o where o ? 'waits' and (o ->> 'run')::uuid = any (parked);
  perform from orc._ended(v_tenants, v_runs, null) as l
  join orchestrator.wait w on w.tenant_id = l.tenant and w.run_id = l.run
  where w.state = 'waiting' or w.is_called order by w.tenant_id, w.run_id, w.step_id for update of w;
  update orchestrator.wait w
  set is_called = false,
      state = case when w.state <> 'waiting' then w.state when l.step is null then 'canceled'
                   when w.deadline <= v_now then 'expired' else 'waiting' end,
      seen = case when l.upto is not null and l.after is null then l.upto else w.seen end,
      upto = case when l.upto is not null and l.after is null then null else coalesce(l.upto, w.upto) end,
      after = case when l.upto is not null then l.after else w.after end
  from orc._ended(v_tenants, v_runs, null) as r
  join orchestrator.wait o on o.tenant_id = r.tenant and o.run_id = r.run
  left join lateral (
    select * from orc._stands(v_listed) as l
    where l.tenant = r.tenant and l.run = r.run and l.step = o.step_id limit 1) as l on true
  where w.tenant_id = o.tenant_id and w.run_id = o.run_id and w.step_id = o.step_id
    and (w.state = 'waiting' or w.is_called);
  perform orc._end_batches(v_listed);
  select array_agg(tenant), array_agg(run) into v_tenants, v_runs from (
    select distinct l.tenant, l.run from orc._stands(v_listed) as l
    join orchestrator.wait w on w.tenant_id = l.tenant and w.run_id = l.run and w.step_id = l.step
    where w.state <> 'waiting' or w.kind = 'event' and exists (select from orc._candidates(w, 1))) as u;
  perform orc._wake(u.tenant, u.run) from unnest(v_tenants, v_runs) as u(tenant, run);
  update orchestrator.due_work d set due_at = least(d.due_at, w.deadline)
  from (select w.tenant_id, w.run_id, min(w.deadline) as deadline
        from orc._stands(v_listed) as l
        join orchestrator.wait w on w.tenant_id = l.tenant and w.run_id = l.run and w.step_id = l.step
        where w.state = 'waiting' and w.deadline is not null group by w.tenant_id, w.run_id) as w
  where d.tenant_id = w.tenant_id and d.run_id = w.run_id and d.state || '' = 'waiting';
end $$;
comment on function orc._stand_at_waits(jsonb, uuid[]) is 'Registers at which waits parked runs stand, and wakes those that needn''t.';
