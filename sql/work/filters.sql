-- Filters of runs: one grammar, for lists, for what is done to many runs at once, and for the CLI.
--
-- A filter is an object; what it doesn't name, it doesn't ask for:
--   kind          task, flow, mission, run; all: any of them
--   task_id, flow_id, queue
--   state         as orc.runs has it
--   success       true: succeeded; false: failed or canceled
--   start_time, end_time   made since then, and before then
--   error_type, fingerprint   of the error, as orc.failures shows them
--   label         a key of its labels, or key:value
--
-- Filters are parts of a plan of their own (force_custom_plan): what isn't asked for is folded away, and what is finds its
-- index. Measured 2026-11-21 (18, 2 cores, a million finished runs): see tests/test_plans.py.

create function orc._fingerprint(error jsonb) returns text
language sql immutable parallel safe as $$
  select left(md5(concat_ws(':', error ->> 'type', regexp_replace(error ->> 'step', '\[[0-9]+\]', '[]', 'g'),
    regexp_replace(left(error ->> 'message', 500), '[0-9a-f]{8}-[0-9a-f-]{27}|0x[0-9a-f]+|[0-9]+|''[^'']*''|"[^"]*"', '?', 'gi'))), 12)
$$;
comment on function orc._fingerprint(jsonb) is 'What failures of the same cause have in common: type, step whatever its iteration, and the message without its numbers, ids and quotes.';

create function orc._filter_fields() returns text[]
language sql immutable parallel safe as $$
  select '{kind, task_id, flow_id, queue, state, success, start_time, end_time, error_type, fingerprint, label}'::text[]
$$;
comment on function orc._filter_fields() is 'What a filter of runs may name.';

create function orc._has_label(labels jsonb, label text) returns boolean
language sql immutable parallel safe as $$
  select case when label like '%_:%' then labels ->> split_part(label, ':', 1) = substr(label, strpos(label, ':') + 1)
              else jsonb_exists(labels, label) end
$$;
comment on function orc._has_label(jsonb, text) is 'Whether labels have a key, or a key with a value (key:value).';

create function orc._fits(filter jsonb, kind text, task_id uuid, flow_id text, queue text, error jsonb, labels jsonb) returns boolean
language sql stable as $$
  select (filter ->> 'kind' is null or filter ->> 'kind' = 'all' or kind = filter ->> 'kind')
     and (filter ->> 'task_id' is null or task_id = (filter ->> 'task_id')::uuid)
     and (filter ->> 'flow_id' is null or flow_id = filter ->> 'flow_id')
     and (filter ->> 'queue' is null or queue = filter ->> 'queue')
     and (filter ->> 'error_type' is null or error ->> 'type' = filter ->> 'error_type')
     and (filter ->> 'fingerprint' is null or orc._fingerprint(error) = filter ->> 'fingerprint')
     and (filter ->> 'label' is null or orc._has_label(labels, filter ->> 'label'))
$$;
comment on function orc._fits(jsonb, text, uuid, text, text, jsonb, jsonb) is
  'Whether a run fits a filter, but for its state and time. It is written so that a plan takes it in.';

create function orc._wanted_states(filter jsonb) returns text[]
language sql immutable as $$
  select case when s.by_success is null then s.by_state
              when s.by_state is null or s.by_state <@ s.by_success then coalesce(s.by_state, s.by_success) else '{}' end
  from (select case filter ->> 'success' when 'true' then '{succeeded}' when 'false' then '{failed,canceled}' end::text[] as by_success,
               case when filter ->> 'state' is not null then array[filter ->> 'state'] end as by_state) as s
$$;
comment on function orc._wanted_states(jsonb) is 'The states that a filter asks for; null: any.';

-- A run's time is its id's, to the next microsecond of that millisecond; ids have finer parts of it. So the bound is the last
-- id of the microsecond before: at the turn of a millisecond, the last of all.
create function orc._id_before(instant timestamptz) returns uuid
language sql immutable strict parallel safe as $$
  select encode(int8send(orchestrator._id_head(instant - interval '1 microsecond')
                         | case when date_part('microseconds', instant)::bigint % 1000 = 0 then 4095 else 0 end) || '\xffffffffffffffff', 'hex')::uuid
$$;
comment on function orc._id_before(timestamptz) is 'The last id whose time, as orchestrator.id_time says it, is before an instant.';

create function orc._check_filter(filter jsonb) returns void
language plpgsql as $$
begin
  if jsonb_typeof(filter) is distinct from 'object' or filter - orc._filter_fields() <> '{}' then
    perform orc._invalid('A filter is an object of known fields', 'filter', array_to_string(orc._filter_fields(), ', '));
  end if;
  perform (filter ->> 'task_id')::uuid, (filter ->> 'start_time')::timestamptz, (filter ->> 'end_time')::timestamptz,
          (filter ->> 'success')::boolean;
exception when data_exception then
  perform orc._invalid('A value of the filter can''t be read', 'filter', 'task_id is a UUID, times are timestamps, success is true or false');
end $$;
comment on function orc._check_filter(jsonb) is 'Refuses a filter that asks for what there isn''t.';

-- The two halves are asked apart, each by its own index, and merged. With an owner, no runs of tasks that others made.
create function orc._find_runs(tenant text, filter jsonb, owner uuid, before uuid, most integer) returns uuid[]
language plpgsql stable set plan_cache_mode = force_custom_plan set jit = off as $$
declare
  v_states constant text[] := orc._wanted_states(filter);
  v_live constant boolean := coalesce(v_states && '{ready,running,scheduled,blocked,waiting}', true);
  v_ended constant boolean := coalesce(v_states && '{succeeded,failed,canceled,skipped}', true);
  v_from constant uuid := coalesce(orc._id_before((filter ->> 'start_time')::timestamptz), '00000000-0000-0000-0000-000000000000');
  v_to constant uuid := coalesce(orc._id_before((filter ->> 'end_time')::timestamptz), 'ffffffff-ffff-ffff-ffff-ffffffffffff');
  v_before constant uuid := coalesce(before, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
begin
  return array(
    select f.id from (
      (select r.id from orchestrator.run r
       where v_ended and r.tenant_id = tenant and r.id > v_from and r.id <= v_to and r.id < v_before and (v_states is null or r.state = any (v_states))
         and orc._fits(filter, r.kind, r.task_id, r.flow_id, r.queue, r.error, r.labels)
         and (owner is null or r.task_id is null or exists (select from orchestrator.task t
                                       where t.tenant_id = tenant and t.id = r.task_id and t.created_by = owner))
       order by r.id desc limit most)
      union all
      (select d.run_id from orchestrator.due_work d
       where v_live and d.tenant_id = tenant and d.run_id > v_from and d.run_id <= v_to and d.run_id < v_before
         and (v_states is null or d.state = any (v_states))
         and orc._fits(filter, d.kind, d.task_id, d.flow_id, d.queue, d.error, d.labels)
         and (owner is null or d.task_id is null or exists (select from orchestrator.task t
                                       where t.tenant_id = tenant and t.id = d.task_id and t.created_by = owner))
       order by d.run_id desc limit most)) as f
    order by f.id desc limit most);
end $$;
comment on function orc._find_runs(text, jsonb, uuid, uuid, integer) is 'The newest runs that fit a filter, before an id: at most so many.';

-- Failed runs that were not retried yet, the oldest first.
create function orc._find_retryable(tenant text, filter jsonb, owner uuid, most integer) returns uuid[]
language plpgsql stable set plan_cache_mode = force_custom_plan set jit = off as $$
declare
  v_from constant uuid := coalesce(orc._id_before((filter ->> 'start_time')::timestamptz), '00000000-0000-0000-0000-000000000000');
  v_to constant uuid := coalesce(orc._id_before((filter ->> 'end_time')::timestamptz), 'ffffffff-ffff-ffff-ffff-ffffffffffff');
begin
  return array(
    select r.id from orchestrator.run r
    where r.tenant_id = tenant and r.state = 'failed' and r.id > v_from and r.id <= v_to
      and coalesce('failed' = any (orc._wanted_states(filter)), true)
      and orc._fits(filter, r.kind, r.task_id, r.flow_id, r.queue, r.error, r.labels)
      and (owner is null or r.task_id is null or exists (select from orchestrator.task t
                                    where t.tenant_id = tenant and t.id = r.task_id and t.created_by = owner))
      and not exists (select from orchestrator.due_work d where d.tenant_id = tenant and d.retry_of = r.id)
      and not exists (select from orchestrator.run o where o.tenant_id = tenant and o.retry_of = r.id)
    order by r.id limit most);
end $$;
comment on function orc._find_retryable(text, jsonb, uuid, integer) is 'The oldest failed runs that fit a filter and were not retried: at most so many.';
