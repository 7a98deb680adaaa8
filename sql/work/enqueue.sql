-- Enqueue: from HTTP, psql, a trigger, or anybody's transaction.
--
-- It may run in somebody's long transaction, so it holds little that others wait for: the row of a
-- dedupe key, and what it is the first to name: a tenant, a pipeline, a key, a new limit of a key.
-- With on_conflict skip, replace or cancel_running enqueues of one key come one after the other, each
-- until its commit; replace holds the run that it changes, and cancel_running the one that it tells to stop.
-- A run with a concurrency key is made `blocked` when the key looks full and `scheduled` otherwise; who
-- gets a slot is decided under the key's lock by a claim, in a transaction of ours that is over at once
-- (claim.sql).
-- A lane that isn't listed is listed here, unless another transaction is about to: nobody waits, and if
-- that one rolls back, `advance_lanes` finds the rows.
-- A hint (NOTIFY) goes out only when a worker has said that it waits: on a busy system none is paid for.
--
-- Answers: created; skipped (a run stands for the dedupe key already, or the concurrency key is full);
-- replaced (one that had not begun was given the new input); merged (into the one that waits behind the
-- running one).

-- A look without a lock: it may be wrong for a moment, in both directions. Claims and sweeps decide.
create function orc._free_slots(tenant text, key text) returns bigint
language sql stable as $$
  select greatest(0, c.max_running - (
    select count(*) from (
      select from orchestrator.due_work d
      where d.tenant_id = tenant and d.concurrency_key = $2 and d.due_at <= orchestrator.now()
        and d.state in ('scheduled', 'ready', 'running')
      limit c.max_running) as taken))
  from orchestrator.concurrency c where c.tenant_id = tenant and c.key = $2
$$;
comment on function orc._free_slots(text, text) is 'How many slots of a key seem to be free.';

create function orc._set_concurrency(tenant text, key text, max_running integer) returns void
language sql as $$
  insert into orchestrator.concurrency as c (tenant_id, key, max_running)
  select tenant, $2, coalesce($3, 1)
  where not exists (select from orchestrator.concurrency o
                    where o.tenant_id = tenant and o.key = $2 and o.max_running = coalesce($3, o.max_running))
  on conflict (tenant_id, key) do update set max_running = excluded.max_running,
    lowered_from = case when excluded.max_running < c.max_running then greatest(c.max_running, c.lowered_from) end
  where $3 is not null and c.max_running <> excluded.max_running
$$;
comment on function orc._set_concurrency(text, text, integer) is 'Makes a key, or changes its limit when another is given.';

create function orc._list_lane(tenant text, queue text, priority integer) returns void
language plpgsql as $$
begin
  if not exists (select from orchestrator.lane l where l.tenant_id = tenant and l.queue = $2 and l.priority = $3)
     and pg_try_advisory_xact_lock(hashtextextended(format('orc lane %L %L %s', tenant, queue, priority), 0)) then
    insert into orchestrator.lane (tenant_id, queue, priority) values (tenant, queue, priority) on conflict do nothing;
  end if;
end $$;
comment on function orc._list_lane(text, text, integer) is 'Lists a lane that isn''t listed, unless somebody else is about to; waits for nobody.';

-- When a row that becomes ready is due at the earliest as a claim sees it: a claim looks from the lane's
-- low-water mark on, and a row that was blocked or late may be due before that.
create function orc._not_below(tenant text, queue text, priority integer, due_at timestamptz) returns timestamptz
language sql stable as $$
  select coalesce((select greatest($4, l.low_water) from orchestrator.lane l
                   where l.tenant_id = tenant and l.queue = $2 and l.priority = $3), $4)
$$;
comment on function orc._not_below(text, text, integer, timestamptz) is 'The due time of a row that becomes ready, not below its lane''s low-water mark.';

create function orc._hint(queue text) returns void
language plpgsql as $$
begin
  if exists (select from orchestrator.worker w where w.ended_at is null and w.is_idle and queue = any (w.queues)) then
    perform pg_notify('orc_work', queue);
  end if;
end $$;
comment on function orc._hint(text) is 'Wakes idle workers of a queue.';

-- The run that stands for a dedupe key, with the key's row locked; null when there's none.
-- The row is locked in a statement of its own: whether its run lives is then asked in a new snapshot,
-- which sees what the one that held the lock before us had made. The loop is for a key that was
-- purged between the two looks.
create function orc._standing(tenant text, key text, window_ends timestamptz, run uuid) returns uuid
language plpgsql as $$
declare
  d orchestrator.dedupe;
begin
  loop
    insert into orchestrator.dedupe (tenant_id, key, run_id, expires_at) values (tenant, $2, run, window_ends)
    on conflict do nothing;
    if found then
      return null;
    end if;
    select * into d from orchestrator.dedupe o where o.tenant_id = tenant and o.key = $2 for update;
    exit when found;
  end loop;
  if d.expires_at > orchestrator.now()
     or exists (select from orchestrator.due_work w where w.tenant_id = tenant and w.run_id = d.run_id) then
    return d.run_id;
  end if;
  update orchestrator.dedupe o set run_id = run, expires_at = window_ends where o.tenant_id = tenant and o.key = $2;
  return null;
end $$;
comment on function orc._standing(text, text, timestamptz, uuid) is 'The run that stands for a dedupe key; takes the key when none does.';

-- What to do about a run that stands already: its id when it is the answer, null when a new one is made.
-- No row that has begun is locked: in somebody's long transaction that would hold up its worker.
create function orc._meet_standing(
  tenant text, key text, standing uuid, policy text, new_run uuid, new_input jsonb, window_ends timestamptz,
  out run uuid, out decision text, out reason text)
language plpgsql as $$
declare
  v_state text;
  v_window boolean;
begin
  if policy = 'reject' then
    perform orc._conflict('A run with this dedupe key stands already', standing::text, 'wait for it, or use another on_duplicate');
  elsif policy in ('replace', 'one-behind') then
    update orchestrator.due_work w set input = new_input
    where w.tenant_id = tenant and w.run_id = standing and w.state in ('scheduled', 'ready', 'blocked') and w.epoch = 0;
    if found then
      run := standing;
      decision := case policy when 'replace' then 'replaced' else 'merged' end;
      reason := 'it had not begun, and has the new input';
      return;
    end if;
  end if;
  select w.state into v_state from orchestrator.due_work w where w.tenant_id = tenant and w.run_id = standing;
  select d.expires_at > orchestrator.now() into v_window from orchestrator.dedupe d where d.tenant_id = tenant and d.key = $2;
  if policy = 'skip' or policy = 'replace' and v_state is null and v_window then
    run := standing;
    decision := 'skipped';
    reason := case when v_state is null then 'a run of this key has ended' else format('a run of this key is %s', v_state) end;
  else
    update orchestrator.dedupe d set run_id = new_run, expires_at = window_ends where d.tenant_id = tenant and d.key = $2;
    reason := case when v_state is null then 'the run of this key has ended' else 'the run of this key has begun' end;
  end if;
end $$;
comment on function orc._meet_standing(text, text, uuid, text, uuid, jsonb, timestamptz) is 'Applies on_duplicate to the run that stands for a key.';

-- What stands in the way of a run whose key is full, the one that runs first; nothing when it has a slot.
-- Who asks is alone among those who ask of this key: the lock is taken in a statement of its own, so
-- the look sees what the one before made.
create function orc._in_the_way(tenant text, key text, max_running integer, out run uuid, out state text)
language plpgsql set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  v_slots constant integer := coalesce(max_running, (
    select c.max_running from orchestrator.concurrency c where c.tenant_id = tenant and c.key = $2), 1);
begin
  perform pg_advisory_xact_lock(hashtextextended(format('orc key %L %L', tenant, key), 0));
  with standing as materialized (
    (select d.run_id, d.state, d.started_at from orchestrator.due_work d
     where d.tenant_id = tenant and d.concurrency_key = $2 and d.due_at <= orchestrator.now()
       and d.state in ('scheduled', 'ready', 'running') limit v_slots)
    union all
    (select d.run_id, d.state, null from orchestrator.due_work d
     where d.tenant_id = tenant and d.concurrency_key = $2 and d.state = 'blocked' limit v_slots))
  select s.run_id, s.state into run, state from standing s
  where (select count(*) from standing) >= v_slots
  order by s.state <> 'running', s.started_at, s.run_id limit 1;
end $$;
comment on function orc._in_the_way(text, text, integer) is 'A run that has what a new run of a key would need; null when there is room.';

-- The last in line that has not begun does what the new run would have done, in its place. A retry and
-- a run that another waits for are left alone: they answer for an input of their own.
create function orc._replace_queued(tenant text, key text, pipeline uuid, new_input jsonb, new_labels jsonb, new_dedupe text) returns uuid
language plpgsql set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  v_run uuid;
begin
  select q.run_id into v_run from (
    (select b.run_id from orchestrator.due_work b
     where b.tenant_id = tenant and b.concurrency_key = $2 and b.state = 'blocked' and b.epoch = 0
       and b.due_at <= orchestrator.now() and b.retry_of is null and b.parent_id is null
     order by b.priority desc, b.due_at desc, b.run_id desc limit 1)
    union all
    (select n.run_id from orchestrator.due_work n
     where n.tenant_id = tenant and n.concurrency_key = $2 and n.state in ('scheduled', 'ready') and n.epoch = 0
       and n.due_at <= orchestrator.now() and n.retry_of is null and n.parent_id is null
     order by n.due_at desc, n.run_id desc limit 1)) as q limit 1;
  update orchestrator.due_work w
  set pipeline_id = pipeline, input = new_input, labels = new_labels, dedupe_key = coalesce(new_dedupe, w.dedupe_key)
  where w.tenant_id = tenant and w.run_id = v_run and w.state in ('scheduled', 'ready', 'blocked') and w.epoch = 0
  returning w.run_id into v_run;
  if v_run is not null and new_dedupe is not null then
    update orchestrator.dedupe d set run_id = v_run where d.tenant_id = tenant and d.key = new_dedupe;
  end if;
  return v_run;
end $$;
comment on function orc._replace_queued(text, text, uuid, jsonb, jsonb, text) is 'Gives a queued run of a key the new input; null when none has yet to begin.';

-- One running run is told to stop for each that waits for a slot, the longest running first.
create function orc._make_way(tenant text, key text, new_run uuid) returns uuid
language plpgsql set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  v_run uuid;
  v_told integer;
begin
  select count(*) into v_told from orchestrator.due_work t
  where t.tenant_id = tenant and t.concurrency_key = $2 and t.state = 'running' and t.cancel_requested_at is not null;
  if v_told > 0 and not exists (select from orchestrator.due_work b
                                where b.tenant_id = tenant and b.concurrency_key = $2 and b.state = 'blocked' offset v_told - 1) then
    return null;
  end if;
  update orchestrator.due_work w set cancel_requested_at = orchestrator.now()
  where w.tenant_id = tenant and w.state = 'running' and w.cancel_requested_at is null and w.run_id = (
    select r.run_id from orchestrator.due_work r
    where r.tenant_id = tenant and r.concurrency_key = $2 and r.state = 'running' and r.cancel_requested_at is null
    order by r.started_at, r.run_id limit 1)
  returning w.run_id into v_run;
  if v_run is not null then
    insert into orchestrator.log (tenant_id, run_id, level, message)
    values (tenant, v_run, 'warning', format('told to stop: run %s takes the slot of concurrency key %s', new_run, key));
    perform pg_notify('orc_cancel', v_run::text);
  end if;
  return v_run;
end $$;
comment on function orc._make_way(text, text, uuid) is 'Tells a running run of a key to stop, for a new one; null when enough are told.';

-- What becomes of a new run whose key is full: an answer, or only a reason when it is made all the same.
create function orc._meet_key(
  tenant text, key text, max_running integer, policy text, new_run uuid, pipeline uuid, new_input jsonb, new_labels jsonb, new_dedupe text,
  out run uuid, out decision text, out reason text)
language plpgsql as $$
declare
  v_way record := orc._in_the_way(tenant, key, max_running);
begin
  if v_way.run is null then
    return;
  elsif policy = 'skip' then
    run := v_way.run;
    decision := 'skipped';
    reason := format('concurrency key %s is full: run %s is %s', key, v_way.run, v_way.state);
  elsif policy = 'replace' then
    run := orc._replace_queued(tenant, key, pipeline, new_input, new_labels, new_dedupe);
    decision := case when run is not null then 'replaced' end;
    reason := case when run is not null then 'it had not begun, and has the new input' end;
  else
    reason := 'run ' || orc._make_way(tenant, key, new_run) || ' of this key is told to cancel';
  end if;
end $$;
comment on function orc._meet_key(text, text, integer, text, uuid, uuid, jsonb, jsonb, text) is 'Applies on_conflict to a new run.';

create function orc._check_enqueue(
  queue text, priority integer, on_duplicate text, max_attempts integer, concurrency_limit integer,
  input jsonb, labels jsonb, backoff text, dedupe_key text, dedupe_window interval, concurrency_key text, on_conflict text,
  seconds double precision[]) returns void
language plpgsql as $$
begin
  if queue is null or length(queue) not between 1 and 100 then
    perform orc._invalid('A queue has a name of 1 to 100 characters', 'queue');
  elsif priority is null or priority not between 0 and 100 then
    perform orc._invalid('A priority is 0 (most urgent) to 100', 'priority');
  elsif max_attempts is null or max_attempts not between 1 and 1000 then
    perform orc._invalid('A run has 1 to 1000 attempts', 'max_attempts');
  elsif concurrency_limit < 1 then
    perform orc._invalid('A concurrency key has at least 1 slot', 'concurrency_limit');
  elsif on_duplicate is null or on_duplicate not in ('skip', 'replace', 'one-behind', 'reject') then
    perform orc._invalid('on_duplicate is skip, replace, one-behind or reject', 'on_duplicate');
  elsif on_conflict not in ('queue', 'skip', 'replace', 'cancel_running') then
    perform orc._invalid('on_conflict is queue, skip, replace or cancel_running', 'on_conflict');
  elsif backoff not in ('fixed', 'linear', 'exponential', 'exponential_jitter') then
    perform orc._invalid('backoff is fixed, linear, exponential or exponential_jitter', 'backoff');
  elsif length(dedupe_key) not between 1 and 400 or length(concurrency_key) not between 1 and 400 then
    perform orc._invalid('A key has 1 to 400 characters', 'dedupe_key, concurrency_key');
  elsif dedupe_window is null or dedupe_window not between '0' and '3660 days' then
    perform orc._invalid('A window is not negative, and at most ten years', 'dedupe_window');
  elsif 0 > any (seconds) or 1e8 < any (seconds) then
    perform orc._invalid('Seconds are 0 to 1e8', 'backoff_seconds, backoff_limit_seconds, timeout_seconds');
  elsif not orchestrator.json_is_bounded(input) or not orchestrator.json_is_bounded(labels, 10000) then
    perform orc._invalid('The input or the labels are too large or too deep', 'input',
                         'at most 1 MiB (labels 10 kB), 32 levels, numbers up to 1e308');
  end if;
end $$;
comment on function orc._check_enqueue(text, integer, text, integer, integer, jsonb, jsonb, text, text, interval, text, text, double precision[]) is 'Refuses arguments that make no sense.';

-- What is null here is as the pipeline says: queue, priority, and its concurrency as a whole, unless a
-- concurrency_key is given.
create function orc.enqueue(
  tenant text,
  pipeline jsonb,
  input jsonb default null,
  queue text default null,
  priority integer default null,
  due_at timestamptz default null,
  dedupe_key text default null,
  dedupe_window interval default '0',
  on_duplicate text default 'skip',
  concurrency_key text default null,
  concurrency_limit integer default null,
  max_attempts integer default 1,
  labels jsonb default null,
  backoff text default null,
  backoff_seconds double precision default null,
  backoff_limit_seconds double precision default null,
  timeout_seconds double precision default null,
  kind text default 'run',
  retry_of uuid default null,
  on_conflict text default null)
returns table (run_id uuid, decision text, reason text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_run constant uuid := orchestrator.new_id();
  v_now constant timestamptz := orchestrator.now();
  v_pipeline constant record := orc._pipeline(enqueue.tenant, enqueue.pipeline);
  v_queue constant text := coalesce(enqueue.queue, v_pipeline.queue, 'default');
  v_priority constant integer := coalesce(enqueue.priority, v_pipeline.priority, 50);
  v_standing uuid;
  v_met record;
  v_state text := 'ready';
begin
  if v_pipeline.concurrency_key is not null and enqueue.concurrency_key is null then
    concurrency_key := orc._key_of(v_pipeline.concurrency_key, enqueue.tenant, v_pipeline.id, enqueue.input);
    concurrency_limit := coalesce(enqueue.concurrency_limit, v_pipeline.concurrency_limit, 1);
    on_conflict := coalesce(enqueue.on_conflict, v_pipeline.on_conflict);
  end if;
  perform orc._check_enqueue(v_queue, v_priority, enqueue.on_duplicate, enqueue.max_attempts,
                             enqueue.concurrency_limit, enqueue.input, enqueue.labels, enqueue.backoff, enqueue.dedupe_key,
                             enqueue.dedupe_window, enqueue.concurrency_key, enqueue.on_conflict,
                             array[enqueue.backoff_seconds, enqueue.backoff_limit_seconds, enqueue.timeout_seconds]);
  if enqueue.due_at > v_now or enqueue.concurrency_key is null then
    on_conflict := null;
  elsif enqueue.on_conflict = 'skip' then
    v_met := orc._meet_key(enqueue.tenant, enqueue.concurrency_key, enqueue.concurrency_limit, 'skip', v_run, v_pipeline.id, null, null, null);
    if v_met.run is not null then
      return query select v_met.run, v_met.decision, v_met.reason;
      return;
    end if;
  end if;
  if enqueue.dedupe_key is not null then
    v_standing := orc._standing(enqueue.tenant, enqueue.dedupe_key, v_now + enqueue.dedupe_window, v_run);
    if v_standing is not null then
      v_met := orc._meet_standing(enqueue.tenant, enqueue.dedupe_key, v_standing, enqueue.on_duplicate, v_run, enqueue.input,
                                   v_now + enqueue.dedupe_window);
      if v_met.run is not null then
        return query select v_met.run, v_met.decision, v_met.reason;
        return;
      end if;
      reason := v_met.reason;
    end if;
  end if;
  if enqueue.concurrency_key is not null then
    if enqueue.on_conflict in ('replace', 'cancel_running') then
      v_met := orc._meet_key(enqueue.tenant, enqueue.concurrency_key, enqueue.concurrency_limit, enqueue.on_conflict, v_run,
                             v_pipeline.id, enqueue.input, enqueue.labels, enqueue.dedupe_key);
      if v_met.run is not null then
        return query select v_met.run, v_met.decision, v_met.reason;
        return;
      end if;
      reason := coalesce(v_met.reason, reason);
    end if;
    perform orc._set_concurrency(enqueue.tenant, enqueue.concurrency_key, enqueue.concurrency_limit);
    v_state := case when orc._free_slots(enqueue.tenant, enqueue.concurrency_key) > 0 then 'scheduled' else 'blocked' end;
  end if;
  if enqueue.due_at > v_now then
    v_state := 'scheduled';
  end if;
  insert into orchestrator.due_work (
    tenant_id, run_id, pipeline_id, retry_of, due_at, backoff_seconds, backoff_limit_seconds, timeout_seconds,
    max_attempts, priority, state, queue, kind, backoff, concurrency_key, dedupe_key, input, labels)
  values (
    enqueue.tenant, v_run, v_pipeline.id, enqueue.retry_of,
    case when enqueue.due_at < v_now then orc._not_below(enqueue.tenant, v_queue, v_priority, enqueue.due_at)
         else coalesce(enqueue.due_at, v_now) end, enqueue.backoff_seconds,
    enqueue.backoff_limit_seconds, enqueue.timeout_seconds, enqueue.max_attempts, v_priority, v_state,
    v_queue, enqueue.kind, enqueue.backoff, enqueue.concurrency_key, enqueue.dedupe_key, enqueue.input,
    enqueue.labels);
  perform orc._list_lane(enqueue.tenant, v_queue, v_priority);
  if v_state <> 'blocked' then
    perform orc._hint(v_queue);
  end if;
  run_id := v_run;
  decision := 'created';
  return next;
end $$;
comment on function orc.enqueue is
  'Makes a run that does a pipeline. Answers its id and whether it was created, skipped, replaced or merged, and why.';
grant execute on function orc.enqueue to orc_api, orc_worker;

create function orc._belongs_to(tenant text, run uuid, task uuid, event uuid, nominal timestamptz) returns void
language sql as $$
  update orchestrator.due_work d set task_id = $3, event_id = $4, nominal_at = $5 where d.tenant_id = $1 and d.run_id = $2
$$;
comment on function orc._belongs_to(text, uuid, uuid, uuid, timestamptz) is 'Says which task a new run is of, and what made it.';

-- Many at once, in one pass. What makes no sense breaks a constraint, whose name says what.
--
-- When an item has a dedupe key or a concurrency key, of its own or of its pipeline, all go one by one,
-- because each may meet another.
-- Measured 2026-11-21 (2 cores, 18): see bin/bench.

create function orc._item_fields() returns text[]
language sql immutable parallel safe as $$
  select '{pipeline, input, queue, priority, due_at, dedupe_key, dedupe_window, on_duplicate, concurrency_key, concurrency_limit,
    on_conflict, max_attempts, labels, backoff, backoff_seconds, backoff_limit_seconds, timeout_seconds, kind}'::text[]
$$;
comment on function orc._item_fields() is 'What an item of enqueue_many may say.';

create function orc._one_by_one(tenant text, items jsonb, pipeline jsonb)
returns table (run_id uuid, decision text, reason text)
language sql as $$
  select e.* from jsonb_to_recordset(items) as i(
    pipeline jsonb, input jsonb, queue text, priority integer, due_at timestamptz, dedupe_key text, dedupe_window interval,
    on_duplicate text, concurrency_key text, concurrency_limit integer, max_attempts integer, labels jsonb, backoff text,
    backoff_seconds real, backoff_limit_seconds real, timeout_seconds real, kind text, on_conflict text)
  cross join lateral orc.enqueue(
    _one_by_one.tenant, coalesce(i.pipeline, _one_by_one.pipeline), i.input, i.queue, i.priority,
    i.due_at, i.dedupe_key, coalesce(i.dedupe_window, '0'), coalesce(i.on_duplicate, 'skip'), i.concurrency_key,
    i.concurrency_limit, coalesce(i.max_attempts, 1), i.labels, i.backoff, i.backoff_seconds, i.backoff_limit_seconds,
    i.timeout_seconds, coalesce(i.kind, 'run'), on_conflict => i.on_conflict) as e
$$;
comment on function orc._one_by_one(text, jsonb, jsonb) is 'Enqueues items of which some meet others.';

-- Items without keys: one statement, one pass. Their ids count on from one strong id, so they sort in the
-- items' order and cost a tenth of strong ones (2026-11-21: 0.3 instead of 3.0 µs of a row's 8).
create function orc._in_one_pass(tenant text, items jsonb, standard uuid, usual_queue text, usual_priority smallint)
returns table (run_id uuid, queue text, priority smallint)
language sql as $$
  with first as materialized (
    select left(f.id::text, 24) as head, ('x0000' || right(f.id::text, 12))::bit(64)::bigint & 140737488355327 as tail,
           orchestrator.now() as now, nullif(current_setting('orchestrator.traceparent', true), '') as traceparent,
           nullif(current_setting('orchestrator.request', true), '') as correlation_id
    from orchestrator.new_id() as f(id)),
  own as materialized (
    select d.document, p.id, p.queue, p.priority
    from (select distinct i -> 'pipeline' as document
          from jsonb_array_elements(case when items @? '$[*].pipeline' then items else '[]' end) as i
          where jsonb_typeof(i -> 'pipeline') <> 'null') as d
    cross join lateral orc._pipeline(_in_one_pass.tenant, d.document) as p),
  item as materialized (
    select (f.head || lpad(to_hex(f.tail + i.nth), 12, '0'))::uuid as run_id, coalesce(o.id, standard) as pipeline_id,
           coalesce(i.queue, case when o.id is null then usual_queue else o.queue end, 'default') as queue,
           coalesce(i.priority, case when o.id is null then usual_priority else o.priority end, 50::smallint) as priority,
           i.input, i.due_at, i.max_attempts, i.labels, i.backoff, i.backoff_seconds, i.backoff_limit_seconds, i.timeout_seconds,
           i.kind, i.nth, f.now, f.traceparent, f.correlation_id
    from first f cross join rows from (jsonb_to_recordset(items) as (
      pipeline jsonb, input jsonb, queue text, priority smallint, due_at timestamptz, max_attempts smallint, labels jsonb,
      backoff text, backoff_seconds real, backoff_limit_seconds real, timeout_seconds real, kind text)) with ordinality
      as i(pipeline, input, queue, priority, due_at, max_attempts, labels, backoff, backoff_seconds, backoff_limit_seconds,
           timeout_seconds, kind, nth)
    left join own o on o.document = i.pipeline),
  made as (
  insert into orchestrator.due_work (
    tenant_id, run_id, pipeline_id, due_at, backoff_seconds, backoff_limit_seconds, timeout_seconds, max_attempts,
    priority, state, queue, kind, backoff, input, labels, traceparent, correlation_id)
  select _in_one_pass.tenant, i.run_id, i.pipeline_id,
         case when i.due_at < i.now then orc._not_below(_in_one_pass.tenant, i.queue, i.priority, i.due_at)
              else coalesce(i.due_at, i.now) end,
         i.backoff_seconds, i.backoff_limit_seconds, i.timeout_seconds, coalesce(i.max_attempts, 1), i.priority,
         case when i.due_at > i.now then 'scheduled' else 'ready' end, i.queue, coalesce(i.kind, 'run'), i.backoff, i.input,
         i.labels, i.traceparent, i.correlation_id
  from item i)
  select run_id, queue, priority from item order by nth
$$;
comment on function orc._in_one_pass(text, jsonb, uuid, text, smallint) is 'Enqueues items that meet nothing; answers in their order.';

create function orc._check_items(items jsonb, has_pipeline boolean) returns void
language plpgsql as $$
declare
  v_wrong text;
begin
  select case when jsonb_typeof(i) <> 'object' then format('item %s is not an object', nth - 1)
              when pg_column_size(i) > 1100000 then format('item %s is too large', nth - 1)
              when not has_pipeline and not i ? 'pipeline' then format('item %s has no pipeline', nth - 1)
              else format('item %s has unknown fields: %s', nth - 1, (
                select string_agg(key, ', ' order by key) from jsonb_object_keys(i - orc._item_fields()) as key)) end
  into v_wrong
  from jsonb_array_elements(items) with ordinality as e(i, nth)
  where case when jsonb_typeof(i) <> 'object' then true
             else i - orc._item_fields() <> '{}' or pg_column_size(i) > 1100000 or not (has_pipeline or i ? 'pipeline') end
  limit 1;
  if v_wrong is not null then
    perform orc._invalid('An item of the list makes no sense', v_wrong, 'an item has the arguments of orc.enqueue');
  end if;
end $$;
comment on function orc._check_items(jsonb, boolean) is 'Refuses items that aren''t objects, are too large, or have unknown fields.';

-- Whether an item meets others: by a key of its own, or of its pipeline.
create function orc._items_meet(tenant text, items jsonb, usual_key text) returns boolean
language sql as $$
  select items @? '$[*] ? (exists (@.dedupe_key) || exists (@.concurrency_key))'
    or usual_key is not null and items @? '$[*] ? (!exists (@.pipeline) || @.pipeline == null)'
    or items @? '$[*].pipeline' and exists (
      select from (select distinct i -> 'pipeline' as document from jsonb_array_elements(items) as i
            where jsonb_typeof(i -> 'pipeline') <> 'null') as d
      cross join lateral orc._pipeline(tenant, d.document) as p where p.concurrency_key is not null)
$$;
comment on function orc._items_meet(text, jsonb, text) is 'Whether items have to be enqueued one by one.';

create function orc.enqueue_many(tenant text, items jsonb, pipeline jsonb default null)
returns table (run_id uuid, decision text, reason text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_usual record;
  v_made record;
begin
  if jsonb_typeof(items) is distinct from 'array' then
    perform orc._invalid('items is a list of objects', 'items');
  elsif not orchestrator.json_is_bounded(items, 268435455) then
    perform orc._invalid('The items are too deep, or have numbers over 1e308', 'items');
  end if;
  perform orc._check_items(items, enqueue_many.pipeline is not null);
  if enqueue_many.pipeline is not null then
    v_usual := orc._pipeline(enqueue_many.tenant, enqueue_many.pipeline);
  else
    select null::uuid as id, null::text as queue, null::smallint as priority, null::text as concurrency_key into v_usual;
  end if;
  if orc._items_meet(enqueue_many.tenant, items, v_usual.concurrency_key) then
    return query select * from orc._one_by_one(enqueue_many.tenant, items, enqueue_many.pipeline);
    return;
  end if;
  with made as materialized (
    select m.* from orc._in_one_pass(enqueue_many.tenant, items, v_usual.id, v_usual.queue, v_usual.priority) as m)
  select array_agg(m.run_id) as runs, (select array_agg(orc._list_lane(enqueue_many.tenant, l.queue, l.priority)::text)
           from (select distinct queue, priority from made) as l) as listed,
         (select array_agg(orc._hint(q.queue)::text) from (select distinct queue from made) as q) as hinted
  into v_made from made m;
  return query select r, 'created', null::text from unnest(v_made.runs) as r;
end $$;
comment on function orc.enqueue_many(text, jsonb, jsonb) is
  'Makes many runs at once. Each item has the arguments of orc.enqueue, its pipeline unless one is given for all; answers in their order.';
grant execute on function orc.enqueue_many to orc_api, orc_worker;
