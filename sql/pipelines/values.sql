-- Values: large ones of steps and runs, and the cache of what tools answered.
--
-- A value of more than 64 KiB doesn't stand in the row of its step or run but in orchestrator.value, stored in
-- the transaction of that row, which keeps its digest and its size in columns of their own: nothing that a user writes
-- can be taken for such a reference, and none dangles. Whoever reads the row decides whether to read the value.
-- The workers bound a value (ORC_VALUE_LIMIT); over that its step fails, and nothing is cut.
--
-- What is large is told by pg_column_size, which reads a header: rows without large values pay nothing more.
-- Measured 2026-11-21 (18, 2 cores): see orc._inline_bytes.
--
-- Lock order: values by tenant, day and digest, then the cache by tenant and digest; after rows of due_work and step.
-- Two transactions that store the same new values in steps and in an output, crossed, are a deadlock, which
-- Postgres ends, and the worker says it again.

create function orc._inline_bytes() returns integer
language sql immutable as $$ select 65536 $$;
comment on function orc._inline_bytes() is 'The size of a value, in its binary form, up to which it stands in its row.';

create function orc._digest(value jsonb) returns bytea
language sql immutable strict as $$ select sha256(convert_to(value::text, 'UTF8')) $$;
comment on function orc._digest(jsonb) is 'The digest by which a value is known.';

create function orc._day(run uuid) returns uuid
language sql immutable strict as $$
  select orchestrator.id_floor(date_trunc('day', orchestrator.id_time(run), 'UTC'))
$$;
comment on function orc._day(uuid) is 'The first id of the day on which a run was made.';

create function orc._key_digest(tool text, key jsonb) returns bytea
language sql immutable strict as $$ select orc._digest(jsonb_build_array(tool, key)) $$;
comment on function orc._key_digest(text, jsonb) is 'Where the answer of a tool for a key stands in the cache.';

-- Of [{tenant, run, output, digest, cache: {tool, key, seconds}}]: what is large has its digest, and what is to be cached.
-- The newer answer replaces an older one.
create function orc._keep_values(listed jsonb) returns void
language plpgsql set jit = off set enable_seqscan = off as $$
begin
  insert into orchestrator.value (tenant_id, day, digest, bytes, body)
  select l.tenant, orc._day(l.run), decode(l.digest, 'hex'), pg_column_size(l.output), l.output
  from jsonb_to_recordset(listed) as l(tenant text, run uuid, output jsonb, digest text)
  where l.digest is not null
  order by 1, 2, 3
  on conflict do nothing;
  insert into orchestrator.cache as c (tenant_id, digest, tool, value, expires_at)
  select distinct on (l.tenant, k.digest) l.tenant, k.digest, l.cache ->> 'tool', coalesce(l.output, 'null'),
         orchestrator.now() + make_interval(secs => least(greatest((l.cache ->> 'seconds')::double precision, 0), 1e8))
  from rows from (jsonb_to_recordset(listed) as (tenant text, output jsonb, cache jsonb)) with ordinality
    as l(tenant, output, cache, nth)
  cross join lateral (select orc._key_digest(l.cache ->> 'tool', l.cache -> 'key') as digest) as k
  where k.digest is not null
  order by l.tenant, k.digest, l.nth desc
  on conflict (tenant_id, digest) do update
  set tool = excluded.tool, value = excluded.value, created_at = excluded.created_at, expires_at = excluded.expires_at;
end $$;
comment on function orc._keep_values(jsonb) is 'Stores large values, and answers that serve again.';

create function orc.value(tenant text, digest bytea, run uuid default null) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off as $$
declare
  v_body jsonb;
begin
  if run is null then
    select v.body into v_body from orchestrator.value v
    where v.tenant_id = tenant and v.digest = value.digest order by v.day desc limit 1;
  else
    select v.body into v_body from orchestrator.value v
    where v.tenant_id = tenant and v.day = orc._day(run) and v.digest = value.digest;
  end if;
  if not found then
    perform orc._not_found('There is no such value', encode(digest, 'hex'),
                           'orc.steps and orc.runs show the digests of large ones; they go with their history');
  end if;
  return v_body;
end $$;
comment on function orc.value(text, bytea, uuid) is
  'A large value by the digest that orc.steps or orc.runs shows; with its run, it is found without a search over days.';
grant execute on function orc.value(text, bytea, uuid) to orc_api, orc_worker, orc_reader;

create function orc.cached(tenant text, tool text, key jsonb) returns table (value jsonb, expires_at timestamptz)
language sql stable security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off as $$
  select c.value, c.expires_at from orchestrator.cache c
  where c.tenant_id = tenant and c.digest = orc._key_digest($2, coalesce($3, 'null')) and c.expires_at > orchestrator.now()
$$;
comment on function orc.cached(text, text, jsonb) is 'What a tool answered for a key, while that serves; no row: nothing.';
grant execute on function orc.cached(text, text, jsonb) to orc_api, orc_worker;

create function orc.fill_cache(tenant text, tool text, key jsonb, value jsonb, ttl interval) returns timestamptz
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_ends timestamptz := orchestrator.now() + ttl;
begin
  if length(tenant) between 1 and 200 and length(tool) between 1 and 200 and ttl > interval '0' then
    if not orchestrator.json_is_bounded(value, 16777216) then
      perform orc._invalid('The value is too large or too deep', 'value', 'at most 16 MiB, 32 levels, numbers up to 1e308');
    end if;
    perform orc._keep_values(jsonb_build_array(jsonb_build_object('tenant', tenant, 'output', value,
      'cache', jsonb_build_object('tool', tool, 'key', coalesce(key, 'null'), 'seconds', date_part('epoch', ttl)))));
  else
    perform orc._invalid('A cached answer has a tenant, a tool and a time that it serves', 'tenant, tool, ttl');
  end if;
  return v_ends;
end $$;
comment on function orc.fill_cache(text, text, jsonb, jsonb, interval) is
  'Puts the answer of a tool for a key into the cache, for as long as it serves; answers until when. The newer one counts.';
grant execute on function orc.fill_cache(text, text, jsonb, jsonb, interval) to orc_api, orc_worker;

create function orc._check_values() returns table (invariant text, subject text, detail text)
language sql stable as $$
  select 'a_large_value_is_there', format('%s %s', r.run_id, r.place), format('%s bytes by the digest %s', r.bytes, encode(r.digest, 'hex'))
  from (select s.tenant_id, s.run_id, s.step_id as place, s.output_digest as digest, s.output_bytes as bytes
        from orchestrator.step s where s.output_digest is not null
        union all
        select o.tenant_id, o.id, 'output', o.output_digest, o.output_bytes
        from orchestrator.run o where o.output_digest is not null) as r
  where not exists (select from orchestrator.value v
                    where v.tenant_id = r.tenant_id and v.day = orc._day(r.run_id) and v.digest = r.digest)
    and r.run_id >= coalesce((select orchestrator.id_floor(orchestrator.now() - p.retention)
                              from orchestrator.partitioned p where p.table_name = 'value'), orc._day(r.run_id))
$$;
comment on function orc._check_values() is 'References to large values that aren''t there.';
