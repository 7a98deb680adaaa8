-- Row-level security: whoever is neither the owner nor a reader sees the rows of the tenant that the transaction
-- acts for (orc.acting), and none without one.
--
-- What it protects, and what it doesn't. The API's role has no rights on tables at all: it calls verbs, which run as
-- orc_owner and name the tenant themselves, and to an owner these policies do not apply. They are the second wall: for
-- whatever the API's role, or any role that somebody makes, is ever granted, a forgotten `where tenant_id = …` shows
-- nothing. Readers (orc_reader: people and dashboards of the operator) see all tenants, and secrets of none.
-- Forcing them upon the owner was decided against: each claim would evaluate them for every row it looks at, and a dump
-- by the owner would end with an error.
--
-- A table that comes later gets its two policies in its own migration; orc.check() names one that has none.

do $$
declare
  v_table text;
  v_column text;
begin
  for v_table, v_column in
    select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid
    where c.relnamespace = 'orchestrator'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
      and (a.attname = 'tenant_id' or c.relname = 'tenant' and a.attname = 'id')
  loop
    execute format('alter table orchestrator.%I enable row level security', v_table);
    execute format('create policy rows_of_the_tenant on orchestrator.%I using (%I = current_setting(''orchestrator.tenant'', true))',
                   v_table, v_column);
    execute format('create policy rows_for_readers on orchestrator.%I for select to orc_reader using (true)', v_table);
  end loop;
end $$;
