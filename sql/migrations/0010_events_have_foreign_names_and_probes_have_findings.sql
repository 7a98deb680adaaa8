-- Events keep the names that others gave them; what probes found stands by itself, out of the way of plans.

create table orchestrator.foreign_event (
  tenant_id text not null,
  source text not null,
  name text not null,
  event_id uuid not null,
  constraint foreign_event_has_one_name primary key (tenant_id, source, name),
  constraint source_and_name_are_bounded check (length(source) between 1 and 200 and length(name) between 1 and 200)
);
comment on table orchestrator.foreign_event is 'Events that were named elsewhere: the same source and name again is the same event. Kept for a week.';
comment on column orchestrator.foreign_event.tenant_id is 'Whose it is.';
comment on column orchestrator.foreign_event.source is 'Who named it.';
comment on column orchestrator.foreign_event.name is 'The id that it has there.';
comment on column orchestrator.foreign_event.event_id is 'The id that it has here.';
grant select on orchestrator.foreign_event to orc_reader;
create index foreign_event_by_age on orchestrator.foreign_event (event_id);

create table orchestrator.finding (
  tenant_id text not null,
  task_id uuid not null,
  revision integer not null,
  holds boolean not null,
  looked_at timestamptz not null,
  constraint task_has_one_finding primary key (tenant_id, task_id),
  constraint task_exists foreign key (tenant_id, task_id) references orchestrator.task (tenant_id, id)
);
comment on table orchestrator.finding is 'Whether conditions held at the last probe: a task fires when that becomes true.';
comment on column orchestrator.finding.tenant_id is 'Whose task it is.';
comment on column orchestrator.finding.task_id is 'The task.';
comment on column orchestrator.finding.revision is 'The rule whose condition it is; a new rule has found nothing yet.';
comment on column orchestrator.finding.holds is 'Whether it held.';
comment on column orchestrator.finding.looked_at is 'The instant of the probe: what an earlier one found is of no interest any more.';
grant select on orchestrator.finding to orc_reader;

alter table orchestrator.plan drop column holds;
