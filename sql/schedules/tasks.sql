-- What people do with tasks: create, change, run now, snooze, pause, resume, cancel. Each writes one audit row.
--
-- A verb that changes a task takes it for itself first: it waits for events that are being published to it
-- and for a tick that has its plan, and those that come wait for it. So what was fired before is seen by
-- it, and nothing is fired by a rule or a status that no longer stands.

-- Events share a task while they make its runs; whoever changes it has it alone.
create function orc._share_tasks(tasks uuid[]) returns void
language sql as $$
  select pg_advisory_xact_lock_shared(hashtextextended(format('orc task %s', t), 0)) from unnest(tasks) as t order by t
$$;
comment on function orc._share_tasks(uuid[]) is 'Keeps tasks as they are until the end of the transaction.';

create function orc._own_task(tenant text, task uuid) returns orchestrator.task
language plpgsql as $$
declare
  v_task orchestrator.task;
begin
  perform orc._require('tasks:write');
  if orc._sees_task(tenant, task) then
    perform pg_advisory_xact_lock(hashtextextended(format('orc task %s', task), 0));
    perform from orchestrator.plan p where p.tenant_id = tenant and p.task_id = task for update;
    select * into v_task from orchestrator.task t where t.tenant_id = tenant and t.id = task for no key update;
  end if;
  if v_task.id is null then
    perform orc._not_found('Task not found: ' || task, task::text, 'orc.tasks lists them');
  end if;
  return v_task;
end $$;
comment on function orc._own_task(text, uuid) is 'The task, for this transaction alone, if the actor may change it.';

-- To be asked once the task is one's own: what a tick or an edit did that one waited for is past. So it is when the clock went back.
create function orc._now_for(tenant text, task uuid) returns timestamptz
language sql as $$
  select greatest(orchestrator.now(), p.through, r.from_at) from orchestrator.plan p
  left join orchestrator.rule r on r.tenant_id = p.tenant_id and r.task_id = p.task_id and r.until_at is null
  where p.tenant_id = $1 and p.task_id = $2
$$;
comment on function orc._now_for(text, uuid) is 'Now, and not before what the ledger has of a task, or its rule began.';

create function orc.task(tenant text, task uuid) returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $$
declare
  v_task constant jsonb := (select to_jsonb(t) - 'tenant_id' from orc.tasks t
                           where t.tenant_id = tenant and t.id = task and orc._sees(t.created_by));
begin
  perform orc._require('tasks:read', 'tasks:write');
  if v_task is null then
    perform orc._not_found('Task not found: ' || task, task::text, 'orc.tasks lists them');
  end if;
  return v_task;
end $$;
comment on function orc.task(text, uuid) is 'A task as an object: its row in orc.tasks.';
grant execute on function orc.task(text, uuid) to orc_api;

-- A scheduler that sleeps looks each second; it is woken for what comes before that.
create function orc._wants_soon(p orchestrator.plan) returns boolean
language sql stable as $$
  select p.wants_more or p.next_at < orchestrator.now() + interval '2 seconds'
$$;
comment on function orc._wants_soon(orchestrator.plan) is 'Whether a plan wants something of a scheduler within two seconds.';

create function orc._wake_scheduler(p orchestrator.plan) returns void
language plpgsql as $$
begin
  if orc._wants_soon(p) then
    perform pg_notify('orc_tasks', '');
  end if;
end $$;
comment on function orc._wake_scheduler(orchestrator.plan) is 'Wakes a scheduler when a plan wants something within two seconds.';

create function orc._wake_scheduler(tenant text, task uuid) returns void
language sql as $$
  select orc._wake_scheduler(p) from orchestrator.plan p where p.tenant_id = tenant and p.task_id = task
$$;
comment on function orc._wake_scheduler(text, uuid) is 'Wakes a scheduler when a task wants something within two seconds.';

create function orc._span(words text) returns interval
language plpgsql stable as $$
begin
  if words !~ '^([0-9]+(\.[0-9]+)?(ms|[smhdw]))+$|^P[0-9WDTHMS.]+$' then
    raise invalid_text_representation;
  end if;
  return words::interval;
exception when invalid_text_representation or invalid_datetime_format or interval_field_overflow or datetime_field_overflow then
  perform orc._invalid(format('%L is no duration', left(words, 40)), 'schedule_expr', 'write 30s, 5m, 1h30m, 1d or PT5M');
end $$;
comment on function orc._span(text) is 'A duration as people write it.';

create function orc._check_topic(topic text) returns void
language plpgsql as $$
begin
  if length(topic) not between 1 and 100 then
    perform orc._invalid('A topic has 1 to 100 characters', 'schedule_expr');
  elsif topic like '%*%' and exists (select from unnest(string_to_array(topic, '.')) as s where s like '%*%' and s <> '*') then
    perform orc._invalid(format('* stands for a whole segment: %L', topic), 'schedule_expr', 'write orders.*, not orders.cr*');
  end if;
end $$;
comment on function orc._check_topic(text) is 'Refuses topics that no event can have.';

-- What an expression says, as far as it is for SQL: the others are read where instants are computed.
create function orc._read_rule(kind text, expr text, out topic text, out condition text, out needed integer, out span interval)
language plpgsql as $$
declare
  v_parts text[];
begin
  if kind = 'event' then
    v_parts := regexp_match(expr, '^\s*(\S+)(?:\s+when\s+(\S.*?))?\s*$');
    topic := v_parts[1];
    condition := v_parts[2];
    if topic is null then
      perform orc._invalid('An event task listens to a topic', 'schedule_expr', 'write a topic: orders.created, or orders.* when event.payload.total > 100');
    end if;
  elsif kind = 'condition' and expr ~ '^\s*every\s' then
    v_parts := regexp_match(expr, '^\s*every\s+(\S+)\s+when\s+(\S.*?)\s*$');
    if v_parts is null then
      perform orc._invalid('A condition looks every so often', 'schedule_expr', 'write: every 5m when result.temperature < 0');
    end if;
    span := orc._span(v_parts[1]);
    condition := v_parts[2];
    if span < '1 second' or span > '366 days' then
      perform orc._invalid('A condition looks each second at most, and once a year at least', 'schedule_expr');
    end if;
  elsif kind = 'condition' then
    v_parts := regexp_match(expr, '^\s*count\(\s*([^\s()]+)\s*\)\s*>=\s*([0-9]{1,6})\s+within\s+(\S+)\s*$');
    if v_parts is null then
      perform orc._invalid('A condition looks at a probe, or counts events', 'schedule_expr',
                           'write: every 5m when result.temperature < 0, or: count(login.failed) >= 5 within 10m');
    end if;
    topic := v_parts[1];
    needed := v_parts[2]::integer;
    span := orc._span(v_parts[3]);
    if needed not between 1 and 10000 or span > '31 days' or span <= '0' then
      perform orc._invalid('A condition counts 1 to 10000 events within 31 days at most', 'schedule_expr');
    end if;
  end if;
  if topic is not null then
    perform orc._check_topic(topic);
  end if;
end $$;
comment on function orc._read_rule(text, text) is 'The parts of the expression of an event or a condition.';

create function orc._write_rule(r orchestrator.rule, out is_planned boolean)
language plpgsql as $$
declare
  v_parts constant record := orc._read_rule(r.kind, r.expr);
begin
  insert into orchestrator.rule (tenant_id, task_id, revision, kind, expr, zone, dst_gap, dst_fold, starts_at, ends_at, from_at, topic,
                                 is_pattern, condition, needed, span)
  values (r.tenant_id, r.task_id, r.revision, r.kind, r.expr, r.zone, r.dst_gap, r.dst_fold, r.starts_at, r.ends_at, r.from_at,
          v_parts.topic, coalesce(v_parts.topic like '%*%', false), v_parts.condition, v_parts.needed, v_parts.span);
  is_planned := orc._is_timed(r.kind) or v_parts.span is not null and v_parts.topic is null;
end $$;
comment on function orc._write_rule(orchestrator.rule) is 'Writes down a rule; answers whether its instants are planned.';

-- With the instants that were computed already, up to `known_to`.
create function orc._set_first_rule(t orchestrator.task, r orchestrator.rule, instants timestamptz[], known_to timestamptz) returns void
language plpgsql as $$
declare
  v_is_planned constant boolean := orc._write_rule(r);
  v_upcoming constant timestamptz[] := case when v_is_planned then array(select i from unnest(instants) as i where i > r.from_at order by i) else '{}' end;
  v_known_to constant timestamptz := case when v_is_planned then coalesce(known_to, r.from_at) else 'infinity' end;
  p orchestrator.plan;
begin
  insert into orchestrator.plan as n (tenant_id, task_id, revision, through, known_to, upcoming, next_at, wants_more)
  values (r.tenant_id, r.task_id, r.revision, r.from_at, v_known_to, v_upcoming, orc._alarm(t, v_upcoming, false),
          orc._wants_more(t, v_upcoming, v_known_to, null, false))
  returning n.* into p;
  if v_upcoming = '{}' and v_known_to = 'infinity' then
    perform orc._complete_tasks(array[r.tenant_id], array[r.task_id]);
  end if;
  perform orc._wake_scheduler(p);
end $$;
comment on function orc._set_first_rule(orchestrator.task, orchestrator.rule, timestamptz[], timestamptz) is 'Gives a new task its rule and its plan.';

-- The rule in force from now on. Instants that the old one still owes stay in the plan, and are computed up to now
-- unless that can't be done. A single time may lie before now by the grace, but not before what the ledger has.
create function orc._set_rule(r orchestrator.rule, instants timestamptz[], known_to timestamptz) returns void
language plpgsql as $$
declare
  v_since constant timestamptz := r.from_at - (
    select t.grace from orchestrator.task t where t.tenant_id = r.tenant_id and t.id = r.task_id and r.kind = 'once');
  v_is_planned boolean;
begin
  if r.kind = 'once' and cardinality(instants) > 0 and exists (
      select from orchestrator.plan p where p.tenant_id = r.tenant_id and p.task_id = r.task_id and p.through > all (instants)) then
    perform orc._invalid('This time is past: the task has gone on since', 'schedule_expr', 'give a time to come');
  end if;
  update orchestrator.rule o set until_at = r.from_at
  where o.tenant_id = r.tenant_id and o.task_id = r.task_id and o.until_at is null;
  v_is_planned := orc._write_rule(r);
  update orchestrator.plan p
  set upcoming = array(select i from unnest(p.upcoming) as i where i <= r.from_at order by i), problem = null,
      revision = case when p.known_to >= r.from_at or orc._is_stuck(p.problem) then r.revision else p.revision end,
      known_to = case when orc._is_stuck(p.problem) then r.from_at else least(p.known_to, r.from_at) end
  where p.tenant_id = r.tenant_id and p.task_id = r.task_id;
  update orchestrator.plan p
  set known_to = case when v_is_planned then coalesce(_set_rule.known_to, p.known_to) else 'infinity' end,
      upcoming = array(
        select i from unnest(p.upcoming) as i
        union select i from unnest(instants) as i where v_is_planned and i > coalesce(v_since, r.from_at) and i > p.through order by i)
  where p.tenant_id = r.tenant_id and p.task_id = r.task_id and p.revision = r.revision and p.known_to = r.from_at;
  perform orc._set_alarms(array[r.tenant_id], array[r.task_id]);
  perform orc._wake_scheduler(r.tenant_id, r.task_id);
end $$;
comment on function orc._set_rule(orchestrator.rule, timestamptz[], timestamptz) is 'Puts a new rule in force, with the instants that were computed already.';

-- The pipeline of a probe: its step, and what judges the result.
create function orc._probe_pipeline(tenant text, payload jsonb, condition text) returns uuid
language plpgsql as $body$
begin
  if condition is null or jsonb_typeof(payload -> 'probe') is distinct from 'object' then
    perform orc._invalid('A condition looks at a probe: a step in payload.probe', 'payload',
                         'add "probe": {"uses": "http.request", "with": {…}}; the condition sees its value as result');
  end if;
  return (orc._pipeline(tenant, jsonb_build_object('pipeline', jsonb_build_array(
      (payload -> 'probe') - 'save_as' || '{"id": "probe"}',
      jsonb_build_object('id', 'condition', 'uses', 'task.condition', 'with', jsonb_build_object(
        'when', replace(condition, '${', '$${'), 'result', '${steps.probe}'))))
    || coalesce((select jsonb_object_agg(key, value) from jsonb_each(payload)
                 where key in ('params', 'inputs', 'vars', 'secrets', 'defaults')), '{}'))).id;
end $body$;
comment on function orc._probe_pipeline(text, jsonb, text) is 'Stores the pipeline that looks whether a condition holds.';

create function orc._set_payload(t orchestrator.task, payload jsonb, kind text, expr text) returns orchestrator.task
language plpgsql as $$
begin
  if jsonb_typeof(payload) = 'array' then
    payload := jsonb_build_object('pipeline', payload);
  elsif jsonb_typeof(payload) is distinct from 'object' then
    perform orc._invalid('A payload is an object with a pipeline', 'payload', 'give {"pipeline": [{"id": "a", "uses": "set", "with": {}}]}');
  end if;
  t.pipeline_id := (orc._pipeline(t.tenant_id, payload - 'probe')).id;
  t.probe := null;
  t.probe_pipeline_id := null;
  if kind = 'condition' and expr ~ '^\s*every\s' then
    t.probe := payload -> 'probe';
    t.probe_pipeline_id := orc._probe_pipeline(t.tenant_id, payload, (orc._read_rule(kind, expr)).condition);
  elsif payload ? 'probe' then
    perform orc._invalid('Only a condition that looks has a probe', 'payload', 'use schedule_kind condition and: every 5m when …');
  end if;
  return t;
end $$;
comment on function orc._set_payload(orchestrator.task, jsonb, text, text) is 'What the task runs: pipelines are stored.';

create function orc._check_task(t orchestrator.task) returns void
language plpgsql as $$
declare
  v_other uuid;
begin
  if t.dedupe_key is not null and t.dedupe_window = '0' then
    select o.id into v_other from orchestrator.task o
    where o.tenant_id = t.tenant_id and o.dedupe_key = t.dedupe_key and o.dedupe_window = '0' and o.status in ('active', 'paused')
      and o.created_by is not distinct from t.created_by and o.id is distinct from t.id;
  end if;
  if v_other is not null then
    perform orc._conflict(format('A task with the dedupe key %L lives already', t.dedupe_key), v_other::text,
                          'change that one, or give a dedupe_window_seconds: then it is its runs that are not doubled');
  elsif not orchestrator.json_is_bounded(t.labels, 10000) then
    perform orc._invalid('The labels are too large or too deep', 'labels', 'at most 10 kB');
  end if;
end $$;
comment on function orc._check_task(orchestrator.task) is 'Refuses a task that another one excludes, or whose runs could not be made.';

-- `instants` and `known_to` are the beginning of the plan when the caller has computed it; without them a
-- scheduler does, within a second. `made_at` is the clock by which it was computed.
create function orc.create_task(
  tenant text,
  title text,
  schedule_kind text,
  schedule_expr text,
  payload jsonb,
  timezone text default 'Europe/Chisinau',
  description text default null,
  priority integer default 5,
  dedupe_key text default null,
  dedupe_window_seconds double precision default 0,
  max_retries integer default 3,
  backoff_strategy text default 'exponential_jitter',
  concurrency_key text default null,
  concurrency_limit integer default null,
  created_by uuid default null,
  catch_up text default 'latest',
  catch_up_limit integer default 100,
  grace_seconds double precision default 60,
  overlap text default 'allow',
  jitter_seconds double precision default 0,
  dst_gap text default 'shift',
  dst_fold text default 'second',
  starts_at timestamptz default null,
  ends_at timestamptz default null,
  queue text default 'default',
  timeout_seconds double precision default null,
  labels jsonb default null,
  instants timestamptz[] default null,
  known_to timestamptz default null,
  made_at timestamptz default null)
returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_variable
declare
  v_now constant timestamptz := orchestrator.now();
  t orchestrator.task;
  r orchestrator.rule;
begin
  perform orc._require('tasks:write');
  created_by := coalesce(created_by, case when orc._is_bound() then orc._actor()::uuid end);
  if not orc._sees(created_by) then
    perform orc._forbidden('created_by is somebody else', created_by::text, 'leave it out: a task is its caller''s');
  end if;
  t.tenant_id := tenant;
  t.dedupe_key := dedupe_key;
  t.dedupe_window := make_interval(secs => dedupe_window_seconds);
  t.created_by := created_by;
  t.labels := labels;
  perform orc._check_task(t);
  t := orc._set_payload(t, payload, schedule_kind, schedule_expr);
  insert into orchestrator.task as n (
    tenant_id, title, description, kind, pipeline_id, probe, probe_pipeline_id, priority, queue, max_attempts, backoff, timeout_seconds,
    concurrency_key, concurrency_limit, dedupe_key, dedupe_window, catch_up, catch_up_limit, grace, overlap, jitter, labels, created_by,
    created_at, updated_at)
  values (
    tenant, title, description, schedule_kind, t.pipeline_id, t.probe, t.probe_pipeline_id, priority, queue, max_retries + 1,
    backoff_strategy, timeout_seconds, concurrency_key, concurrency_limit, dedupe_key, make_interval(secs => dedupe_window_seconds),
    catch_up, catch_up_limit, make_interval(secs => grace_seconds), overlap, make_interval(secs => jitter_seconds), labels, created_by,
    case when made_at between v_now - interval '1 minute' and v_now then made_at else v_now end, v_now)
  returning n.* into t;
  r := row(tenant, t.id, 1, schedule_kind, schedule_expr, timezone, dst_gap, dst_fold, starts_at, ends_at,
           case schedule_kind when 'once' then v_now - t.grace else v_now end, null, null, false, null, null, null);
  perform orc._set_first_rule(t, r, instants, known_to);
  perform orc._audit(tenant, 'create_task', t.id::text);
  return orc.task(tenant, t.id);
end $$;
comment on function orc.create_task is
  'Makes a task: what is to be run (payload: a pipeline) and when. Answers it as an object: its row in orc.tasks.';
grant execute on function orc.create_task to orc_api;

create function orc._task_fields() returns text[]
language sql immutable parallel safe as $$
  select '{title, description, schedule_kind, schedule_expr, timezone, payload, priority, dedupe_key, dedupe_window_seconds, max_retries,
    backoff_strategy, concurrency_key, concurrency_limit, catch_up, catch_up_limit, grace_seconds, overlap, jitter_seconds, dst_gap,
    dst_fold, starts_at, ends_at, queue, timeout_seconds, labels}'::text[]
$$;
comment on function orc._task_fields() is 'What update_task may change.';

create function orc._rule_fields() returns text[]
language sql immutable parallel safe as $$
  select '{schedule_kind, schedule_expr, timezone, dst_gap, dst_fold, starts_at, ends_at}'::text[]
$$;
comment on function orc._rule_fields() is 'Those of a task''s fields that make its rule.';

create function orc._check_changes(t orchestrator.task, changes jsonb, version integer) returns void
language plpgsql as $$
begin
  if t.status = 'canceled' then
    perform orc._conflict('The task is canceled: it can''t be changed', t.id::text, 'make a new one');
  elsif t.status = 'completed' and changes ?| orc._rule_fields() is not true then
    perform orc._conflict('The task is completed: its rule has no more instants', t.id::text, 'give it a new rule: then it goes on');
  elsif version <> t.version then
    perform orc._conflict(format('The task has changed: its version is %s', t.version), t.id::text, 'read it again, and send that version');
  elsif jsonb_typeof(changes) is distinct from 'object' or changes - orc._task_fields() <> '{}' then
    perform orc._invalid('Changes are an object of fields of the task', (
      select string_agg(key, ', ') from jsonb_object_keys(case jsonb_typeof(changes) when 'object' then changes - orc._task_fields() else '{}' end) as key));
  end if;
end $$;
comment on function orc._check_changes(orchestrator.task, jsonb, integer) is 'Refuses changes that a task can''t take.';

-- Only what is named changes. A new rule is in force at once: what the old one still owes is caught up by catch_up.
create function orc.update_task(
  tenant text, task uuid, changes jsonb, version integer default null, instants timestamptz[] default null, known_to timestamptz default null)
returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  t orchestrator.task := orc._own_task(tenant, task);
  o orc.tasks;
  n orc.tasks;
  v_rule constant text[] := orc._rule_fields();
begin
  perform orc._check_changes(t, changes, version);
  select * into o from orc.tasks v where v.tenant_id = tenant and v.id = task;
  n := jsonb_populate_record(o, changes);
  t.dedupe_key := n.dedupe_key;
  t.dedupe_window := make_interval(secs => n.dedupe_window_seconds);
  t.labels := n.labels;
  perform orc._check_task(t);
  if changes ? 'schedule_kind' and not changes ? 'payload' and n.schedule_kind <> 'condition' then
    n.payload := n.payload - 'probe';
  end if;
  if changes ?| '{payload, schedule_kind, schedule_expr}' then
    t := orc._set_payload(t, n.payload, n.schedule_kind, n.schedule_expr);
  end if;
  update orchestrator.task u
  set title = n.title, description = n.description, kind = n.schedule_kind, pipeline_id = t.pipeline_id, probe = t.probe,
      probe_pipeline_id = t.probe_pipeline_id, priority = n.priority, queue = n.queue, max_attempts = n.max_retries + 1,
      backoff = n.backoff_strategy, timeout_seconds = n.timeout_seconds, concurrency_key = n.concurrency_key,
      concurrency_limit = n.concurrency_limit, dedupe_key = n.dedupe_key, dedupe_window = make_interval(secs => n.dedupe_window_seconds),
      catch_up = n.catch_up, catch_up_limit = n.catch_up_limit, grace = make_interval(secs => n.grace_seconds), overlap = n.overlap,
      jitter = make_interval(secs => n.jitter_seconds), labels = n.labels, updated_at = orchestrator.now(), version = u.version + 1,
      status = case when u.status = 'completed' then 'active' else u.status end, completed_at = null,
      revision = u.revision + case when changes ?| v_rule then 1 else 0 end
  where u.tenant_id = tenant and u.id = task returning u.* into t;
  if changes ?| v_rule then
    perform orc._set_rule(row(tenant, task, t.revision, n.schedule_kind, n.schedule_expr, n.timezone, n.dst_gap, n.dst_fold, n.starts_at,
                              n.ends_at, orc._now_for(tenant, task), null, null, false, null, null, null)::orchestrator.rule, instants, known_to);
  else
    perform orc._set_alarms(array[tenant], array[task]);
    perform orc._wake_scheduler(tenant, task);
  end if;
  perform orc._audit(tenant, 'update_task', task::text, jsonb_build_object('fields', array(select jsonb_object_keys(changes))));
  return orc.task(tenant, task);
end $$;
comment on function orc.update_task(text, uuid, jsonb, integer, timestamptz[], timestamptz) is
  'Changes the named fields of a task; with a version only if it is still that. Answers it as an object: its row in orc.tasks.';
grant execute on function orc.update_task(text, uuid, jsonb, integer, timestamptz[], timestamptz) to orc_api;
