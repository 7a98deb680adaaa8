-- What becomes of events that tasks met: each is decided once, by whoever comes first, by the rule and the
-- status that the task has then.
--
--   undecided ──► fire     its rule has no condition, or the condition holds
--             ──► count    one more for count(topic) >= N: fires when it makes the count complete
--             ──► ask      its condition is CEL: stays, until Python has said what it comes to
--             ──► skip     paused, canceled, or edited so that the event doesn't fit any more
--
-- Who decides shares the task first and reads it in a later statement, so an edit or a pause is seen or waits.
-- What is looked at and then fired must be looked at alone: for counts, and where overlap looks at live runs, the
-- task's plan is locked. A publisher waits for other publishers there, in the order of the tasks and as the last thing that
-- it does, after all conditions in CEL; a tick for nobody: what it can't have is left to the next one.
--
-- A count goes by the times of the events: it holds while N of them lie within the span, it fires for the event that
-- makes it hold, and again when it had fallen below. Those that come late are put where they belong: when that
-- makes the count hold up to the last event that was looked at, and nothing has fired since, that fires.

-- A tick waits for nobody: who holds a task alone may wait for rows that the tick has.
create function orc._is_shared(task uuid) returns boolean
language sql as $$
  select pg_try_advisory_xact_lock_shared(hashtextextended(format('orc task %s', task), 0))
$$;
comment on function orc._is_shared(uuid) is 'Keeps a task as it is until the end of the transaction, unless somebody is changing it.';

-- Whether an event is decided by a condition that Python evaluates. A probe's has been evaluated.
create function orc._is_open(kind text, condition text) returns boolean
language sql immutable as $$
  select kind = 'event' and condition is not null
$$;
comment on function orc._is_open(text, text) is 'Whether an event of such a rule is decided by a condition in CEL.';

create function orc._still_fits(r orchestrator.rule, e orchestrator.event) returns boolean
language sql stable as $$
  select case when e.topic = '$condition' then r.kind = 'condition' and r.condition is not null and r.revision = (e.payload ->> 'revision')::integer
              else r.topic is not null and (r.topic = e.topic or r.is_pattern and orc._topic_fits(r.topic, e.topic)) end
$$;
comment on function orc._still_fits(orchestrator.rule, orchestrator.event) is 'Whether a rule that may be newer than the event listens to it.';

create function orc._weigh(tenants text[], occurrences uuid[])
returns table (tenant text, occurrence uuid, task uuid, nominal timestamptz, event uuid, revision integer, condition text, weight text,
               reason text, is_alone boolean)
language sql stable set jit = off set enable_seqscan = off as $$
  select o.tenant_id, o.id, o.task_id, o.nominal_at, o.event_id, r.revision, r.condition,
         case when w.reason is not null then 'skip' when orc._is_open(r.kind, r.condition) then 'ask'
              when r.needed is not null then 'count' else 'fire' end,
         w.reason, t.overlap in ('skip', 'replace') or r.needed is not null
  from unnest(tenants, occurrences) as u(tenant, id)
  join orchestrator.occurrence o on o.tenant_id = u.tenant and o.id = u.id and o.state = 'undecided'
  join orchestrator.task t on t.tenant_id = o.tenant_id and t.id = o.task_id
  join orchestrator.rule r on r.tenant_id = t.tenant_id and r.task_id = t.id and r.revision = t.revision
  join orchestrator.event e on e.tenant_id = o.tenant_id and e.id = o.event_id
  cross join lateral (select case
    when t.status = 'paused' then orc._paused()
    when t.status <> 'active' then 'the task was ' || t.status
    when not orc._still_fits(r, e) then 'the rule was changed, and the event doesn''t fit the new one' end as reason) as w
$$;
comment on function orc._weigh(text[], uuid[]) is 'What is to become of undecided occurrences, as far as SQL can say.';

create function orc._hold_plans(tenants text[], tasks uuid[], waits boolean) returns uuid[]
language plpgsql set jit = off set enable_seqscan = off as $$
declare
  v_held uuid[];
begin
  if waits then
    select array_agg(h.task_id) into v_held from (
      select p.task_id from orchestrator.plan p
      where (p.tenant_id, p.task_id) in (select * from unnest(tenants, tasks)) order by p.tenant_id, p.task_id for update) as h;
  else
    select array_agg(h.task_id) into v_held from (
      select p.task_id from orchestrator.plan p
      where (p.tenant_id, p.task_id) in (select * from unnest(tenants, tasks)) for update skip locked) as h;
  end if;
  return coalesce(v_held, '{}');
end $$;
comment on function orc._hold_plans(text[], uuid[], boolean) is 'Has tasks alone among those who fire them; those that are locked are left out, unless it waits.';

-- The event for which the count fires now that this one is looked at, too; null when it doesn't. No more are read than
-- the N before it, and those that are later.
create function orc._completed(o orchestrator.occurrence, r orchestrator.rule) returns uuid
language sql stable set jit = off set enable_seqscan = off as $$
  with known as materialized (
    (select k.id, k.nominal_at, k.state = 'fired' or k.reason ~ '^(overlap|duplicate):' as is_mark from orchestrator.occurrence k
     where k.tenant_id = o.tenant_id and k.task_id = o.task_id and k.event_id is not null
       and k.nominal_at > o.nominal_at - r.span and (k.nominal_at, k.id) <= (o.nominal_at, o.id)
       and k.id between orchestrator.id_floor(o.nominal_at - r.span) and o.id
       and (k.id = o.id or k.decided_at >= r.from_at and (k.state = 'fired' or k.reason ~ '^(counted|overlap|duplicate):'))
     order by k.nominal_at desc, k.id desc limit r.needed + 1)
    union all
    select k.id, k.nominal_at, k.state = 'fired' or k.reason ~ '^(overlap|duplicate):' from orchestrator.occurrence k
    where k.tenant_id = o.tenant_id and k.task_id = o.task_id and k.event_id is not null
      and k.nominal_at < o.nominal_at + r.span and (k.nominal_at, k.id) > (o.nominal_at, o.id)
      and k.id between o.id and orchestrator.id_floor(o.nominal_at + r.span)
      and k.decided_at >= r.from_at and (k.state = 'fired' or k.reason ~ '^(counted|overlap|duplicate):')),
  counted as materialized (
    select k.*, lag(nominal_at, r.needed - 1) over w > nominal_at - r.span as holds,
           coalesce(lag(nominal_at, r.needed) over w > nominal_at - r.span, false) as held_before
    from known k window w as (order by nominal_at, id)),
  holding as (select * from counted c where c.holds and (c.nominal_at, c.id) >= (o.nominal_at, o.id) order by nominal_at desc, id desc limit 1)
  select c.id from counted c cross join holding h
  where c.holds and not c.held_before and (c.nominal_at, c.id) between (o.nominal_at, o.id) and (h.nominal_at, h.id)
    and not exists (select from known m where m.is_mark and (m.nominal_at, m.id) >= (c.nominal_at, c.id))
  order by c.nominal_at desc, c.id desc limit 1
$$;
comment on function orc._completed(orchestrator.occurrence, orchestrator.rule) is 'The event for which a count fires, now that one more is looked at.';

create function orc._firing(o orchestrator.occurrence, decision text, reason text default null) returns jsonb
language sql immutable as $$
  select jsonb_build_object('tenant', o.tenant_id, 'task', o.task_id, 'nominal', o.nominal_at, 'event', o.event_id, 'due', o.nominal_at,
                            'decision', decision, 'reason', reason)
$$;
comment on function orc._firing(orchestrator.occurrence, text, text) is 'An occurrence as a firing.';

-- The caller has the plan. When an earlier one that comes late makes the count complete, it fires for the later one.
create function orc._count(tenant text, occurrence uuid) returns integer
language plpgsql as $$
declare
  o orchestrator.occurrence;
  r orchestrator.rule;
  v_completed uuid;
begin
  select * into o from orchestrator.occurrence k where k.tenant_id = tenant and k.id = occurrence and k.state = 'undecided';
  select u.* into r from orchestrator.task t
  join orchestrator.rule u on u.tenant_id = t.tenant_id and u.task_id = t.id and u.revision = t.revision
  where t.tenant_id = tenant and t.id = o.task_id;
  v_completed := orc._completed(o, r);
  if v_completed is distinct from o.id then
    update orchestrator.occurrence k
    set state = 'skipped', decided_at = orchestrator.now(),
        reason = case when v_completed is null then format('counted: it doesn''t become %s within %s', r.needed, r.span)
                      else 'counted: it came late, and a later event fires' end
    where k.tenant_id = tenant and k.id = occurrence;
  end if;
  if v_completed is null then
    return 0;
  end if;
  update orchestrator.occurrence k set state = 'undecided', reason = null where k.tenant_id = tenant and k.id = v_completed
  returning * into o;
  return orc._fire(jsonb_build_array(orc._firing(o, 'fire')));
end $$;
comment on function orc._count(text, uuid) is 'Counts one event; answers how many runs that made.';

-- Verdicts are what conditions came to; one of a rule that has been replaced since says nothing. With `waits` null, tasks
-- that must be had alone are left. The caller has locked the occurrences and shares their tasks. Answers how many runs it made.
create function orc._decide(tenants text[], occurrences uuid[], verdicts jsonb, waits boolean) returns integer
language plpgsql set jit = off set enable_seqscan = off as $$
declare
  v_held uuid[];
  v_firings jsonb;
  v_counted jsonb;
  v_runs integer := 0;
  c record;
begin
  select orc._hold_plans(array_agg(w.tenant), array_agg(w.task), waits) into v_held
  from orc._weigh(tenants, occurrences) as w
  where w.is_alone and waits is not null and (w.weight in ('fire', 'count') or w.weight = 'ask' and verdicts is not null) having count(*) > 0;
  select jsonb_agg(orc._firing(o, d.decision, case d.weight when 'skip' then w.reason when 'ask' then
                     coalesce('the condition failed: ' || left(v.problem, 500), 'the condition doesn''t hold') end)
                   order by w.nominal, w.occurrence) filter (where d.decision in ('fire', 'skipped')),
         jsonb_agg(jsonb_build_object('tenant', w.tenant, 'occurrence', w.occurrence) order by w.task, w.nominal, w.occurrence)
           filter (where d.decision = 'count')
  into v_firings, v_counted
  from orc._weigh(tenants, occurrences) as w
  join orchestrator.occurrence o on o.tenant_id = w.tenant and o.id = w.occurrence
  left join jsonb_to_recordset(verdicts) as v(tenant text, occurrence uuid, revision integer, holds boolean, problem text)
    on v.tenant = w.tenant and v.occurrence = w.occurrence and v.revision = w.revision
  cross join lateral (select w.weight, case w.weight when 'skip' then 'skipped' when 'ask' then case v.holds when true then 'fire' when false then 'skipped' end
                                       else w.weight end as decision) as d
  where w.weight = 'skip' or not w.is_alone or w.task = any (v_held);
  for c in select * from jsonb_to_recordset(v_counted) as k(tenant text, occurrence uuid)
  loop
    v_runs := v_runs + orc._count(c.tenant, c.occurrence);
  end loop;
  return v_runs + orc._fire(v_firings);
end $$;
comment on function orc._decide(text[], uuid[], jsonb, boolean) is 'Decides events, as far as they can be decided.';

-- Ahead of the others are none that wait for Python, and none of tasks that somebody is changing.
create function orc._decide_events(most integer, out occurrences integer, out runs integer)
language plpgsql set jit = off set enable_seqscan = off as $$
declare
  v_tenants text[];
  v_ids uuid[];
begin
  select array_agg(o.tenant_id), array_agg(o.id) into v_tenants, v_ids from (
    select u.tenant_id, u.id from orchestrator.occurrence u
    where u.state = 'undecided' and orc._is_shared(u.task_id) and (
      select t.status <> 'active' or not orc._is_open(r.kind, r.condition)
      from orchestrator.task t join orchestrator.rule r on r.tenant_id = t.tenant_id and r.task_id = t.id and r.revision = t.revision
      where t.tenant_id = u.tenant_id and t.id = u.task_id)
    order by u.id limit most for update skip locked) as o;
  occurrences := coalesce(cardinality(v_ids), 0);
  runs := case when v_ids is null then 0 else orc._decide(v_tenants, v_ids, null, false) end;
end $$;
comment on function orc._decide_events(integer) is 'Decides what steps emitted and the core announced, except by conditions.';

-- Four megabytes of events at most: of larger ones, a few.
create function orc._undecided(most integer) returns jsonb
language sql stable set jit = off set enable_seqscan = off as $$
  select jsonb_agg(jsonb_build_object('tenant', o.tenant_id, 'occurrence', o.id, 'revision', o.revision, 'condition', o.condition,
                                      'event', orc._event_as_json(o.event)))
  from (
    select k.tenant_id, k.id, r.revision, r.condition, e.it as event,
           sum(pg_column_size((e.it).payload)) over (order by k.id) - pg_column_size((e.it).payload) as before
    from (select u.tenant_id, u.id, u.task_id, u.event_id from orchestrator.occurrence u where u.state = 'undecided' order by u.id offset 0) as k
    cross join lateral (  -- one by one: never all rules
      select n.revision, n.condition from orchestrator.task t
      join orchestrator.rule n on n.tenant_id = t.tenant_id and n.task_id = t.id and n.revision = t.revision
      where t.tenant_id = k.tenant_id and t.id = k.task_id and t.status = 'active' and orc._is_open(n.kind, n.condition) offset 0) as r
    cross join lateral (
      select v as it from orchestrator.event v where v.tenant_id = k.tenant_id and v.id = k.event_id offset 0) as e
    order by k.id limit most) as o
  where coalesce(o.before, 0) < 4000000
$$;
comment on function orc._undecided(integer) is 'Events whose conditions Python is to evaluate.';

create function orc._hear_verdicts(verdicts jsonb, waits boolean) returns integer
language plpgsql set jit = off set enable_seqscan = off as $$
declare
  v_tenants text[];
  v_ids uuid[];
begin
  select array_agg(o.tenant_id), array_agg(o.id) into v_tenants, v_ids from (
    select u.tenant_id, u.id from orchestrator.occurrence u
    where (u.tenant_id, u.id) in (select v.tenant, v.occurrence from jsonb_to_recordset(verdicts) as v(tenant text, occurrence uuid))
      and u.state = 'undecided' and orc._is_shared(u.task_id) for update skip locked) as o;
  return case when v_ids is null then 0 else orc._decide(v_tenants, v_ids, verdicts, waits) end;
end $$;
comment on function orc._hear_verdicts(jsonb, boolean) is 'Fires or skips events by what their conditions came to.';

-- An event that was named elsewhere has the same id again, for a week. Its time is the one that it says, if that is of the last day.
create function orc._id_of_foreign(tenant text, source text, name text, at timestamptz) returns uuid
language plpgsql as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_id uuid := orc._timed_id(case when at between v_now - interval '1 day' and v_now + interval '1 minute' then at else v_now end,
                             concat_ws(' ', source, name, gen_random_uuid()));
begin
  if source is null then
    perform orc._invalid('An event with a name has a source that gave it', 'source', 'say who named it');
  end if;
  insert into orchestrator.foreign_event as f (tenant_id, source, name, event_id) values (tenant, $2, $3, v_id) on conflict do nothing;
  select f.event_id into v_id from orchestrator.foreign_event f where f.tenant_id = tenant and f.source = $2 and f.name = $3;
  return v_id;
end $$;
comment on function orc._id_of_foreign(text, text, text, timestamptz) is 'Our id of an event that was named elsewhere.';

-- What is to be asked of Python in the same transaction: not more than 50, the others are left to the scheduler. With what
-- was left, which has no condition.
create function orc._asked(tenants text[], occurrences uuid[]) returns jsonb
language sql stable as $$
  select jsonb_agg(jsonb_build_object('tenant', w.tenant, 'occurrence', w.occurrence, 'revision', w.revision,
                                      'condition', case w.weight when 'ask' then w.condition end))
  from (select a.*, row_number() over (partition by a.weight order by a.task) as nth from orc._weigh(tenants, occurrences) as a) as w
  where w.weight <> 'ask' or w.nth <= 50
$$;
comment on function orc._asked(text[], uuid[]) is 'The conditions on which undecided occurrences depend.';

-- The event, and the runs of every task that it meets. When there are rules with conditions, these and what comes after
-- them are answered in `open`, for `decide_event` in the same transaction. What nobody decides there, the next tick does: so it does with
-- tasks that somebody is changing at this moment. Who calls it `at_once`, in a transaction of its own, is answered nothing
-- and nothing is published when there are such rules.
create function orc.publish_event(tenant text, topic text, payload jsonb default null, id uuid default null, source text default null,
  name text default null, "at" timestamptz default null, at_once boolean default false,
  out event_id uuid, out is_new boolean, out triggered integer, out open jsonb, out event jsonb, out published_at timestamptz)
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s' as $$
declare
  v_met uuid[];
  v_tenants text[];
  v_ids uuid[];
begin
  perform orc._require('events:write');
  if at_once and exists (select from orc._listeners(tenant, topic) as r where orc._is_open(r.kind, r.condition)) then
    return;
  end if;
  if name is not null then
    id := orc._id_of_foreign(tenant, source, name, "at");
  end if;
  select m.event_id, m.is_new, m.met into event_id, is_new, v_met from orc._emit(tenant, topic, payload, id, source) as m;
  triggered := 0;
  published_at := orchestrator.id_time(event_id);
  if v_met is null then
    return;
  end if;
  select array_agg(tenant order by i.id), array_agg(i.id order by i.id) into v_tenants, v_ids
  from unnest(v_met) as t(task) cross join lateral (select orc._occurrence_id(t.task, published_at, event_id) as id) as i
  where orc._is_shared(t.task);
  triggered := case when v_ids is null then 0 else orc._decide(v_tenants, v_ids, null, case when not exists (
    select from orc._weigh(v_tenants, v_ids) as w where w.weight = 'ask') then true end) end;
  open := orc._asked(v_tenants, v_ids);
  if open is not null or cardinality(v_ids) is distinct from cardinality(v_met) then
    perform pg_notify('orc_events', '');
  end if;
  if open is not null then
    select orc._event_as_json(e) into event from orchestrator.event e where e.tenant_id = tenant and e.id = publish_event.event_id;
  end if;
end $$;
comment on function orc.publish_event(text, text, jsonb, uuid, text, text, timestamptz, boolean) is
  'Publishes an event and starts every task that listens to it, in one transaction. The same id, or name and source, again is the same event.';
grant execute on function orc.publish_event(text, text, jsonb, uuid, text, text, timestamptz, boolean) to orc_api, orc_worker;

-- Events of several callers in one insert, {tenant, scopes, given}, and an answer for each. Null, and nothing, for one
-- that is to be published alone: a task listens, the caller has named it or may not publish. An event that makes no
-- sense, or would wait for somebody, makes that all of them.
-- Who began to listen after the look hears of it from the next tick.
create function orc.publish_together(calls jsonb) returns setof jsonb
language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
set lock_timeout = '20ms' as $$
declare
  v_events orchestrator.event[];
  v_answers jsonb[];
begin
  perform orc._check_event(c.tenant, c.given ->> 'topic', c.given -> 'payload', null, c.given ->> 'source')
  from jsonb_to_recordset(calls) as c(tenant text, given jsonb);
  with asked as materialized (
    select c.*, case when orc._covers(string_to_array(c.scopes, ' '), '{events:write}')
                      and c.given ->> 'id' is null and c.given ->> 'name' is null
                      and not exists (select from orc._listeners(c.tenant, c.given ->> 'topic')) then orchestrator.new_id() end as id
    from rows from (jsonb_to_recordset(calls) as (tenant text, scopes text, given jsonb)) with ordinality as c(tenant, scopes, given, nth)),
  written as (
    insert into orchestrator.event (tenant_id, id, topic, source, payload, position)
    select a.tenant, a.id, a.given ->> 'topic', a.given ->> 'source', a.given -> 'payload', orc._next_position(a.tenant)
    from asked a where a.id is not null
    returning event)
  select (select array_agg(w.event) from written w),
         array_agg(case when a.id is not null then jsonb_build_object(
           'event_id', a.id, 'is_new', true, 'triggered', 0, 'published_at', orchestrator.id_time(a.id)) end order by a.nth)
  into v_events, v_answers from asked a;
  perform orc._queue_events(v_events);
  if orc._meet_tasks(v_events) is not null then
    perform pg_notify('orc_events', '');
  end if;
  perform orc._hint_event(e.tenant_id, e.topic) from (select distinct tenant_id, topic from unnest(v_events)) as e;
  return query select unnest(v_answers);
exception when others then
  return query select null::jsonb from jsonb_array_elements(calls);
end $$;
comment on function orc.publish_together(jsonb) is
  'Publishes events of several callers at once, {tenant, scopes, given}. Null for one that is to be published alone.';
grant execute on function orc.publish_together(jsonb) to orc_api;

create function orc.decide_event(verdicts jsonb) returns integer
language sql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s' as $$
  select orc._hear_verdicts(verdicts, true)
$$;
comment on function orc.decide_event(jsonb) is 'Decides what was left open: a list of {tenant, occurrence, revision, holds, problem}. Answers how many runs it made.';
grant execute on function orc.decide_event(jsonb) to orc_api;

-- By id: the newest first, and only what is kept. The cursor is the id of the last one seen; null: there are no more.
create function orc.list_events(tenant text, topic text default null, since timestamptz default null, cursor uuid default null,
  "limit" integer default 50) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off as $$
declare
  v_most constant integer := least(greatest("limit", 1), 200);
  v_items jsonb;
begin
  perform orc._require('events:read');
  if topic like '%*%' then
    perform orc._invalid('Events are listed by one topic, or all of them', topic, 'leave the topic out, or name it in full');
  end if;
  select coalesce(jsonb_agg(jsonb_build_object('event_id', o.id, 'topic', o.topic, 'payload', o.payload, 'source', o.source,
                                               'published_at', orchestrator.id_time(o.id)) order by o.id desc), '[]') into v_items
  from (select e.* from orchestrator.event e
        where e.tenant_id = tenant and (list_events.topic is null or e.topic = list_events.topic)
          and (since is null or e.id >= orchestrator.id_floor(since)) and (cursor is null or e.id < cursor)
        order by e.id desc limit v_most) as o;
  return jsonb_build_object('items', v_items, 'cursor', case when jsonb_array_length(v_items) = v_most then v_items -> -1 -> 'event_id' end);
end $$;
comment on function orc.list_events(text, text, timestamptz, uuid, integer) is 'Events of a tenant, the newest first: {items, cursor}.';
grant execute on function orc.list_events(text, text, timestamptz, uuid, integer) to orc_api;
