-- Lists of runs go by kind, or by a state that is rare, newest first. The index of dead letters was one of these.

create index run_that_did_not_succeed on orchestrator.run (tenant_id, state, id) where state <> 'succeeded';
create index run_of_a_kind on orchestrator.run (tenant_id, kind, id) where kind <> 'run';
drop index orchestrator.run_of_dead_letters;
create index due_work_of_a_kind on orchestrator.due_work (tenant_id, kind, run_id) where kind <> 'run';
