-- Plans: the next instants of each task, and when the scheduler acts on them.
--
-- A scheduler is given the rules whose instants are running out, computes more, and says them with the
-- point from which it computed: when another one was faster, nothing changes.

create function orc._is_timed(kind text) returns boolean
language sql immutable as $$
  select kind in ('cron', 'rrule', 'once')
$$;
comment on function orc._is_timed(text) is 'Whether a rule of this kind may have a last instant.';

create function orc._jitter(task uuid, nominal timestamptz, most interval) returns interval
language sql immutable parallel safe as $$
  select case when most = '0' then most
              else most * ((hashtextextended(task::text, extract(epoch from nominal)::bigint) & 65535) / 65536.0) end
$$;
comment on function orc._jitter(uuid, timestamptz, interval) is 'How much later an instant is acted on: always the same for the same.';

-- When a plan is acted on next. What is kept waits for more to be known.
create function orc._alarm(t orchestrator.task, upcoming timestamptz[], is_kept boolean) returns timestamptz
language sql stable as $$
  select case when t.status in ('active', 'canceled') and not is_kept and upcoming <> '{}'
         then case when t.jitter = '0' then upcoming[1] else upcoming[1] + orc._jitter(t.id, upcoming[1], t.jitter) end else 'infinity' end
$$;
comment on function orc._alarm(orchestrator.task, timestamptz[], boolean) is 'When a plan with these instants is acted on next.';

-- Whether no instants can be computed; a plan that can't be fired for now has instants, and goes on.
create function orc._is_stuck(problem text) returns boolean
language sql immutable as $$
  select problem is not null and problem not like 'it can''t be fired: %'
$$;
comment on function orc._is_stuck(text) is 'Whether a problem is that of a rule that can''t be computed.';

-- Four are plenty when the last of them is far away: it may be in a year.
create function orc._wants_more(t orchestrator.task, upcoming timestamptz[], known_to timestamptz, problem text, is_kept boolean) returns boolean
language sql stable as $$
  select t.status in ('active', 'canceled') and known_to < 'infinity' and not orc._is_stuck(problem)
     and (is_kept or cardinality(upcoming) < 2 or cardinality(upcoming) < 4 and known_to < orchestrator.now() + interval '40 days')
$$;
comment on function orc._wants_more(orchestrator.task, timestamptz[], timestamptz, text, boolean) is 'Whether a plan is to know further instants.';

-- A rule without further instants completes its task. The plan of a canceled task goes on up to the cancel, so that
-- the ledger says of each instant before it what became of it.
create function orc._complete_tasks(tenants text[], tasks uuid[]) returns void
language sql as $$
  update orchestrator.task t set status = 'completed', completed_at = orchestrator.now()
  where t.ctid = any (array(  -- one by one: never all tasks
    select o.place from unnest(tenants, tasks) as u(tenant, task) cross join lateral (
      select l.ctid as place from orchestrator.task l
      where l.tenant_id = u.tenant and l.id = u.task and l.status = 'active' and orc._is_timed(l.kind) for no key update) as o))
$$;
comment on function orc._complete_tasks(text[], uuid[]) is 'Completes tasks whose rules have no more instants.';

create function orc._set_alarms(tenants text[], tasks uuid[]) returns void
language plpgsql set jit = off set enable_seqscan = off set plan_cache_mode = force_generic_plan as $$
declare
  v_tenants text[];
  v_tasks uuid[];
begin
  with alarmed as (
    update orchestrator.plan p
    set next_at = orc._alarm(t, p.upcoming, false), wants_more = orc._wants_more(t, p.upcoming, p.known_to, p.problem, false)
    from unnest(tenants, tasks) as u(tenant, task)
    join orchestrator.task t on t.tenant_id = u.tenant and t.id = u.task
    where p.tenant_id = u.tenant and p.task_id = u.task
    returning p.tenant_id, p.task_id, p.upcoming = '{}' and p.known_to = 'infinity' as has_ended)
  select array_agg(a.tenant_id), array_agg(a.task_id) into v_tenants, v_tasks from alarmed a where a.has_ended;
  if v_tasks is not null then
    perform orc._complete_tasks(v_tenants, v_tasks);
  end if;
end $$;
comment on function orc._set_alarms(text[], uuid[]) is 'Says when plans are acted on next, and whether they want more.';

-- The rules whose instants run out, with how many of them are wanted and from where on. When there are many, each
-- scheduler is given others: some of those that are wanted first.
create function orc._short_plans(most integer)
returns table (tenant text, task uuid, revision integer, kind text, expr text, zone text, dst_gap text, dst_fold text,
               starts_at timestamptz, ends_at timestamptz, span double precision, anchor timestamptz, known_from timestamptz, until_at timestamptz, wanted integer)
language sql as $$
  select p.tenant_id, p.task_id, p.revision, r.kind, r.expr, r.zone, r.dst_gap, r.dst_fold, r.starts_at, r.ends_at,
         case when r.topic is null then extract(epoch from r.span)::double precision end, t.created_at,
         p.known_to, r.until_at,
         case when p.known_to < orchestrator.now() - interval '1 minute' then greatest(500, t.catch_up_limit + 1) else 16 end
  from (select * from (select * from orchestrator.plan w where w.wants_more order by w.known_to limit 8 * most) as o
        order by random() limit most) as p
  cross join lateral (select * from orchestrator.task o where o.tenant_id = p.tenant_id and o.id = p.task_id offset 0) as t
  cross join lateral (
    select * from orchestrator.rule o where o.tenant_id = p.tenant_id and o.task_id = p.task_id and o.revision = p.revision offset 0) as r
$$;
comment on function orc._short_plans(integer) is 'Plans that want more instants, with their rules.';

-- Of what was computed, the instants that a plan keeps: those that have come, and the next sixteen. A tick reads plans whole.
create function orc._kept(instants timestamptz[]) returns timestamptz[]
language sql stable as $$
  select instants[:width_bucket(orchestrator.now(), instants) + 16]
$$;
comment on function orc._kept(timestamptz[]) is 'Of computed instants, those that a plan keeps.';

-- A rule that was replaced counts up to its end; then the next one goes on from there. There's none after a cancel.
-- Plans are locked first, and read in a new snapshot: it has what was done to their rules before. A plan that somebody
-- else has is left to a later tick.
create function orc._extend_plans(plans jsonb) returns integer
language plpgsql as $$
declare
  v_tenants text[];
  v_tasks uuid[];
begin
  select array_agg(h.tenant_id), array_agg(h.task_id) into v_tenants, v_tasks from (
    select p.tenant_id, p.task_id from jsonb_to_recordset(plans) as s(tenant text, task uuid)
    join orchestrator.plan p on p.tenant_id = s.tenant and p.task_id = s.task for update of p skip locked) as h;
  with said as materialized (
    select s.tenant, s.task, s.revision, s.known_from, s.problem, k.instants,
           case when cardinality(k.instants) < cardinality(s.instants) then k.instants[cardinality(k.instants)] else s.known_to end as known_to
    from jsonb_to_recordset(plans) as s(
      tenant text, task uuid, revision integer, known_from timestamptz, known_to timestamptz, instants timestamptz[], problem text)
    cross join lateral (select orc._kept(s.instants) as instants) as k),
  held as materialized (select * from unnest(v_tenants, v_tasks) as h(tenant_id, task_id)),
  extended as (
    update orchestrator.plan p
    set upcoming = p.upcoming || array(select i from unnest(s.instants) as i where r.until_at is null or i <= r.until_at order by i),
        known_to = case when s.known_to >= r.until_at and n.revision is null then 'infinity' else least(s.known_to, r.until_at) end,
        revision = coalesce(n.revision, p.revision), problem = s.problem
    from held h join said s on s.tenant = h.tenant_id and s.task = h.task_id
    join orchestrator.rule r on r.tenant_id = s.tenant and r.task_id = s.task and r.revision = s.revision
    left join orchestrator.rule n on n.tenant_id = s.tenant and n.task_id = s.task and n.revision = s.revision + 1
      and s.known_to >= r.until_at
    where p.tenant_id = h.tenant_id and p.task_id = h.task_id and p.revision = s.revision and p.known_to = s.known_from and p.wants_more
    returning p.tenant_id, p.task_id)
  select array_agg(tenant_id), array_agg(task_id) into v_tenants, v_tasks from extended;
  perform orc._set_alarms(v_tenants, v_tasks);
  return coalesce(cardinality(v_tasks), 0);
end $$;
comment on function orc._extend_plans(jsonb) is 'Adds computed instants to plans that haven''t changed since.';

create function orc.replan_tasks(tenant text default null) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_tenants text[];
  v_tasks uuid[];
begin
  with kept as (
    update orchestrator.plan p
    set upcoming = array(select i from unnest(p.upcoming) as i where i <= v_now order by i),
        known_to = least(p.known_to, v_now), problem = null
    from orchestrator.task t
    where t.tenant_id = p.tenant_id and t.id = p.task_id and t.status in ('active', 'paused') and (p.known_to > v_now or p.problem is not null)
      and orc._is_timed(t.kind) and p.tenant_id = coalesce(replan_tasks.tenant, p.tenant_id)
    returning p.tenant_id, p.task_id)
  select array_agg(tenant_id), array_agg(task_id) into v_tenants, v_tasks from kept;
  perform orc._set_alarms(v_tenants, v_tasks);
  perform pg_notify('orc_tasks', '');
  return coalesce(cardinality(v_tasks), 0);
end $$;
comment on function orc.replan_tasks(text) is 'Forgets computed instants that are still to come: after new time zone data. Schedulers compute them again.';
grant execute on function orc.replan_tasks(text) to orc_api;
