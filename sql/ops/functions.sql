-- The library about itself: what there is, how it is, and what is broken.
--
-- `orc.check()` lists broken invariants and is empty when all is well. Each vertical has a function
-- orc._check_<word>() with its own; they are added up here, by name. What a constraint can hold is a
-- constraint; an invariant is for what none can.
-- Gauges are cheap: they read the statistics views and never count a table.
-- (Measured 2026-11-21: 2 ms with 45 partitions, 10 ms with 700.)

create function orc.help(pattern text default null)
returns table (verb text, arguments text, returns text, purpose text)
language sql stable as $$
  select p.proname::text, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid), d.description
  from pg_proc p left join pg_description d on d.objoid = p.oid and d.classoid = 'pg_proc'::regclass
  where p.pronamespace = 'orc'::regnamespace and p.proname not like '\_%'
    and (pattern is null or concat_ws(' ', p.proname, d.description) ilike '%' || pattern || '%')
  order by p.proname, 2
$$;
comment on function orc.help(text) is 'Every verb with its arguments and purpose; the pattern is a part of its name or purpose.';
grant execute on function orc.help(text) to orc_api, orc_worker, orc_reader;

create function orc.health()
returns table (database_time timestamptz, server_version text, in_recovery boolean, last_migration text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select orchestrator.now(), current_setting('server_version'), pg_is_in_recovery(),
         (select max(name) from orchestrator.migration)
$$;
comment on function orc.health() is 'The database in one row: its time, its version, and how far its schema is.';
grant execute on function orc.health() to orc_api, orc_worker, orc_reader;

create function orc._sessions()
returns table (of_a_client boolean, state text, transaction_age double precision, snapshot_age integer)
language sql stable as $$
  select datname is not null, coalesce(state, 'hidden'), extract(epoch from clock_timestamp() - xact_start), age(backend_xmin)
  from pg_stat_activity
  where coalesce(datname, current_database()) = current_database() and pid <> pg_backend_pid()
$$;
comment on function orc._sessions() is
  'The other sessions of this database, and the processes of the server; hidden where we may not look.';

create function orc.gauges() returns table (name text, labels jsonb, value double precision)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  with session as materialized (select * from orc._sessions())
  select 'database_bytes', '{}'::jsonb, pg_database_size(current_database())::double precision
  union all
  select 'connections', jsonb_build_object('state', state), count(*) from session where of_a_client group by state
  union all
  select 'oldest_transaction_seconds', '{}', coalesce(max(transaction_age), 0) from session where of_a_client
  union all
  select 'oldest_snapshot_transactions', '{}', greatest(
    (select max(snapshot_age) from session),
    (select max(age(transaction)) from pg_prepared_xacts where database = current_database()),
    (select max(age(xmin)) from pg_replication_slots), 0)
  union all
  select 'partitions', jsonb_build_object('table', b."table"), count(*) from orc._bounds b group by b."table"
  union all
  select g.name, jsonb_build_object('sink', s.name), g.value
  from orc.list_sinks() as s
  cross join lateral (values ('outbox_backlog', s.backlog::double precision), ('outbox_aside', s.aside),
                             ('outbox_oldest_age_seconds', coalesce(s.oldest_seconds, 0)),
                             ('sink_up', (s.state = 'up')::integer)) as g(name, value)
  union all
  select 'default_partition_rows', jsonb_build_object('table', "table"), stray_rows from orc._default_rows()
  union all
  select * from orc._schedule_gauges()
  union all
  select * from orc._work_gauges()
$$;
comment on function orc.gauges() is 'Figures for monitoring: name, labels, value. A name that ends in _total counts up.';
grant execute on function orc.gauges() to orc_api, orc_worker, orc_reader;

-- PUBLIC may call nothing here, and whatever runs with its owner's rights finds names by its own path.
create function orc._check_ops() returns table (invariant text, subject text, detail text)
language sql stable as $$
  select 'functions_are_closed_to_public', p.oid::regprocedure::text,
         'PUBLIC may execute it; revoke execute on function … from public'
  from pg_proc p
  cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
  where p.pronamespace in ('orc'::regnamespace, 'orchestrator'::regnamespace)
    and a.grantee = 0
  union all
  select 'definer_functions_pin_their_search_path', p.oid::regprocedure::text,
         'it runs with its owner''s rights and needs: set search_path = pg_catalog, pg_temp'
  from pg_proc p
  where p.pronamespace in ('orc'::regnamespace, 'orchestrator'::regnamespace)
    and p.prosecdef and not coalesce(p.proconfig, '{}') && array['search_path=pg_catalog, pg_temp']
  union all
  select 'tables_of_tenants_have_row_level_security', c.oid::regclass::text,
         'its migration must enable it, and make the policies rows_of_the_tenant and rows_for_readers as ops/tables.sql does'
  from pg_class c
  where c.relnamespace = 'orchestrator'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
    and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id')
    and not (c.relrowsecurity and exists (select from pg_policy p where p.polrelid = c.oid and p.polname = 'rows_of_the_tenant'))
  union all
  select 'everything_belongs_to_orc_owner', c.oid::regclass::text, format('it belongs to %s', c.relowner::regrole)
  from pg_class c
  where c.relnamespace in ('orc'::regnamespace, 'orchestrator'::regnamespace)
    and c.relowner <> 'orc_owner'::regrole
$$;
comment on function orc._check_ops() is 'Invariants of the schema itself: who may do what.';

create function orc._broken() returns table (invariant text, subject text, detail text)
language sql stable as $$
  select * from orc._check_base()
  union all
  select * from orc._check_auth()
  union all
  select * from orc._check_work()
  union all
  select * from orc._check_pipelines()
  union all
  select * from orc._check_values()
  union all
  select * from orc._check_schedules()
  union all
  select * from orc._check_outbox()
  union all
  select * from orc._check_ops()
$$;
comment on function orc._broken() is 'What doesn''t hold, and where.';

-- An invariant may be broken by another tenant's row: a tenant hears that it is, and not where.
create function orc.check(tenant text default null) returns table (invariant text, subject text, detail text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform orc._require('admin');
  if tenant is null then
    return query select * from orc._broken();
  else
    return query select distinct b.invariant, 'not shown to tenants', 'an operator sees it: select * from orc.check()' from orc._broken() as b;
  end if;
end $$;
comment on function orc.check(text) is 'The invariants that are broken: no rows when all is well. For a tenant, only their names.';
grant execute on function orc.check(text) to orc_api, orc_worker, orc_reader;
