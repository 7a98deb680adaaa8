-- Attempts of steps are counted over parks, releases and lost leases; a canceled run may have its finally left.

comment on column orchestrator.due_work.cancel_requested_at is 'Since when it is canceled: a running attempt is told to stop; else only its finally is left.';
comment on column orchestrator.step.attempt is 'Which attempt of the step, within that try of the run.';
