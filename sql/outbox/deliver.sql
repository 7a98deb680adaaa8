-- Delivery: a relay holds a sink, takes what is next, and says what became of it.
--
-- One relay at a time delivers to a sink, for as long as it says so every few seconds; then another one may. A relay
-- that was believed dead and goes on repeats what others have delivered since: with the same ids, and never
-- before what comes first.
-- A message that the sink refuses is tried again, with growing pauses, and later ones of its key wait for it; after
-- ten tries it is moved aside. A batch has some 4 MiB at most, or one message. That a sink can't be reached counts for no message.

create function orc.register_sinks(relay text, sinks jsonb) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_now constant timestamptz := orchestrator.now();
begin
  insert into orchestrator.sink (name, takes_events)
  select s.name, s.takes_events from jsonb_to_recordset(sinks) as s(name text, takes_events boolean)
  where not exists (select from orchestrator.sink o where o.name = s.name and o.retired_at is null and o.takes_events = s.takes_events)
  on conflict (name) do update set takes_events = excluded.takes_events, retired_at = null;
  insert into orchestrator.delivery (sink) select s.name from jsonb_to_recordset(sinks) as s(name text) on conflict do nothing;
  update orchestrator.delivery d set seen_at = v_now from jsonb_to_recordset(sinks) as s(name text)
  where d.sink = s.name and d.seen_at < v_now - interval '5 seconds';
  update orchestrator.sink o set retired_at = v_now
  where o.retired_at is null and not exists (select from jsonb_to_recordset(sinks) as s(name text) where s.name = o.name)
    and exists (select from orchestrator.delivery d where d.sink = o.name and d.seen_at < v_now - interval '1 minute');
end $$;
comment on function orc.register_sinks(text, jsonb) is
  'What sinks a relay has: [{name, takes_events}]; it says so every few seconds. One that a living relay hasn''t, and no other one in the last minute, is retired.';
grant execute on function orc.register_sinks(text, jsonb) to orc_worker;

-- While more than half of its time is left, the relay only reads. The row is written when it takes or extends its hold,
-- or when the mark has moved far.
create function orc._hold_sink(sink text, relay text, lease interval, mark bigint default 0) returns bigint
language plpgsql as $$
declare
  v_now constant timestamptz := orchestrator.now();
  d orchestrator.delivery;
begin
  select * into d from orchestrator.delivery o where o.sink = $1;
  if d.relay = $2 and d.held_until > v_now + lease / 2 and d.low_water + 1000 > mark then
    return d.low_water;
  end if;
  update orchestrator.delivery o set relay = $2, held_until = v_now + lease, seen_at = v_now, low_water = greatest(o.low_water, mark)
  where o.sink = (select h.sink from orchestrator.delivery h
                  where h.sink = $1 and (h.relay = $2 or h.relay is null or h.held_until <= v_now) for update skip locked)
  returning * into d;
  return case when found then d.low_water end;
end $$;
comment on function orc._hold_sink(text, text, interval, bigint) is 'Lets a relay deliver to a sink, unless another one does; answers where to look.';

create function orc._refuse_messages(sink text, failed jsonb) returns void
language sql as $$
  update orchestrator.message m
  set tries = m.tries + 1, problem = left(coalesce(f.problem, 'the sink did not say why'), 1000),
      due_at = case when m.tries < 9 then orchestrator.now() + orc._backoff('exponential_jitter', 0.2, 30, m.tries + 1) end,
      aside_at = case when m.tries >= 9 then orchestrator.now() end
  from jsonb_to_recordset(failed) as f(position bigint, problem text)
  where m.sink = _refuse_messages.sink and m.position = f.position and m.aside_at is null
$$;
comment on function orc._refuse_messages(text, jsonb) is 'Notes what a sink refused.';

create function orc._say_problem(sink text, problem text) returns void
language sql as $$
  update orchestrator.delivery d
  set problem = left($2, 1000), failed_since = case when $2 is not null then coalesce(d.failed_since, orchestrator.now()) end
  where d.sink = $1 and d.problem is distinct from left($2, 1000)
$$;
comment on function orc._say_problem(text, text) is 'Notes whether a sink can be reached.';

-- No message stands below the first one that is queued, nor below where somebody began to publish.
create function orc._next_messages(sink text, low_water bigint, most integer, out messages orchestrator.message[], out mark bigint)
language plpgsql set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_first bigint;
  p record;
begin
  select * into p from orc._publishing();
  select m.position into v_first from orchestrator.message m
  where m.sink = $1 and m.position > $2 and m.aside_at is null order by m.position limit 1;
  mark := least(coalesce(v_first - 1, p.upto), p.upto, (select min(s) from unnest(p.since) as s));
  select array_agg(n.message order by n.position) into messages from (
    select m as message, m.position from orchestrator.message m
    where m.sink = $1 and m.position >= v_first and m.position <= p.upto and m.aside_at is null
      and not exists (select from unnest(p.tenants, p.since) as u(tenant, since)
                      where u.tenant = hashtext(m.tenant_id) and u.since < m.position)
      and not exists (select from orchestrator.message b
                      where b.sink = m.sink and b.tenant_id = m.tenant_id and b.key = m.key and b.due_at > v_now
                        and b.aside_at is null and b.position <= m.position)
    order by m.position limit $3) as n;
end $$;
comment on function orc._next_messages(text, bigint, integer) is 'The messages that may be delivered now, and the mark below which there is none.';

create function orc._message_body(m orchestrator.message) returns jsonb
language sql stable as $$
  select coalesce(m.body, (select orc._published(e) from orchestrator.event e where e.tenant_id = m.tenant_id and e.id = m.id))
$$;
comment on function orc._message_body(orchestrator.message) is 'What a message says.';

create function orc.exchange_messages(
  sink text, relay text, want integer default 500, delivered bigint[] default null, failed jsonb default null,
  problem text default null, lease interval default '10 seconds')
returns table ("position" bigint, id uuid, tenant text, address text, key text, body jsonb)
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off as $$
#variable_conflict use_column
declare
  v_low bigint;
  v_next record;
begin
  if delivered is not null then
    delete from orchestrator.message m where m.sink = $1 and m.position = any (delivered);
  end if;
  if failed is not null then
    perform orc._refuse_messages($1, failed);
  end if;
  if problem is not null or delivered is not null then
    perform orc._say_problem($1, problem);
  end if;
  v_low := orc._hold_sink($1, $2, lease);
  if v_low is null or want < 1 then
    return;
  end if;
  v_next := orc._next_messages($1, v_low, want);
  if v_next.mark >= v_low + 1000 then
    perform orc._hold_sink($1, $2, lease, v_next.mark);
  end if;
  return query
    select n.position, n.id, n.tenant_id, n.address, n.key, n.body
    from (select m.position, m.id, m.tenant_id, m.address, m.key, b.body,
                 sum(pg_column_size(b.body)) over (order by m.position) - pg_column_size(b.body) as before
          from unnest(v_next.messages) as m cross join lateral (select orc._message_body(m) offset 0) as b(body)) as n
    where n.before < 4194304 order by n.position;
end $$;
comment on function orc.exchange_messages(text, text, integer, bigint[], jsonb, text, interval) is
  'What a relay says and hears: positions that a sink took, those that it refused ([{position, problem}]), why it can''t be reached; and the next messages, if the relay is the one that delivers.';
grant execute on function orc.exchange_messages(text, text, integer, bigint[], jsonb, text, interval) to orc_worker;

create function orc.release_sinks(relay text) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
  update orchestrator.delivery d set relay = null, held_until = null where d.relay = release_sinks.relay
$$;
comment on function orc.release_sinks(text) is 'A relay stops: others may deliver at once.';
grant execute on function orc.release_sinks(text) to orc_worker;

-- They keep their positions: what came after them has gone ahead.
create function orc.retry_messages(sink text, most integer default 10000, tenant text default null) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_count integer;
  v_first bigint;
begin
  perform orc._require('admin');
  perform from orchestrator.delivery d where d.sink = $1 for update;
  if not found then
    perform orc._not_found('There is no such sink', sink, 'orc.sinks lists them');
  end if;
  with back as (
    update orchestrator.message m set tries = 0, aside_at = null, due_at = null
    where m.sink = $1 and m.position = any (array(
      select a.position from orchestrator.message a where a.sink = $1 and a.aside_at is not null and (tenant is null or a.tenant_id = tenant)
      order by a.position limit most))
    returning m.position)
  select count(*), min(b.position) into v_count, v_first from back b;
  update orchestrator.delivery d set low_water = v_first - 1 where d.sink = $1 and d.low_water >= v_first;
  if tenant is not null and v_count > 0 then
    perform orc._audit(tenant, 'retry_messages', sink, jsonb_build_object('count', v_count));
  end if;
  return v_count;
end $$;
comment on function orc.retry_messages(text, integer, text) is 'Brings back the messages of a sink that were moved aside, of one tenant or of all; answers how many.';
grant execute on function orc.retry_messages(text, integer, text) to orc_api, orc_worker;

create function orc.remove_sink(sink text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  delete from orchestrator.sink s where s.name = remove_sink.sink;
  if not found then
    perform orc._not_found('There is no such sink', sink, 'orc.sinks lists them');
  end if;
end $$;
comment on function orc.remove_sink(text) is 'Forgets a sink and all that is queued for it. A relay that has it registers it again.';

create view orc.outbox as
select m.sink, m.position, m.id, m.tenant_id, m.address, m.key, m.queued_at, m.tries,
       case when m.aside_at is not null then 'aside' when m.due_at > orchestrator.now() then 'waiting' else 'queued' end as state,
       m.due_at, m.aside_at, m.problem
from orchestrator.message m;
comment on view orc.outbox is 'What is to leave and hasn''t left: one row for each message and sink.';

-- Counted up to 10,000: more is "many".
-- Counted among the first 10,000 of the sink, whosever they are.
create function orc._backlog(sink text, tenant text, out backlog bigint, out oldest timestamptz, out aside bigint)
language sql stable set jit = off set enable_seqscan = off as $$
  select w.backlog, w.oldest, a.aside
  from orchestrator.delivery d
  cross join lateral (
    select count(*) as backlog, min(n.queued_at) as oldest
    from (select m.tenant_id, m.queued_at from orchestrator.message m
          where m.sink = $1 and m.position > d.low_water and m.aside_at is null order by m.position limit 10000) as n
    where tenant is null or n.tenant_id = tenant) as w
  cross join lateral (
    select count(*) as aside
    from (select m.tenant_id from orchestrator.message m where m.sink = $1 and m.aside_at is not null order by m.position limit 10000) as n
    where tenant is null or n.tenant_id = tenant) as a
  where d.sink = $1
$$;
comment on function orc._backlog(text, text) is 'What a sink is behind with, for one tenant or all; counted up to 10,000.';

create view orc.sinks as
select s.name, case when s.retired_at is not null then 'retired' when d.problem is not null then 'down'
                    when d.seen_at < orchestrator.now() - interval '1 minute' then 'unattended' else 'up' end as state,
       b.backlog, orchestrator.now() - b.oldest as oldest, b.aside, d.relay, d.problem, d.failed_since, s.registered_at, s.retired_at
from orchestrator.sink s join orchestrator.delivery d on d.sink = s.name cross join lateral orc._backlog(s.name, null) as b;
comment on view orc.sinks is 'Where messages go, and how far behind each is (counted up to 10,000). unattended: no relay has it, and it is queued for.';
grant select on orc.outbox, orc.sinks to orc_reader;

create function orc.list_sinks(tenant text default null)
returns table (name text, state text, backlog bigint, oldest_seconds double precision, aside bigint, problem text, failed_since timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  perform orc._require('admin');
  return query
    select s.name, s.state, b.backlog, extract(epoch from orchestrator.now() - b.oldest)::double precision, b.aside, s.problem, s.failed_since
    from orc.sinks s cross join lateral orc._backlog(s.name, list_sinks.tenant) as b order by s.name;
end $$;
comment on function orc.list_sinks(text) is 'Where messages go, and how far behind each is, with those of one tenant or all (counted up to 10,000).';
grant execute on function orc.list_sinks(text) to orc_api, orc_worker;

create function orc._check_outbox() returns table (invariant text, subject text, detail text)
language sql stable as $$
  select 'a_message_stands_above_the_low_water', format('%s %s', m.sink, m.position), format('the low water is %s', d.low_water)
  from orchestrator.delivery d join orchestrator.message m on m.sink = d.sink and m.position <= d.low_water and m.aside_at is null
  union all
  select 'a_sink_has_its_delivery', s.name, 'there is none' from orchestrator.sink s
  where not exists (select from orchestrator.delivery d where d.sink = s.name)
$$;
comment on function orc._check_outbox() is 'Messages that nobody would find.';
