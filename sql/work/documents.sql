-- Pipelines as enqueue sees them: stored once, by their content, with what their runs inherit.
--
-- A document is checked in depth by the reader of the language, in the API and in the worker. Here only
-- what enqueue itself goes by is: it may come from psql.

-- A text whose ${…} are bare paths into the input: ${input.customer}, ${params.order["no"]}. A doubled $ before { is a literal.
create function orc._is_key(template text) returns boolean
language sql immutable parallel safe as $$
  select template ~ ('^(\$\$\{|\$\{\s*(params|input)(\s*\.\s*[A-Za-z_]\w*|\s*\[\s*(\d{1,9}|"[^"\\\n{}]*"|''[^''\\\n{}]*'')\s*\])*\s*\}'
                     || '|[^$]|\$(?!\$?\{))*$')
$$;
comment on function orc._is_key(text) is 'Whether enqueue can make a concurrency key of a text.';

create function orc._check_document(document jsonb) returns void
language plpgsql as $$
declare
  c constant jsonb := coalesce(document -> 'concurrency', '{"key": "-"}');
  d constant jsonb := coalesce(document -> 'defaults', '{}');
  v_steps constant jsonb := coalesce(document -> 'pipeline', document -> 'tasks');
begin
  if jsonb_typeof(document) is distinct from 'object' or jsonb_typeof(v_steps) is distinct from 'array'
     or jsonb_array_length(v_steps) = 0 then
    perform orc._invalid('A run needs a tenant and a pipeline', 'pipeline',
                         'give {"pipeline": [{"id": "a", "uses": "set", "with": {}}]}, or the list alone');
  elsif not orchestrator.json_is_bounded(document) then
    perform orc._invalid('The pipeline is too large or too deep', 'pipeline', 'at most 1 MiB and 32 levels');
  elsif not coalesce(length(d ->> 'queue') between 1 and 100 and jsonb_typeof(d -> 'queue') = 'string', not d ? 'queue') then
    perform orc._invalid('A queue has a name of 1 to 100 characters', 'defaults.queue');
  elsif not coalesce(d ->> 'priority' ~ '^(100|[0-9]{1,2})$' and jsonb_typeof(d -> 'priority') = 'number', not d ? 'priority') then
    perform orc._invalid('A priority is 0 (most urgent) to 100', 'defaults.priority');
  elsif not coalesce(jsonb_typeof(c -> 'key') = 'string' and length(c ->> 'key') between 1 and 1100 and orc._is_key(c ->> 'key'), false) then
    perform orc._invalid('A concurrency key is a text, in which ${…} are paths into the input', 'concurrency.key',
                         'such as "customer-${input.customer}": compute other values before enqueue, and give concurrency_key');
  elsif not coalesce(c ->> 'limit' ~ '^([1-9][0-9]{0,4}|100000)$' and jsonb_typeof(c -> 'limit') = 'number', not c ? 'limit') then
    perform orc._invalid('A concurrency key has 1 to 100000 slots', 'concurrency.limit');
  elsif not coalesce(c ->> 'on_conflict' in ('queue', 'skip', 'replace', 'cancel_running'), not c ? 'on_conflict') then
    perform orc._invalid('on_conflict is queue, skip, replace or cancel_running', 'concurrency.on_conflict');
  end if;
end $$;
comment on function orc._check_document(jsonb) is 'Refuses a pipeline that enqueue can''t go by.';

create function orc._store_pipeline(tenant text, id uuid, document jsonb) returns void
language plpgsql as $$
begin
  if tenant is null or length(tenant) not between 1 and 200 then
    perform orc._invalid('A run needs a tenant and a pipeline', 'tenant', 'a tenant has a name of 1 to 200 characters');
  end if;
  perform orc._check_document(document);
  insert into orchestrator.tenant (id) values (tenant) on conflict do nothing;
  insert into orchestrator.pipeline (tenant_id, id, document) values (tenant, id, document) on conflict do nothing;
end $$;
comment on function orc._store_pipeline(text, uuid, jsonb) is 'Stores a pipeline, and its tenant when that is new.';

create function orc._pipeline_id(document jsonb) returns uuid
language sql immutable as $$
  select encode(substring(sha256(convert_to(document::text, 'UTF8')) from 1 for 16), 'hex')::uuid
$$;
comment on function orc._pipeline_id(jsonb) is 'A pipeline''s id: made of its content.';

-- The pipeline's id and what its runs inherit; stored when it is new. A text is the id of one that is.
create function orc._pipeline(
  tenant text, document jsonb, out id uuid, out queue text, out priority smallint, out concurrency_key text,
  out concurrency_limit integer, out on_conflict text)
language plpgsql as $$
begin
  if jsonb_typeof(document) = 'string' then
    select p.id into id from orchestrator.pipeline p where p.tenant_id = tenant and p.id::text = _pipeline.document #>> '{}';
    if id is null then
      perform orc._not_found('There is no such pipeline', document #>> '{}', 'give the pipeline itself');
    end if;
  else
    if jsonb_typeof(document) = 'array' then
      document := jsonb_build_object('pipeline', document);
    end if;
    id := orc._pipeline_id(document);
  end if;
  loop
    select p.queue, p.priority, p.concurrency_key, p.concurrency_limit, p.on_conflict
    into queue, priority, concurrency_key, concurrency_limit, on_conflict
    from orchestrator.pipeline p where p.tenant_id = tenant and p.id = _pipeline.id;
    exit when found;
    perform orc._store_pipeline(tenant, id, document);
  end loop;
end $$;
comment on function orc._pipeline(text, jsonb) is 'A pipeline''s id, and what its runs inherit. It is stored when it is new.';

-- What a path of a concurrency key finds: in the input, else in the document's params, else in the defaults of its inputs.
create function orc._value_for_key(path text, tenant text, pipeline uuid, input jsonb) returns text
language plpgsql stable as $$
declare
  v_keys constant text[] := array(
    select case when left(m[1], 1) in ('"', '''') then substr(m[1], 2, length(m[1]) - 2) else m[1] end
    from regexp_matches(path, '[A-Za-z_]\w*|\d+|"[^"]*"|''[^'']*''', 'g') as m);
  v_given jsonb := input;
begin
  if jsonb_typeof(input) = 'object' or input is null or v_keys[1] = 'params' then
    select coalesce((select jsonb_object_agg(i.key, i.value -> 'default')
                     from jsonb_each(case jsonb_typeof(p.document -> 'inputs') when 'object' then p.document -> 'inputs' else '{}' end) as i
                     where i.value ? 'default'), '{}')
           || case jsonb_typeof(p.document -> 'params') when 'object' then p.document -> 'params' else '{}' end
           || case jsonb_typeof(input) when 'object' then input else '{}' end
    into v_given from orchestrator.pipeline p where p.tenant_id = tenant and p.id = pipeline;
  end if;
  v_given := v_given #> v_keys[2:];
  if jsonb_typeof(v_given) in ('string', 'number', 'boolean') is not true then
    perform orc._invalid(format('The pipeline''s concurrency key needs %s: a text, a number or a boolean', path), 'input',
                         'give it in the input, or give concurrency_key');
  end if;
  return v_given #>> '{}';
end $$;
comment on function orc._value_for_key(text, text, uuid, jsonb) is 'The value of a path in a concurrency key; OR422 when the input has none.';

create function orc._key_of(template text, tenant text, pipeline uuid, input jsonb) returns text
language plpgsql stable as $$
begin
  if strpos(template, '${') = 0 then
    return template;
  elsif not orc._is_key(template) then
    perform orc._invalid('The pipeline''s concurrency key has more in ${…} than a path into the input', template,
                         'give concurrency_key, or change the document');
  end if;
  return (select string_agg(case when m[1] ~ '^\$\$' then '${'
                                 when m[1] like '${%' then orc._value_for_key(btrim(substr(m[1], 3), '} '), tenant, pipeline, input)
                                 else m[1] end, '' order by nth)
          from regexp_matches(template, '(\$\$\{|\$\{[^{}]*\}|[^$]+|\$)', 'g') with ordinality as t(m, nth));
end $$;
comment on function orc._key_of(text, text, uuid, jsonb) is 'The concurrency key of a run with that input.';

