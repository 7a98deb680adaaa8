-- What people do to runs and queues: cancel, retry, pause. Each writes one audit row.

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
    timeout_seconds, nominal_at, event_id, traceparent, correlation_id)
  values (v_work.tenant_id, v_work.run_id, v_work.pipeline_id, v_work.retry_of, v_work.task_id, v_work.due_at,
          orchestrator.now(), v_work.epoch, v_work.attempt, v_work.max_attempts, v_work.priority, 'canceled',
          v_work.queue, v_work.kind, v_work.flow_id, v_work.concurrency_key, v_work.input, v_work.error, v_work.labels,
          v_work.backoff, v_work.backoff_seconds, v_work.backoff_limit_seconds, v_work.timeout_seconds,
          v_work.nominal_at, v_work.event_id, v_work.traceparent, v_work.correlation_id);
  insert into orchestrator.ending (outcome, runs) values ('canceled', 1);
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

-- A new run that has the records of what came before a step, as they were recorded: the worker takes it up as a run that had
-- come so far. Its first claim is therefore its second epoch. `keep` are the outermost steps whose records it has.
create function orc.retry_from(tenant text, run uuid, step text, keep text[]) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_new constant uuid := orc.retry_run(tenant, run);
begin
  update orchestrator.due_work d set epoch = 1 where d.tenant_id = tenant and d.run_id = v_new;
  insert into orchestrator.step (tenant_id, run_id, step_id, epoch, attempt, state, started_at, finished_at, arguments, output, error,
                                 output_digest, output_bytes, is_cached)
  select s.tenant_id, v_new, s.step_id, 1, s.attempt, s.state, s.started_at, s.finished_at, s.arguments, s.output, s.error,
         s.output_digest, s.output_bytes, s.is_cached
  from orchestrator.step s
  where s.tenant_id = tenant and s.run_id = run and substring(s.step_id from '^[^[/]+') = any (keep)
    and (s.state in ('succeeded', 'skipped') or s.state = 'failed' and s.error ->> 'caught' = 'true');
  insert into orchestrator.value (tenant_id, day, digest, bytes, body)
  select v.tenant_id, orc._day(v_new), v.digest, v.bytes, v.body from orchestrator.value v
  where v.tenant_id = tenant and v.day = orc._day(run) and v.digest in (
    select s.output_digest from orchestrator.step s where s.tenant_id = tenant and s.run_id = v_new)
  order by v.digest on conflict do nothing;
  perform orc._audit(tenant, 'retry_from', run::text, jsonb_build_object('run', v_new, 'step', step));
  return v_new;
end $$;
comment on function orc.retry_from(text, uuid, text, text[]) is
  'Makes a new run like a finished one, which goes on from a step: it keeps the records of the outermost steps that are named.';
grant execute on function orc.retry_from(text, uuid, text, text[]) to orc_api;

create function orc.pipeline_of(tenant text, run uuid) returns jsonb
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select p.document from orchestrator.pipeline p
  where p.tenant_id = tenant and p.id = coalesce(
    (select r.pipeline_id from orchestrator.run r where r.tenant_id = tenant and r.id = run),
    (select d.pipeline_id from orchestrator.due_work d where d.tenant_id = tenant and d.run_id = run))
$$;
comment on function orc.pipeline_of(text, uuid) is 'What a run does; null when there is no such run.';
grant execute on function orc.pipeline_of(text, uuid) to orc_api, orc_reader;

-- Due times are spread so that at most `per_second` start in a second.
create function orc.retry_where(
  tenant text, queue text default null, error_type text default null, fingerprint text default null,
  since timestamptz default null, until timestamptz default null, per_second double precision default 100, most integer default 1000,
  dry_run boolean default true, filter jsonb default '{}', owner uuid default null)
returns table (run uuid, retried_as uuid)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_filter constant jsonb := filter || jsonb_strip_nulls(jsonb_build_object(
    'queue', retry_where.queue, 'error_type', error_type, 'fingerprint', fingerprint, 'start_time', since, 'end_time', until));
  v_runs uuid[];
begin
  perform orc._require('runs:write');
  if per_second > 0 is not true or most between 1 and 100000 is not true then
    perform orc._invalid('per_second is more than 0, most is 1 to 100000', 'per_second');
  end if;
  perform orc._check_filter(v_filter);
  perform orc._retry_in_turn(tenant);
  v_runs := orc._find_retryable(tenant, v_filter, orc._owner(owner), most);
  return query
    select r.id, case when not dry_run then orc._retry(r, orchestrator.now() + make_interval(secs => (c.nth - 1) / per_second)) end
    from unnest(v_runs) with ordinality as c(id, nth)
    join orchestrator.run r on r.tenant_id = tenant and r.id = c.id order by c.nth;
  if not dry_run then
    perform orc._audit(tenant, 'retry_where', coalesce(v_filter ->> 'queue', 'all queues'), v_filter || jsonb_build_object('most', most));
  end if;
end $$;
comment on function orc.retry_where is
  'Retries failed runs that weren''t retried yet, by a filter as lists have it, or by queue, type of error, fingerprint and time of making. Says what it would do, until dry_run is false.';
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
