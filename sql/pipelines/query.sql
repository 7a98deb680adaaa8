-- What a step of sql.query may do here: record itself, in the transaction of its statement, once.
--
-- The statement is a user's, and so is the session: the login behind ORC_SQL_URL, a member of orc_sql.
-- That role may call the two verbs of this page and nothing else, and reads no table of ours. What it
-- must know is the worker that holds the run, the run and its epoch; whatever the statement has set,
-- the clock included, doesn't reach in here.
-- The run is locked first. So whoever records a step knows about the commit of whoever came before:
-- a step is recorded by one transaction only, and an effect stands if and only if its record does.

create function orc.record_once(worker uuid, step jsonb) returns table (answer text, output jsonb)
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off as $$
begin
  perform set_config('orchestrator.now', '', true);
  perform orc._live_worker(worker);
  perform from orchestrator.due_work d
  where d.tenant_id = step->>'tenant' and d.run_id = (step->>'run')::uuid and d.epoch = (step->>'epoch')::integer
    and d.worker_id = record_once.worker
  for no key update;
  if not found then
    perform orc._gone('The lease of this run has ended', step->>'run', 'drop its work: somebody else has it, or it ended');
  end if;
  select 'known', case when s.output_digest is null then s.output else orc.value(s.tenant_id, s.output_digest, s.run_id) end
  into record_once.answer, record_once.output from orchestrator.step s
  where s.tenant_id = step->>'tenant' and s.run_id = (step->>'run')::uuid and s.step_id = step->>'step' and s.state = 'succeeded';
  if not found then
    perform orc._record_steps(worker, jsonb_build_array(step || '{"state": "succeeded"}'));
    answer := 'recorded';
    output := step->'output';
  end if;
  return next;
end $$;
comment on function orc.record_once(uuid, jsonb) is
  'Records that a step has succeeded: recorded, or known with what was recorded before. OR410 when the lease of its run has ended.';
grant execute on function orc.record_once(uuid, jsonb) to orc_sql;

-- What is wrong with the login of this session, as one for the statements of users. No row: nothing.
create function orc.examine_login() returns table (problem text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select format('it is %s', a.what) from pg_roles r
  cross join lateral (values ('a superuser', r.rolsuper), ('allowed to make roles', r.rolcreaterole),
    ('allowed to pass by row-level security', r.rolbypassrls), ('allowed to replicate', r.rolreplication)) as a(what, is_so)
  where r.rolname = session_user and a.is_so
  union all
  select format('it is a member of %s', r.rolname) from pg_roles r
  where (r.rolname ~ '^orc_(owner|api|worker|reader)$' or r.rolname ~ '^pg_(read|write)_'
         or r.rolname in ('pg_monitor', 'pg_execute_server_program', 'pg_signal_backend', 'pg_maintain'))
    and pg_has_role(session_user, r.oid, 'member')
  union all
  select format('it may use %s', min(c.oid::regclass::text)) from pg_class c
  where c.relnamespace in ('orc'::regnamespace, 'orchestrator'::regnamespace) and c.relkind in ('r', 'p', 'v', 'm', 'f')
    and (has_any_column_privilege(session_user, c.oid, 'select, insert, update, references')
         or has_table_privilege(session_user, c.oid, 'delete, truncate, trigger'))
  having count(*) > 0
  union all
  select format('it may call %s', min(p.oid::regprocedure::text)) from pg_proc p
  where p.pronamespace in ('orc'::regnamespace, 'orchestrator'::regnamespace)
    and p.proname not in ('record_once', 'examine_login') and has_function_privilege(session_user, p.oid, 'execute')
  having count(*) > 0
  union all
  select format('it may make things in schema %s', n.nspname) from pg_namespace n
  where n.nspname in ('orc', 'orchestrator') and has_schema_privilege(session_user, n.oid, 'create')
$$;
comment on function orc.examine_login() is 'Why the login of this session may not run the statements of users: what it could do that it should not.';
grant execute on function orc.examine_login() to orc_sql;
