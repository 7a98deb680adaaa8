-- Keeps the partitions of every table that is registered in orchestrator.partitioned.
--
--      now - retention                 now                     now + ahead
--   ──────┬──────────────┬──────────────┬──────────────┬──────────────┬──────►  time in the id
--   drop  │  2026_11_19  │  2026_11_20  │  2026_11_21  │  2026_11_22  │  make    anything else: default
--
-- One call does what there's to do, in one transaction, and answers with a row for each thing done:
-- created, moved (rows that had landed in the default partition), dropped, or busy (a lock wasn't free
-- within 100 ms; the next call tries again, nobody waits behind us for longer).
-- Windows are whole spans in UTC. A new one is cut to the gap that it fills, so a span may be changed.
--
-- Locks. Housekeepers: one at a time, by an advisory lock; another one is told "busy" at once.
-- Make: access exclusive on the default partition; on the table itself share update exclusive (reads and
-- writes go on), or share row exclusive (reads go on) when the window has begun, because an insert that
-- had already chosen the default partition would be refused by it afterwards.
-- Drop: access exclusive on the table until the call ends; so all drops come after all creations, and
-- the first busy one ends the call.
-- Measured 2026-11-21: with 7 tables of 100 partitions a call that has nothing to do takes 80 ms; making
-- a partition takes 6 to 10 ms.
-- A default partition is emptied under its lock: a row is never in two places or in none.
-- Rows in the default partition whose key isn't a UUIDv7 stay there, and orc.check() says so.

create view orc._bounds as
select r.table_name as "table", c.relname::text as partition, c.oid,
       substring(pg_get_expr(c.relpartbound, c.oid) from $$FROM \('([-0-9a-f]{36})'\)$$)::uuid as lower_id,
       substring(pg_get_expr(c.relpartbound, c.oid) from $$TO \('([-0-9a-f]{36})'\)$$)::uuid as upper_id
from orchestrator.partitioned r
join pg_class t on t.relname = r.table_name and t.relnamespace = 'orchestrator'::regnamespace
join pg_inherits i on i.inhparent = t.oid
join pg_class c on c.oid = i.inhrelid;
comment on view orc._bounds is 'The partitions of each registered table with their first id, and the first one after it.';
grant select on orc._bounds to orc_reader;

create view orc.partitions as
select b."table", b.partition,
       orchestrator.id_time(b.lower_id) as starts_at,
       orchestrator.id_time(b.upper_id) as ends_at,
       nullif(c.reltuples, -1)::bigint as estimated_rows,
       pg_total_relation_size(c.oid) as bytes
from orc._bounds b join pg_class c on c.oid = b.oid;
comment on view orc.partitions is 'The partitions of each registered table; the default one has no bounds.';
comment on column orc.partitions."table" is 'The partitioned table.';
comment on column orc.partitions.partition is 'Its partition, in schema orchestrator.';
comment on column orc.partitions.starts_at is 'The first instant that its ids may carry.';
comment on column orc.partitions.ends_at is 'The first instant that they may not carry any more.';
comment on column orc.partitions.estimated_rows is 'Rows, as of the last vacuum or analyze; null before that.';
comment on column orc.partitions.bytes is 'Size on disk with indexes.';
grant select on orc.partitions to orc_reader;

create function orc._partition_key(table_name text) returns text
language sql stable as $$
  select a.attname
  from pg_partitioned_table p
  join pg_attribute a on a.attrelid = p.partrelid and a.attnum = p.partattrs[0]
  where p.partrelid = to_regclass(format('orchestrator.%I', table_name))
    and p.partstrat = 'r' and p.partnatts = 1 and a.atttypid = 'uuid'::regtype
$$;
comment on function orc._partition_key(text) is
  'The column by which a table is partitioned; null unless that is by range of one uuid.';

create function orc._move_rows(table_name text, partition text, starts_at timestamptz, ends_at timestamptz) returns bigint
language plpgsql as $$
declare
  v_columns text;
  v_rows bigint;
begin
  select string_agg(quote_ident(attname), ', ') into v_columns
  from pg_attribute
  where attrelid = format('orchestrator.%I', $1)::regclass
    and attnum > 0 and not attisdropped and attgenerated = '';
  execute format(
    'with moved as (delete from orchestrator.%1$I where %2$I >= $1 and %2$I < $2 returning *)
     insert into orchestrator.%3$I (%4$s) overriding system value select %4$s from moved',
    $1 || '_default', orc._partition_key($1), $2, v_columns)
  using orchestrator.id_floor(starts_at), orchestrator.id_floor(ends_at);
  get diagnostics v_rows = row_count;
  return v_rows;
end $$;
comment on function orc._move_rows(text, text, timestamptz, timestamptz) is
  'Moves the rows of a window from the default partition to a table that is to be attached.';

-- Makes the partition that holds an instant. Says so, or that a lock is busy; then nothing is left.
create function orc._make_partition(r orchestrator.partitioned, instant timestamptz)
returns table ("table" text, partition text, action text, detail text)
language plpgsql as $$
declare
  v_from timestamptz := date_bin(r.span, instant, '2001-01-01 00:00+00');
  v_to timestamptz := v_from + r.span;
  v_id constant uuid := orchestrator.id_floor(instant);
  v_name text;
  v_rows bigint;
begin
  select greatest(v_from, orchestrator.id_time(max(b.upper_id::text) filter (where b.upper_id <= v_id)::uuid)),
         least(v_to, orchestrator.id_time(min(b.lower_id::text) filter (where b.lower_id > v_id)::uuid))
  into v_from, v_to
  from orc._bounds b where b."table" = r.table_name;
  v_name := format('%s_%s', r.table_name, to_char(v_from at time zone 'UTC',
              case when v_from = date_trunc('day', v_from, 'UTC') then 'YYYY_MM_DD' else 'YYYY_MM_DD_HH24' end));
  execute format('lock table only orchestrator.%I in %s mode', r.table_name,
                 case when v_from <= orchestrator.now() then 'share row exclusive' else 'share update exclusive' end);
  execute format('lock table orchestrator.%I in access exclusive mode', r.table_name || '_default');
  execute format('create table orchestrator.%I (like orchestrator.%I including all excluding identity)', v_name, r.table_name);
  execute format('comment on table orchestrator.%I is %L', v_name,
                 format('Rows of %s from %s to %s.', r.table_name, v_from, v_to));
  v_rows := orc._move_rows(r.table_name, v_name, v_from, v_to);
  execute format('alter table orchestrator.%I attach partition orchestrator.%I for values from (%L) to (%L)',
                 r.table_name, v_name, orchestrator.id_floor(v_from), orchestrator.id_floor(v_to));
  return query select r.table_name, v_name, 'created', format('from %s to %s', v_from, v_to);
  if v_rows > 0 then
    return query select r.table_name, v_name, 'moved', format('rows from the default partition: %s', v_rows);
  end if;
exception
  when lock_not_available or deadlock_detected then
    return query select r.table_name, v_name, 'busy', 'others hold locks on the table or its default partition';
  when duplicate_table then
    return query select r.table_name, v_name, 'busy', 'a table of this name is in the way: attach, rename or drop it';
end $$;
comment on function orc._make_partition(orchestrator.partitioned, timestamptz) is
  'Makes the partition of a table that holds an instant, with the rows that waited for it.';

create function orc._make_partitions_ahead(r orchestrator.partitioned)
returns table ("table" text, partition text, action text, detail text)
language sql as $$
  with span as materialized (
    select greatest(start, orchestrator.now()) as instant, orchestrator.id_floor(greatest(start, orchestrator.now())) as id
    from generate_series(date_bin(r.span, orchestrator.now(), '2001-01-01 00:00+00'),
                         orchestrator.now() + r.ahead * r.span, r.span) as start
  ), present as materialized (
    select lower_id, upper_id from orc._bounds b where b."table" = r.table_name
  )
  select made.*
  from (select instant from span
        where not exists (select from present where lower_id <= span.id and span.id < upper_id)
        order by instant) as missing,
       orc._make_partition(r, missing.instant) as made
$$;
comment on function orc._make_partitions_ahead(orchestrator.partitioned) is
  'Makes the partitions of a table that are missing from now on to as far as it wants them ahead.';

-- At most 32 partitions a call, so that a call ends.
create function orc._empty_default(r orchestrator.partitioned)
returns table ("table" text, partition text, action text, detail text)
language plpgsql as $$
declare
  v_key constant text := orc._partition_key(r.table_name);
  v_id uuid;
  v_done record;
begin
  for _ in 1..32 loop
    execute format('select %1$I from orchestrator.%2$I where substr(%1$I::text, 15, 1) = ''7'' order by 1 limit 1',
                   v_key, r.table_name || '_default') into v_id;
    exit when v_id is null;
    for v_done in select * from orc._make_partition(r, orchestrator.id_time(v_id)) loop
      return query select v_done."table", v_done.partition, v_done.action, v_done.detail;
    end loop;
    exit when v_done.action = 'busy';
  end loop;
end $$;
comment on function orc._empty_default(orchestrator.partitioned) is
  'Makes partitions for the rows that landed in the default one, and moves them there.';

create function orc._drop_partition(partition text) returns text
language plpgsql as $$
begin
  execute format('drop table orchestrator.%I', partition);
  return 'dropped';
exception
  when lock_not_available or deadlock_detected then
    return 'busy';
  when dependent_objects_still_exist then
    raise warning using message = format('partition %s is past its retention but can''t be dropped', partition),
      detail = sqlerrm, hint = 'drop what depends on it';
    return 'busy';
end $$;
comment on function orc._drop_partition(text) is 'Drops a partition, or says that it is busy.';

-- Promises that now and the time ahead have partitions, that none is older than its retention, and
-- that default partitions are empty, except for what it reports as busy. Safe to call at any time,
-- by any number of sessions.
create function orc.keep_partitions(only_table text default null)
returns table ("table" text, partition text, action text, detail text)
language plpgsql security definer
set search_path = pg_catalog, pg_temp set timezone = 'UTC' set lock_timeout = '100ms' as $$
declare
  r orchestrator.partitioned;
  v_old record;
begin
  if not pg_try_advisory_xact_lock(7303779, 2) then
    return query select only_table, null::text, 'busy', 'another session is keeping partitions';
    return;
  end if;
  for r in select p.* from orchestrator.partitioned p
           where orc._partition_key(p.table_name) is not null and p.table_name = coalesce(only_table, p.table_name)
           order by p.table_name
  loop
    return query select * from orc._make_partitions_ahead(r);
    return query select * from orc._empty_default(r);
  end loop;
  for v_old in select b."table", b.partition, format('ended %s, %s', orchestrator.id_time(b.upper_id),
                                                     pg_size_pretty(pg_total_relation_size(b.oid))) as detail
               from orc._bounds b join orchestrator.partitioned k on k.table_name = b."table"
               where b.upper_id <= orchestrator.id_floor(orchestrator.now() - k.retention)
                 and b."table" = coalesce(only_table, b."table")
               order by b.upper_id, b."table" limit 100
  loop
    action := orc._drop_partition(v_old.partition);
    return query select v_old."table", v_old.partition, action, v_old.detail;
    exit when action = 'busy';
  end loop;
end $$;
comment on function orc.keep_partitions(text) is
  'Makes partitions ahead of time, empties default partitions, drops what is past its retention; says what it did.';
grant execute on function orc.keep_partitions(text) to orc_worker;

create function orc.set_retention("table" text, retention interval) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update orchestrator.partitioned p set retention = $2 where p.table_name = $1;
  if not found then
    perform orc._not_found('This table keeps no history', $1,
                           'select table_name from orchestrator.partitioned shows those that do');
  end if;
end $$;
comment on function orc.set_retention(text, interval) is
  'Sets how long a table keeps its rows (null: for ever); whole partitions go when they are older.';

-- Counts up to 1,000 rows: a default partition should have none.
create function orc._default_rows() returns table ("table" text, stray_rows bigint)
language plpgsql stable as $$
begin
  for "table" in
    select table_name from orchestrator.partitioned
    where to_regclass(format('orchestrator.%I', table_name || '_default')) is not null
    order by table_name
  loop
    execute format('select count(*) from (select from orchestrator.%I limit 1000) as t', "table" || '_default')
    into stray_rows;
    return next;
  end loop;
end $$;
comment on function orc._default_rows() is 'How many rows the default partition of each registered table has.';

create function orc._check_base() returns table (invariant text, subject text, detail text)
language sql stable set timezone = 'UTC' as $$
  select 'registered_tables_are_partitioned_by_one_uuid', table_name,
         'orchestrator.' || table_name || ' is missing, or is not partitioned by range of one uuid'
  from orchestrator.partitioned where orc._partition_key(table_name) is null
  union all
  select 'partitioned_tables_have_a_default_partition', table_name,
         format('orchestrator.%s_default is missing: a row without a partition would be refused', table_name)
  from orchestrator.partitioned k
  where not exists (select from orc._bounds b
                    where b."table" = k.table_name and b.partition = k.table_name || '_default')
  union all
  select 'default_partitions_are_empty', "table",
         format('rows in the default partition: %s; orc.keep_partitions() moves those whose key is a UUIDv7', stray_rows)
  from orc._default_rows() where stray_rows > 0
  union all
  select 'partitions_exist_ahead', k.table_name, format('no partition for %s; orc.keep_partitions() makes it', instant)
  from orchestrator.partitioned k
  cross join lateral (values (orchestrator.now()), (orchestrator.now() + k.span)) as t(instant)
  cross join lateral (select orchestrator.id_floor(instant) offset 0) as f(id)
  where not exists (select from orc._bounds b
                    where b."table" = k.table_name and b.lower_id <= f.id and f.id < b.upper_id)
$$;
comment on function orc._check_base() is 'Invariants of partitions.';
