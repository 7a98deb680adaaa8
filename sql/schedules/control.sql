-- Tasks on hold, tasks at once, tasks no more.
--
-- A pause holds runs that have not begun: they keep their due times, and go on when the task is resumed.
-- What has begun is finished, its retries too. A cancel ends what is queued and tells what runs to stop.

create function orc._refuse_ended(t orchestrator.task, wish text) returns void
language plpgsql as $$
begin
  if t.status in ('canceled', 'completed') then
    perform orc._conflict(format('The task is %s: it can''t be %s', t.status, wish), t.id::text, 'make a new one');
  end if;
end $$;
comment on function orc._refuse_ended(orchestrator.task, text) is 'Refuses what only a living task can be asked.';

create function orc._task_said(tenant text, task uuid, action text, run uuid default null, details jsonb default null) returns jsonb
language plpgsql as $$
begin
  perform orc._audit(tenant, action, task::text, details || jsonb_strip_nulls(jsonb_build_object('run', run)));
  perform orc._wake_scheduler(tenant, task);
  return orc.task(tenant, task);
end $$;
comment on function orc._task_said(text, uuid, text, uuid, jsonb) is 'Writes down who did what to a task; answers it as it is now.';

create function orc.pause_task(tenant text, task uuid) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s' as $$
declare
  t constant orchestrator.task := orc._own_task(tenant, task);
  v_now constant timestamptz := orc._now_for(tenant, task);
  v_keys text[];
begin
  perform orc._refuse_ended(t, 'paused');
  if t.status = 'active' then
    update orchestrator.task u set status = 'paused', paused_at = v_now, updated_at = v_now, version = u.version + 1
    where u.tenant_id = tenant and u.id = task;
    update orchestrator.plan p set paused_from = v_now, paused_to = null where p.tenant_id = tenant and p.task_id = task;
    update orchestrator.occurrence o set state = 'skipped', reason = 'paused: events are not caught up', decided_at = v_now
    where o.tenant_id = tenant and o.task_id = task and o.state = 'undecided';
    perform orc._set_alarms(array[tenant], array[task]);
    with held as (
      update orchestrator.due_work d
      set held_due_at = d.due_at, due_at = 'infinity', state = 'waiting', waiting_for = 'its task to be resumed'
      where d.tenant_id = tenant and d.task_id = task and d.epoch = 0 and d.state in ('scheduled', 'ready', 'blocked')
      returning d.concurrency_key)
    select array_agg(concurrency_key) into v_keys from held where concurrency_key is not null;
    if v_keys is not null then
      perform orc._fill_keys(array_fill(tenant, array[cardinality(v_keys)]), v_keys);
    end if;
  end if;
  return orc._task_said(tenant, task, 'pause_task');
end $$;
comment on function orc.pause_task(text, uuid) is 'Lets nothing more of a task begin; what has begun goes on.';
grant execute on function orc.pause_task(text, uuid) to orc_api;

create function orc.resume_task(tenant text, task uuid) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  t constant orchestrator.task := orc._own_task(tenant, task);
  v_now constant timestamptz := orc._now_for(tenant, task);
begin
  perform orc._refuse_ended(t, 'resumed');
  if t.status = 'paused' then
    update orchestrator.task u set status = 'active', paused_at = null, updated_at = v_now, version = u.version + 1
    where u.tenant_id = tenant and u.id = task;
    update orchestrator.plan p set paused_to = v_now where p.tenant_id = tenant and p.task_id = task;
    perform orc._set_alarms(array[tenant], array[task]);
    update orchestrator.due_work d set due_at = d.held_due_at, held_due_at = null, state = 'scheduled', waiting_for = null
    where d.tenant_id = tenant and d.task_id = task and d.held_due_at is not null;
    perform orc._hint(t.queue);
  end if;
  return orc._task_said(tenant, task, 'resume_task');
end $$;
comment on function orc.resume_task(text, uuid) is 'Lets a paused task go on; what was missed meanwhile is treated by its catch_up.';
grant execute on function orc.resume_task(text, uuid) to orc_api;

create function orc.cancel_task(tenant text, task uuid, why text default null) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s' as $$
declare
  t constant orchestrator.task := orc._own_task(tenant, task);
  v_now constant timestamptz := orc._now_for(tenant, task);
begin
  if t.status <> 'canceled' then
    update orchestrator.task u
    set status = 'canceled', canceled_at = v_now, paused_at = null, completed_at = null, updated_at = v_now, version = u.version + 1
    where u.tenant_id = tenant and u.id = task;
    update orchestrator.rule r set until_at = v_now where r.tenant_id = tenant and r.task_id = task and r.until_at is null;
    update orchestrator.plan p
    set upcoming = array(select i from unnest(p.upcoming) as i where i <= v_now order by i),
        known_to = case when p.known_to < 'infinity' then least(p.known_to, v_now) else p.known_to end
    where p.tenant_id = tenant and p.task_id = task;
    perform orc._set_alarms(array[tenant], array[task]);
    update orchestrator.occurrence o set state = 'skipped', reason = 'the task was canceled', decided_at = v_now
    where o.tenant_id = tenant and o.task_id = task and o.state = 'undecided';
  end if;
  perform orc._cancel_runs(array_agg(d.tenant_id), array_agg(d.run_id), coalesce(why, 'its task was canceled'))
  from orchestrator.due_work d where d.tenant_id = tenant and d.task_id = task having count(*) > 0;
  return orc._task_said(tenant, task, 'cancel_task', null, jsonb_build_object('why', why));
end $$;
comment on function orc.cancel_task(text, uuid, text) is 'Ends a task for good: what is queued goes, what runs is told to stop.';
grant execute on function orc.cancel_task(text, uuid, text) to orc_api;

-- Now, whatever its rule, its pause or its overlap say; it stands in no ledger.
create function orc.run_task(tenant text, task uuid) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  t constant orchestrator.task := orc._own_task(tenant, task);
  v_made record;
begin
  if t.status = 'canceled' then
    perform orc._refuse_ended(t, 'run');
  end if;
  select e.run_id, e.decision into v_made from orc.enqueue(
    tenant => tenant, pipeline => to_jsonb(t.pipeline_id), queue => t.queue, priority => t.priority * 10,
    dedupe_key => case when t.dedupe_window > '0' then t.dedupe_key end, dedupe_window => t.dedupe_window,
    concurrency_key => orc._task_key(t), concurrency_limit => t.concurrency_limit, max_attempts => t.max_attempts, labels => t.labels,
    backoff => t.backoff, timeout_seconds => t.timeout_seconds, kind => 'task') as e;
  if v_made.decision = 'created' then
    perform orc._belongs_to(tenant, v_made.run_id, task, null, null);
  end if;
  perform orc._audit(tenant, 'run_task', task::text, jsonb_build_object('run', v_made.run_id));
  return v_made.run_id;
end $$;
comment on function orc.run_task(text, uuid) is 'Runs a task once, now. Answers the run, or the one that stands for its dedupe key.';
grant execute on function orc.run_task(text, uuid) to orc_api;

-- The next run, and no other. It is written down as fired, and waits as a run of its own; one that was
-- snoozed before and is still the next is moved again. What was missed is left to catch_up.
create function orc.snooze_task(tenant text, task uuid, delay_seconds double precision, reason text default null)
returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  t constant orchestrator.task := orc._own_task(tenant, task);
  v_now constant timestamptz := orc._now_for(tenant, task);
  v_delay interval;
  v_next timestamptz;
  v_run uuid;
begin
  if delay_seconds between 1 and 604800 is not true then
    perform orc._invalid('A snooze takes 1 second to 7 days', 'delay_seconds');
  elsif t.status <> 'active' then
    perform orc._conflict(format('The task is %s: it can''t be snoozed', t.status), task::text, 'resume it first, if it is paused');
  end if;
  v_delay := make_interval(secs => delay_seconds);
  update orchestrator.due_work d set due_at = d.due_at + v_delay
  where d.tenant_id = tenant and d.run_id = (
    select o.run_id from orchestrator.due_work o
    where o.tenant_id = tenant and o.task_id = task and o.state = 'scheduled' and o.epoch = 0 and o.due_at > v_now
      and o.due_at <= (select p.next_at from orchestrator.plan p where p.tenant_id = tenant and p.task_id = task)
    order by o.due_at limit 1)
  returning d.run_id into v_run;
  if v_run is null then
    select i into v_next from orchestrator.plan p, unnest(p.upcoming) as i
    where p.tenant_id = tenant and p.task_id = task and i + orc._jitter(task, i, t.jitter) > v_now order by i limit 1;
    if v_next is null then
      perform orc._conflict('The task has no next run', task::text, 'an event or a condition can''t be snoozed; a new rule is planned within a second');
    end if;
    perform orc._start_runs(jsonb_build_array(jsonb_build_object(
      'tenant', tenant, 'task', task, 'nominal', v_next, 'decision', 'fire', 'due', v_next + v_delay,
      'reason', concat_ws(': ', format('snoozed by %s', v_delay), reason))));
    update orchestrator.plan p set upcoming = array_remove(p.upcoming, v_next) where p.tenant_id = tenant and p.task_id = task;
    perform orc._set_alarms(array[tenant], array[task]);
  end if;
  return orc._task_said(tenant, task, 'snooze_task', v_run,
    jsonb_strip_nulls(jsonb_build_object('delay_seconds', delay_seconds, 'reason', reason)));
end $$;
comment on function orc.snooze_task(text, uuid, double precision, text) is 'Moves the next run of a task, and only that.';
grant execute on function orc.snooze_task(text, uuid, double precision, text) to orc_api;

-- Instants of the past that did not run; whoever calls has computed them by the task's rule.
create function orc.backfill_task(tenant text, task uuid, instants timestamptz[], dry_run boolean default true)
returns table (nominal_at timestamptz, state text, run_id uuid)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  t constant orchestrator.task := orc._own_task(tenant, task);
  v_firings jsonb;
begin
  if t.status = 'canceled' then
    perform orc._refuse_ended(t, 'backfilled');
  elsif coalesce(cardinality(instants), 0) > 1000 then
    perform orc._invalid('At most 1000 instants can be backfilled at once', 'instants', 'take a shorter time');
  elsif exists (select from unnest(instants) as i where i > orchestrator.now()) then
    perform orc._invalid('Only what is past can be backfilled', 'to');
  end if;
  select jsonb_agg(jsonb_build_object('tenant', tenant, 'task', task, 'nominal', i, 'decision', 'backfill',
                                      'due', orchestrator.now()) order by i) into v_firings
  from unnest(instants) as i
  where not exists (select from orchestrator.occurrence o
                    where o.tenant_id = tenant and o.id = orc._occurrence_id(task, i, null) and o.state in ('fired', 'backfilled'));
  if not dry_run and v_firings is not null then
    perform orc._start_runs(v_firings);
    perform orc._audit(tenant, 'backfill_task', task::text, jsonb_build_object('runs', jsonb_array_length(v_firings)));
  end if;
  return query
    select i, coalesce(o.state, 'would be backfilled'), o.run_id from unnest(instants) as i
    left join orchestrator.occurrence o on o.tenant_id = tenant and o.id = orc._occurrence_id(task, i, null)
      and (not dry_run or o.state in ('fired', 'backfilled'))
    order by i;
end $$;
comment on function orc.backfill_task(text, uuid, timestamptz[], boolean) is
  'Runs a task for instants of the past that did not run. Says what it would do, until dry_run is false.';
grant execute on function orc.backfill_task(text, uuid, timestamptz[], boolean) to orc_api;
