-- An edit by a clock that had gone back could end a rule before its beginning: such a rule was never in force.
update orchestrator.rule set until_at = from_at where until_at < from_at;
alter table orchestrator.rule add constraint it_was_in_force_forwards check (until_at >= from_at);
