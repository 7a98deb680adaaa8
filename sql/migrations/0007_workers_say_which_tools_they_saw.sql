-- Workers say which tools the operator's MCP servers have, so that others can list them.

create table orchestrator.tool_server (
  name text not null,
  asked_at timestamptz not null default orchestrator.now(),
  seen_at timestamptz,
  tools jsonb not null default '[]',
  problem text,
  constraint server_is_asked_under_one_name primary key (name),
  constraint name_of_a_server_is_bounded check (length(name) between 1 and 200),
  constraint tools_are_a_list check (jsonb_typeof(tools) = 'array'),
  constraint problem_is_bounded check (length(problem) <= 1000)
);
comment on table orchestrator.tool_server is 'MCP servers of the operator, and the tools that a worker saw there. They are no tenant''s.';
comment on column orchestrator.tool_server.name is 'As in the file of MCP servers.';
comment on column orchestrator.tool_server.asked_at is 'When a worker took it upon itself to ask.';
comment on column orchestrator.tool_server.seen_at is 'When it answered last.';
comment on column orchestrator.tool_server.tools is 'What it answered: [{name, description, input_schema, output_schema}].';
comment on column orchestrator.tool_server.problem is 'Why it didn''t answer the last time.';
grant select on orchestrator.tool_server to orc_reader;
