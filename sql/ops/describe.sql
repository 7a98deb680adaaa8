-- The facts in words: one line for each thing in schema orchestrator, in an order that doesn't depend
-- on how it came to be. Two databases with equal lines have equal facts; `diff` shows what isn't.
-- Left out on purpose: the order of columns (a migration can only append), names of NOT NULL
-- constraints (only servers from 18 on have them), and single partitions (their pattern is one line).

create view orc._described as
select c.oid, c.relname::text as name, c.relkind, c.relowner, c.relacl, c.relrowsecurity, c.relforcerowsecurity,
       c.reloptions, c.relpartbound
from pg_class c
where c.relnamespace = 'orchestrator'::regnamespace
  and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
  and (not c.relispartition or pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT');
comment on view orc._described is 'The relations that orc.describe_facts() describes.';

create function orc._describe_relations() returns setof text
language sql stable as $$
  select format('relation %s: kind %s, row security %s forced %s, options %s, partitioned %s %s: %s',
                name, relkind, relrowsecurity, relforcerowsecurity, coalesce(reloptions::text, 'none'),
                coalesce(pg_get_partkeydef(oid), 'no'), coalesce(pg_get_expr(relpartbound, oid), ''),
                obj_description(oid, 'pg_class'))
  from orc._described
  union all
  select format('column %s.%s: %s%s%s%s, storage %s%s: %s', c.name, a.attname, format_type(a.atttypid, a.atttypmod),
                case when a.attnotnull then ' not null' else '' end,
                coalesce(case when a.attgenerated <> '' then ' generated ' || a.attgenerated::text else ' default' end
                         || ' ' || pg_get_expr(d.adbin, d.adrelid), ''),
                nullif(' identity ' || a.attidentity::text, ' identity '),
                a.attstorage, nullif(' compression ' || a.attcompression::text, ' compression '),
                col_description(c.oid, a.attnum))
  from orc._described c
  join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  union all
  select format('constraint %s on %s: %s%s', k.conname, c.name, pg_get_constraintdef(k.oid),
                case when k.convalidated then '' else ' not validated' end)
  from orc._described c join pg_constraint k on k.conrelid = c.oid and k.contype <> 'n'
  union all
  select format('index on %s: %s%s', c.name, pg_get_indexdef(i.indexrelid), case when i.indisvalid then '' else ' invalid' end)
  from orc._described c join pg_index i on i.indrelid = c.oid
  union all
  select format('trigger on %s: %s enabled %s', c.name, pg_get_triggerdef(t.oid), t.tgenabled)
  from orc._described c join pg_trigger t on t.tgrelid = c.oid and not t.tgisinternal
  union all
  select format('policy %s on %s: %s', p.policyname, p.tablename,
                concat_ws(' ', p.permissive, p.roles, p.cmd, 'using', p.qual, 'check', p.with_check))
  from pg_policies p where p.schemaname = 'orchestrator'
  union all
  select distinct format('partitions of %s: like %s %s', p.relname, regexp_replace(c.relname, '\d', '9', 'g'),
                regexp_replace(pg_get_expr(c.relpartbound, c.oid), '[-0-9a-f]{36}', 'uuid', 'g'))
  from pg_class c join pg_inherits i on i.inhrelid = c.oid join pg_class p on p.oid = i.inhparent
  where c.relnamespace = 'orchestrator'::regnamespace and c.relkind in ('r', 'p')
$$;
comment on function orc._describe_relations() is 'Tables and what belongs to them, one line each.';

create function orc._describe_grants() returns setof text
language sql stable as $$
  with granted(what, acl) as (
    select 'schema ' || nspname, nspacl from pg_namespace where nspname = 'orchestrator'
    union all
    select 'relation ' || name, relacl from orc._described
    union all
    select format('column %s.%s', c.name, a.attname), a.attacl
    from orc._described c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    union all
    select 'function ' || p.oid::regprocedure, p.proacl from pg_proc p where p.pronamespace = 'orchestrator'::regnamespace
    union all
    select format('default for %s of %s', defaclobjtype, defaclrole::regrole), defaclacl from pg_default_acl
    where defaclrole = 'orc_owner'::regrole
  )
  select format('grant on %s to %s: %s%s', g.what, case a.grantee when 0 then 'public' else a.grantee::regrole::text end,
                a.privilege_type, case when a.is_grantable then ' with grant option' else '' end)
  from granted g cross join lateral aclexplode(g.acl) as a
  union all
  select format('owner of %s: %s', name, relowner::regrole) from orc._described where relowner <> 'orc_owner'::regrole
$$;
comment on function orc._describe_grants() is 'Who may do what with the facts, one line each.';

create function orc.describe_facts() returns setof text
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select line from (
    select * from orc._describe_relations()
    union all
    select * from orc._describe_grants()
    union all
    select format('function %s: %s: %s', p.oid::regprocedure, regexp_replace(pg_get_functiondef(p.oid), '\s+', ' ', 'g'),
                  obj_description(p.oid, 'pg_proc'))
    from pg_proc p where p.pronamespace = 'orchestrator'::regnamespace
    union all
    select format('type %s: %s %s: %s', t.typname, t.typtype,
                  concat_ws(' ', format_type(t.typbasetype, t.typtypmod), t.typdefault,
                            (select string_agg(e.enumlabel, ', ' order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid),
                            (select string_agg(k.conname || ' ' || pg_get_constraintdef(k.oid), ' ' order by k.conname)
                             from pg_constraint k where k.contypid = t.oid)), obj_description(t.oid, 'pg_type'))
    from pg_type t where t.typnamespace = 'orchestrator'::regnamespace and t.typtype in ('d', 'e', 'r')
    union all
    select format('registered %s: span %s, ahead %s, retention %s', table_name, span, ahead, coalesce(retention::text, 'none'))
    from orchestrator.partitioned
  ) as t(line)
  order by line collate "C"
$$;
comment on function orc.describe_facts() is 'The facts schema in words, a line for each thing: equal databases give equal lines.';
grant execute on function orc.describe_facts() to orc_reader;
