-- Claim: due rows become ready, ready rows become a worker's.
--
-- Shares. A claim looks at the lanes of up to 64 tenants, beginning after the last one that this worker
-- looked at. The batch is split among the tenants by weight, by one draw for all (systematic sampling:
-- the shares add up to the batch, and over time each tenant gets exactly its weight). What a tenant
-- can't use goes to those who have more. Within a tenant: by priority, then due time.
-- Nothing is written but the rows that are claimed, so two workers never queue up on a lane.
--
-- Limits of queues. A limited queue's row is locked, skipping it when another claim holds it, and what
-- runs is counted under that lock. Unlimited queues are neither locked nor counted.
-- Each claim holds a shared advisory lock; who pauses or limits a queue takes it exclusively for a
-- moment, so that no claim that saw the queue as it was before is still under way afterwards.
--
-- Lock order: the advisory lock; due_work rows; their waits; then keys in their order, once in a transaction; then
-- queues and rows, skipping what is locked. Whoever holds a key never waits for a row.

-- A worker that may write, or OR410: it ended, or its lease ran out. It must register anew.
create function orc._live_worker(worker uuid) returns orchestrator.worker
language plpgsql stable as $$
declare
  v_worker orchestrator.worker;
begin
  select * into v_worker from orchestrator.worker w
  where w.id = worker and w.ended_at is null and w.expires_at > orchestrator.now();
  if v_worker.id is null then
    perform orc._gone('This worker''s lease has ended', worker::text, 'drop its work and register a new worker');
  end if;
  return v_worker;
end $$;
comment on function orc._live_worker(uuid) is 'The worker, if its lease is live; else OR410.';

-- Gives free slots of keys to their best blocked rows. Keys without blocked rows cost one look for all.
-- Call it once in a transaction: two calls would lock keys out of order.
create function orc._fill_keys(tenants text[], keys text[]) returns integer
language plpgsql set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
  k record;
  v_limit integer;
  v_listed text[];
  v_all integer := 0;
begin
  for k in
    select distinct u.tenant, u.key from unnest(tenants, keys) as u(tenant, key)
    where exists (select from orchestrator.due_work b
                  where b.tenant_id = u.tenant and b.concurrency_key = u.key and b.state = 'blocked')
    order by u.tenant, u.key
  loop
    select max_running into v_limit from orchestrator.concurrency c
    where c.tenant_id = k.tenant and c.key = k.key for update;
    with free as materialized (
      select greatest(0, v_limit - count(*)) as slots from orchestrator.due_work d
      where d.tenant_id = k.tenant and d.concurrency_key = k.key and d.state in ('ready', 'running')),
    best as materialized (
      select b.run_id from orchestrator.due_work b
      where b.tenant_id = k.tenant and b.concurrency_key = k.key and b.state = 'blocked'
      order by b.priority, b.due_at, b.run_id
      limit (select slots from free) for update skip locked), filled as (
      update orchestrator.due_work d
      set state = 'ready', due_at = orc._not_below(d.tenant_id, d.queue, d.priority, d.due_at)
      where d.tenant_id = k.tenant and d.run_id = any (array(select best.run_id from best))
      returning d.queue, d.priority)
    select v_all + count(*), array_agg(orc._list_lane(k.tenant, f.queue, f.priority)::text) into v_all, v_listed
    from filled f;
  end loop;
  return v_all;
end $$;
comment on function orc._fill_keys(text[], text[]) is 'Makes blocked rows ready where their keys have free slots.';

-- Scheduled rows whose time has come: ready, or blocked until their key gives them a slot.
-- A waiting row whose time has come goes on, too: what it waited for didn't happen, and the wait expires.
-- Answers the keys that _fill_keys has to look at.
create function orc._promote_due(most integer, out tenants text[], out keys text[])
language plpgsql set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
  v_listed bigint;
  v_tenants text[];
  v_runs uuid[];
begin
  with due as materialized (
    select tenant_id, run_id, state from orchestrator.due_work
    where state in ('scheduled', 'waiting') and due_at <= orchestrator.now()
    order by due_at limit most for update skip locked),
  moved as (
    update orchestrator.due_work d
    set state = case when d.concurrency_key is null then 'ready' else 'blocked' end, waiting_for = null,
        due_at = orc._not_below(d.tenant_id, d.queue, d.priority, d.due_at)
    from due where d.tenant_id = due.tenant_id and d.run_id = due.run_id
    returning d.tenant_id, d.run_id, d.queue, d.priority, d.concurrency_key, due.state = 'waiting' as waited),
  listed as (
    select orc._list_lane(l.tenant_id, l.queue, l.priority) from (select distinct tenant_id, queue, priority from moved) as l)
  select array_agg(tenant_id) filter (where concurrency_key is not null),
         array_agg(concurrency_key) filter (where concurrency_key is not null), (select count(*) from listed),
         array_agg(tenant_id) filter (where waited), array_agg(run_id) filter (where waited)
  into tenants, keys, v_listed, v_tenants, v_runs from moved;
  if v_runs is not null then
    perform orc._expire_waits(v_tenants, v_runs);
  end if;
end $$;
comment on function orc._promote_due(integer) is 'Makes rows ready (or blocked) whose time has come.';

-- The lanes of the next tenants after the cursor, with how many rows each may give.
create function orc._lanes(queues text[], after_tenant text)
returns table (tenant_id text, queue text, priority smallint, low_water timestamptz, weight real, max_running integer)
language sql stable as $$
  with tenants as materialized (
    select distinct l.tenant_id, (l.tenant_id <= after_tenant) as wrapped from orchestrator.lane l
    where l.queue = any (queues)
      and not exists (select from orchestrator.queue q
                      where q.tenant_id = l.tenant_id and q.name = l.queue and q.paused_at is not null)
    order by wrapped, l.tenant_id limit 64)
  select l.tenant_id, l.queue, l.priority, l.low_water, t.weight, q.max_running
  from tenants c
  join orchestrator.tenant t on t.id = c.tenant_id
  join orchestrator.lane l on l.tenant_id = c.tenant_id and l.queue = any (queues)
  left join orchestrator.queue q on q.tenant_id = l.tenant_id and q.name = l.queue
  where q.paused_at is null
  order by c.wrapped, l.tenant_id, l.priority
$$;
comment on function orc._lanes(text[], text) is 'The lanes that a claim looks at.';

-- What each lane may still take: nothing known (null) without a limit; 0 when another claim holds the
-- queue. The queues' rows are locked first, and what runs is counted in a new snapshot.
create function orc._rooms(tenants text[], queues text[], limits bigint[]) returns bigint[]
language plpgsql as $$
declare
  v_held text[];
begin
  select array_agg(format('%L %L', q.tenant_id, q.name)) into v_held
  from (select q.tenant_id, q.name from orchestrator.queue q
        where (q.tenant_id, q.name) in (select t, n from unnest(tenants, queues, limits) as l(t, n, m) where m is not null)
        order by q.tenant_id, q.name
        for no key update skip locked) as q;
  return array(
    select case when l.limited is null then null
                when format('%L %L', l.tenant, l.queue) = any (v_held) then greatest(0, l.limited - (
                  select count(*) from orchestrator.due_work d
                  where d.tenant_id = l.tenant and d.queue = l.queue and d.state = 'running'))
                else 0 end
    from unnest(tenants, queues, limits) with ordinality as l(tenant, queue, limited, nth) order by l.nth);
end $$;
comment on function orc._rooms(text[], text[], bigint[]) is 'How many more runs each lane may give; locks limited queues.';

-- What a run of a task sees as `event`: the event that made it, or the instant.
create function orc._occasion(tenant text, event uuid, nominal timestamptz) returns jsonb
language sql stable as $$
  select case when event is not null then (
                select orc._event_as_json(e) from orchestrator.event e where e.tenant_id = tenant and e.id = event)
              when nominal is not null then jsonb_build_object('topic', '$schedule', 'time', nominal) end
$$;
comment on function orc._occasion(text, uuid, timestamptz) is 'What made a run: an event or an instant.';

-- One round: each tenant up to its share, never more than `most` together. Each claimed run is a list:
-- tenant, run, epoch, attempt, max_attempts, pipeline, timeout, input, due, event, [trace, request]. Lists and not objects,
-- because a batch of 500 is read by one Python thread that has other things to do.
create function orc._claim_round(
  worker uuid, most integer, by_weight boolean,
  tenants text[], queues text[], priorities smallint[], low_waters timestamptz[], weights real[], rooms bigint[],
  out runs text, out taken integer, out sated text[])
language plpgsql set enable_sort = off set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_draw constant double precision := random() * 0.999998 + 0.000001;
begin
  with lane as (
    select * from unnest(tenants, queues, priorities, low_waters, weights, rooms)
      as l(tenant_id, queue, priority, low_water, weight, room)),
  part as (
    select tenant_id, sum(weight) over (order by tenant_id) as upto, weight, sum(weight) over () as total
    from (select tenant_id, max(weight)::double precision as weight from lane group by tenant_id) as t),
  share as materialized (
    select tenant_id, case when by_weight
      then (floor(most * upto / total + v_draw) - floor(most * (upto - weight) / total + v_draw))::integer
      else most end as share
    from part),
  candidate as materialized (
    select l.tenant_id, l.queue, l.priority, l.room, c.run_id, c.due_at, s.share
    from lane l join share s using (tenant_id)
    cross join lateral (
      select d.run_id, d.due_at from orchestrator.due_work d
      where d.tenant_id = l.tenant_id and d.queue = l.queue and d.priority = l.priority
        and d.state = 'ready' and d.due_at >= l.low_water
      order by d.due_at, d.run_id limit least(s.share, l.room) for update skip locked) as c),
  chosen as materialized (
    select tenant_id, run_id, nth from (
      select c.*, row_number() over (partition by c.tenant_id order by c.priority, c.due_at, c.run_id) as nth,
             row_number() over (partition by c.tenant_id, c.queue order by c.priority, c.due_at, c.run_id) as nth_of_queue
      from candidate c) as c
    where nth <= share and (room is null or nth_of_queue <= room)
    order by nth limit most),
  taken as (
    update orchestrator.due_work d
    set state = 'running', worker_id = worker, epoch = d.epoch + 1, attempt = d.attempt + 1, started_at = v_now
    from chosen where d.tenant_id = chosen.tenant_id and d.run_id = chosen.run_id
    returning d.tenant_id, d.run_id, d.epoch, d.attempt, d.max_attempts, d.pipeline_id, d.timeout_seconds, d.input, d.due_at, d.event_id, d.nominal_at, d.traceparent, d.correlation_id, chosen.nth)
  select json_agg(json_build_array(t.tenant_id, t.run_id, t.epoch, t.attempt, t.max_attempts, t.pipeline_id,
                                   t.timeout_seconds, t.input, t.due_at,
           case when t.event_id is not null or t.nominal_at is not null then orc._occasion(t.tenant_id, t.event_id, t.nominal_at) end,
           case when t.traceparent is not null or t.correlation_id is not null then json_build_array(t.traceparent, t.correlation_id) end) order by t.nth)::text,
         count(*),
         array(select s.tenant_id from share s left join candidate c using (tenant_id)
               group by s.tenant_id, s.share having count(c.run_id) < s.share)
  into runs, taken, sated from taken t;
end $$;
comment on function orc._claim_round(uuid, integer, boolean, text[], text[], smallint[], timestamptz[], real[], bigint[]) is
  'Claims ready rows of the given lanes; says which tenants have no more.';

-- Up to three rounds: by weight, by weight among those who have more, and whatever is left.
create function orc._claim(worker orchestrator.worker, want integer, inout after_tenant text, out runs text)
language plpgsql as $$
declare
  l record;
  v_round record;
  v_left integer := want;
begin
  perform pg_advisory_xact_lock_shared(7303779, 3);
  select array_agg(tenant_id) as tenants, array_agg(queue) as queues, array_agg(priority) as priorities,
         array_agg(low_water) as low_waters, array_agg(weight) as weights, array_agg(max_running::bigint) as limits,
         count(distinct tenant_id) as count, null::bigint[] as rooms
  into l from orc._lanes(worker.queues, coalesce(after_tenant, ''));
  after_tenant := case when l.count >= 64 then l.tenants[cardinality(l.tenants)] end;
  for v_number in 1..3 loop
    exit when l.tenants is null;
    if (select bool_or(limited is not null) from unnest(l.limits) as limited) then
      l.rooms := orc._rooms(l.tenants, l.queues, l.limits);
    end if;
    v_round := orc._claim_round(worker.id, v_left, v_number < 3, l.tenants, l.queues, l.priorities, l.low_waters, l.weights,
                                coalesce(l.rooms, l.limits));
    runs := coalesce(left(runs, -1) || ',' || substr(v_round.runs, 2), v_round.runs, runs);
    v_left := v_left - v_round.taken;
    exit when v_left <= 0;
    select array_agg(o.tenant) as tenants, array_agg(o.queue) as queues, array_agg(o.priority) as priorities,
           array_agg(o.low_water) as low_waters, array_agg(o.weight) as weights, array_agg(o.limited) as limits,
           0 as count, null::bigint[] as rooms
    into l
    from unnest(l.tenants, l.queues, l.priorities, l.low_waters, l.weights, l.limits)
      as o(tenant, queue, priority, low_water, weight, limited)
    where o.tenant <> all (v_round.sated);
  end loop;
end $$;
comment on function orc._claim(orchestrator.worker, integer, text) is 'Claims up to `want` rows for a worker.';
