-- Answers to runs that wait: callbacks from outside, approvals of people, and children whose parent is gone.
--
-- A token of a callback names its run and step, and is signed with the key of this installation:
--   orc_cb_ + base64url(run, 16 bytes; the first 16 bytes of HMAC-SHA256(key, run and step); step)
-- So it is the same whenever it is made, steps before the wait can hand it out, and no step needs to write it down.
-- It is used once. The answer may come before its step is reached; then the wait begins with it.
--
-- Lock order: the run's row, then its wait (waits.sql).

create function orc.callback_key() returns bytea
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select key from orchestrator.callback_key
$$;
comment on function orc.callback_key() is 'The key that signs tokens of callbacks; workers make them.';
grant execute on function orc.callback_key() to orc_worker;

create function orc._hmac(key bytea, message bytea) returns bytea
language plpgsql immutable strict as $$
declare
  v_inner bytea := decode(repeat('36', 64), 'hex');
  v_outer bytea := decode(repeat('5c', 64), 'hex');
begin
  for n in 0..length(key) - 1 loop
    v_inner := set_byte(v_inner, n, get_byte(key, n) # 54);
    v_outer := set_byte(v_outer, n, get_byte(key, n) # 92);
  end loop;
  return sha256(v_outer || sha256(v_inner || message));
end $$;
comment on function orc._hmac(bytea, bytea) is 'HMAC-SHA256, for keys of at most 64 bytes.';

-- No run when the token isn't one of ours.
create function orc._read_token(token text, out run uuid, out step text)
language plpgsql stable as $$
declare
  v_text constant text := translate(substr(token, 8), '-_', '+/');
  v_bytes bytea;
begin
  if token !~ '^orc_cb_[A-Za-z0-9_-]+$' or length(token) not between 51 and 3000 then
    return;
  end if;
  v_bytes := decode(v_text || repeat('=', (4 - length(v_text) % 4) % 4), 'base64');
  if substring(v_bytes from 17 for 16) <> substring(
       orc._hmac(orc.callback_key(), substring(v_bytes from 1 for 16) || substring(v_bytes from 33)) from 1 for 16) then
    return;
  end if;
  step := convert_from(substring(v_bytes from 33), 'UTF8');
  run := encode(substring(v_bytes from 1 for 16), 'hex')::uuid;
exception when data_exception then
  run := null;
end $$;
comment on function orc._read_token(text) is 'The run and the step of a callback''s token.';

-- The wait with its run locked, or a row without a step. Null when the run is over and nothing waits for the token.
create function orc._wait_of_token(token text, run uuid, out tenant text, out wait orchestrator.wait)
language plpgsql as $$
declare
  v_hash constant bytea := sha256(convert_to(token, 'UTF8'));
begin
  select d.tenant_id into tenant from orchestrator.due_work d where d.run_id = run for update;
  select w.* into wait from orchestrator.wait w where w.run_id = run and w.token_hash = v_hash for update;
  tenant := coalesce(tenant, (wait).tenant_id);
end $$;
comment on function orc._wait_of_token(text, uuid) is 'The wait of a token, and its run, locked.';

create function orc.answer_callback(token text, body jsonb default null)
returns table (run_id uuid, step text, answered_at timestamptz)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_now timestamptz;
  t record;
  v record;
  w orchestrator.wait;
begin
  t := orc._read_token(token);
  if t.run is null then
    perform orc._not_found('There is no such callback', null, 'use the token as it was given out');
  elsif not orchestrator.json_is_bounded(body) then
    perform orc._invalid('The body is too large or too deep', 'body', 'at most 1 MiB, 32 levels, numbers up to 1e308');
  end if;
  v := orc._wait_of_token(token, t.run);
  w := v.wait;
  v_now := orchestrator.now();
  if w.state = 'met' then
    if w.answer is distinct from coalesce(body, 'null') then
      perform orc._conflict('This callback has been answered differently', t.step, 'a token is used once');
    end if;
    return query select t.run, t.step, w.answered_at;
    return;
  elsif v.tenant is null or w.state <> 'waiting' or w.deadline <= v_now
     or not exists (select from orchestrator.due_work d where d.tenant_id = v.tenant and d.run_id = t.run) then
    perform orc._gone('Nobody waits for this callback any more', t.step, 'its run has ended, or its time is over');
  end if;
  insert into orchestrator.wait as o (tenant_id, run_id, step_id, kind, state, token_hash, answer, answered_by, answered_at)
  values (v.tenant, t.run, t.step, 'callback', 'met', sha256(convert_to(token, 'UTF8')), coalesce(body, 'null'), 'callback', v_now)
  on conflict (tenant_id, run_id, step_id) do update
  set state = 'met', answer = excluded.answer, answered_by = excluded.answered_by, answered_at = excluded.answered_at;
  perform orc._wake(v.tenant, t.run);
  perform orc._audit(v.tenant, 'answer_callback', t.run::text, jsonb_build_object('step', t.step));
  return query select t.run, t.step, v_now;
end $$;
comment on function orc.answer_callback(text, jsonb) is
  'Answers a callback, once: the same body again gets the same answer, another OR409, and OR410 after its run or its time is over.';
grant execute on function orc.answer_callback(text, jsonb) to orc_api;

create function orc.open_approvals(tenant text, run uuid)
returns table (step text, kind text, who text[], needed integer, given integer, form jsonb, deadline timestamptz)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select w.step_id, w.kind, w.who, coalesce(w.needed, 1), coalesce(jsonb_array_length(w.answer), 0), w.form, w.deadline
  from orchestrator.wait w
  where w.tenant_id = tenant and w.run_id = run and w.state = 'waiting' and w.kind in ('approval', 'unknown')
  order by w.step_id
$$;
comment on function orc.open_approvals(text, uuid) is 'What a run asks people: whether to go on, or what to do about an unknown outcome.';
grant execute on function orc.open_approvals(text, uuid) to orc_api, orc_reader;

create function orc._is_own(d orchestrator.due_work, who text) returns boolean
language sql stable set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
  with recursive line as (
    select d.tenant_id, d.task_id, d.parent_id, d.labels
    union all
    select p.tenant_id, p.task_id, p.parent_id, p.labels
    from line l join orchestrator.due_work p on p.tenant_id = l.tenant_id and p.run_id = l.parent_id)
  select exists (
    select from line l left join orchestrator.task t on t.tenant_id = l.tenant_id and t.id = l.task_id
    where who in (l.labels ->> 'actor', t.created_by::text))
$$;
comment on function orc._is_own(orchestrator.due_work, text) is
  'Whether a run is somebody''s: the label actor of it, or of a run that awaits it, says so, or its task is theirs.';

-- The open question of a run, locked after the run.
create function orc._question(tenant text, run uuid, step text) returns orchestrator.wait
language plpgsql as $$
declare
  d orchestrator.due_work;
  w orchestrator.wait;
begin
  select * into d from orchestrator.due_work o where o.tenant_id = tenant and o.run_id = run for update;
  if d.run_id is null then
    if exists (select from orchestrator.run r where r.tenant_id = tenant and r.id = run) then
      perform orc._gone('The run has ended', run::text);
    end if;
    perform orc._not_found('Run not found: ' || run, run::text);
  elsif step is null and (select count(*) from orc.open_approvals(tenant, run)) > 1 then
    perform orc._conflict('The run asks more than one question', run::text, 'say which step; orc.open_approvals lists them');
  end if;
  select * into w from orchestrator.wait o
  where o.tenant_id = tenant and o.run_id = run and o.step_id = coalesce(step, o.step_id) and o.kind in ('approval', 'unknown')
  order by o.state = 'waiting' desc, o.answered_at desc limit 1 for update;
  if w.run_id is null then
    perform orc._not_found('The run asks nobody', coalesce(step, run::text), 'orc.why says what it waits for');
  elsif w.state <> 'waiting' or w.deadline <= orchestrator.now() then
    perform orc._gone('This question is closed', w.step_id, format('it is %s', case w.state when 'waiting' then 'expired' else w.state end));
  elsif orc._is_own(d, current_setting('orchestrator.actor')) then
    perform orc._forbidden('Nobody approves a run of their own', run::text, 'let somebody else approve it');
  end if;
  return w;
end $$;
comment on function orc._question(text, uuid, text) is 'The open question of a run, locked, that the actor may answer.';

create function orc.approve_run(
  tenant text, run uuid, decision text default 'approve', step text default null, form jsonb default null, by text default null)
returns table (step_id text, state text, given integer, needed integer)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_by constant text := coalesce(by, nullif(current_setting('orchestrator.actor', true), ''), session_user);
  v_name constant text := (select p.name from orchestrator.principal p where p.tenant_id = tenant and p.id::text = v_by);
  w orchestrator.wait;
begin
  perform orc._require('runs:approve');
  if decision is null or decision not in ('approve', 'reject') then
    perform orc._invalid('A decision is approve or reject', 'decision');
  elsif not orchestrator.json_is_bounded(form, 65536) then
    perform orc._invalid('The form is too large or too deep', 'form', 'at most 64 KiB');
  end if;
  perform set_config('orchestrator.actor', v_by, true);
  w := orc._question(tenant, run, step);
  if not coalesce(v_by = any (w.who) or v_name = any (w.who), w.who is null) then
    perform orc._forbidden('Others approve this step', w.step_id, array_to_string(w.who, ', '));
  elsif w.answer @> jsonb_build_array(jsonb_build_object('by', v_by)) then
    perform orc._conflict('You have approved this step', w.step_id, 'it needs others, too');
  end if;
  w.answer := coalesce(w.answer, '[]') || jsonb_build_array(jsonb_build_object(
    'by', v_by, 'decision', decision, 'form', form, 'at', orchestrator.now()));
  if decision = 'reject' or jsonb_array_length(w.answer) >= coalesce(w.needed, 1) then
    w.state := 'met';
  end if;
  update orchestrator.wait o
  set answer = w.answer, state = w.state, answered_by = case w.state when 'met' then v_by end,
      answered_at = case w.state when 'met' then orchestrator.now() end
  where o.tenant_id = tenant and o.run_id = run and o.step_id = w.step_id;
  perform orc._audit(tenant, 'approve_run', run::text, jsonb_build_object('step', w.step_id, 'decision', decision, 'form', form));
  if w.state = 'met' then
    perform orc._wake(tenant, run);
  end if;
  return query select w.step_id, w.state, jsonb_array_length(w.answer), coalesce(w.needed, 1)::integer;
end $$;
comment on function orc.approve_run(text, uuid, text, text, jsonb, text) is
  'Answers what a run asks people: approve or reject. Each once; the step is named when there are several. For a call whose outcome nobody knows, approve calls again and reject fails.';
grant execute on function orc.approve_run(text, uuid, text, text, jsonb, text) to orc_api;

-- Children whose parent has ended, or no longer waits for them. Apart from the parent's end, so that no
-- end of a run waits for the row of another.
create function orc.cancel_orphans(most integer default 1000) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off as $$
declare
  v_all integer := 0;
  c record;
begin
  for c in
    select d.tenant_id, d.run_id from orchestrator.due_work d
    where d.parent_id is not null and d.cancel_requested_at is null
      and not exists (select from orchestrator.wait w
                      where w.tenant_id = d.tenant_id and w.run_id = d.parent_id and w.child_run = d.run_id and w.state = 'waiting')
    order by d.tenant_id, d.run_id limit most for update of d skip locked
  loop
    perform orc.cancel_run(c.tenant_id, c.run_id, 'its parent does not wait for it any more');
    v_all := v_all + 1;
  end loop;
  return v_all;
end $$;
comment on function orc.cancel_orphans(integer) is 'Cancels the children of runs that ended, or went on without them; answers how many.';
grant execute on function orc.cancel_orphans(integer) to orc_worker;
