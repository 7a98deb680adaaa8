-- Events: a row each, and the waits that it may meet.
--
-- An emit may stand in anybody's long transaction, so it writes its row and locks nothing: runs that wait
-- for the topic can be answered, canceled and met by others meanwhile. When there are such runs, it sends
-- a hint (NOTIFY) with its commit. The scheduler then calls `meet_events`, and without any hint each second:
-- that finds the waits that have something to look at, marks them as calling, and wakes their runs.
--
-- The cursor. What became visible since the last look is what its snapshot doesn't show. A wait that
-- is being registered at that moment is invisible to us, as the event may be to it; so a snapshot is done with only
-- when every transaction that ran at its time is over, and until then its events are looked at again.
-- A wait knows what it has seen: looking again wakes nobody twice.
-- (The numbers of transactions belong to a cluster: after a dump is restored in another one, waits may
-- have to be woken by hand. Copies of the files, standbys and pg_upgrade keep them.)

create function orc._check_event(tenant text, topic text, payload jsonb, id uuid, source text) returns void
language plpgsql as $$
declare
  v_at constant timestamptz := orchestrator.id_time(id);
begin
  if tenant is null or length(tenant) not between 1 and 200 then
    perform orc._invalid('An event needs a tenant', 'tenant');
  elsif topic is null or length(topic) not between 1 and 200 or length(source) > 200 then
    perform orc._invalid('A topic has 1 to 200 characters, a source at most as many', 'topic, source');
  elsif topic like '$%' then
    perform orc._invalid('Topics that begin with $ are the core''s own', topic, 'use another name');
  elsif topic like '%*%' then
    perform orc._invalid('A topic has no *: it stands for a segment where somebody listens', topic, 'publish orders.created, and listen to orders.*');
  elsif not orchestrator.json_is_bounded(payload) then
    perform orc._invalid('The payload is too large or too deep', 'payload', 'at most 1 MiB, 32 levels, numbers up to 1e308');
  elsif id is not null and (substr(id::text, 15, 1) <> '7'
      or v_at not between orchestrator.now() - interval '1 day' and orchestrator.now() + interval '1 minute') then
    perform orc._invalid('The id of an event is a UUIDv7 of the last day', id::text, 'leave it out, or make one with orchestrator.new_id()');
  end if;
end $$;
comment on function orc._check_event(text, text, jsonb, uuid, text) is 'Refuses events that make no sense.';

create function orc._hint_event(tenant text, topic text) returns void
language plpgsql set jit = off set enable_seqscan = off as $$
begin
  if exists (select from orchestrator.wait w
             where w.tenant_id = tenant and w.topic = $2 and w.state = 'waiting') then
    perform pg_notify('orc_events', '');
  end if;
end $$;
comment on function orc._hint_event(text, text) is 'Wakes the scheduler when a run waits for a topic.';

-- The event and the tasks that it meets and that are to be decided: null when there are none. One look says whether
-- anybody listens or waits: that takes 20 µs, and nothing else is done when nobody does.
create function orc._emit(tenant text, topic text, payload jsonb, id uuid, source text, out event_id uuid, out is_new boolean, out met uuid[])
language plpgsql set jit = off set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
  e orchestrator.event;
  v_is_met boolean;
  v_is_awaited boolean;
begin
  perform orc._check_event(tenant, topic, payload, id, source);
  insert into orchestrator.tenant (id) select tenant
  where not exists (select from orchestrator.tenant t where t.id = tenant) on conflict do nothing;
  event_id := coalesce(id, orchestrator.new_id());
  insert into orchestrator.event (tenant_id, id, topic, source, payload, position)
  values (tenant, event_id, topic, source, payload, orc._next_position(tenant))
  on conflict do nothing returning * into e;
  is_new := found;
  if is_new then
    perform orc._queue_events(array[e]);
    select exists (select from orc._listeners(tenant, topic)),
           exists (select from orchestrator.wait w where w.tenant_id = _emit.tenant and w.topic = _emit.topic and w.state = 'waiting')
    into v_is_met, v_is_awaited;
    if v_is_met then
      met := orc._meet_tasks(array[e]);
    end if;
    if v_is_awaited then
      perform pg_notify('orc_events', '');
    end if;
  end if;
end $$;
comment on function orc._emit(text, text, jsonb, uuid, text) is 'Writes an event, and the tasks that it meets.';

create function orc.emit_event(tenant text, topic text, payload jsonb default null, id uuid default null, source text default null)
returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_id uuid;
  v_met uuid[];
begin
  select m.event_id, m.met into v_id, v_met from orc._emit(tenant, topic, payload, id, source) as m;
  if v_met is not null then
    perform pg_notify('orc_events', '');
  end if;
  return v_id;
end $$;
comment on function orc.emit_event(text, text, jsonb, uuid, text) is
  'Publishes an event, and leaves the tasks that listen to the next tick; the same id again is the same event. Answers its id.';
grant execute on function orc.emit_event(text, text, jsonb, uuid, text) to orc_api, orc_worker;

-- The events of one batch of records, exactly once with them. One that makes no sense breaks its batch,
-- and the worker finds out whose it was. What a probe found is said as an event, too.
create function orc._emit_recorded(events jsonb) returns void
language plpgsql as $$
declare
  v_events orchestrator.event[];
  v_met uuid[];
begin
  perform orc._check_event(e.tenant, e.topic, e.payload, null, e.source)
  from jsonb_to_recordset(events) as e(tenant text, topic text, source text, payload jsonb) where e.topic <> '$condition';
  with said as materialized (
    select * from jsonb_to_recordset(events) as e(tenant text, run uuid, topic text, source text, payload jsonb)),
  written as (
    insert into orchestrator.event (tenant_id, topic, source, payload, hops, position)
    select s.tenant, s.topic, s.source, s.payload, orc._hops_of(s.tenant, s.run), orc._next_position(s.tenant)
    from said s where s.topic <> '$condition'
    returning event)
  select array_agg(w.event) into v_events from written w;
  v_met := orc._meet_tasks(v_events);
  perform orc._queue_events(v_events);
  perform orc._judge(e.tenant, e.run, e.payload)
  from (select * from jsonb_to_recordset(events) as e(tenant text, run uuid, topic text, payload jsonb)
        where e.topic = '$condition' order by e.tenant, e.run) as e;
  if v_met is not null then
    perform pg_notify('orc_events', '');
  end if;
  perform orc._hint_event(e.tenant, e.topic)
  from (select distinct tenant, topic from jsonb_to_recordset(events) as e(tenant text, topic text)) as e;
end $$;
comment on function orc._emit_recorded(jsonb) is 'Publishes what steps emitted.';

create function orc._named(tenants text[], runs uuid[], steps text[]) returns table (tenant text, run uuid, step text)
language plpgsql stable rows 1 as $$
begin
  return query select * from unnest(tenants, runs, steps);
end $$;
comment on function orc._named(text[], uuid[], text[]) is 'Waits by their names, as rows.';

-- The waits whose topic has events that they haven't looked at: they call. Rows are locked in their order.
create function orc._call_listeners(done pg_snapshot, most integer) returns integer
language plpgsql set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
  v_called integer;
  v_tenants text[];
  v_runs uuid[];
  v_steps text[];
begin
  with fresh as materialized (
    select distinct e.tenant_id, e.topic from orchestrator.event e
    where e.transaction_id >= pg_snapshot_xmin(done) and not pg_visible_in_snapshot(e.transaction_id, done)),
  listening as materialized (
    select l.* from fresh f cross join lateral (
      select w.tenant_id, w.run_id, w.step_id from orchestrator.wait w
      where w.tenant_id = f.tenant_id and w.topic = f.topic and w.state = 'waiting' and w.upto is null and not w.is_called
        and exists (select from orchestrator.event e
                    where e.tenant_id = w.tenant_id and e.topic = w.topic and e.transaction_id >= pg_snapshot_xmin(w.seen)
                      and not pg_visible_in_snapshot(e.transaction_id, w.seen))
      limit most) as l
    order by l.tenant_id, l.run_id, l.step_id limit most)
  select array_agg(tenant_id), array_agg(run_id), array_agg(step_id) into v_tenants, v_runs, v_steps from listening;
  update orchestrator.wait w set is_called = true from orc._named(v_tenants, v_runs, v_steps) as l
  where w.tenant_id = l.tenant and w.run_id = l.run and w.step_id = l.step and w.state = 'waiting';
  get diagnostics v_called = row_count;
  return v_called;
end $$;
comment on function orc._call_listeners(pg_snapshot, integer) is 'Marks waits that have events to look at.';

create function orc._wake_called(most integer) returns integer
language plpgsql set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
  v_woken integer;
begin
  with called as materialized (select w.tenant_id, w.run_id from orchestrator.wait w where w.is_called),
  parked as (
    select p.* from (select distinct tenant_id, run_id from called) as c
    cross join lateral (
      select d.tenant_id, d.run_id from orchestrator.due_work d
      where d.tenant_id = c.tenant_id and d.run_id = c.run_id and d.state || '' = 'waiting' limit 1) as p
    limit most)
  select orc._wake_unlocked(array_agg(tenant_id), array_agg(run_id)) into v_woken from parked;
  return coalesce(v_woken, 0);
end $$;
comment on function orc._wake_called(integer) is 'Wakes parked runs whose waits call.';

-- One at a time. Answers how many runs it woke; as many as `most`, and there may be more.
create function orc.meet_events(most integer default 1000) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_now constant pg_snapshot := pg_current_snapshot();
  c orchestrator.event_cursor;
  v_woken integer;
begin
  select * into c from orchestrator.event_cursor for update skip locked;
  if c.done is null then
    return 0;
  end if;
  if orc._call_listeners(c.done, most) < most and pg_snapshot_xmin(v_now) >= pg_snapshot_xmax(c.pending) then
    update orchestrator.event_cursor set done = c.pending, pending = v_now;
  end if;
  return orc._wake_called(most);
end $$;
comment on function orc.meet_events(integer) is
  'Brings events to the waits that have not seen them, and wakes runs that were called while their rows were locked.';
grant execute on function orc.meet_events(integer) to orc_worker;
