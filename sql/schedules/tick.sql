-- A scheduler's whole conversation, in one round trip: what it computed in, what is due out of the way, what is
-- to be computed out, and how long it may rest.
--
-- Any number of schedulers talk at once. None holds anything between two ticks: one that stops for ever
-- leaves nothing behind.

create function orc._see_scheduler(scheduler text) returns void
language sql as $$
  insert into orchestrator.scheduler as s (name, seen_at) select left($1, 200), orchestrator.now()
  where not exists (select from orchestrator.scheduler o where o.name = left($1, 200) and o.seen_at > orchestrator.now() - interval '3 seconds')
  on conflict (name) do update set seen_at = greatest(s.seen_at, excluded.seen_at)
$$;
comment on function orc._see_scheduler(text) is 'Notes that a scheduler lives, every few seconds.';

-- Seconds until the next alarm; null when there's none.
create function orc._rest() returns double precision
language sql stable as $$
  select extract(epoch from p.next_at - orchestrator.now())::double precision
  from orchestrator.plan p where p.next_at < 'infinity' order by p.next_at limit 1
$$;
comment on function orc._rest() is 'How long a scheduler may rest.';

create function orc.tick(
  scheduler text, most integer default 1000, plans jsonb default null, verdicts jsonb default null,
  out fired integer, out decided integer, out is_more boolean, out rest double precision, out short jsonb, out undecided jsonb)
language plpgsql security definer set search_path = pg_catalog, pg_temp set jit = off as $$
declare
  v_due record;
  v_met record;
begin
  perform orc._see_scheduler(scheduler);
  if verdicts is not null then
    perform orc._hear_verdicts(verdicts, false);
  end if;
  v_met := orc._decide_events(most);
  if plans is not null then
    perform orc._extend_plans(plans);
  end if;
  v_due := orc._fire_due(most);
  fired := v_due.runs + v_met.runs;
  decided := v_due.plans + v_met.occurrences;
  is_more := v_due.plans >= most or v_met.occurrences >= most;
  select jsonb_agg(s) into short from orc._short_plans(least(most, 500)) as s;
  undecided := orc._undecided(200);
  rest := orc._rest();
end $$;
comment on function orc.tick(text, integer, jsonb, jsonb) is
  'Fires what is due; takes computed instants and verdicts, answers what is to be computed next and how long to rest.';
grant execute on function orc.tick(text, integer, jsonb, jsonb) to orc_worker;
