-- Tools of the operator's MCP servers: seen by workers, which may start servers; listed by others, who may not.
--
--   (in a worker's file) ──ask_tool_servers──► asked ──report_tools──► seen, with its tools
--                                                │                       │ asked again after `fresh_for`
--                                                └──► has a problem      ▼ gone after a day without a worker
--                                                     asked again after a minute

create function orc.ask_tool_servers(servers text[], fresh_for double precision default 3600)
returns table (name text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  delete from orchestrator.tool_server t
  where t.name in (select o.name from orchestrator.tool_server o
                   where o.asked_at < orchestrator.now() - interval '1 day' for update skip locked);
  return query
    insert into orchestrator.tool_server as t (name)
    select distinct left(s.name, 200) as name from unnest(servers) as s(name) where s.name <> '' order by name
    on conflict on constraint server_is_asked_under_one_name do update set asked_at = excluded.asked_at
    where t.asked_at <= orchestrator.now() - make_interval(
      secs => case when t.seen_at >= t.asked_at then fresh_for else least(fresh_for, 60) end)
    returning t.name;
end $$;
comment on function orc.ask_tool_servers(text[], double precision) is
  'Those of these MCP servers that the caller is to ask for their tools, and report: nobody has, for so many seconds.';
grant execute on function orc.ask_tool_servers(text[], double precision) to orc_worker;

create function orc.report_tools(server text, tools jsonb default null, problem text default null) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if report_tools.tools is not null and not orchestrator.json_is_bounded(report_tools.tools) then
    perform orc._invalid('These tools are too large or too deep', server, 'at most 1 MiB, 32 levels, numbers up to 1e308');
  end if;
  insert into orchestrator.tool_server as t (name, seen_at, tools)
  values (server, case when report_tools.problem is null then orchestrator.now() end, coalesce(report_tools.tools, '[]'))
  on conflict on constraint server_is_asked_under_one_name do update
  set seen_at = coalesce(excluded.seen_at, t.seen_at), tools = coalesce(report_tools.tools, t.tools);
  update orchestrator.tool_server t set problem = left(report_tools.problem, 1000) where t.name = server;
end $$;
comment on function orc.report_tools(text, jsonb, text) is
  'What an MCP server offers, or why it doesn''t say; then what it said before stays.';
grant execute on function orc.report_tools(text, jsonb, text) to orc_worker;

create view orc.tools as
  select s.name as server, t.tool ->> 'name' as tool, t.tool ->> 'description' as description,
         t.tool -> 'input_schema' as input_schema, t.tool -> 'output_schema' as output_schema, s.seen_at, s.problem
  from orchestrator.tool_server s left join lateral jsonb_array_elements(s.tools) as t(tool) on true;
comment on view orc.tools is 'Tools of MCP servers, as a worker saw them; a server without any has one row.';
comment on column orc.tools.server is 'The server.';
comment on column orc.tools.tool is 'The tool: uses is server.tool.';
comment on column orc.tools.description is 'What it does, in the words of the server.';
comment on column orc.tools.input_schema is 'JSON Schema of its arguments.';
comment on column orc.tools.output_schema is 'JSON Schema of what it answers, when it says so.';
comment on column orc.tools.seen_at is 'When the server answered last.';
comment on column orc.tools.problem is 'Why it didn''t, the last time.';
grant select on orc.tools to orc_reader;

create function orc.list_tools()
returns table (server text, tool text, description text, input_schema jsonb, output_schema jsonb, seen_at timestamptz, problem text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select t.server, t.tool, t.description, t.input_schema, t.output_schema, t.seen_at, t.problem
  from orc.tools t order by t.server, t.tool limit 10000
$$;
comment on function orc.list_tools() is 'Tools of MCP servers, as a worker saw them: GET /tools has them among the others.';
grant execute on function orc.list_tools() to orc_api, orc_reader;
