-- What people do to runs and queues: cancel, retry, pause. Each writes one audit row.

create function orc._fingerprint(error jsonb) returns text
language sql immutable parallel safe as $$
  select left(md5(concat_ws(':', error ->> 'type', regexp_replace(error ->> 'step', '\[[0-9]+\]', '[]', 'g'),
    regexp_replace(left(error ->> 'message', 500), '[0-9a-f]{8}-[0-9a-f-]{27}|0x[0-9a-f]+|[0-9]+|''[^'']*''|"[^"]*"', '?', 'gi'))), 12)
$$;
comment on function orc._fingerprint(jsonb) is 'What failures of the same cause have in common: type, step whatever its iteration, and the message without its numbers, ids and quotes.';

-- A canceled run that has begun is taken up once more, for its `finally`. It waits for nothing any more.
create function orc._leave_finally(work orchestrator.due_work) returns text
language plpgsql as $$
declare
  v_state text;
begin
  update orchestrator.due_work d
  set cancel_requested_at = coalesce(d.cancel_requested_at, orchestrator.now()), waiting_for = null,
      state = case when d.state in ('scheduled', 'waiting') then 'scheduled' else d.state end,
      due_at = case when d.state in ('scheduled', 'waiting') then orchestrator.now() else d.due_at end
  where d.tenant_id = work.tenant_id and d.run_id = work.run_id
  returning d.state into v_state;
  perform orc._end_waits(array[work.tenant_id], array[work.run_id], array[null::uuid]);
  perform orc._hint(work.queue);
  return v_state;
end $$;
comment on function orc._leave_finally(orchestrator.due_work) is 'Lets nothing of a run go on but its finally.';

-- A run that isn't running ends at once, or is taken up for its `finally` alone. A running one is told to stop,
-- and can only end as canceled: it keeps its slot until it has stopped, so a limit isn't exceeded meanwhile.
create function orc.cancel_run(tenant text, run uuid, why text default null)
returns table (state text, canceled boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_work orchestrator.due_work;
begin
  perform orc._require('runs:write', 'tasks:write');
  select * into v_work from orchestrator.due_work d
  where d.tenant_id = tenant and d.run_id = run and orc._sees_task(tenant, d.task_id) for update;
  if v_work.run_id is null then
    select r.state into cancel_run.state from orchestrator.run r
    where r.tenant_id = tenant and r.id = run and orc._sees_task(tenant, r.task_id);
    if not found then
      perform orc._not_found('Run not found: ' || run, run::text);
    end if;
    return query select cancel_run.state, false;
    return;
  end if;
  perform orc._audit(tenant, 'cancel_run', run::text, jsonb_build_object('why', why, 'state', v_work.state));
  if v_work.state = 'running' then
    update orchestrator.due_work d set cancel_requested_at = coalesce(d.cancel_requested_at, orchestrator.now())
    where d.tenant_id = tenant and d.run_id = run;
    perform pg_notify('orc_cancel', run::text);
    return query select 'running', true;
    return;
  elsif v_work.epoch > 0 and orc._has_finally(tenant, v_work.pipeline_id) then
    return query select orc._leave_finally(v_work), true;
    return;
  end if;
  delete from orchestrator.due_work d where d.tenant_id = tenant and d.run_id = run;
  insert into orchestrator.run (
    tenant_id, id, pipeline_id, retry_of, task_id, due_at, finished_at, epoch, attempt, max_attempts, priority, state,
    queue, kind, flow_id, concurrency_key, input, error, labels, backoff, backoff_seconds, backoff_limit_seconds,
    timeout_seconds, nominal_at, event_id)
  values (v_work.tenant_id, v_work.run_id, v_work.pipeline_id, v_work.retry_of, v_work.task_id, v_work.due_at,
          orchestrator.now(), v_work.epoch, v_work.attempt, v_work.max_attempts, v_work.priority, 'canceled',
          v_work.queue, v_work.kind, v_work.flow_id, v_work.concurrency_key, v_work.input, v_work.error, v_work.labels,
          v_work.backoff, v_work.backoff_seconds, v_work.backoff_limit_seconds, v_work.timeout_seconds,
          v_work.nominal_at, v_work.event_id);
  perform orc._end_waits(array[tenant], array[run], array[v_work.parent_id]);
  perform orc._announce(array[tenant], array[run]);
  if v_work.concurrency_key is not null then
    perform orc._fill_keys(array[tenant], array[v_work.concurrency_key]);
  end if;
  return query select 'canceled', true;
end $$;
comment on function orc.cancel_run(text, uuid, text) is
  'Ends a run that isn''t running, tells a running one to stop; one that has begun is taken up once more for its finally. A finished one stays as it is: canceled is false.';
grant execute on function orc.cancel_run to orc_api;

-- Retries of one tenant come one after the other: each sees what the one before it made.
create function orc._retry_in_turn(tenant text) returns void
language sql as $$
  select pg_advisory_xact_lock(hashtextextended(format('orc retry %L', tenant), 0))
$$;
comment on function orc._retry_in_turn(text) is 'Lets retries of a tenant wait for each other.';

create function orc._retry(r orchestrator.run, due_at timestamptz) returns uuid
language plpgsql as $$
declare
  v_new uuid;
begin
  select e.run_id into v_new from orc.enqueue(
    tenant => r.tenant_id, pipeline => to_jsonb(r.pipeline_id), input => r.input, queue => r.queue, priority => r.priority,
    due_at => due_at, concurrency_key => r.concurrency_key, max_attempts => r.max_attempts, labels => r.labels,
    backoff => r.backoff, backoff_seconds => r.backoff_seconds, backoff_limit_seconds => r.backoff_limit_seconds,
    timeout_seconds => r.timeout_seconds, kind => r.kind, retry_of => r.id, on_conflict => 'queue') as e;
  if r.task_id is not null then
    perform orc._belongs_to(r.tenant_id, v_new, r.task_id, r.event_id, r.nominal_at);
  end if;
  return v_new;
end $$;
comment on function orc._retry(orchestrator.run, timestamptz) is 'A new run like a finished one.';

create function orc.retry_run(tenant text, run uuid) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_run orchestrator.run;
  v_new uuid;
begin
  perform orc._require('runs:write', 'tasks:write');
  perform orc._retry_in_turn(tenant);
  select * into v_run from orchestrator.run r where r.tenant_id = tenant and r.id = run and orc._sees_task(tenant, r.task_id);
  if v_run.id is null then
    if exists (select from orchestrator.due_work d
               where d.tenant_id = tenant and d.run_id = run and orc._sees_task(tenant, d.task_id)) then
      perform orc._conflict('The run has not ended yet', run::text, 'cancel it first, or wait for it');
    end if;
    perform orc._not_found('Run not found: ' || run, run::text);
  end if;
  if exists (select from orchestrator.due_work d where d.tenant_id = tenant and d.retry_of = run) then
    perform orc._conflict('The run is being retried already', run::text, 'wait for that retry, or cancel it');
  end if;
  v_new := orc._retry(v_run, null);
  perform orc._audit(tenant, 'retry_run', run::text, jsonb_build_object('run', v_new));
  return v_new;
end $$;
comment on function orc.retry_run(text, uuid) is 'Makes a new run with the pipeline, input and settings of a finished one, which it names as retry_of. One at a time.';
grant execute on function orc.retry_run(text, uuid) to orc_api;

-- Due times are spread so that at most `per_second` start in a second.
create function orc.retry_where(
  tenant text, queue text default null, error_type text default null, fingerprint text default null,
  since timestamptz default null, until timestamptz default null, per_second double precision default 100, most integer default 1000,
  dry_run boolean default true)
returns table (run uuid, retried_as uuid)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  if per_second > 0 is not true or most between 1 and 100000 is not true then
    perform orc._invalid('per_second is more than 0, most is 1 to 100000', 'per_second');
  end if;
  perform orc._retry_in_turn(tenant);
  return query
    with chosen as materialized (
      select r, row_number() over (order by r.id) as nth from orchestrator.run r
      where r.tenant_id = tenant and r.state = 'failed'
        and (retry_where.queue is null or r.queue = retry_where.queue)
        and (error_type is null or r.error ->> 'type' = error_type)
        and (fingerprint is null or orc._fingerprint(r.error) = fingerprint)
        and r.id >= orchestrator.id_floor(coalesce(since, '-infinity'))
        and (until is null or r.id < orchestrator.id_floor(until))
        and not exists (select from orchestrator.due_work d where d.tenant_id = tenant and d.retry_of = r.id)
        and not exists (select from orchestrator.run o where o.tenant_id = tenant and o.retry_of = r.id)
      order by r.id limit most)
    select (c.r).id, case when not dry_run then orc._retry(c.r, orchestrator.now() + make_interval(secs => (c.nth - 1) / per_second)) end
    from chosen c;
  if not dry_run then
    perform orc._audit(tenant, 'retry_where', coalesce(retry_where.queue, 'all queues'),
                       jsonb_build_object('error_type', error_type, 'fingerprint', fingerprint, 'most', most));
  end if;
end $$;
comment on function orc.retry_where is
  'Retries failed runs that weren''t retried yet, by queue, type of error, fingerprint and time of making. Says what it would do, until dry_run is false.';
grant execute on function orc.retry_where to orc_api;

create function orc._queue(tenant text, queue text) returns void
language plpgsql as $$
begin
  if not exists (select from orchestrator.tenant t where t.id = tenant) then
    perform orc._not_found('There is no such tenant', tenant);
  elsif length(queue) between 1 and 100 is not true then
    perform orc._invalid('A queue has a name of 1 to 100 characters', 'queue');
  end if;
  insert into orchestrator.queue (tenant_id, name) values (tenant, queue) on conflict do nothing;
end $$;
comment on function orc._queue(text, text) is 'Writes a queue down about which something is to be said.';

-- Waits until claims under way are over; claims that come wait for this transaction. So no claim that
-- saw a queue as it was before ends after it is paused or limited.
create function orc._between_claims() returns void
language sql as $$
  select pg_advisory_xact_lock(7303779, 3)
$$;
comment on function orc._between_claims() is 'Waits for claims under way, and lets later ones wait.';

create function orc.pause_queue(tenant text, queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s' as $$
begin
  perform orc._between_claims();
  perform orc._queue(tenant, queue);
  update orchestrator.queue q set paused_at = orchestrator.now(),
    paused_by = coalesce(nullif(current_setting('orchestrator.actor', true), ''), session_user)
  where q.tenant_id = tenant and q.name = queue and q.paused_at is null;
  perform orc._audit(tenant, 'pause_queue', queue);
end $$;
comment on function orc.pause_queue(text, text) is 'Lets nothing more of a queue be claimed; what runs goes on.';
grant execute on function orc.pause_queue(text, text) to orc_api;

create function orc.resume_queue(tenant text, queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update orchestrator.queue q set paused_at = null, paused_by = null where q.tenant_id = tenant and q.name = queue;
  perform orc._hint(queue);
  perform orc._audit(tenant, 'resume_queue', queue);
end $$;
comment on function orc.resume_queue(text, text) is 'Lets a paused queue be claimed again.';
grant execute on function orc.resume_queue(text, text) to orc_api;

create function orc.limit_queue(tenant text, queue text, max_running integer) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s' as $$
begin
  if max_running < 0 then
    perform orc._invalid('A limit is not negative', 'max_running', 'null takes it away');
  end if;
  perform orc._between_claims();
  perform orc._queue(tenant, queue);
  update orchestrator.queue q set max_running = $3, lowered_from = (
    select count(*) from orchestrator.due_work d where d.tenant_id = tenant and d.queue = $2 and d.state = 'running')
  where q.tenant_id = tenant and q.name = queue;
  perform orc._audit(tenant, 'limit_queue', queue, jsonb_build_object('max_running', max_running));
end $$;
comment on function orc.limit_queue(text, text, integer) is 'Lets at most so many runs of a queue run at once; null: any number.';
grant execute on function orc.limit_queue(text, text, integer) to orc_api;

create function orc.weigh_tenant(tenant text, weight double precision) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if (weight > 0 and weight <= 1000) is not true then
    perform orc._invalid('A weight is more than 0 and at most 1000', 'weight');
  end if;
  update orchestrator.tenant t set weight = $2 where t.id = tenant;
  if not found then
    perform orc._not_found('There is no such tenant', tenant);
  end if;
  perform orc._audit(tenant, 'weigh_tenant', tenant, jsonb_build_object('weight', weight));
end $$;
comment on function orc.weigh_tenant(text, double precision) is 'Sets a tenant''s share of the workers while others have work, too.';
