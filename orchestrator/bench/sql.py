"""The bench's own SQL: the floor, rows made in bulk, and what is read off afterwards.

The floor is the least that a queue with history can do: one claim with `skip locked`, one delete
with an insert into history, on tables of the same columns and with the two indexes that matter.
No tenants' shares, no fencing, no limits, no checks, no partitions, no JSON.
"""

from __future__ import annotations

FLOOR = """
create schema floor;
create table floor.due (
  like orchestrator.due_work including defaults, primary key (tenant_id, run_id))
  with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
create index on floor.due (tenant_id, queue, priority, due_at, run_id) where state = 'ready';
create table floor.run (like orchestrator.run, primary key (tenant_id, id));
create function floor.new_id() returns uuid language sql as $$ select {new_id} $$;
"""

FLOOR_SETTINGS = "set enable_seqscan = off; set enable_bitmapscan = off; set enable_sort = off"
"""Without statistics the planner may choose worse: the floor must not suffer from that."""

FLOOR_FILL = """
insert into floor.due (tenant_id, run_id, pipeline_id, due_at, state)
select 'bench', floor.new_id(), '00000000-0000-0000-0000-000000000000', clock_timestamp(), 'ready'
from generate_series(1, %s) returning run_id
"""

FLOOR_INSERT = """
insert into floor.due (tenant_id, run_id, pipeline_id, due_at, state)
values ('bench', floor.new_id(), '00000000-0000-0000-0000-000000000000', clock_timestamp(), 'ready')
returning run_id
"""

FLOOR_CLAIM = """
with taken as (
  update floor.due d
  set state = 'running', worker_id = '00000000-0000-0000-0000-000000000001', epoch = d.epoch + 1,
      attempt = d.attempt + 1, started_at = clock_timestamp()
  from (select tenant_id, run_id from floor.due
        where tenant_id = 'bench' and queue = 'default' and priority = 50 and state = 'ready'
        order by due_at, run_id limit %s for update skip locked) as c
  where d.tenant_id = c.tenant_id and d.run_id = c.run_id
  returning d.run_id)
select array_agg(run_id)::text as ids from taken
"""

FLOOR_FINISH = """
with gone as (
  delete from floor.due where tenant_id = 'bench' and run_id = any (%s::uuid[]) returning *)
insert into floor.run (
  tenant_id, id, pipeline_id, worker_id, retry_of, task_id, due_at, started_at, finished_at, epoch,
  attempt, max_attempts, priority, state, queue, kind, flow_id, concurrency_key, input, output,
  error, labels)
select tenant_id, run_id, pipeline_id, worker_id, retry_of, task_id, due_at, started_at,
       clock_timestamp(), epoch, attempt, max_attempts, priority, 'succeeded', queue, kind, flow_id,
       concurrency_key, input, '{"a": {}}', error, labels
from gone
"""

FLOOR_DRAINED = """
select count(*) as runs, extract(epoch from max(finished_at) - min(started_at))::float8 as seconds
from floor.run
"""

FLOOR_STARTED = (
    "select extract(epoch from started_at)::float8 as at from floor.run order by due_at, id"
)

BACKLOG = """
insert into orchestrator.due_work (tenant_id, run_id, pipeline_id, due_at, state)
select 'bench', orchestrator.new_id(), %s, clock_timestamp(), 'ready' from generate_series(1, %s)
"""

HISTORY = """
insert into orchestrator.run (
  tenant_id, id, pipeline_id, due_at, started_at, finished_at, epoch, attempt, max_attempts,
  priority, state, queue, kind, output)
select 'bench', orchestrator.new_id(), %s, clock_timestamp(), clock_timestamp(), clock_timestamp(),
       1, 1, 1, 50, 'succeeded', 'default', 'run', '{"a": {}}'
from generate_series(1, %s)
"""

NEWEST_RUNS = """
select * from orchestrator.run where tenant_id = 'bench' order by id desc limit 50
"""

SOME_RUNS = "select id from orchestrator.run tablesample system (1) limit %s"

BLOCKED = """
insert into orchestrator.due_work (tenant_id, run_id, pipeline_id, due_at, state, concurrency_key)
select 'bench', orchestrator.new_id(), %s, clock_timestamp(), 'blocked', 'saturated'
from generate_series(1, %s)
"""

FLOOR_IS_EMPTY = "select not exists (select from floor.due) as yes"
IS_EMPTY = "select not exists (select from orchestrator.due_work) as yes"
FINISHED = "select count(*) as n from orchestrator.run"
HAS_FINISHED = "select count(*) >= %s as yes from orchestrator.run"
REGISTERED = """
select count(*) as n from orc.workers
where state = 'live' and split_part(name, ':', 2) = any (%s)
"""

DRAINED = """
select count(*) as runs, extract(epoch from max(finished_at) - min(started_at))::float8 as seconds
from orc.runs
where state = 'succeeded'
  and worker_id in (select id from orc.workers where split_part(name, ':', 2) = any (%s))
"""

STARTED = """
select extract(epoch from started_at)::float8 as at from orc.runs
where id = any (%s::uuid[]) and state = 'succeeded' order by id
"""

ENDED = "select count(*) as n from orc.runs where id = any (%s::uuid[]) and state = 'succeeded'"
LEFT = "select count(*) as n from orchestrator.due_work where tenant_id = %s"
WAL = "select pg_current_wal_insert_lsn() - '0/0' as bytes"
TABLES = """
select sum(pg_total_relation_size(c.oid))::bigint as bytes from pg_class c
where c.relnamespace = 'orchestrator'::regnamespace and c.relkind in ('r', 'm')
"""
SNAPSHOT = "select count(*) from orchestrator.worker"
NOTIFY = "select pg_notify('floor_work', '')"
HAS_UUIDV7 = "select current_setting('server_version_num')::int >= 180000 as yes"
SETTINGS = """
select name, current_setting(name) as value from pg_settings
where name in ('autovacuum', 'fsync', 'full_page_writes', 'max_wal_size', 'shared_buffers',
               'synchronous_commit', 'wal_level', 'jit')
order by name
"""
VERSION = "select current_setting('server_version') as version"

TASKS = """
select count(orc.create_task(
  'bench', 'T', 'once', %s, %s, instants => array[%s], known_to => 'infinity'))
from generate_series(1, %s)
"""
HOURLY_TASKS = """
select count(orc.create_task('bench', 'T', 'cron', mod(i, 60) || ' * * * *', %s))
from generate_series(1, %s) as i
"""
ALL_IS_PLANNED = "select not exists (select from orchestrator.plan where wants_more) as yes"
MAKE_DUE = """
update orchestrator.plan p
set upcoming = array[orchestrator.now()] || p.upcoming, next_at = orchestrator.now()
where p.ctid = any (array(
  select o.ctid from orchestrator.plan o
  where o.next_at > orchestrator.now() + interval '1 minute' limit %s))
"""
NOTHING_IS_DUE = """
select not exists (select from orchestrator.plan where next_at <= orchestrator.now()) as yes
"""
NOTHING_IS_PLANNED = """
select not exists (select from orchestrator.plan where next_at < 'infinity')
   and not exists (select from orchestrator.due_work) as yes
"""
LATENESS = """
select extract(epoch from started_at - nominal_at)::float8 * 1000 as ms
from orchestrator.run where nominal_at is not null and state = 'succeeded'
"""
