-- Invariants of work that no constraint can hold, and why a run is where it is.

create function orc._check_work() returns table (invariant text, subject text, detail text)
language sql stable as $$
  select 'a_run_is_live_or_finished', d.run_id::text, 'it stands in due_work and in run'
  from orchestrator.due_work d where exists (select from orchestrator.run r where r.tenant_id = d.tenant_id and r.id = d.run_id)
  union all
  select 'a_running_run_has_a_worker_that_exists', d.run_id::text, format('worker %s is not known', d.worker_id)
  from orchestrator.due_work d
  where d.state = 'running' and not exists (select from orchestrator.worker w where w.id = d.worker_id)
  union all
  select 'a_key_is_not_exceeded', format('%s %s', d.tenant_id, d.concurrency_key), format('%s of %s slots', count(*), c.max_running)
  from orchestrator.due_work d join orchestrator.concurrency c on c.tenant_id = d.tenant_id and c.key = d.concurrency_key
  where d.state in ('ready', 'running') and d.concurrency_key is not null
  group by d.tenant_id, d.concurrency_key, c.max_running, c.lowered_from
  having count(*) > greatest(c.max_running, c.lowered_from)
  union all
  select 'a_key_has_a_limit', format('%s %s', d.tenant_id, d.concurrency_key), 'orchestrator.concurrency doesn''t know it'
  from orchestrator.due_work d
  where d.concurrency_key is not null
    and not exists (select from orchestrator.concurrency c where c.tenant_id = d.tenant_id and c.key = d.concurrency_key)
  union all
  select 'a_queue_is_not_exceeded', format('%s %s', q.tenant_id, q.name), format('%s of %s running', count(*), q.max_running)
  from orchestrator.due_work d join orchestrator.queue q on q.tenant_id = d.tenant_id and q.name = d.queue
  where d.state = 'running' group by q.tenant_id, q.name, q.max_running, q.lowered_from
  having q.max_running is not null and count(*) > greatest(q.max_running, q.lowered_from)
  union all
  select 'a_canceled_run_has_only_its_finally_left', d.run_id::text, format('it is %s, and was canceled at %s', d.state, d.cancel_requested_at)
  from orchestrator.due_work d
  where d.cancel_requested_at is not null and d.state <> 'running'
    and (d.state = 'waiting' or d.epoch = 0 or not orc._has_finally(d.tenant_id, d.pipeline_id))
  union all
  select 'a_run_has_a_pipeline', d.run_id::text, format('pipeline %s is not stored', d.pipeline_id)
  from orchestrator.due_work d
  where not exists (select from orchestrator.pipeline p where p.tenant_id = d.tenant_id and p.id = d.pipeline_id)
  union all
  select 'an_attempt_ends_once', a.run_id::text, format('epoch %s was %s, and ended the run', a.epoch, a.outcome)
  from orchestrator.attempt a join orchestrator.run r
    on r.tenant_id = a.tenant_id and r.id = a.run_id and r.epoch = a.epoch and r.worker_id is not null
  union all
  select 'a_ready_lane_is_listed', format('%s %s %s', d.tenant_id, d.queue, d.priority), 'orc.advance_lanes() lists it'
  from (select distinct tenant_id, queue, priority from orchestrator.due_work where state = 'ready') as d
  where not exists (select from orchestrator.lane l
                    where l.tenant_id = d.tenant_id and l.queue = d.queue and l.priority = d.priority)
$$;
comment on function orc._check_work() is 'Invariants of work.';

-- What holds a run back that is due: its queue, its workers, or the runs before it.
create function orc._why_queue(d orchestrator.due_work) returns table (cause text, evidence jsonb, clears text)
language plpgsql stable as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_running bigint;
  q orchestrator.queue;
begin
  select * into q from orchestrator.queue o where o.tenant_id = d.tenant_id and o.name = d.queue;
  if q.paused_at is not null then
    return query select 'queue paused', jsonb_build_object('queue', q.name, 'since', q.paused_at, 'by', q.paused_by),
      'when orc.resume_queue is called';
  end if;
  select count(*) into v_running from orchestrator.due_work o
  where o.tenant_id = d.tenant_id and o.queue = d.queue and o.state = 'running';
  if v_running >= q.max_running then
    return query select 'queue full', jsonb_build_object('queue', q.name, 'limit', q.max_running, 'running', v_running),
      'when one of them ends';
  end if;
  if not exists (select from orchestrator.worker w where w.ended_at is null and w.expires_at > v_now and d.queue = any (w.queues)) then
    return query select 'no live worker', jsonb_build_object('queue', d.queue, 'last', (
      select max(w.expires_at) from orchestrator.worker w where d.queue = any (w.queues))),
      format('when a worker is started: bin/worker --queues %s', d.queue);
  elsif d.state in ('ready', 'scheduled') and d.due_at <= v_now then
    return query select 'next in line', jsonb_build_object('before_it', (
      select count(*) from (select from orchestrator.due_work b
        where b.tenant_id = d.tenant_id and b.queue = d.queue and b.state = 'ready'
          and (b.priority, b.due_at, b.run_id) < (d.priority, d.due_at, d.run_id) limit 10000) as t)),
      'when a worker has a free slot';
  end if;
end $$;
comment on function orc._why_queue(orchestrator.due_work) is 'Causes that lie in the queue of a run.';

-- What a parked run waits for: its waits, or only its time.
create function orc._why_waits(d orchestrator.due_work) returns table (cause text, evidence jsonb, clears text)
language plpgsql stable as $$
begin
  return query
    select format('waiting for %s', case w.kind when 'event' then 'an event' when 'callback' then 'a callback'
             when 'approval' then 'an approval' when 'child' then 'another run' else 'a decision' end),
           jsonb_strip_nulls(jsonb_build_object(
             'step', w.step_id, 'since', w.registered_at, 'deadline', w.deadline, 'topic', w.topic, 'run', w.child_run,
             'from', w.who, 'needed', w.needed, 'given', case when w.kind = 'approval' then coalesce(jsonb_array_length(w.answer), 0) end)),
           case w.kind
             when 'event' then format('when an event with topic %L fits', w.topic)
             when 'callback' then 'when its token is answered: POST /callbacks/{token}'
             when 'approval' then 'when they approve, or one rejects: orc.approve_run'
             when 'child' then 'when that run ends: orc.why says what it waits for'
             else 'when somebody says whether to call again (approve) or to fail (reject): orc.approve_run' end
           || case when w.deadline is null then '' else ', or at its deadline' end
    from orchestrator.wait w
    where w.tenant_id = d.tenant_id and w.run_id = d.run_id and w.state = 'waiting'
    order by w.deadline, w.step_id;
  if not found then
    return query select 'waiting for ' || d.waiting_for, jsonb_build_object('until', nullif(d.due_at, 'infinity')),
      'when it is woken, or at that time';
  end if;
end $$;
comment on function orc._why_waits(orchestrator.due_work) is 'Causes that lie in what a run waits for.';

-- Every cause, the first that must clear first.
create function orc.why(run uuid, tenant text)
returns table (cause text, evidence jsonb, clears text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_now constant timestamptz := orchestrator.now();
  d orchestrator.due_work;
  r orchestrator.run;
begin
  perform orc._require('runs:read', 'tasks:read');
  select * into d from orchestrator.due_work w
  where w.run_id = why.run and w.tenant_id = why.tenant and orc._sees_task(why.tenant, w.task_id);
  if d.run_id is null then
    select * into r from orchestrator.run o
    where o.id = why.run and o.tenant_id = why.tenant and orc._sees_task(why.tenant, o.task_id);
    if r.id is null then
      perform orc._not_found('Run not found: ' || run, run::text);
    end if;
    return query select case r.state when 'canceled' then 'canceled' else 'ended' end,
      jsonb_build_object('state', r.state, 'finished_at', r.finished_at, 'error', r.error), 'never: orc.retry_run makes a new run';
    return;
  end if;
  if d.cancel_requested_at is not null then
    return query select case d.state when 'running' then 'told to cancel' else 'canceled, but for its finally' end,
      jsonb_strip_nulls(jsonb_build_object('since', d.cancel_requested_at, 'worker', case when not orc._is_bound() then d.worker_id end)),
      case d.state when 'running' then 'when its worker stops it, or loses its lease' else 'when a worker has run its finally' end;
  end if;
  if d.state = 'running' then
    return query select 'running', case when not orc._is_bound() then jsonb_build_object('worker', w.id) else '{}' end
      || jsonb_build_object('name', w.name, 'since', d.started_at, 'leased_until', w.expires_at, 'ended', w.ended_how), case when w.ended_at is null and w.expires_at > v_now then 'when the worker settles it'
                            else 'when orc.release_expired_work() takes it back' end
      from orchestrator.worker w where w.id = d.worker_id;
    return;
  end if;
  if d.held_due_at is not null then
    return query select 'task paused', jsonb_build_object('task', d.task_id, 'since', t.paused_at, 'due_at', d.held_due_at),
      'when orc.resume_task is called' from orchestrator.task t where t.tenant_id = d.tenant_id and t.id = d.task_id;
    return;
  end if;
  if d.state = 'waiting' then
    return query select * from orc._why_waits(d);
    return;
  end if;
  if d.state = 'scheduled' and d.due_at > v_now then
    return query select case when d.attempt > 0 then 'retry delay' else 'not due' end,
      jsonb_build_object('due_at', d.due_at, 'attempt', d.attempt, 'error', d.error), format('at %s', d.due_at);
  end if;
  if d.state = 'blocked' then
    return query select case when c.max_running > (select count(*) from orchestrator.due_work h where h.tenant_id = d.tenant_id
        and h.concurrency_key = d.concurrency_key and h.state in ('ready', 'running')) then 'key free, not given yet' else 'key full' end, jsonb_build_object('key', d.concurrency_key, 'limit', c.max_running, 'held_by', array(
        select h.run_id from orchestrator.due_work h
        where h.tenant_id = d.tenant_id and h.concurrency_key = d.concurrency_key and h.state in ('ready', 'running') limit 20),
      'before_it', (select count(*) from orchestrator.due_work b where b.tenant_id = d.tenant_id
        and b.concurrency_key = d.concurrency_key and b.state = 'blocked' and (b.priority, b.due_at, b.run_id) < (d.priority, d.due_at, d.run_id))),
      'when one of them ends, or orc.fill_keys() gives a free slot'
      from orchestrator.concurrency c where c.tenant_id = d.tenant_id and c.key = d.concurrency_key;
  end if;
  return query select * from orc._why_queue(d);
end $$;
comment on function orc.why(uuid, text) is 'Why a run of a tenant is where it is: every cause with its evidence, and when it clears.';
grant execute on function orc.why(uuid, text) to orc_api, orc_worker, orc_reader;

create function orc.why(run uuid)
returns table (cause text, evidence jsonb, clears text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select w.* from (
    select coalesce((select d.tenant_id from orchestrator.due_work d where d.run_id = run),
                    (select r.tenant_id from orchestrator.run r where r.id = run), '')) as whose(tenant)
  cross join lateral orc.why(run, whose.tenant) as w
$$;
comment on function orc.why(uuid) is 'The same of a run of any tenant: for those who may see all of them.';
grant execute on function orc.why(uuid) to orc_reader;

-- What somebody who watches a run asks again and again. `since` is `seen` of the answer before, or a little earlier: a
-- step may be seen twice, as what is recorded first may be committed last.
create function orc.follow_run(tenant text, run uuid, since timestamptz default null)
returns table (state text, output jsonb, error jsonb, steps jsonb, seen timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  perform orc._require('runs:read', 'tasks:read', 'runs:write', 'tasks:write');
  return query
    select r.state, r.output, r.error, coalesce((
      select jsonb_agg(jsonb_build_object('step', s.step_id, 'epoch', s.epoch, 'attempt', s.attempt, 'state', s.state, 'error', s.error,
                                          'seconds', extract(epoch from s.finished_at - s.started_at))
                       order by coalesce(s.finished_at, s.started_at), s.step_id)
      from orchestrator.step s
      where s.tenant_id = follow_run.tenant and s.run_id = follow_run.run
        and (follow_run.since is null or coalesce(s.finished_at, s.started_at) >= follow_run.since)), '[]'),
      orchestrator.now()
    from orc.runs r where r.tenant_id = follow_run.tenant and r.id = follow_run.run and orc._sees_task(follow_run.tenant, r.task_id);
  if not found then
    perform orc._not_found('Run not found: ' || run, run::text);
  end if;
end $$;
comment on function orc.follow_run(text, uuid, timestamptz) is 'How a run stands, and what its recorded steps have come to since then.';
grant execute on function orc.follow_run(text, uuid, timestamptz) to orc_api, orc_worker, orc_reader;
