-- Each settle asks whether any run waits for the end of others. Servers before 18 read all waits of a tenant for that.
create index wait_for_the_end_of_runs on orchestrator.wait (tenant_id)
  where state = 'waiting' and topic in ('$run.succeeded', '$run.failed', '$run.canceled');
