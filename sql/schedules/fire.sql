-- Fire: instants that are due become rows of the ledger and runs, in one statement, by the database's clock.
--
--   tick ──► plans that are due, locked, skipping those that another scheduler has
--        ──► what becomes of each of their instants (catch-up), and of those that fire (overlap)
--        ──► the ledger, and runs for what it took
--        ──► the plans without these instants; the next ones move up
--
-- A tick costs what is due and not what exists. Whoever changes a task locks its plan first, then its
-- runs: so does a tick, and neither meets the other halfway.
--
-- Catch-up. An instant that is acted on late was missed: the schedulers were down, the task was paused, its rule or its
-- zone was changed; whatever the cause, the same rule says what becomes of it.
--   none    it is skipped, unless it is late by no more than the grace
--   latest  the last one runs and stands for the others, which are coalesced
--   all     each one runs, up to a limit, from the latest back
-- The last two must know every instant up to now; until they are computed, those that can't be decided stay.

-- A firing is an object: tenant, task, nominal (the instant), event, decision (fire, backfill, skipped or
-- coalesced), reason, due (when its run is to begin).

create function orc._firings(firings jsonb)
returns table (tenant text, task uuid, nominal timestamptz, event uuid, decision text, reason text, due timestamptz)
language plpgsql stable rows 100 as $$
begin
  return query select * from jsonb_to_recordset(firings) as f(
    tenant text, task uuid, nominal timestamptz, event uuid, decision text, reason text, due timestamptz);
end $$;
comment on function orc._firings(jsonb) is 'Instants and events of tasks, and what becomes of them, as rows.';

-- A task's key, or one of its own when its runs queue up.
create function orc._task_key(t orchestrator.task) returns text
language sql immutable as $$
  select coalesce(t.concurrency_key, case t.overlap when 'queue' then format('$task %s', t.id) end)
$$;
comment on function orc._task_key(orchestrator.task) is 'The concurrency key of a task''s runs.';

-- One that was snoozed into the future doesn't live yet.
create function orc._is_live(d orchestrator.due_work) returns boolean
language sql stable as $$
  select d.kind <> 'probe' and (d.state <> 'scheduled' or d.epoch > 0 or d.due_at <= orchestrator.now())
$$;
comment on function orc._is_live(orchestrator.due_work) is 'Whether the next run of a task meets this one.';

create function orc._live_run(tenant text, task uuid) returns uuid
language sql stable as $$
  select d.run_id from orchestrator.due_work d
  where d.tenant_id = tenant and d.task_id = task and orc._is_live(d)
  order by d.run_id limit 1
$$;
comment on function orc._live_run(text, uuid) is 'The oldest run of a task that has not ended.';

create function orc._without_overlap(firings jsonb) returns jsonb
language sql stable as $$
  select jsonb_agg(jsonb_build_object(
    'tenant', f.tenant, 'task', f.task, 'nominal', f.nominal, 'event', f.event, 'due', f.due,
    'decision', case when f.decision = 'fire' and o.reason is not null then 'skipped' else f.decision end,
    'reason', coalesce(o.reason, f.reason)))
  from (select u.*, t.overlap,
               row_number() over (partition by u.tenant, u.task, u.decision order by u.nominal, u.event) as nth,
               row_number() over (partition by u.tenant, u.task, u.decision order by u.nominal desc, u.event desc) as from_end
        from orc._firings(firings) as u
        cross join lateral (select * from orchestrator.task o where o.tenant_id = u.tenant and o.id = u.task offset 0) as t) as f
  cross join lateral (select case
    when f.decision <> 'fire' then null
    when f.overlap = 'skip' and f.nth > 1 then 'overlap: the one before it has just begun'
    when f.overlap = 'skip' then 'overlap: run ' || orc._live_run(f.tenant, f.task) || ' has not ended'
    when f.overlap = 'replace' and f.from_end > 1 then 'overlap: the one after it replaces it' end as reason) as o
$$;
comment on function orc._without_overlap(jsonb) is 'What fires and what doesn''t, as the tasks say about overlap.';

-- The ledger first: what it has already is not done again. Then runs for what it took.
create function orc._write_ledger(firings jsonb)
returns table (tenant text, task uuid, nominal timestamptz, event uuid, due timestamptz, run uuid, occurrence uuid)
language sql as $$
  with said as materialized (
    select f.*, orc._occurrence_id(f.task, f.nominal, f.event) as id,
           case when f.decision in ('fire', 'backfill') then orchestrator.new_id() end as run
    from orc._firings(firings) as f),
  taken as (
    insert into orchestrator.occurrence as o (tenant_id, id, task_id, nominal_at, event_id, state, reason, run_id)
    select s.tenant, s.id, s.task, s.nominal, s.event,
           case s.decision when 'fire' then 'fired' when 'backfill' then 'backfilled' else s.decision end, s.reason, s.run
    from said s
    on conflict (tenant_id, id) do update
    set state = excluded.state, reason = excluded.reason, run_id = excluded.run_id, decided_at = excluded.decided_at
    where o.state = 'undecided' or excluded.state = 'backfilled' and o.state in ('skipped', 'coalesced')
    returning o.tenant_id, o.id, o.run_id)
  select s.tenant, s.task, s.nominal, s.event, s.due, t.run_id, t.id
  from taken t join said s on s.tenant = t.tenant_id and s.id = t.id
  where t.run_id is not null
$$;
comment on function orc._write_ledger(jsonb) is 'Writes what became of instants and events; answers the runs to be made.';

-- All rows first, then their keys: who has a key must not wait for a row.
create function orc._cancel_runs(tenants text[], runs uuid[], why text) returns void
language sql as $$
  select from orchestrator.due_work d join unnest(tenants, runs) as u(tenant, run) on d.tenant_id = u.tenant and d.run_id = u.run
  order by d.run_id for update of d;
  select orc.cancel_run(d.tenant_id, d.run_id, why)
  from orchestrator.due_work d join unnest(tenants, runs) as u(tenant, run) on d.tenant_id = u.tenant and d.run_id = u.run
$$;
comment on function orc._cancel_runs(text[], uuid[], text) is 'Cancels those of the runs that have not ended.';

create function orc._replace_live(firings jsonb) returns void
language sql as $$
  select orc._cancel_runs(array_agg(d.tenant_id), array_agg(d.run_id), 'replaced by the next run of its task')
  from (select distinct f.tenant, f.task from orc._firings(firings) as f where f.decision = 'fire') as f
  cross join lateral (select * from orchestrator.task o where o.tenant_id = f.tenant and o.id = f.task offset 0) as t
  join orchestrator.due_work d on d.tenant_id = t.tenant_id and d.task_id = t.id and orc._is_live(d)
  where t.overlap = 'replace'
  having count(*) > 0
$$;
comment on function orc._replace_live(jsonb) is 'Cancels the live runs of tasks whose next run replaces them.';

create function orc._make_keys(firings jsonb) returns void
language sql as $$
  select orc._set_concurrency(k.tenant_id, k.key, k.concurrency_limit)
  from (select distinct t.tenant_id, orc._task_key(i.it) as key, t.concurrency_limit
        from orc._firings(firings) as f
        cross join lateral (select o as it from orchestrator.task o where o.tenant_id = f.tenant and o.id = f.task offset 0) as i
        cross join lateral (select (i.it).*) as t
        where f.decision in ('fire', 'backfill') and (t.concurrency_key is not null or t.overlap = 'queue') order by 1, 2) as k
$$;
comment on function orc._make_keys(jsonb) is 'Makes the concurrency keys of runs that are about to be made.';

-- Publishers of many events don't queue up here: one notes it for those of the same second.
create function orc._note_run(tenant text, task uuid, at timestamptz) returns void
language sql as $$
  update orchestrator.plan p set last_at = $3
  where p.ctid = (select l.ctid from orchestrator.plan l
                  where l.tenant_id = $1 and l.task_id = $2 and (l.last_at is null or l.last_at < $3 - interval '1 second')
                  for update skip locked)
$$;
comment on function orc._note_run(text, uuid, timestamptz) is 'Notes when an event made a run of a task: to a second.';

-- A run that may meet others, by a dedupe key with a window or by its pipeline's concurrency: it goes through
-- enqueue, and may be one that stands already.
create function orc._start_meeting(t orchestrator.task, f record) returns boolean
language plpgsql as $$
declare
  v_made record;
begin
  v_made := (select e from orc.enqueue(
    tenant => t.tenant_id, pipeline => to_jsonb(t.pipeline_id), queue => t.queue, priority => t.priority * 10, due_at => f.due,
    dedupe_key => case when t.dedupe_window > '0' then t.dedupe_key end, dedupe_window => t.dedupe_window, concurrency_key => orc._task_key(t),
    concurrency_limit => t.concurrency_limit, max_attempts => t.max_attempts, labels => t.labels, backoff => t.backoff,
    timeout_seconds => t.timeout_seconds, kind => 'task') as e);
  update orchestrator.occurrence o
  set run_id = v_made.run_id, state = case v_made.decision when 'created' then o.state else 'skipped' end,
      reason = case v_made.decision when 'created' then o.reason else concat_ws(': ', 'duplicate', v_made.reason) end
  where o.tenant_id = t.tenant_id and o.id = f.occurrence;
  if v_made.decision <> 'created' then
    return false;
  end if;
  perform orc._belongs_to(t.tenant_id, v_made.run_id, t.id, f.event, f.nominal);
  perform orc._note_run(t.tenant_id, t.id, f.nominal) where f.event is not null;
  return true;
end $$;
comment on function orc._start_meeting(orchestrator.task, record) is 'Makes a run of a task, unless another one stands for its key; answers whether it did.';

create function orc._start_runs(firings jsonb) returns integer
language plpgsql as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_started integer;
  v_noted text[];
  v_them jsonb;
  f record;
begin
  perform orc._make_keys(firings);
  with made as materialized (select * from orc._write_ledger(firings)),
  starting as materialized (
    select m.*, (t.it).queue, (t.it).priority * 10 as priority, orc._task_key(t.it) as key, t.it as task_row, p.probes,
           not p.probes and ((t.it).dedupe_window > '0' or (t.it).concurrency_key is null and i.concurrency_key is not null) as meets
    from made m
    cross join lateral (  -- one by one: never all tasks
      select o as it from orchestrator.task o where o.tenant_id = m.tenant and o.id = m.task offset 0) as t
    cross join lateral (
      select o.concurrency_key from orchestrator.pipeline o where o.tenant_id = m.tenant and o.id = (t.it).pipeline_id offset 0) as i
    cross join lateral (select (t.it).kind = 'condition' and m.event is null as probes) as p),
  started as (
    insert into orchestrator.due_work (
      tenant_id, run_id, pipeline_id, task_id, due_at, nominal_at, event_id, timeout_seconds, max_attempts, priority, state,
      queue, kind, backoff, concurrency_key, labels)
    select s.tenant, s.run, case when s.probes then (s.task_row).probe_pipeline_id else (s.task_row).pipeline_id end, s.task,
           case when s.due > v_now then s.due else orc._not_below(s.tenant, s.queue, s.priority, s.nominal) end, s.nominal, s.event,
           (s.task_row).timeout_seconds, (s.task_row).max_attempts, s.priority,
           case when s.due > v_now or s.key is not null then 'scheduled' else 'ready' end, s.queue,
           case when s.probes then 'probe' else 'task' end, (s.task_row).backoff, s.key, (s.task_row).labels
    from starting s where not s.meets)
  select count(*) filter (where not meets),
         jsonb_agg(jsonb_build_object('tenant', tenant, 'task', task, 'nominal', nominal, 'event', event, 'due', due, 'occurrence', occurrence)
                   order by nominal) filter (where meets),
         (select array_agg(orc._list_lane(l.tenant, l.queue, l.priority)::text || orc._hint(l.queue)::text)
          from (select distinct tenant, queue, priority from starting) as l)
         || (select array_agg(orc._note_run(n.tenant, n.task, n.at)::text)
             from (select tenant, task, max(nominal) as at from starting where event is not null and not meets group by 1, 2) as n)
  into v_started, v_them, v_noted from starting;
  for f in select * from jsonb_to_recordset(v_them) as d(tenant text, task uuid, nominal timestamptz, event uuid, due timestamptz, occurrence uuid)
  loop
    v_started := v_started + (
      select orc._start_meeting(t, f)::integer from orchestrator.task t where t.tenant_id = f.tenant and t.id = f.task);
  end loop;
  return v_started;
end $$;
comment on function orc._start_runs(jsonb) is 'Writes the ledger and makes the runs of what it took; answers how many.';

create function orc._carry_out(firings jsonb) returns integer
language plpgsql as $$
begin
  if firings is null then
    return 0;
  end if;
  perform orc._replace_live(firings);
  return orc._start_runs(firings);
end $$;
comment on function orc._carry_out(jsonb) is 'The ledger of what was decided, and runs for what fires.';

create function orc._fire(firings jsonb) returns integer
language sql as $$
  select orc._carry_out(orc._without_overlap(firings))
$$;
comment on function orc._fire(jsonb) is 'Instants and events of tasks: the ledger, and runs for those that fire.';

-- What becomes of instants whose time has come. `keep`: it can't be said before more is known.
create function orc._decide_instants(plans orchestrator.plan[])
returns table (tenant text, task uuid, nominal timestamptz, decision text, reason text)
language sql stable as $$
  with moment as materialized (select orchestrator.now() as now),
  late as (
    select p.tenant_id, p.task_id, u.nominal, u.nth, p.known_to > m.now or orc._is_stuck(p.problem) as is_all, p.paused_from, p.paused_to,
           t.status = 'canceled' as is_over, t.catch_up, t.catch_up_limit, t.grace, m.now, u.nominal + orc._jitter(t.id, u.nominal, t.jitter) as act_at
    from moment m, unnest(plans) as p
    cross join lateral (select * from orchestrator.task o where o.tenant_id = p.tenant_id and o.id = p.task_id offset 0) as t
    cross join lateral unnest(p.upcoming[:width_bucket(m.now, p.upcoming)]) with ordinality as u(nominal, nth)),
  due as (
    select l.*, row_number() over (partition by tenant_id, task_id order by nth desc) as from_end
    from (select o.*, bool_and(act_at <= now) over (partition by tenant_id, task_id order by nth) as is_due from late o) as l
    where is_due),
  decided as (
    select d.*, case
      when is_over then 'skipped'
      when catch_up = 'none' then case when now - act_at > grace then 'skipped' else 'fire' end
      when from_end > case catch_up when 'latest' then 1 else catch_up_limit end
        then case catch_up when 'latest' then 'coalesced' else 'skipped' end
      when is_all then 'fire' else 'keep' end as decision
    from due d)
  select tenant_id, task_id, nominal, decision, case
    when is_over then 'the task was canceled'
    when decision = 'coalesced' then 'a later instant that was due, too, stands for it'
    when decision = 'skipped' then case when nominal between paused_from and paused_to then 'paused: ' else 'missed: ' end
      || case catch_up when 'none' then 'catch_up is none' else format('catch_up_limit is %s', catch_up_limit) end end
  from decided
$$;
comment on function orc._decide_instants(orchestrator.plan[]) is 'What becomes of the instants of plans that are due.';

create function orc._lock_due(most integer) returns orchestrator.plan[]
language sql as $$
  select array_agg(p::orchestrator.plan) from (
    select l.* from orchestrator.plan l where l.next_at <= orchestrator.now() and l.next_at < 'infinity'
    order by l.next_at limit most for update skip locked) as p
$$;
comment on function orc._lock_due(integer) is 'Plans that are due and that nobody else acts on.';

-- What was decided goes off the front of a plan; what is kept stays, and waits for more to be known.
create function orc._move_up(plans orchestrator.plan[], firings jsonb, kept uuid[]) returns void
language plpgsql as $$
declare
  v_tenants text[];
  v_tasks uuid[];
begin
  with fate as materialized (  -- one group for each plan, and no join: 5,000 by 5,000 took 2.5 s where the planner looped
    select u.tenant, u.task, count(u.nominal)::integer as count, max(u.nominal) as through,
           max(u.nominal) filter (where u.decision = 'fire') as fired, u.task = any (coalesce(kept, '{}')) as is_kept
    from (select f.tenant, f.task, f.nominal, f.decision from orc._firings(firings) as f
          union all
          select o.tenant_id, o.task_id, null, null from unnest(plans) as o) as u
    group by u.tenant, u.task),
  moved as (
    update orchestrator.plan p
    set upcoming = p.upcoming[f.count + 1:], through = coalesce(f.through, p.through),
        last_at = case when (i.it).kind = 'condition' then p.last_at else coalesce(f.fired, p.last_at) end,  -- a probe is no run of it
        problem = case when orc._is_stuck(p.problem) then p.problem end,
        next_at = orc._alarm(i.it, p.upcoming[f.count + 1:], f.is_kept),
        wants_more = orc._wants_more(i.it, p.upcoming[f.count + 1:], p.known_to,
                                     case when orc._is_stuck(p.problem) then p.problem end, f.is_kept)
    from fate f
    cross join lateral (select x as it from orchestrator.task x where x.tenant_id = f.tenant and x.id = f.task offset 0) as i
    where p.tenant_id = f.tenant and p.task_id = f.task
    returning p.tenant_id, p.task_id, p.upcoming = '{}' and p.known_to = 'infinity' as has_ended)
  select array_agg(m.tenant_id), array_agg(m.task_id) into v_tenants, v_tasks from moved m where m.has_ended;
  if v_tasks is not null then
    perform orc._complete_tasks(v_tenants, v_tasks);
  end if;
end $$;
comment on function orc._move_up(orchestrator.plan[], jsonb, uuid[]) is 'Takes what was decided off plans, and sets their next alarms.';

create function orc._fire_plans(plans orchestrator.plan[]) returns integer
language plpgsql as $$
declare
  v_firings jsonb;
  v_kept uuid[];
  v_runs integer;
begin
  select jsonb_agg(jsonb_build_object('tenant', d.tenant, 'task', d.task, 'nominal', d.nominal, 'decision', d.decision,
                                      'reason', d.reason, 'due', d.nominal)) filter (where d.decision <> 'keep'),
         array_agg(distinct d.task) filter (where d.decision = 'keep')
  into v_firings, v_kept from orc._decide_instants(plans) as d;
  v_firings := orc._without_overlap(v_firings);
  v_runs := orc._carry_out(v_firings);
  perform orc._move_up(plans, v_firings, v_kept);
  return v_runs;
end $$;
comment on function orc._fire_plans(orchestrator.plan[]) is 'Fires what is due of plans; answers how many runs it made.';

create function orc._postpone(p orchestrator.plan, why text) returns jsonb
language plpgsql as $$
begin
  update orchestrator.plan l
  set next_at = orchestrator.now() + interval '1 minute', problem = left('it can''t be fired: ' || why, 500)
  where l.tenant_id = p.tenant_id and l.task_id = p.task_id;
  return jsonb_build_array(jsonb_build_object('part', 'firing', 'task', p.task_id, 'error', why));
end $$;
comment on function orc._postpone(orchestrator.plan, text) is 'Puts a plan off whose firing failed, so that the others go on.';

-- Answers how many plans were due: as many as `most`, and there may be more. One that can't be fired is found by halves
-- and tried again a minute later: it doesn't keep the others from firing. Plans are locked in the subtransaction that
-- changes them: a lock of the outer one would make a multixact of each row.
create function orc._fire_due(most integer, out plans integer, out runs integer, out failed jsonb)
language plpgsql as $$
declare
  v_plans orchestrator.plan[];
  v_first record;
  v_rest record;
begin
  failed := '[]';
  begin
    v_plans := orc._lock_due(most);
    plans := coalesce(cardinality(v_plans), 0);
    runs := case when plans = 0 then 0 else orc._fire_plans(v_plans) end;
    return;
  exception when others then
    if v_plans is null or sqlstate ~ '^(40|53|55|57|58)' then
      raise;
    elsif plans = 1 then
      runs := 0;
      failed := orc._postpone(v_plans[1], sqlerrm);
      return;
    end if;
  end;
  v_first := orc._fire_due(plans / 2);
  v_rest := orc._fire_due(plans - plans / 2);
  plans := v_first.plans + v_rest.plans;
  runs := v_first.runs + v_rest.runs;
  failed := v_first.failed || v_rest.failed;
end $$;
comment on function orc._fire_due(integer) is 'Acts on the plans that are due.';
