-- Workers: a lease each. A worker that ended, or was given up, is fenced for ever: it registers anew.

create function orc.register_worker(queues text[], slots integer, lease interval default '30 seconds', name text default null)
returns table (worker uuid, expires_at timestamptz)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  if cardinality(register_worker.queues) between 1 and 100 is not true or array_position(register_worker.queues, null) is not null then
    perform orc._invalid('A worker takes from 1 to 100 queues', 'queues');
  elsif register_worker.slots between 1 and 100000 is not true then
    perform orc._invalid('A worker has 1 to 100000 slots', 'slots');
  elsif register_worker.lease between '100 milliseconds' and '1 hour' is not true then
    perform orc._invalid('A lease is 100 milliseconds to 1 hour', 'lease');
  end if;
  return query
    insert into orchestrator.worker (name, queues, slots, lease, expires_at)
    values (coalesce(register_worker.name, 'a worker'), register_worker.queues, register_worker.slots, register_worker.lease,
            orchestrator.now() + register_worker.lease)
    returning id, expires_at;
end $$;
comment on function orc.register_worker(text[], integer, interval, text) is 'Makes a worker with a lease; renew_worker keeps it.';
grant execute on function orc.register_worker to orc_worker;

-- One small update, whatever number of runs it holds. Answers the runs that it is to stop.
create function orc.renew_worker(worker uuid)
returns table (expires_at timestamptz, canceled uuid[])
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off as $$
#variable_conflict use_column
begin
  update orchestrator.worker w set expires_at = orchestrator.now() + w.lease
  where w.id = renew_worker.worker and w.ended_at is null and w.expires_at > orchestrator.now()
  returning w.expires_at into renew_worker.expires_at;
  if not found then
    perform orc._live_worker(worker);
  end if;
  return query select renew_worker.expires_at, array(
    select d.run_id from orchestrator.due_work d
    where d.state = 'running' and d.worker_id = renew_worker.worker and d.cancel_requested_at is not null);
end $$;
comment on function orc.renew_worker(uuid) is 'Keeps a worker''s lease; OR410 when it has ended. Answers the runs that are to stop.';
grant execute on function orc.renew_worker(uuid) to orc_worker;

create function orc.set_idle(worker uuid, is_idle boolean) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
  update orchestrator.worker w set is_idle = $2 where w.id = worker and w.is_idle <> $2
$$;
comment on function orc.set_idle(uuid, boolean) is 'Says that a worker waits for work: enqueues then send it a hint.';
grant execute on function orc.set_idle(uuid, boolean) to orc_worker;

create function orc._lost_error() returns jsonb
language sql immutable as $$
  select '{"type": "lost", "message": "the worker went silent while it held this run"}'::jsonb
$$;
comment on function orc._lost_error() is 'The error of an attempt whose worker went silent.';

create function orc._end_lost(lost orchestrator.due_work[]) returns void
language sql as $$
  with gone as (
    delete from orchestrator.due_work d using unnest(lost) l
    where d.tenant_id = l.tenant_id and d.run_id = l.run_id
      and (l.attempt >= l.max_attempts or l.cancel_requested_at is not null)
    returning d.*),
  ended as (
  insert into orchestrator.run (
    tenant_id, id, pipeline_id, worker_id, retry_of, task_id, due_at, started_at, finished_at, epoch, attempt,
    max_attempts, priority, state, queue, kind, flow_id, concurrency_key, input, error, labels,
    backoff, backoff_seconds, backoff_limit_seconds, timeout_seconds, nominal_at, event_id, traceparent, correlation_id)
  select tenant_id, run_id, pipeline_id, worker_id, retry_of, task_id, due_at, started_at, orchestrator.now(), epoch,
         attempt, max_attempts, priority, case when cancel_requested_at is null then 'failed' else 'canceled' end, queue,
         kind, flow_id, concurrency_key, input,
         case when cancel_requested_at is null then orc._lost_error() end, labels, backoff, backoff_seconds,
         backoff_limit_seconds, timeout_seconds, nominal_at, event_id, traceparent, correlation_id
  from gone
  returning state)
  insert into orchestrator.ending (outcome, runs) select state, count(*) from ended group by state
$$;
comment on function orc._end_lost(orchestrator.due_work[]) is 'Ends lost runs that have no attempts left, or were told to cancel.';

-- What ended workers left. Their runs go on as retries with the attempt counted; a run without
-- attempts left, or one that was told to cancel, ends.
create function orc._release_runs(most integer) returns integer
language plpgsql set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_lost orchestrator.due_work[];
begin
  select array_agg(d::orchestrator.due_work) into v_lost from (
    select d.* from orchestrator.due_work d
    where d.state = 'running'
      and not exists (select from orchestrator.worker w where w.id = d.worker_id and w.ended_at is null)
    limit most for update skip locked) as d;
  if v_lost is null then
    return 0;
  end if;
  insert into orchestrator.attempt (tenant_id, run_id, epoch, attempt, outcome, worker_id, started_at, finished_at, error)
  select tenant_id, run_id, epoch, attempt, 'lost', worker_id, started_at, v_now, orc._lost_error()
  from unnest(v_lost) where attempt < max_attempts and cancel_requested_at is null;
  update orchestrator.due_work d
  set state = 'scheduled', worker_id = null, started_at = null, error = orc._lost_error(),
      due_at = v_now + orc._backoff(d.backoff, d.backoff_seconds, d.backoff_limit_seconds, d.attempt)
  from unnest(v_lost) l
  where d.tenant_id = l.tenant_id and d.run_id = l.run_id and l.attempt < l.max_attempts and l.cancel_requested_at is null;
  perform orc._end_lost(v_lost);
  perform orc._end_waits(array_agg(tenant_id), array_agg(run_id), array_agg(parent_id)),
          orc._announce(array_agg(tenant_id), array_agg(run_id))
  from unnest(v_lost) where attempt >= max_attempts or cancel_requested_at is not null having count(*) > 0;
  perform orc._fill_keys(array_agg(tenant_id), array_agg(concurrency_key)) from unnest(v_lost) where concurrency_key is not null;
  return cardinality(v_lost);
end $$;
comment on function orc._release_runs(integer) is 'Takes runs back from workers that ended.';

create function orc.release_expired_work(most integer default 1000) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update orchestrator.worker w set ended_at = orchestrator.now(), ended_how = 'expired', is_idle = false
  where w.id in (select e.id from orchestrator.worker e
                 where e.ended_at is null and e.expires_at <= orchestrator.now() for update skip locked);
  return orc._release_runs(most);
end $$;
comment on function orc.release_expired_work(integer) is
  'Gives up workers whose lease ran out and takes their runs back; answers how many.';
grant execute on function orc.release_expired_work(integer) to orc_worker;

create function orc.end_worker(worker uuid) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
  update orchestrator.worker w set ended_at = orchestrator.now(), ended_how = 'stopped', is_idle = false
  where w.id = worker and w.ended_at is null
$$;
comment on function orc.end_worker(uuid) is 'A worker''s farewell. What it still holds is taken back by the next sweep.';
grant execute on function orc.end_worker(uuid) to orc_worker;

create function orc.held_work(worker uuid) returns table (tenant text, run uuid, epoch integer)
language sql stable security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off as $$
  select d.tenant_id, d.run_id, d.epoch from orchestrator.due_work d where d.state = 'running' and d.worker_id = worker
$$;
comment on function orc.held_work(uuid) is
  'The runs that a worker holds: what it asks for when an answer was lost that may have handed some out.';
grant execute on function orc.held_work(uuid) to orc_worker;
