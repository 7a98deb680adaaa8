-- The last page: what must hold for every verb and view above, whoever wrote it.
--
-- Views run with the rights of whoever reads them, so that row-level security sees the reader and not
-- the owner. Servers before 15 have no such option: there a view sees what its owner sees, so the role
-- that row-level security is meant for (orc_api) may read none; its verbs stay as they are.
-- A function that PUBLIC may call, or one with its owner's rights and its caller's search path, doesn't
-- get in at all.

do $$
declare
  v_view regclass;
  v_broken text;
begin
  if current_setting('server_version_num')::int >= 150000 then
    for v_view in select oid from pg_class where relnamespace = 'orc'::regnamespace and relkind = 'v' loop
      execute format('alter view %s set (security_invoker = true)', v_view);
    end loop;
  else
    revoke all on all tables in schema orc from orc_api;
  end if;
  select string_agg(format('%s: %s', subject, detail), '; ') into v_broken from orc._check_ops();
  if v_broken is not null then
    raise exception using message = 'this library is not safe to install: ' || v_broken;
  end if;
end $$;
