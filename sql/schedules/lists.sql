-- Tasks as lists: by a filter (status, created_by, schedule_kind, q, label), newest first, as runs are listed (work/lists.sql).
-- q is looked for in the title and the description, whatever the case.

create function orc._check_task_filter(filter jsonb) returns void
language plpgsql as $$
begin
  if jsonb_typeof(filter) is distinct from 'object' or filter - '{status, created_by, schedule_kind, q, label}'::text[] <> '{}' then
    perform orc._invalid('A filter is an object of known fields', 'filter', 'status, created_by, schedule_kind, q, label');
  end if;
  perform (filter ->> 'created_by')::uuid;
exception when data_exception then
  perform orc._invalid('created_by is a UUID', 'filter');
end $$;
comment on function orc._check_task_filter(jsonb) is 'Refuses a filter that asks for what there isn''t.';

create function orc._find_tasks(tenant text, filter jsonb, owner uuid, before uuid, most integer) returns uuid[]
language plpgsql stable set plan_cache_mode = force_custom_plan set jit = off as $$
declare
  v_to constant uuid := coalesce(before, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
begin
  return array(
    select t.id from orchestrator.task t
    where t.tenant_id = tenant and t.id < v_to
      and (owner is null or t.created_by = owner)
      and (filter ->> 'created_by' is null or t.created_by = (filter ->> 'created_by')::uuid)
      and (filter ->> 'status' is null or t.status = filter ->> 'status')
      and (filter ->> 'schedule_kind' is null or t.kind = filter ->> 'schedule_kind')
      and (filter ->> 'q' is null or strpos(lower(t.title), lower(filter ->> 'q')) > 0
           or strpos(lower(t.description), lower(filter ->> 'q')) > 0)
      and (filter ->> 'label' is null or orc._has_label(t.labels, filter ->> 'label'))
    order by t.id desc limit most);
end $$;
comment on function orc._find_tasks(text, jsonb, uuid, uuid, integer) is 'The newest tasks that fit a filter, before an id: at most so many.';

create function orc.list_tasks(
  tenant text, filter jsonb default '{}', owner uuid default null, "limit" integer default 50, "offset" integer default 0, cursor uuid default null)
returns table (items jsonb, total integer, total_is_exact boolean, has_more boolean, next_cursor uuid)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_bound constant integer := orc._count_bound();
  v_found uuid[];
begin
  perform orc._require('tasks:read');
  perform orc._check_task_filter(filter);
  if ("limit" between 1 and 200 and "offset" between 0 and v_bound) is not true then
    perform orc._invalid('A page has 1 to 200 items, and an offset of at most 10000', 'limit, offset', 'go on with the cursor');
  end if;
  v_found := orc._find_tasks(tenant, filter, orc._owner(owner), null, greatest(v_bound, "offset" + "limit") + 1);
  total := least(cardinality(v_found), v_bound);
  total_is_exact := cardinality(v_found) <= v_bound;
  if cursor is not null then
    v_found := orc._find_tasks(tenant, filter, orc._owner(owner), cursor, "offset" + "limit" + 1);
  end if;
  v_found := v_found["offset" + 1 : "offset" + "limit" + 1];
  has_more := cardinality(v_found) > "limit";
  v_found := v_found[:"limit"];
  next_cursor := case when has_more then v_found["limit"] end;
  items := coalesce((select jsonb_agg(to_jsonb(t) - 'tenant_id' order by t.id desc)
                     from orc.tasks t where t.tenant_id = tenant and t.id = any (v_found)), '[]');
  return next;
end $$;
comment on function orc.list_tasks(text, jsonb, uuid, integer, integer, uuid) is
  'A page of tasks, newest first, by a filter. The total is counted up to 10,000. The next page begins at next_cursor.';
grant execute on function orc.list_tasks(text, jsonb, uuid, integer, integer, uuid) to orc_api, orc_reader;
