-- Runs as lists and as objects, as the surface of tasks shows them.
--
-- Lists go by the id, newest first: it carries the time at which the run was made, so a page needs no sort, and the last id of
-- a page is the cursor of the next. Nothing is counted beyond 10,000.

create function orc._count_bound() returns integer
language sql immutable as $$ select 10000 $$;
comment on function orc._count_bound() is 'Lists count up to so many.';

-- As the surface of tasks shows it. An output of more bytes than are shown inline is shown by its size and where it is.
create function orc._run_card(r orc.runs, bytes integer, inline_bytes integer) returns jsonb
language sql stable as $$
  select jsonb_build_object(
    'id', r.id, 'kind', r.kind, 'task_id', r.task_id, 'state', r.state,
    'success', case r.state when 'succeeded' then true when 'failed' then false when 'canceled' then false end,
    'attempt', r.attempt, 'lease_owner', case when r.state = 'running' then r.worker_id end, 'leased_until', r.leased_until,
    'started_at', r.started_at, 'finished_at', r.finished_at,
    'error', case r.state when 'canceled' then 'canceled' else nullif(concat_ws(': ', r.error ->> 'type', r.error ->> 'message'), '') end,
    'output', case when bytes <= inline_bytes then r.output end,
    'output_ref', case when bytes > inline_bytes then jsonb_build_object('bytes', bytes, 'url', format('/runs/%s/output', r.id)) end,
    'created_at', r.created_at, 'due_at', r.due_at,
    'priority', case r.kind when 'task' then least(greatest((r.priority + 5) / 10, 1), 9) else r.priority end,
    'retry_of', r.retry_of)
$$;
comment on function orc._run_card(orc.runs, integer, integer) is 'A run as an object.';

create function orc._run_cards(tenant text, runs uuid[], inline_bytes integer) returns setof jsonb
language sql stable set plan_cache_mode = force_custom_plan set jit = off as $$
  select orc._run_card(r, o.bytes, inline_bytes)
  from orc.runs r cross join lateral (select coalesce(r.output_bytes, octet_length(r.output::text)) as bytes) as o
  where r.tenant_id = tenant and r.id = any (runs)
  order by r.id desc
$$;
comment on function orc._run_cards(text, uuid[], integer) is 'Runs as objects, newest first.';

create function orc.list_runs(
  tenant text, filter jsonb default '{}', owner uuid default null, "limit" integer default 50, "offset" integer default 0, cursor uuid default null)
returns table (items jsonb, total integer, total_is_exact boolean, has_more boolean, next_cursor uuid)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_bound constant integer := orc._count_bound();
  v_found uuid[];
begin
  perform orc._require('runs:read');
  perform orc._check_filter(filter);
  if ("limit" between 1 and 200 and "offset" between 0 and v_bound) is not true then
    perform orc._invalid('A page has 1 to 200 items, and an offset of at most 10000', 'limit, offset', 'go on with the cursor');
  end if;
  v_found := orc._find_runs(tenant, filter, orc._owner(owner), null, greatest(v_bound, "offset" + "limit") + 1);
  total := least(cardinality(v_found), v_bound);
  total_is_exact := cardinality(v_found) <= v_bound;
  if cursor is not null then
    v_found := orc._find_runs(tenant, filter, orc._owner(owner), cursor, "offset" + "limit" + 1);
  end if;
  v_found := v_found["offset" + 1 : "offset" + "limit" + 1];
  has_more := cardinality(v_found) > "limit";
  v_found := v_found[:"limit"];
  next_cursor := case when has_more then v_found["limit"] end;
  items := coalesce((select jsonb_agg(c) from orc._run_cards(tenant, v_found, 4096) as c), '[]');
  return next;
end $$;
comment on function orc.list_runs(text, jsonb, uuid, integer, integer, uuid) is
  'A page of runs, newest first, by a filter. The total is counted up to 10,000. The next page begins at next_cursor.';
grant execute on function orc.list_runs(text, jsonb, uuid, integer, integer, uuid) to orc_api, orc_reader;

-- Whoever may not see it is told that there is none. One plan by the keys does for every run: to plan each look anew would
-- cost more than to look (measured 2026-11-21: orc.run took 0.45 ms then, and takes 0.11).
create function orc._see_run(tenant text, run uuid, owner uuid) returns orc.runs
language plpgsql stable set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $$
declare
  r orc.runs;
begin
  perform orc._require('runs:read', 'runs:write', 'tasks:read', 'tasks:write');
  owner := orc._owner(owner);
  select o.* into r from orc.runs o where o.tenant_id = tenant and o.id = run;
  if r.id is null or owner is not null and r.task_id is not null and not exists (
      select from orchestrator.task t where t.tenant_id = tenant and t.id = r.task_id and t.created_by = owner) then
    perform orc._not_found('Run not found: ' || run, run::text, 'GET /runs lists them');
  end if;
  return r;
end $$;
comment on function orc._see_run(text, uuid, uuid) is 'The run; OR404 unless there is one, and not of a task that somebody else than the owner made.';

create function orc.see_run(tenant text, run uuid, owner uuid default null) returns void
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform orc._see_run(tenant, run, owner);
end $$;
comment on function orc.see_run(text, uuid, uuid) is 'OR404 unless there is such a run; with an owner, also when somebody else made its task.';
grant execute on function orc.see_run(text, uuid, uuid) to orc_api;

create function orc._step_cards(tenant text, run uuid, most integer) returns setof jsonb
language sql stable as $$
  select jsonb_build_object(
    'step', s.step_id, 'state', s.state, 'attempt', s.attempt, 'started_at', s.started_at, 'finished_at', s.finished_at,
    'arguments', case when octet_length(s.arguments::text) <= 4096 then s.arguments end,
    'output', case when o.bytes <= 4096 then s.output end,
    'output_ref', case when o.bytes > 4096 then jsonb_build_object('bytes', o.bytes, 'url', format('/runs/%s/output?step=%s', run,
        replace(replace(replace(replace(s.step_id, '%', '%25'), '[', '%5B'), ']', '%5D'), '/', '%2F'))) end,
    'error', s.error, 'cached', s.is_cached)
  from orc.steps s cross join lateral (select coalesce(s.output_bytes, octet_length(s.output::text)) as bytes) as o
  where s.tenant_id = tenant and s.run_id = run
  order by coalesce(s.started_at, s.finished_at), s.step_id limit most
$$;
comment on function orc._step_cards(text, uuid, integer) is 'The first recorded steps of a run as objects.';

-- As orc.attempts has them; the last one is in the run itself, and most runs have no other.
create function orc._attempt_cards(r orc.runs, most integer) returns jsonb
language plpgsql stable as $$
declare
  v_attempts jsonb := '[]';
begin
  if r.epoch > 1 then
    select coalesce(jsonb_agg(to_jsonb(a) - 'epoch' order by a.epoch), '[]') into v_attempts
    from (select t.attempt, t.outcome, t.worker_id, t.started_at, t.finished_at, t.error, t.epoch from orchestrator.attempt t
          where t.tenant_id = r.tenant_id and t.run_id = r.id order by t.epoch desc limit most - 1) as a;
  end if;
  if r.worker_id is not null then
    v_attempts := v_attempts || jsonb_build_object(
      'attempt', r.attempt, 'outcome', r.state, 'worker_id', r.worker_id, 'started_at', r.started_at, 'finished_at', r.finished_at,
      'error', case when r.finished_at is not null then r.error end);
  end if;
  return v_attempts;
end $$;
comment on function orc._attempt_cards(orc.runs, integer) is 'The last attempts of a run as objects.';

create function orc._whole_run(r orc.runs) returns jsonb
language plpgsql stable as $$
declare
  v_steps constant jsonb[] := array(select s from orc._step_cards(r.tenant_id, r.id, 1001) as s);
begin
  return orc._run_card(r, coalesce(r.output_bytes, octet_length(r.output::text)), orc._inline_bytes())
    || jsonb_build_object('steps', to_jsonb(v_steps[:1000]), 'has_more_steps', cardinality(v_steps) > 1000,
                          'attempts', orc._attempt_cards(r, 200));
end $$;
comment on function orc._whole_run(orc.runs) is 'A run as an object, with its first 1,000 steps and its last 200 attempts.';

create function orc.run(tenant text, run uuid, owner uuid default null) returns jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $$
begin
  return orc._whole_run(orc._see_run(tenant, run, owner));
end $$;
comment on function orc.run(text, uuid, uuid) is 'A run as an object, with its first 1,000 steps and its last 200 attempts.';
grant execute on function orc.run(text, uuid, uuid) to orc_api, orc_reader;

-- Looks of several callers, {tenant, actor, scopes, given}, and an answer for each. Null for a run that the caller doesn't see:
-- alone it hears why. One by one, because a plan by the key of each opens its own partition, and one of all of them all.
create function orc.runs_together(calls jsonb) returns setof jsonb
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off as $$
declare
  c record;
  r orc.runs;
begin
  for c in
    select x.tenant, (x.given ->> 'run')::uuid as run,
           case when x.given ->> 'owner' is not null or orc._covers(s.own, '{admin}') then x.given ->> 'owner' else x.actor end::uuid as owner,
           orc._covers(s.own, '{runs:read, runs:write, tasks:read, tasks:write}') as may
    from jsonb_to_recordset(calls) as x(tenant text, actor text, scopes text, given jsonb)
    cross join lateral (select string_to_array(x.scopes, ' ')) as s(own)
  loop
    select o.* into r from orc.runs o where c.may and o.tenant_id = c.tenant and o.id = c.run;
    if r.id is null or c.owner is not null and r.task_id is not null and not exists (
        select from orchestrator.task t where t.tenant_id = r.tenant_id and t.id = r.task_id and t.created_by = c.owner) then
      return next null;
    else
      return next jsonb_build_object('run', orc._whole_run(r));
    end if;
  end loop;
end $$;
comment on function orc.runs_together(jsonb) is 'Runs as several callers see them, {tenant, actor, scopes, given}. Null for one that is to be asked for alone.';
grant execute on function orc.runs_together(jsonb) to orc_api;

create function orc.run_output(tenant text, run uuid, step text default null, owner uuid default null) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_value jsonb;
  v_digest bytea;
begin
  perform orc._see_run(tenant, run, owner);
  if step is null then
    select r.output, r.output_digest into v_value, v_digest from orc.runs r
    where r.tenant_id = tenant and r.id = run and r.finished_at is not null;
    if not found then
      perform orc._conflict('The run has not ended yet', run::text, 'wait for it: its steps have outputs already');
    end if;
  else
    select s.output, s.output_digest into v_value, v_digest from orc.steps s
    where s.tenant_id = tenant and s.run_id = run and s.step_id = step;
    if not found then
      perform orc._not_found('The run has no such step on record', step, 'GET /runs/{run} lists them');
    end if;
  end if;
  return case when v_digest is null then coalesce(v_value, 'null') else orc.value(tenant, v_digest, run) end;
end $$;
comment on function orc.run_output(text, uuid, text, uuid) is 'What came out of a run, or of one of its steps, however large.';
grant execute on function orc.run_output(text, uuid, text, uuid) to orc_api, orc_reader;

create function orc.run_failures(tenant text, filter jsonb default '{}', owner uuid default null, "limit" integer default 50)
returns table (items jsonb, looked_at integer, is_all boolean)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_most constant integer := 5000;
  v_runs uuid[];
begin
  perform orc._require('runs:read');
  perform orc._check_filter(filter);
  v_runs := orc._find_runs(tenant, filter || '{"state": "failed"}', orc._owner(owner), null, v_most + 1);
  looked_at := least(cardinality(v_runs), v_most);
  is_all := cardinality(v_runs) <= v_most;
  items := coalesce((select jsonb_agg(to_jsonb(g) order by g.last_at desc) from (
    select f.fingerprint, f.error ->> 'type' as type, min(f.error ->> 'message') as message, count(*) as runs,
           min(f.finished_at) as first_at, max(f.finished_at) as last_at, max(f.id::text) as latest_run
    from (select r.id, r.error, r.finished_at, orc._fingerprint(r.error) as fingerprint
          from orchestrator.run r where r.tenant_id = tenant and r.id = any (v_runs[:v_most])) as f
    group by f.fingerprint, f.error ->> 'type' order by max(f.finished_at) desc limit least(greatest("limit", 1), 200)) as g), '[]');
  return next;
end $$;
comment on function orc.run_failures(text, jsonb, uuid, integer) is 'The latest 5,000 failed runs that fit a filter, grouped by what went wrong.';
grant execute on function orc.run_failures(text, jsonb, uuid, integer) to orc_api, orc_reader;

create function orc.ended_runs(wanted uuid[]) returns table (run uuid)
language sql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
  select w.id from unnest(wanted) as w(id)
  where not exists (select from orchestrator.due_work d where d.run_id = w.id)
$$;
comment on function orc.ended_runs(uuid[]) is 'Which of these runs live no more: one question for all who wait.';
grant execute on function orc.ended_runs(uuid[]) to orc_api;

-- The lines of a run come from one worker after the other, so what stands after a line was written after it.
create function orc.list_logs(tenant text, run uuid, "limit" integer default 50, cursor uuid default null, owner uuid default null)
returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_lines jsonb[];
begin
  perform orc._see_run(tenant, run, owner);
  v_lines := array(
    select jsonb_build_object('id', l.id, 'at', orchestrator.id_time(l.id), 'level', l.level, 'message', l.message, 'facts', l.facts)
    from orchestrator.log l
    where l.tenant_id = tenant and l.run_id = run and (cursor is null or l.id > cursor)
    order by l.id limit "limit" + 1);
  return jsonb_build_object('items', to_jsonb(v_lines[:"limit"]),
                            'next_cursor', case when cardinality(v_lines) > "limit" then v_lines["limit"] -> 'id' end);
end $$;
comment on function orc.list_logs(text, uuid, integer, uuid, uuid) is 'The lines that a run wrote, the oldest first, after that of the cursor.';
grant execute on function orc.list_logs(text, uuid, integer, uuid, uuid) to orc_api, orc_reader;
