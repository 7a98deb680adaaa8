-- Five roles and two schemas: the ground that facts and verbs stand on.
--
--   orc_owner    owns both schemas and all in them; migrations and definer verbs run as it
--   orc_api      calls the verbs of the HTTP service; row-level security is meant for it
--   orc_worker   calls the verbs of workers, schedulers and relays
--   orc_reader   reads views and facts, changes nothing: for people and dashboards
--   orc_sql      records the step that its statement belongs to: for the login of sql.query
--
-- None can log in. A login gets what it needs by membership (`grant orc_reader to grafana`); grants
-- on a single view or verb don't survive the next deploy, membership does.
-- Whoever installs needs CREATEROLE and CREATE on the database, no more. It becomes a member of all
-- five, so that `set role orc_api` works. A deploy after that needs only the membership.
--
-- Roles belong to the whole server, so another database may be making the same ones at this moment:
-- one of the two then fails on a unique index or on a tuple that is updated concurrently, and runs
-- this page again. That's why all of it is conditional. It's neither a fact nor a verb: it runs
-- before either, whenever something here is missing.

do $$
declare
  v_me constant text := current_user;
  v_how constant text := case when current_setting('server_version_num')::int >= 160000
                              then ' with inherit true, set true' else '' end;
  v_role text;
  v_purpose text;
begin
  for v_role, v_purpose in
    values ('orc_owner', 'Owns the facts and verbs of Orchestrator; migrations run as it.'),
           ('orc_api', 'Calls the verbs of the HTTP service of Orchestrator.'),
           ('orc_worker', 'Calls the verbs of the workers, schedulers and relays of Orchestrator.'),
           ('orc_reader', 'Reads the views and facts of Orchestrator.'),
           ('orc_sql', 'Records steps of sql.query in Orchestrator, and can do nothing else there.')
  loop
    if to_regrole(v_role) is null then
      execute format('create role %I nologin', v_role);
      execute format('comment on role %I is %L', v_role, v_purpose);
    end if;
    if not pg_has_role(v_me, v_role, case when v_how = '' then 'member' else 'set' end) then
      execute format('grant %I to %I%s', v_role, v_me, v_how);
    end if;
  end loop;
exception when insufficient_privilege then
  raise exception using errcode = 'insufficient_privilege',
    message = format('role %s can neither make nor join the roles of Orchestrator: %s', v_me, sqlerrm),
    hint = format('let someone who may run: create role orc_owner; create role orc_api; '
                  'create role orc_worker; create role orc_reader; create role orc_sql (those that are missing); '
                  'grant orc_owner, orc_api, orc_worker, orc_reader, orc_sql to %I', v_me);
end $$;

do $$
begin
  -- Sessions of other users show how old their snapshot is only to members of this role.
  if not pg_has_role('orc_owner', 'pg_read_all_stats', 'member') then
    grant pg_read_all_stats to orc_owner;
  end if;
exception when insufficient_privilege then
  null; -- the gauges then know our own sessions only
end $$;

do $$
declare
  v_me constant text := current_user;
  v_schema text;
  v_owner text;
begin
  foreach v_schema in array array['orchestrator', 'orc'] loop
    select nspowner::regrole::text into v_owner from pg_namespace where nspname = v_schema;
    if not found then
      execute format('create schema %I authorization orc_owner', v_schema);
    elsif v_owner <> 'orc_owner' then
      raise exception using
        message = format('schema %s is there already and belongs to %s', v_schema, v_owner),
        hint = format('rename it, or use another database: Orchestrator needs schema %s for itself', v_schema);
    end if;
  end loop;
  perform set_config('role', 'orc_owner', true);
  comment on schema orchestrator is 'Facts of Orchestrator: tables, and the functions that they need.';
  grant usage on schema orchestrator, orc to orc_api, orc_worker, orc_reader;
  grant usage on schema orc to orc_sql;
  alter default privileges revoke execute on functions from public;
  perform set_config('role', v_me, true);
end $$;
