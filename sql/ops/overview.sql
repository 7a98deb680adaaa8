-- The place at a glance, for an operator: queues, workers, and a row of figures. Of all tenants, so the API's role may not
-- call these.

create function orc.list_queues(tenant text default null)
returns table (tenant_id text, queue text, ready bigint, running bigint, scheduled bigint, blocked bigint, waiting bigint,
               oldest_ready_seconds double precision, max_running integer, paused_at timestamptz, paused_by text, has_worker boolean)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select q.tenant_id, q.queue, q.ready, q.running, q.scheduled, q.blocked, q.waiting,
         extract(epoch from q.oldest_ready)::double precision, q.max_running, q.paused_at, q.paused_by,
         exists (select from orchestrator.worker w
                 where w.ended_at is null and w.expires_at > orchestrator.now() and q.queue = any (w.queues))
  from orc.queues q
  where list_queues.tenant is null or q.tenant_id = list_queues.tenant
  order by q.tenant_id, q.queue
$$;
comment on function orc.list_queues(text) is 'Queues, of one tenant or all: what is in them, how old the oldest ready run is, and whether a live worker takes from them.';
grant execute on function orc.list_queues(text) to orc_reader;

create function orc.list_workers(ended_since interval default '1 hour')
returns table (id uuid, name text, state text, queues text[], slots integer, running bigint, is_idle boolean,
               registered_at timestamptz, expires_at timestamptz)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select w.id, w.name, w.state, w.queues, w.slots, w.running, w.is_idle, w.registered_at, w.expires_at
  from orc.workers w
  where w.ended_at is null or w.ended_at > orchestrator.now() - ended_since
  order by w.ended_at is not null, w.registered_at
$$;
comment on function orc.list_workers(interval) is 'Workers that live or are silent, and those that ended lately.';
grant execute on function orc.list_workers(interval) to orc_reader;

-- Finished runs are counted by the statistics of their partitions: two looks give a rate, and no history is read.
create function orc.overview()
returns table (at timestamptz, finished bigint, failed_last_hour bigint, schedulers bigint, schema_version text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select orchestrator.now(),
         (select coalesce(sum(s.n_tup_ins), 0)::bigint from pg_stat_all_tables s
          where s.relid in (select i.inhrelid from pg_inherits i where i.inhparent = 'orchestrator.run'::regclass)),
         (select count(*) from orchestrator.tenant t cross join lateral (
            select from orchestrator.run r
            where r.tenant_id = t.id and r.state = 'failed' and r.id >= orchestrator.id_floor(orchestrator.now() - interval '1 hour')
            limit 10000) as f),
         (select count(*) from orc.schedulers s where s.is_live),
         (select max(m.name) from orchestrator.migration m)
$$;
comment on function orc.overview() is
  'A row of figures: finished runs so far (two looks give a rate), failed ones made in the last hour (counted up to 10,000 a tenant), live schedulers.';
grant execute on function orc.overview() to orc_reader;
