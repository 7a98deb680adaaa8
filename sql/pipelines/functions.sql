-- Pipelines as workers see them: their documents, what a run's steps did, and the lines that it wrote.
-- Each write is fenced by (run, epoch, worker).
--
-- A step: started ──► succeeded (never executed again), failed, or, when its worker is lost before it
-- has said so, unknown. Only steps that call the outside are started in writing; the others are
-- recorded when they have ended. A step that waits is `waiting` until it has what it waits for.

create function orc.pipelines(wanted jsonb) returns table (tenant_id text, id uuid, document jsonb)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select p.tenant_id, p.id, p.document from jsonb_to_recordset(wanted) as w(tenant text, id uuid)
  join orchestrator.pipeline p on p.tenant_id = w.tenant and p.id = w.id
$$;
comment on function orc.pipelines(jsonb) is 'Pipelines by [{tenant, id}]: a worker asks once for each that it sees.';
grant execute on function orc.pipelines(jsonb) to orc_worker;

create function orc._level(level text) returns text
language sql immutable as $$
  select case when level in ('debug', 'info', 'warning', 'error') then level else 'info' end
$$;
comment on function orc._level(text) is 'A level that a line may have.';

-- What comes with records that were new: waits that steps have reached, or what met them; events.
create function orc._take_along(said jsonb) returns void
language plpgsql as $$
declare
  s record;
begin
  for s in select o.* from jsonb_to_recordset(said) as o(tenant text, run uuid, step text, state text, wait jsonb)
           where o.wait is not null order by o.tenant, o.run, o.step
  loop
    if s.state in ('waiting', 'unknown') then
      perform orc._register_wait(s.tenant, s.run, s.step, s.wait);
    else
      perform orc._met_by(s.tenant, s.run, s.step, (s.wait ->> 'event')::uuid);
    end if;
  end loop;
  if said @? '$[*].events[*]' then
    perform orc._emit_recorded((
      select jsonb_agg(e || jsonb_build_object('tenant', o ->> 'tenant', 'run', o ->> 'run'))
      from jsonb_array_elements(said) as o cross join lateral jsonb_array_elements(
        case jsonb_typeof(o -> 'events') when 'array' then o -> 'events' else '[]' end) as e));
  end if;
end $$;
comment on function orc._take_along(jsonb) is 'Registers waits and publishes events of recorded steps.';

-- Steps of any number of runs of one worker, in one statement. A step that has succeeded, or was skipped,
-- stays as it is; one that had started, failed or waited is what is said of it last. Lines that were
-- written before it come with it: said again, neither changes anything.
-- What was said is joined by hash, as a loop in a loop over it costs its square; a lateral join stays a loop,
-- so rows of tables are looked up one by one.
create function orc._record_steps(worker uuid, steps jsonb) returns uuid[]
language plpgsql set jit = off set enable_seqscan = off set enable_nestloop = off as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_stale uuid[];
  v_more jsonb;
  v_kept jsonb;
begin
  with words as materialized (
    select * from rows from (jsonb_to_recordset(steps) as (
      tenant text, run uuid, epoch integer, step text, attempt integer, state text, seconds double precision, arguments jsonb,
      output jsonb, error jsonb, lines jsonb, wait jsonb, events jsonb, cache jsonb, cached boolean)) with ordinality
      as s(tenant, run, epoch, step, attempt, state, seconds, arguments, output, error, lines, wait, events, cache, cached, nth)),
  said as materialized (
    select distinct on (s.tenant, s.run, s.epoch, s.step) s.*,
           coalesce(pg_column_size(s.output) > orc._inline_bytes(), false) as is_large from words s
    order by s.tenant, s.run, s.epoch, s.step, s.nth desc),
  held as materialized (
    select h.* from (select distinct tenant, run, s.epoch from said s order by tenant, run) as o
    cross join lateral (
      select d.tenant_id, d.run_id, d.epoch from orchestrator.due_work d
      where d.tenant_id = o.tenant and d.run_id = o.run and d.epoch = o.epoch and d.worker_id = $1
      for no key update) as h),
  recorded as (
    insert into orchestrator.step as t (
      tenant_id, run_id, step_id, epoch, attempt, state, started_at, finished_at, arguments, output, error,
      output_digest, output_bytes, is_cached)
    select s.tenant, s.run, s.step, s.epoch, coalesce(s.attempt, 1), s.state,
           v_now - make_interval(secs => least(greatest(s.seconds, 0), 1e8)),
           case when s.state in ('succeeded', 'failed', 'skipped') then v_now end, s.arguments,
           case when s.is_large then null else s.output end, s.error, case when s.is_large then orc._digest(s.output) end,
           case when s.is_large then pg_column_size(s.output) end, coalesce(s.cached, false)
    from said s join held h on h.tenant_id = s.tenant and h.run_id = s.run and h.epoch = s.epoch
    on conflict (tenant_id, run_id, step_id) do update
    set epoch = excluded.epoch, attempt = excluded.attempt, state = excluded.state,
        started_at = case when t.epoch = excluded.epoch then coalesce(t.started_at, excluded.started_at) else excluded.started_at end,
        finished_at = excluded.finished_at, arguments = coalesce(excluded.arguments, t.arguments), output = excluded.output,
        error = excluded.error, output_digest = excluded.output_digest, output_bytes = excluded.output_bytes,
        is_cached = excluded.is_cached
    where t.state not in ('succeeded', 'skipped')
      and (t.epoch, t.attempt, t.state, t.error)
        is distinct from (excluded.epoch, excluded.attempt, excluded.state, excluded.error)
    returning t.tenant_id, t.run_id, t.epoch, t.step_id, t.output_digest),
  written as (
    insert into orchestrator.log (tenant_id, run_id, level, message, facts)
    select r.tenant_id, r.run_id, orc._level(l.level), left(coalesce(l.message, ''), 10000), l.facts
    from recorded r join words s on s.tenant = r.tenant_id and s.run = r.run_id and s.epoch = r.epoch
      and s.step = r.step_id and s.lines is not null
    cross join lateral rows from (jsonb_to_recordset(s.lines) as (level text, message text, facts jsonb)) with ordinality
      as l(level, message, facts, place)
    order by s.nth, l.place)
  select (select array_agg(distinct s.run) from said s
          where not exists (select from held h where h.tenant_id = s.tenant and h.run_id = s.run and h.epoch = s.epoch)),
         (select jsonb_agg(to_jsonb(s) - '{arguments,output,lines,cache}'::text[])
          from said s join recorded r on r.tenant_id = s.tenant and r.run_id = s.run and r.step_id = s.step
          where s.wait is not null or s.events is not null),
         (select jsonb_agg(jsonb_build_object('tenant', s.tenant, 'run', s.run, 'output', s.output,
                                              'digest', encode(r.output_digest, 'hex'), 'cache', s.cache) order by s.nth)
          from said s join recorded r on r.tenant_id = s.tenant and r.run_id = s.run and r.step_id = s.step
          where s.is_large or s.cache is not null)
  into v_stale, v_more, v_kept;
  if v_more is not null then
    perform orc._take_along(v_more);
  end if;
  if v_kept is not null then
    perform orc._keep_values(v_kept);
  end if;
  return v_stale;
end $$;
comment on function orc._record_steps(uuid, jsonb) is 'Records steps; answers the runs whose lease was stale.';

create function orc.record_steps(worker uuid, steps jsonb) returns table (stale uuid)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform orc._live_worker(worker);
  return query select unnest(orc._record_steps(worker, steps));
end $$;
comment on function orc.record_steps(uuid, jsonb) is
  'Records steps: a list of {tenant, run, epoch, step, attempt, state, seconds, arguments, output, error, lines, wait, events, cache, cached}. Answers the runs whose lease was stale.';
grant execute on function orc.record_steps(uuid, jsonb) to orc_worker;

-- A try of a run is over when it failed and is tried again; a park, a release and a lost lease don't end it.
create function orc.begun_work(wanted jsonb)
returns table (run_id uuid, began_at timestamptz, attempt_began_at timestamptz, tried integer, is_canceled boolean)
language sql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
  select d.run_id, b.began_at, b.attempt_began_at, coalesce(b.tried, 0), d.cancel_requested_at is not null
  from jsonb_to_recordset(wanted) as a(tenant text, run uuid)
  join orchestrator.due_work d on d.tenant_id = a.tenant and d.run_id = a.run
  cross join lateral (
    select min(t.started_at) as began_at, min(t.started_at) filter (where t.attempt = d.attempt and t.outcome <> 'retried') as attempt_began_at,
           max(t.epoch) filter (where t.outcome = 'retried') as tried
    from orchestrator.attempt t where t.tenant_id = d.tenant_id and t.run_id = d.run_id) as b
$$;
comment on function orc.begun_work(jsonb) is
  'What was before of runs that are taken up, by [{tenant, run}]: when they began, which claim ended the try before this one, and whether they are canceled.';
grant execute on function orc.begun_work(jsonb) to orc_worker;

-- And its waits, with the events that they haven't looked at. Arguments are for calls that are made again.
-- Large values only by digest and size: orc.value has them.
create function orc.recorded_steps(wanted jsonb)
returns table (
  tenant_id text, run_id uuid, step_id text, epoch integer, attempt integer, state text, output jsonb, error jsonb, wait jsonb,
  arguments jsonb, digest text, bytes integer, cached boolean, started_at timestamptz, finished_at timestamptz)
language sql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
  select s.tenant_id, s.run_id, s.step_id, s.epoch, s.attempt, s.state, s.output, s.error,
         case when w.run_id is not null and s.state <> 'succeeded' then orc._wait_as_json(w) end,
         case when s.state in ('started', 'failed', 'unknown') then s.arguments end,
         encode(s.output_digest, 'hex'), s.output_bytes, s.is_cached, s.started_at, s.finished_at
  from jsonb_to_recordset(wanted) as a(tenant text, run uuid)
  join orchestrator.step s on s.tenant_id = a.tenant and s.run_id = a.run
  left join orchestrator.wait w on w.tenant_id = s.tenant_id and w.run_id = s.run_id and w.step_id = s.step_id
  union all
  select w.tenant_id, w.run_id, w.step_id, null, null, null, null, null, orc._wait_as_json(w), null, null, null, false, null, null
  from jsonb_to_recordset(wanted) as a(tenant text, run uuid)
  join orchestrator.wait w on w.tenant_id = a.tenant and w.run_id = a.run
  where not exists (select from orchestrator.step s
                    where s.tenant_id = w.tenant_id and s.run_id = w.run_id and s.step_id = w.step_id)
$$;
comment on function orc.recorded_steps(jsonb) is 'What was recorded of runs, by [{tenant, run}]: a worker that goes on with them asks once.';
grant execute on function orc.recorded_steps(jsonb) to orc_worker;

-- For runs whose other branches are at work; what is parked needs no one to ask.
create function orc.heard_waits(wanted jsonb) returns table (tenant_id text, run_id uuid, step_id text, wait jsonb)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
begin
  perform orc._expire_waits(array_agg(a.tenant), array_agg(a.run))
  from (select distinct tenant, run from jsonb_to_recordset(wanted) as a(tenant text, run uuid)) as a;
  perform orc._end_batches(wanted);
  return query
    select w.tenant_id, w.run_id, w.step_id, orc._wait_as_json(w)
    from jsonb_to_recordset(wanted) as a(tenant text, run uuid, step text)
    join orchestrator.wait w on w.tenant_id = a.tenant and w.run_id = a.run and w.step_id = a.step
    where w.state <> 'waiting' or w.kind = 'event' and exists (select from orc._candidates(w, 1));
end $$;
comment on function orc.heard_waits(jsonb) is
  'Of waits by [{tenant, run, step}], those that have ended or have events to look at: a worker asks while other branches of their runs are at work.';
grant execute on function orc.heard_waits(jsonb) to orc_worker;

create function orc._write_log(worker uuid, lines jsonb) returns void
language plpgsql set jit = off set enable_seqscan = off set enable_nestloop = off as $$
begin
  with said as materialized (
    select * from jsonb_to_recordset(lines) as l(tenant text, run uuid, epoch integer, level text, message text, facts jsonb)),
  held as materialized (
    select h.* from (select distinct tenant, run, s.epoch from said s order by tenant, run) as o
    cross join lateral (
      select d.tenant_id, d.run_id, d.epoch from orchestrator.due_work d
      where d.tenant_id = o.tenant and d.run_id = o.run and d.epoch = o.epoch and d.worker_id = $1 for share) as h)
  insert into orchestrator.log (tenant_id, run_id, level, message, facts)
  select l.tenant, l.run, orc._level(l.level),
         left(coalesce(l.message, ''), 10000), l.facts
  from said l join held h on h.tenant_id = l.tenant and h.run_id = l.run and h.epoch = l.epoch;
end $$;
comment on function orc._write_log(uuid, jsonb) is 'Writes lines of runs that the worker holds.';

create function orc.write_log(worker uuid, lines jsonb) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform orc._live_worker(worker);
  perform orc._write_log(worker, lines);
end $$;
comment on function orc.write_log(uuid, jsonb) is 'Lines of runs that the worker holds: a list of {tenant, run, epoch, level, message, facts}.';
grant execute on function orc.write_log(uuid, jsonb) to orc_worker;

create function orc._check_pipelines() returns table (invariant text, subject text, detail text)
language sql stable as $$
  select 'a_step_is_not_ahead_of_its_run', format('%s %s', s.run_id, s.step_id), format('epoch %s of %s', s.epoch, d.epoch)
  from orchestrator.step s join orchestrator.due_work d on d.tenant_id = s.tenant_id and d.run_id = s.run_id and d.epoch < s.epoch
  union all
  select 'a_step_is_not_ahead_of_its_run', format('%s %s', s.run_id, s.step_id), format('epoch %s of %s', s.epoch, r.epoch)
  from orchestrator.step s join orchestrator.run r on r.tenant_id = s.tenant_id and r.id = s.run_id and r.epoch < s.epoch
  union all
  select 'a_run_that_ended_waits_for_nothing', format('%s %s', w.run_id, w.step_id), format('it waits for %s', w.kind)
  from orchestrator.wait w
  where w.state = 'waiting' and not exists (select from orchestrator.due_work d where d.tenant_id = w.tenant_id and d.run_id = w.run_id)
  union all
  select 'an_answer_wakes_its_run', format('%s %s', w.run_id, w.step_id), format('it was met at %s, and its run is parked since %s', w.answered_at, a.finished_at)
  from orchestrator.due_work d
  join orchestrator.wait w on w.tenant_id = d.tenant_id and w.run_id = d.run_id and w.state = 'met' and not w.is_called
  join orchestrator.attempt a on a.tenant_id = d.tenant_id and a.run_id = d.run_id and a.epoch = d.epoch and a.outcome = 'parked'
  where d.state = 'waiting' and w.answered_at > a.finished_at and w.kind <> 'event'
  union all
  select 'a_parked_run_stands_at_a_wait_or_has_a_time', d.run_id::text, 'its waits are over, and it is parked'
  from orchestrator.due_work d
  where d.state = 'waiting' and d.due_at = 'infinity'
    and exists (select from orchestrator.wait w where w.tenant_id = d.tenant_id and w.run_id = d.run_id)
    and not exists (select from orchestrator.wait w
                    where w.tenant_id = d.tenant_id and w.run_id = d.run_id and (w.state = 'waiting' or w.is_called))
  union all
  select 'a_deadline_is_kept', format('%s %s', w.run_id, w.step_id), format('it expires at %s, and its run goes on at %s', w.deadline, d.due_at)
  from orchestrator.due_work d join orchestrator.wait w
    on w.tenant_id = d.tenant_id and w.run_id = d.run_id and w.state = 'waiting' and w.deadline < d.due_at
  where d.state = 'waiting'
  union all
  select 'a_wait_hears_of_the_ends_of_runs', format('%s %s', w.run_id, w.step_id), format('its tenant is not known to wait for %s', w.topic)
  from orchestrator.wait w join orchestrator.tenant t on t.id = w.tenant_id and not t.waits_for_ends
  where w.state = 'waiting' and w.topic in ('$run.succeeded', '$run.failed', '$run.canceled')
$$;
comment on function orc._check_pipelines() is 'Steps that nobody can have recorded, and waits that nobody could meet.';
