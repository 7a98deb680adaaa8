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

-- Steps of any number of runs of one worker, in one statement. A step that has succeeded, or was skipped,
-- stays as it is; one that had started, failed or waited is what is said of it last. Lines that were
-- written before it come with it: said again, neither changes anything.
-- What was said is joined by hash, as a loop in a loop over it costs its square; a lateral join stays a loop,
-- so rows of tables are looked up one by one.
create function orc._record_steps(worker uuid, steps jsonb) returns uuid[]
language plpgsql set enable_seqscan = off set enable_nestloop = off as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_stale uuid[];
begin
  with words as materialized (
    select * from rows from (jsonb_to_recordset(steps) as (
      tenant text, run uuid, epoch integer, step text, attempt integer, state text, seconds double precision, arguments jsonb,
      output jsonb, error jsonb, lines jsonb)) with ordinality
      as s(tenant, run, epoch, step, attempt, state, seconds, arguments, output, error, lines, nth)),
  said as materialized (
    select distinct on (s.tenant, s.run, s.epoch, s.step) s.* from words s
    order by s.tenant, s.run, s.epoch, s.step, s.nth desc),
  held as materialized (
    select h.* from (select distinct tenant, run, s.epoch from said s order by tenant, run) as o
    cross join lateral (
      select d.tenant_id, d.run_id, d.epoch from orchestrator.due_work d
      where d.tenant_id = o.tenant and d.run_id = o.run and d.epoch = o.epoch and d.worker_id = $1
      for no key update) as h),
  recorded as (
    insert into orchestrator.step as t (
      tenant_id, run_id, step_id, epoch, attempt, state, started_at, finished_at, arguments, output, error)
    select s.tenant, s.run, s.step, s.epoch, coalesce(s.attempt, 1), s.state,
           v_now - make_interval(secs => least(greatest(s.seconds, 0), 1e8)),
           case when s.state in ('succeeded', 'failed', 'skipped') then v_now end, s.arguments, s.output, s.error
    from said s join held h on h.tenant_id = s.tenant and h.run_id = s.run and h.epoch = s.epoch
    on conflict (tenant_id, run_id, step_id) do update
    set epoch = excluded.epoch, attempt = excluded.attempt, state = excluded.state,
        started_at = case when t.epoch = excluded.epoch then coalesce(t.started_at, excluded.started_at) else excluded.started_at end,
        finished_at = excluded.finished_at, arguments = coalesce(excluded.arguments, t.arguments), output = excluded.output,
        error = excluded.error
    where t.state not in ('succeeded', 'skipped')
      and (t.epoch, t.attempt, t.state, t.error)
        is distinct from (excluded.epoch, excluded.attempt, excluded.state, excluded.error)
    returning t.tenant_id, t.run_id, t.epoch, t.step_id),
  written as (
    insert into orchestrator.log (tenant_id, run_id, level, message, facts)
    select r.tenant_id, r.run_id, orc._level(l.level), left(coalesce(l.message, ''), 10000), l.facts
    from recorded r join words s on s.tenant = r.tenant_id and s.run = r.run_id and s.epoch = r.epoch
      and s.step = r.step_id and s.lines is not null
    cross join lateral rows from (jsonb_to_recordset(s.lines) as (level text, message text, facts jsonb)) with ordinality
      as l(level, message, facts, place)
    order by s.nth, l.place)
  select array_agg(distinct s.run) into v_stale from said s
  where not exists (select from held h where h.tenant_id = s.tenant and h.run_id = s.run and h.epoch = s.epoch);
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
  'Records steps: a list of {tenant, run, epoch, step, attempt, state, seconds, arguments, output, error, lines}. Answers the runs whose lease was stale.';
grant execute on function orc.record_steps(uuid, jsonb) to orc_worker;

create function orc.recorded_steps(wanted jsonb)
returns table (tenant_id text, run_id uuid, step_id text, epoch integer, attempt integer, state text, output jsonb, error jsonb)
language sql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
  select s.tenant_id, s.run_id, s.step_id, s.epoch, s.attempt, s.state, s.output, s.error
  from jsonb_to_recordset(wanted) as w(tenant text, run uuid)
  join orchestrator.step s on s.tenant_id = w.tenant and s.run_id = w.run
$$;
comment on function orc.recorded_steps(jsonb) is 'What was recorded of runs, by [{tenant, run}]: a worker that goes on with them asks once.';
grant execute on function orc.recorded_steps(jsonb) to orc_worker;

create function orc._write_log(worker uuid, lines jsonb) returns void
language plpgsql set enable_seqscan = off set enable_nestloop = off as $$
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
$$;
comment on function orc._check_pipelines() is 'Steps that nobody can have recorded.';
