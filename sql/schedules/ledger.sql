-- Why a task did not run at an instant, and what must hold of plans and ledger.

-- The rule that was in force at an instant; before the first one, that.
create function orc._rule_at(tenant text, task uuid, instant timestamptz) returns orchestrator.rule
language sql stable as $$
  select r from orchestrator.rule r
  where r.tenant_id = $1 and r.task_id = $2 order by r.from_at < $3 desc, case when r.from_at < $3 then r.revision else -r.revision end desc limit 1
$$;
comment on function orc._rule_at(text, uuid, timestamptz) is 'The rule of a task that was in force at an instant.';

create function orc._why_not_yet(p orchestrator.plan, t orchestrator.task, r orchestrator.rule, instant timestamptz)
returns table (cause text, evidence jsonb, clears text)
language plpgsql stable as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_seen constant timestamptz := (select max(seen_at) from orchestrator.scheduler);
  v_act_at constant timestamptz := instant + orc._jitter(t.id, instant, t.jitter);
begin
  if instant <= p.known_to and not instant = any (p.upcoming) then
    return query select 'not an instant of the rule', jsonb_build_object('rule', r.expr, 'timezone', r.zone, 'next', p.upcoming[1]),
      'never: GET /tasks/{id}/preview shows its instants';
  elsif t.status = 'paused' then
    return query select 'paused', jsonb_build_object('since', t.paused_at), format('when orc.resume_task is called; then catch_up (%s) decides', t.catch_up);
  elsif p.problem is not null then
    return query select 'the rule can''t be computed', jsonb_build_object('problem', p.problem, 'rule', r.expr), 'when the rule is changed';
  elsif v_act_at > v_now and instant <= p.known_to then
    return query select 'not due', jsonb_build_object('due_at', v_act_at), 'at its time';
  elsif v_seen > v_now - interval '15 seconds' is not true then
    return query select 'no live scheduler', jsonb_build_object('last_seen', v_seen), 'when a scheduler is started: bin/scheduler';
  elsif instant > p.known_to then
    return query select 'not computed yet', jsonb_build_object('known_to', p.known_to), 'when its time comes nearer, if it is an instant of the rule';
  else
    return query select 'due', jsonb_build_object('due_at', v_act_at, 'known_to', p.known_to), 'at the next tick, within a second';
  end if;
end $$;
comment on function orc._why_not_yet(orchestrator.plan, orchestrator.task, orchestrator.rule, timestamptz) is
  'Why an instant after the ledger''s last one has not fired.';

create function orc._what_became(tenant text, task uuid, instant timestamptz)
returns table (cause text, evidence jsonb, clears text)
language sql stable as $$
  select case when o.state in ('fired', 'backfilled') then 'it fired' else o.state end,
         jsonb_strip_nulls(jsonb_build_object('nominal_at', o.nominal_at, 'reason', o.reason, 'run', o.run_id, 'decided_at', o.decided_at,
                                              'late_seconds', o.late_seconds, 'event', o.event_id)),
         case when o.state in ('fired', 'backfilled') then 'orc.why says what became of the run'
              when o.state = 'undecided' then 'at the next tick, within a second'
              when o.event_id is not null then 'never: an event is met once'
              else 'never: orc.backfill_task can run it' end
  from orc.occurrences o where o.tenant_id = $1 and o.task_id = $2 and o.nominal_at = $3
$$;
comment on function orc._what_became(text, uuid, timestamptz) is 'What the ledger says of an instant.';

-- The ledger knows every instant of the rule; what isn't in it was none, or is still to come.
create function orc.why_not(tenant text, task uuid, instant timestamptz)
returns table (cause text, evidence jsonb, clears text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  t orchestrator.task;
  p orchestrator.plan;
  r orchestrator.rule;
begin
  perform orc._require('tasks:read');
  select * into t from orchestrator.task o where o.tenant_id = tenant and o.id = task and orc._sees(o.created_by);
  if t.id is null then
    perform orc._not_found('Task not found: ' || task, task::text, 'orc.tasks lists them');
  end if;
  return query select * from orc._what_became(tenant, task, instant);
  if found then
    return;
  end if;
  select * into p from orchestrator.plan l where l.tenant_id = tenant and l.task_id = task;
  r := orc._rule_at(tenant, task, instant);
  if instant < t.created_at then
    return query select 'the task did not exist', jsonb_build_object('created_at', t.created_at), 'never: orc.backfill_task can run it';
  elsif instant > t.canceled_at then
    return query select 'canceled', jsonb_build_object('since', t.canceled_at), 'never: make a new task';
  elsif instant < r.starts_at or instant > r.ends_at then
    return query select 'outside its start and end', jsonb_build_object('starts_at', r.starts_at, 'ends_at', r.ends_at),
      case when r.until_at is null then 'when they are changed' else 'never: it was so then' end;
  elsif r.topic is not null then
    return query select 'no event fitted then', jsonb_build_object('rule', r.expr), 'when one is published: orc.publish_event';
  elsif instant <= p.through then
    return query select 'not an instant of the rule', jsonb_build_object('rule', r.expr, 'timezone', r.zone, 'in_force_from', r.from_at),
      'never: GET /tasks/{id}/preview shows its instants';
  elsif t.status = 'completed' then
    return query select 'completed', jsonb_build_object('since', t.completed_at, 'rule', r.expr), 'never: its rule has no more instants';
  else
    return query select * from orc._why_not_yet(p, t, r, instant);
  end if;
end $$;
comment on function orc.why_not(text, uuid, timestamptz) is 'Why a task did not run at an instant: cause, evidence, and when that clears.';
grant execute on function orc.why_not(text, uuid, timestamptz) to orc_api, orc_reader;

create function orc.list_occurrences(tenant text, task uuid, "limit" integer default 50, before timestamptz default null)
returns table (id uuid, nominal_at timestamptz, state text, reason text, run_id uuid, event_id uuid, decided_at timestamptz, late_seconds double precision)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform orc.task(tenant, task);
  return query
    select o.id, o.nominal_at, o.state, o.reason, o.run_id, o.event_id, o.decided_at, o.late_seconds from orc.occurrences o
    where o.tenant_id = tenant and o.task_id = task and (before is null or o.nominal_at < before)
    order by o.nominal_at desc, o.id desc limit least("limit", 200);
end $$;
comment on function orc.list_occurrences(text, uuid, integer, timestamptz) is 'What became of a task''s instants, the newest first.';
grant execute on function orc.list_occurrences(text, uuid, integer, timestamptz) to orc_api;

create function orc._check_schedules() returns table (invariant text, subject text, detail text)
language sql stable as $$
  select 'upcoming_is_in_order', p.task_id::text, p.upcoming::text from orchestrator.plan p
  where p.upcoming <> array(select distinct i from unnest(p.upcoming) as i order by i)
     or p.upcoming[1] <= p.through or p.upcoming[cardinality(p.upcoming)] > p.known_to
  union all
  select 'a_task_has_a_rule_in_force', t.id::text, t.status from orchestrator.task t
  where t.status <> 'canceled' and not exists (select from orchestrator.rule r where r.tenant_id = t.tenant_id and r.task_id = t.id
                                               and r.revision = t.revision and r.until_at is null)
  union all
  select 'rules_and_plans_are_of_tasks', o.task_id::text, 'there is no such task'
  from (select r.tenant_id, r.task_id from orchestrator.rule r union select p.tenant_id, p.task_id from orchestrator.plan p) as o
  where not exists (select from orchestrator.task t where t.tenant_id = o.tenant_id and t.id = o.task_id)
  union all
  select 'only_active_tasks_look_ahead', t.id::text, format('%s, next at %s', t.status, p.next_at)
  from orchestrator.plan p join orchestrator.task t on t.tenant_id = p.tenant_id and t.id = p.task_id
  where t.status in ('paused', 'completed') and (p.next_at < 'infinity' or p.wants_more)
     or t.status = 'canceled' and (p.upcoming[cardinality(p.upcoming)] > t.canceled_at or p.known_to > t.canceled_at and p.known_to < 'infinity')
  union all
  select 'an_active_plan_goes_on', t.id::text, 'it has instants and no alarm, or too few and wants none'
  from orchestrator.plan p join orchestrator.task t on t.tenant_id = p.tenant_id and t.id = p.task_id
  where t.status = 'active' and p.problem is null and p.next_at = 'infinity' and not p.wants_more
    and (p.upcoming <> '{}' or p.known_to < 'infinity')
  union all
  select 'a_fired_occurrence_has_a_run', format('%s %s', o.task_id, o.nominal_at), format('run %s is nowhere', o.run_id)
  from orchestrator.occurrence o
  where o.state in ('fired', 'backfilled')
    and not exists (select from orchestrator.due_work d where d.tenant_id = o.tenant_id and d.run_id = o.run_id)
    and not exists (select from orchestrator.run r where r.tenant_id = o.tenant_id and r.id = o.run_id)
    and orchestrator.id_time(o.run_id) > orchestrator.now() - interval '30 days'
  union all
  select 'a_run_of_an_instant_is_in_the_ledger', d.run_id::text, format('task %s at %s', d.task_id, d.nominal_at)
  from orchestrator.due_work d
  where d.nominal_at is not null and d.retry_of is null
    and not exists (select from orchestrator.occurrence o where o.tenant_id = d.tenant_id and o.run_id = d.run_id)
  union all
  select 'runs_are_held_by_a_pause', d.run_id::text, format('its task is %s', coalesce(t.status, 'gone'))
  from orchestrator.due_work d left join orchestrator.task t on t.tenant_id = d.tenant_id and t.id = d.task_id
  where d.held_due_at is not null and t.status is distinct from 'paused'
$$;
comment on function orc._check_schedules() is 'Invariants of tasks, plans and the ledger.';
