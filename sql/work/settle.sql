-- Settle: what became of claimed runs. Every write of a worker about a run is fenced by (run, epoch,
-- worker): when that isn't the present lease, nothing changes, and the run's id is answered as stale.
--
-- An outcome is an object: tenant, run, epoch, outcome, and by outcome
--   succeeded  output
--   failed     error, retry (false: trying again can't help), delay (seconds, instead of the backoff)
--   released   given back unharmed: its attempt isn't counted
--   parked     waiting_for, until (a time; it goes on then at the latest), waits (pipelines/waits.sql)
--   canceled   the attempt obeyed a cancel
-- An attempt that was told to cancel ends as canceled whatever it says. If it says that the run would go on later (released,
-- parked, failed but not for good), its `finally` is left: the run is ready at once, for that alone.
--
-- A final outcome moves the row: delete from due_work, insert into run, one statement, set-based. Then
-- its waits end. A run that was claimed once and succeeded has none, unless it says `waits`.

-- `rows 1`, and not inlined: so a plan that was made while due_work was small looks rows up one by one,
-- and doesn't read the whole index when there are a million (tests/test_plans.py).
create function orc._outcomes(outcomes jsonb)
returns table (
  tenant text, run uuid, epoch integer, outcome text, output jsonb, error jsonb, retry boolean,
  delay double precision, waiting_for text, until timestamptz, waits jsonb)
language plpgsql stable rows 1 as $$
begin
  return query select * from jsonb_to_recordset(outcomes) as o(
    tenant text, run uuid, epoch integer, outcome text, output jsonb, error jsonb, retry boolean,
    delay double precision, waiting_for text, until timestamptz, waits jsonb);
end $$;
comment on function orc._outcomes(jsonb) is 'Outcomes as rows.';

create function orc._backoff(strategy text, base real, longest real, attempt integer) returns interval
language sql volatile as $$
  select make_interval(secs => least(coalesce(longest, 3600), case coalesce(strategy, 'exponential_jitter')
    when 'fixed' then coalesce(base, 1)
    when 'linear' then coalesce(base, 1) * attempt
    when 'exponential' then coalesce(base, 1) * 2.0 ^ least(attempt - 1, 30)
    else coalesce(base, 1) * 2.0 ^ least(attempt - 1, 30) * (0.5 + random() / 2) end))
$$;
comment on function orc._backoff(text, real, real, integer) is 'The delay before the next attempt.';

create function orc._has_finally(tenant text, pipeline uuid) returns boolean
language sql stable as $$
  select exists (select from orchestrator.pipeline p where p.tenant_id = tenant and p.id = pipeline
                 and p.document @? '$.finally[0]')
$$;
comment on function orc._has_finally(text, uuid) is 'Whether a pipeline has steps that run after a cancel, too.';

-- Ends runs: the rows of due_work that match become rows of run.
create function orc._finish(worker uuid, outcomes jsonb, out finished integer, out tenants text[], out keys text[])
language plpgsql as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_tenants text[];
  v_runs uuid[];
  v_parents uuid[];
  v_kept jsonb;
  v_all_tenants text[];
  v_all_runs uuid[];
begin
  with gone as (
    delete from orchestrator.due_work d using orc._outcomes(outcomes) o
    where d.tenant_id = o.tenant and d.run_id = o.run and d.epoch = o.epoch and d.worker_id = _finish.worker
      and (o.outcome in ('succeeded', 'canceled')
           or d.cancel_requested_at is not null and not orc._has_finally(d.tenant_id, d.pipeline_id)
           or o.outcome = 'failed' and (d.attempt >= d.max_attempts or o.retry is false))
    returning d.*, o.outcome, o.output as its_output, o.error as its_error,
      d.epoch > 1 or d.parent_id is not null or o.outcome <> 'succeeded' or o.waits is not null as may_wait,
      coalesce(pg_column_size(o.output) > orc._inline_bytes(), false) as is_large),
  ended as (
    insert into orchestrator.run (
      tenant_id, id, pipeline_id, worker_id, retry_of, task_id, due_at, started_at, finished_at, epoch, attempt,
      max_attempts, priority, state, queue, kind, flow_id, concurrency_key, input, output, error, labels,
      backoff, backoff_seconds, backoff_limit_seconds, timeout_seconds, nominal_at, event_id, traceparent, correlation_id,
      output_digest, output_bytes)
    select tenant_id, run_id, pipeline_id, worker_id, retry_of, task_id, due_at, started_at, v_now, epoch, attempt,
           max_attempts, priority, case when cancel_requested_at is null then outcome else 'canceled' end, queue, kind,
           flow_id, concurrency_key, input, case when is_large then null else its_output end,
           case when cancel_requested_at is null and outcome = 'failed' then coalesce(its_error, '{"type": "unknown"}')
                else its_error end, labels, backoff, backoff_seconds, backoff_limit_seconds, timeout_seconds, nominal_at,
           event_id, traceparent, correlation_id, case when is_large then orc._digest(its_output) end,
           case when is_large then pg_column_size(its_output) end
    from gone
    returning tenant_id, id, output_digest, state),
  noted as (insert into orchestrator.ending (outcome, runs) select state, count(*) from ended group by state)
  select count(*), array_agg(tenant_id) filter (where concurrency_key is not null),
         array_agg(concurrency_key) filter (where concurrency_key is not null),
         array_agg(tenant_id) filter (where may_wait), array_agg(run_id) filter (where may_wait),
         array_agg(parent_id) filter (where may_wait),
         jsonb_agg(jsonb_build_object('tenant', tenant_id, 'run', run_id, 'output', its_output,
           'digest', (select encode(e.output_digest, 'hex') from ended e where e.tenant_id = gone.tenant_id and e.id = gone.run_id)))
           filter (where is_large), array_agg(tenant_id), array_agg(run_id)
  into finished, tenants, keys, v_tenants, v_runs, v_parents, v_kept, v_all_tenants, v_all_runs from gone;
  if v_kept is not null then
    perform orc._keep_values(v_kept);
  end if;
  if v_runs is not null then
    perform orc._end_waits(v_tenants, v_runs, v_parents);
  end if;
  perform orc._announce(v_all_tenants, v_all_runs);
end $$;
comment on function orc._finish(uuid, jsonb) is 'Moves runs that ended into history.';

-- Runs that go on later: a retry after its delay, a release at once, a parked one when it is woken.
create function orc._put_back(worker uuid, outcomes jsonb, out put_back integer, out tenants text[], out keys text[])
language plpgsql as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_listed text[];
  v_parked uuid[];
begin
  with before as materialized (
    select d.tenant_id, d.run_id, d.epoch, d.attempt, d.started_at, d.worker_id, o.outcome, o.error, o.delay,
           o.waiting_for, o.until, o.outcome = 'released' or d.cancel_requested_at is not null as is_ready
    from orchestrator.due_work d join orc._outcomes(outcomes) o
      on d.tenant_id = o.tenant and d.run_id = o.run and d.epoch = o.epoch
    where d.worker_id = _put_back.worker and o.outcome in ('failed', 'released', 'parked')
      and (d.cancel_requested_at is null or orc._has_finally(d.tenant_id, d.pipeline_id))
    for update of d),
  back as (
    update orchestrator.due_work d
    set worker_id = null, started_at = null,
        state = case when b.is_ready then 'ready' when b.outcome = 'parked' then 'waiting' else 'scheduled' end,
        attempt = d.attempt - case b.outcome when 'failed' then 0 else 1 end,
        due_at = case
          when b.is_ready then orc._not_below(d.tenant_id, d.queue, d.priority, d.due_at)
          when b.outcome = 'parked' then coalesce(b.until, 'infinity')
          else v_now + coalesce(make_interval(secs => case when b.delay is not null then least(greatest(b.delay, 0), 1e8) end),
                                orc._backoff(d.backoff, d.backoff_seconds, d.backoff_limit_seconds, d.attempt)) end,
        waiting_for = case when b.outcome = 'parked' and not b.is_ready then coalesce(b.waiting_for, 'someone') end,
        error = coalesce(b.error, d.error)
    from before b where d.tenant_id = b.tenant_id and d.run_id = b.run_id
    returning d.tenant_id, d.run_id, d.concurrency_key, d.state, d.queue, d.priority),
  tried as (
    insert into orchestrator.attempt (tenant_id, run_id, epoch, attempt, outcome, worker_id, started_at, finished_at, error)
    select tenant_id, run_id, epoch, attempt, case outcome when 'failed' then 'retried' else outcome end, worker_id,
           started_at, v_now, error
    from before
    on conflict do nothing)
  select count(*), array_agg(tenant_id) filter (where concurrency_key is not null and state <> 'ready'),
         array_agg(concurrency_key) filter (where concurrency_key is not null and state <> 'ready'),
         array_agg(orc._list_lane(tenant_id, queue, priority)::text) filter (where state = 'ready'),
         array_agg(run_id) filter (where state = 'waiting')
  into put_back, tenants, keys, v_listed, v_parked from back;
  if v_parked is not null and outcomes @? '$[*].waits' then
    perform orc._stand_at_waits(outcomes, v_parked);
  end if;
end $$;
comment on function orc._put_back(uuid, jsonb) is 'Puts runs back that go on later.';

-- An outcome that had been settled before isn't stale: a worker that lost the answer may ask again.
create function orc._stale(worker uuid, outcomes jsonb) returns uuid[]
language sql stable as $$
  select array_agg(o.run) from orc._outcomes(outcomes) o
  where not exists (select from orchestrator.run r
                    where r.tenant_id = o.tenant and r.id = o.run and r.epoch = o.epoch and r.worker_id = worker)
    and not exists (select from orchestrator.attempt a
                    where a.tenant_id = o.tenant and a.run_id = o.run and a.epoch = o.epoch and a.worker_id = worker
                      and a.outcome <> 'lost')
$$;
comment on function orc._stale(uuid, jsonb) is 'The runs of outcomes that changed nothing, now or before.';

-- Answers the ids that were stale, and the keys that _fill_keys has to look at, after all else.
-- The worker's own lease is looked at first: an ended one gets OR410.
-- Joins by hash or merge would read all of due_work: a plan made while it was small stays in use.
create function orc._settle(worker uuid, outcomes jsonb, out stale uuid[], out tenants text[], out keys text[])
language plpgsql set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
  v_done record;
  v_back record;
  v_canceled record; -- between the two
begin
  perform orc._live_worker(worker);
  if jsonb_typeof(outcomes) <> 'array' then
    perform orc._invalid('outcomes is a list of objects', 'outcomes');
  end if;
  stale := '{}';
  v_done := orc._finish(worker, outcomes);
  tenants := v_done.tenants;
  keys := v_done.keys;
  if v_done.finished = jsonb_array_length(outcomes) then
    return;
  end if;
  v_back := orc._put_back(worker, outcomes);
  tenants := tenants || v_back.tenants;
  keys := keys || v_back.keys;
  if v_done.finished + v_back.put_back < jsonb_array_length(outcomes) then
    v_canceled := orc._finish(worker, outcomes);
    tenants := tenants || v_canceled.tenants;
    keys := keys || v_canceled.keys;
    if outcomes @? '$[*].outcome ? (@ != "succeeded" && @ != "failed" && @ != "released" && @ != "parked" && @ != "canceled")' then
      perform orc._invalid('An outcome is succeeded, failed, released, parked or canceled', 'outcome');
    end if;
    stale := coalesce(orc._stale(worker, outcomes), '{}');
  end if;
end $$;
comment on function orc._settle(uuid, jsonb) is 'Settles outcomes; answers the runs whose lease was stale, and the keys of freed slots.';

create function orc.settle_work(worker uuid, outcomes jsonb) returns table (stale uuid)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_settled constant record := orc._settle(worker, outcomes);
begin
  if v_settled.keys is not null then
    perform orc._fill_keys(v_settled.tenants, v_settled.keys);
  end if;
  return query select unnest(v_settled.stale);
end $$;
comment on function orc.settle_work(uuid, jsonb) is
  'Says what became of claimed runs: a list of {tenant, run, epoch, outcome, …}. Answers the runs whose lease was stale.';
grant execute on function orc.settle_work(uuid, jsonb) to orc_worker;

-- The worker's whole conversation in one round trip and one commit: steps, lines and outcomes in, runs out.
-- `lost` are the runs of steps that came too late; `stale`, of outcomes.
-- Keys are filled once, when everything that frees or wants a slot is done (lock order).
create function orc.exchange_work(
  worker uuid, outcomes jsonb, want integer, after_tenant text default null, steps jsonb default null, lines jsonb default null,
  out runs json, out stale uuid[], out lost uuid[], out next_tenant text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan as $$
declare
  v_worker constant orchestrator.worker := orc._live_worker(worker);
  v_settled record;
  v_due record;
  v_claim record;
  v_tenants text[];
  v_keys text[];
begin
  if steps is not null then
    lost := orc._record_steps(worker, steps);
  end if;
  if lines is not null then
    perform orc._write_log(worker, lines);
  end if;
  if outcomes is not null then
    v_settled := orc._settle(worker, outcomes);
    stale := v_settled.stale;
    v_tenants := v_settled.tenants;
    v_keys := v_settled.keys;
  end if;
  if want > 0 and exists (select from orchestrator.due_work
                          where state in ('scheduled', 'waiting') and due_at <= orchestrator.now()) then
    v_due := orc._promote_due(greatest(want, 100));
    v_tenants := v_tenants || v_due.tenants;
    v_keys := v_keys || v_due.keys;
  end if;
  if v_keys is not null then
    perform orc._fill_keys(v_tenants, v_keys);
  end if;
  if want > 0 then
    v_claim := orc._claim(v_worker, want, after_tenant);
    next_tenant := v_claim.after_tenant;
    runs := v_claim.runs;
  end if;
end $$;
comment on function orc.exchange_work(uuid, jsonb, integer, text, jsonb, jsonb) is
  'Records steps and lines, settles outcomes and claims work, in one transaction: what a worker says and hears.';
grant execute on function orc.exchange_work(uuid, jsonb, integer, text, jsonb, jsonb) to orc_worker;

create function orc.claim_work(worker uuid, want integer default 1, after_tenant text default null)
returns setof orchestrator.due_work
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_runs json;
begin
  select e.runs into v_runs from orc.exchange_work(worker, null, want, after_tenant) as e;
  return query select d.* from json_array_elements(v_runs) with ordinality as r(run, nth)
    join orchestrator.due_work d on d.tenant_id = r.run ->> 0 and d.run_id = (r.run ->> 1)::uuid
    order by r.nth;
end $$;
comment on function orc.claim_work(uuid, integer, text) is 'Gives a worker up to `want` ready runs of its queues.';
grant execute on function orc.claim_work(uuid, integer, text) to orc_worker;

create function orc._held(worker uuid, tenant text, run uuid, epoch integer) returns orchestrator.due_work
language plpgsql as $$
declare
  v_work orchestrator.due_work;
begin
  perform orc._live_worker(worker);
  select * into v_work from orchestrator.due_work d
  where d.tenant_id = tenant and d.run_id = run and d.epoch = _held.epoch and d.worker_id = worker for update;
  if v_work.run_id is null then
    perform orc._gone('This lease on the run is stale', run::text, 'drop the work: somebody else has it, or it ended');
  end if;
  return v_work;
end $$;
comment on function orc._held(uuid, text, uuid, integer) is 'The run that a worker holds, locked; OR410 when it doesn''t.';

create function orc.park_run(
  worker uuid, tenant text, run uuid, epoch integer, waiting_for text, until timestamptz default null) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform orc._held(worker, tenant, run, epoch);
  perform orc.settle_work(worker, jsonb_build_array(jsonb_build_object(
    'tenant', tenant, 'run', run, 'epoch', epoch, 'outcome', 'parked', 'waiting_for', waiting_for, 'until', until)));
end $$;
comment on function orc.park_run(uuid, text, uuid, integer, text, timestamptz) is
  'Gives a run back until it is woken, or until a time: it holds no worker meanwhile.';
grant execute on function orc.park_run to orc_worker;

create function orc.wake_run(tenant text, run uuid) returns boolean
language sql security definer set search_path = pg_catalog, pg_temp as $$
  select orc._wake(tenant, run)
$$;
comment on function orc.wake_run(text, uuid) is 'Lets a waiting run go on; false when it doesn''t wait. A run that stands at waits looks at them, and parks again.';
grant execute on function orc.wake_run(text, uuid) to orc_api, orc_worker;
