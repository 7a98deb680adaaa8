-- Housekeeping of work: what a claim must not do. The scheduler calls these; any number at once.

-- Runs that are blocked although their key has a free slot: an enqueue saw the key full at the very
-- moment when it was freed. Distinct keys are found by jumping through the index.
create function orc.fill_keys() returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_tenants text[];
  v_keys text[];
begin
  with recursive blocked as (
    (select tenant_id, concurrency_key from orchestrator.due_work where state = 'blocked'
     order by tenant_id, concurrency_key limit 1)
    union all
    select n.* from blocked b cross join lateral (
      select d.tenant_id, d.concurrency_key from orchestrator.due_work d
      where d.state = 'blocked' and (d.tenant_id, d.concurrency_key) > (b.tenant_id, b.concurrency_key)
      order by d.tenant_id, d.concurrency_key limit 1) as n)
  select array_agg(b.tenant_id), array_agg(b.concurrency_key) into v_tenants, v_keys
  from blocked b join orchestrator.concurrency c on c.tenant_id = b.tenant_id and c.key = b.concurrency_key
  where c.max_running > (select count(*) from orchestrator.due_work d
                         where d.tenant_id = b.tenant_id and d.concurrency_key = b.concurrency_key
                           and d.state in ('ready', 'running'));
  return orc._fill_keys(v_tenants, v_keys);
end $$;
comment on function orc.fill_keys() is 'Makes blocked runs ready whose key has a free slot; answers how many.';
grant execute on function orc.fill_keys() to orc_worker;

-- Moves the low-water marks up, finds lanes that nobody listed and rows that committed late, and
-- retires lanes that have been idle for a minute. The look reads the first ready row of each lane from
-- its very beginning; under an old snapshot that crawls over dead rows, and it is we who crawl, not
-- the claims. One at a time; it waits for nobody.
create function orc.advance_lanes() returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_moved integer;
  v_listed text[];
begin
  if not pg_try_advisory_xact_lock(7303779, 4) then
    return 0;
  end if;
  with recursive busy as (
    (select tenant_id, queue, priority, due_at from orchestrator.due_work where state = 'ready'
     order by tenant_id, queue, priority, due_at limit 1)
    union all
    select n.* from busy l cross join lateral (
      select d.tenant_id, d.queue, d.priority, d.due_at from orchestrator.due_work d
      where d.state = 'ready' and (d.tenant_id, d.queue, d.priority) > (l.tenant_id, l.queue, l.priority)
      order by d.tenant_id, d.queue, d.priority, d.due_at limit 1) as n),
  seen as materialized (
    select tenant_id, queue, priority, l.low_water, l.idle_since, b.due_at,
           least(b.due_at, v_now - interval '2 seconds') as mark
    from busy b full join orchestrator.lane l using (tenant_id, queue, priority)),
  moved as (
    update orchestrator.lane o
    set low_water = s.mark, idle_since = case when s.due_at is null then coalesce(s.idle_since, v_now) end
    from seen s
    where s.low_water is not null and o.tenant_id = s.tenant_id and o.queue = s.queue and o.priority = s.priority
      and (s.due_at is not null and (s.low_water <> s.mark or s.idle_since is not null)
           or s.due_at is null and (s.idle_since is null or s.low_water < v_now - interval '5 seconds')
              and coalesce(s.idle_since > v_now - interval '1 minute', true))
    returning 1),
  retired as (
    delete from orchestrator.lane o using seen s
    where s.due_at is null and s.idle_since <= v_now - interval '1 minute'
      and o.tenant_id = s.tenant_id and o.queue = s.queue and o.priority = s.priority
    returning 1)
  select (select count(*) from moved) + (select count(*) from retired)
         + (select count(*) from seen where low_water is null),
         (select array_agg(orc._list_lane(s.tenant_id, s.queue, s.priority)::text) from seen s where s.low_water is null)
  into v_moved, v_listed;
  return v_moved;
end $$;
comment on function orc.advance_lanes() is 'Moves low-water marks, lists lanes that have work, finds rows that committed late.';
grant execute on function orc.advance_lanes() to orc_worker;

-- Adds up how many runs ended. Each transaction that ends some leaves a row of its own for each outcome, so that none waits
-- for another; here they become sums, which only grow. The look begins where rows of late are: under an old snapshot those
-- before it are dead, and would be crawled over. What committed late is found by a whole look, each minute.
-- One at a time; it waits for nobody.
create function orc.tally_runs(most integer default 10000, whole boolean default false) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off as $$
declare
  v_from constant bigint := case when whole then 0
    else coalesce(pg_sequence_last_value(pg_get_serial_sequence('orchestrator.ending', 'id')::regclass), 0) - 2 * most end;
  v_rows integer;
begin
  if not pg_try_advisory_xact_lock(7303779, 9) then
    return 0;
  end if;
  with gone as (
    delete from orchestrator.ending e where e.id = any (array(
      select o.id from orchestrator.ending o where o.id >= v_from order by o.id limit most))
    returning e.outcome, e.runs),
  added as (
    update orchestrator.tally t set runs = t.runs + g.runs
    from (select outcome, sum(runs) as runs from gone group by outcome) as g
    where t.outcome = g.outcome)
  select count(*) into v_rows from gone;
  return v_rows;
end $$;
comment on function orc.tally_runs(integer, boolean) is 'Adds up how many runs have ended; answers how many notes of it were taken in.';
grant execute on function orc.tally_runs(integer, boolean) to orc_api, orc_worker;

create function orc.purge(most integer default 10000) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_all integer;
  v_part integer;
begin
  delete from orchestrator.dedupe d where (d.tenant_id, d.key) in (
    select o.tenant_id, o.key from orchestrator.dedupe o
    where o.expires_at < orchestrator.now() - interval '1 hour'
      and not exists (select from orchestrator.due_work w where w.tenant_id = o.tenant_id and w.run_id = o.run_id)
    limit most for update skip locked);
  get diagnostics v_all = row_count;
  delete from orchestrator.worker w where w.id in (
    select o.id from orchestrator.worker o where o.ended_at < orchestrator.now() - interval '7 days'
      and not exists (select from orchestrator.due_work d where d.state = 'running' and d.worker_id = o.id)
    limit most for update skip locked);
  get diagnostics v_part = row_count;
  v_all := v_all + v_part;
  delete from orchestrator.cache c where (c.tenant_id, c.digest) in (
    select o.tenant_id, o.digest from orchestrator.cache o
    where o.expires_at <= orchestrator.now() order by o.expires_at limit most for update skip locked);
  get diagnostics v_part = row_count;
  v_all := v_all + v_part;
  delete from orchestrator.foreign_event f where (f.tenant_id, f.source, f.name) in (
    select o.tenant_id, o.source, o.name from orchestrator.foreign_event o
    where o.event_id < orchestrator.id_floor(orchestrator.now() - interval '7 days') limit most for update skip locked);
  get diagnostics v_part = row_count;
  v_all := v_all + v_part;
  delete from orchestrator.reply r where (r.tenant_id, r.principal, r.route, r.key) in (
    select o.tenant_id, o.principal, o.route, o.key from orchestrator.reply o
    where o.answered_at <= orchestrator.now() - interval '24 hours' order by o.answered_at limit most for update skip locked);
  get diagnostics v_part = row_count;
  perform orc.tally_runs(most, whole => true);
  return v_all + v_part;
end $$;
comment on function orc.purge(integer) is
  'Deletes dedupe keys, cached answers, replies, names of events and workers that no longer matter; history goes by partitions.';
grant execute on function orc.purge(integer) to orc_worker;

-- What a monitor looks at. Rows are looked for lane by lane from the low-water mark on, as claims do, in the 1,000 lanes that
-- are behind the most; counts end at 10,000. A paused queue is held back on purpose and makes nothing old.
create function orc._work_gauges() returns table (name text, labels jsonb, value double precision)
language sql stable set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
  with moment as materialized (select orchestrator.now() as now),
  lane as materialized (
    select l.* from orchestrator.lane l
    where l.idle_since is null
      and not exists (select from orchestrator.queue q where q.tenant_id = l.tenant_id and q.name = l.queue and q.paused_at is not null)
    order by l.low_water limit 1000),
  ready as materialized (
    select d.due_at from lane l cross join lateral (
      select r.due_at from orchestrator.due_work r
      where r.tenant_id = l.tenant_id and r.queue = l.queue and r.priority = l.priority and r.state = 'ready' and r.due_at >= l.low_water
      order by r.due_at limit 10000) as d
    limit 10000),
  oldest(due_at) as (
    select d.due_at from lane l cross join lateral (
      select r.due_at from orchestrator.due_work r
      where r.tenant_id = l.tenant_id and r.queue = l.queue and r.priority = l.priority and r.state = 'ready' and r.due_at >= l.low_water
      order by r.due_at limit 1) as d
    union all
    select d.due_at from (select s.due_at from orchestrator.due_work s
                          where s.state in ('scheduled', 'waiting') order by s.due_at limit 1) as d),
  busy as materialized (
    select count(*) as runs from (select from orchestrator.due_work d where d.state = 'running' limit 100000) as r),
  worker as materialized (
    select w.slots, w.expires_at > m.now as is_live from orchestrator.worker w cross join moment m where w.ended_at is null)
  select 'queue_oldest_age_seconds', '{}'::jsonb, greatest(0, coalesce(extract(epoch from m.now - min(o.due_at)), 0))::double precision
  from moment m left join oldest o on o.due_at < 'infinity' group by m.now
  union all
  select 'live_runs', '{"state": "ready"}', count(*) from ready
  union all
  select 'live_runs', '{"state": "running"}', runs from busy
  union all
  select 'live_runs', jsonb_build_object('state', s.state), count(d.state)
  from (values ('scheduled'), ('waiting')) as s(state)
  left join (select o.state from orchestrator.due_work o where o.state in ('scheduled', 'waiting') order by o.due_at limit 10000) as d
    on d.state = s.state
  group by s.state
  union all
  select 'live_runs', '{"state": "blocked"}', count(*) from (select from orchestrator.due_work d where d.state = 'blocked' limit 10000) as b
  union all
  select 'workers', '{"state": "live"}', count(*) filter (where is_live) from worker
  union all
  select 'workers', '{"state": "silent"}', count(*) filter (where not is_live) from worker
  union all
  select 'worker_slots', '{"state": "busy"}', runs from busy
  union all
  select 'worker_slots', '{"state": "free"}', greatest(0, coalesce((select sum(slots) from worker where is_live), 0) - runs) from busy
  union all
  select 'runs_finished_total', jsonb_build_object('outcome', t.outcome), t.runs from orchestrator.tally t
$$;
comment on function orc._work_gauges() is 'Figures of work; what it counts, it counts up to a bound.';
