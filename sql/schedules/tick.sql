-- A scheduler's whole conversation, in one round trip: what it computed in, what is due out of the way, what is
-- to be computed out, and how long it may rest.
--
-- Any number of schedulers talk at once. None holds anything between two ticks: one that stops for ever
-- leaves nothing behind. None waits for another one, nor for whoever is changing a task. What fails is
-- said, and the rest is done: events that can't be decided don't keep the time from passing.
-- (Measured 2026-11-21 by bin/bench --only tasks_100k, two calm cores: 0.3 ms with nothing due beside 100,000 tasks, 0.34 s for
-- 5,000 due of them.)

create function orc._see_scheduler(scheduler text) returns void
language sql as $$
  delete from orchestrator.scheduler o where o.seen_at < orchestrator.now() - interval '7 days';
  insert into orchestrator.scheduler as s (name, seen_at) select left($1, 200), orchestrator.now()
  where not exists (select from orchestrator.scheduler o where o.name = left($1, 200) and o.seen_at > orchestrator.now() - interval '3 seconds')
  on conflict (name) do update set seen_at = greatest(s.seen_at, excluded.seen_at)
$$;
comment on function orc._see_scheduler(text) is 'Notes that a scheduler lives, every few seconds, and forgets those that are long gone.';

-- Seconds until the next alarm; null when there's none.
create function orc._rest() returns double precision
language sql stable as $$
  select extract(epoch from p.next_at - orchestrator.now())::double precision
  from orchestrator.plan p where p.next_at < 'infinity' order by p.next_at limit 1
$$;
comment on function orc._rest() is 'How long a scheduler may rest.';

-- Without `asks` it answers nothing to be computed: the scheduler is still at the last.
create function orc.tick(
  scheduler text, most integer default 1000, plans jsonb default null, verdicts jsonb default null, asks boolean default true,
  out fired integer, out decided integer, out is_more boolean, out rest double precision, out short jsonb, out undecided jsonb,
  out failed jsonb)
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_mergejoin = off as $$
declare
  v_due record;
  v_met record;
begin
  perform orc._see_scheduler(scheduler);
  failed := '[]';
  begin
    perform orc._extend_plans(plans) where plans is not null;
  exception when others then
    failed := failed || jsonb_build_object('part', 'plans', 'error', sqlerrm);
  end;
  v_due := orc._fire_due(most);
  begin
    perform orc._hear_verdicts(verdicts, false) where verdicts is not null;
  exception when others then
    failed := failed || jsonb_build_object('part', 'verdicts', 'error', sqlerrm);
  end;
  begin
    v_met := orc._decide_events(most);
  exception when others then
    select 0 as occurrences, 0 as runs into v_met;
    failed := failed || jsonb_build_object('part', 'events', 'error', sqlerrm);
  end;
  failed := nullif(failed || v_due.failed, '[]');
  fired := v_due.runs + v_met.runs;
  decided := v_due.plans + v_met.occurrences;
  is_more := v_due.plans >= most or v_met.occurrences >= most;
  if asks then
    select jsonb_agg(s) into short from orc._short_plans(least(most, 500)) as s;
    undecided := orc._undecided(200);
  end if;
  rest := orc._rest();
end $$;
comment on function orc.tick(text, integer, jsonb, jsonb, boolean) is
  'Fires what is due; takes computed instants and verdicts, answers what is to be computed next and how long to rest.';
grant execute on function orc.tick(text, integer, jsonb, jsonb, boolean) to orc_worker;

-- What a monitor looks at: whether a scheduler lives, and how far time is ahead of it.
create function orc._schedule_gauges() returns table (name text, labels jsonb, value double precision)
language sql stable set jit = off set enable_seqscan = off as $$
  select 'schedulers', '{}'::jsonb, count(*)::double precision from orc.schedulers s where s.is_live
  union all
  select 'schedule_lateness_seconds', '{}', greatest(0, -coalesce(orc._rest(), 0))
  union all
  select 'plans_wanting_instants', '{}', count(*) from (select from orchestrator.plan p where p.wants_more limit 1000) as w
  union all
  select 'occurrences', '{"state": "undecided"}', count(*) from (
    select from orchestrator.occurrence o where o.state = 'undecided' limit 1000) as u
$$;
comment on function orc._schedule_gauges() is 'Figures of the scheduler; what it counts, it counts up to 1,000.';
