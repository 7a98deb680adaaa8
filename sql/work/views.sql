-- Work as people look at it.

create view orc.runs as
select r.id, r.tenant_id, r.kind, r.task_id, r.flow_id, r.state, r.attempt, r.max_attempts, r.queue, r.priority,
       nullif(r.due_at, 'infinity') as due_at,
       orchestrator.id_time(r.id) as created_at, r.started_at, r.finished_at, r.worker_id, null::timestamptz as leased_until,
       r.pipeline_id, r.concurrency_key, r.retry_of, r.labels, r.input, r.output, r.error,
       r.output_digest, r.output_bytes, r.traceparent, r.correlation_id, r.epoch
from orchestrator.run r
union all
select d.run_id, d.tenant_id, d.kind, d.task_id, d.flow_id, d.state, d.attempt, d.max_attempts, d.queue, d.priority,
       nullif(d.due_at, 'infinity'), orchestrator.id_time(d.run_id), d.started_at, null, d.worker_id,
       (select w.expires_at from orchestrator.worker w where w.id = d.worker_id),
       d.pipeline_id, d.concurrency_key, d.retry_of, d.labels, d.input, null, d.error, null, null,
       d.traceparent, d.correlation_id, d.epoch
from orchestrator.due_work d;
comment on view orc.runs is 'Every run: live and finished halves as one. A large output is read by orc.value(tenant_id, output_digest).';

create view orc.ready as select * from orc.runs where state = 'ready';
comment on view orc.ready is 'Runs that a worker may take now.';
create view orc.running as
select r.*, orchestrator.now() - r.started_at as running_for from orc.runs r where r.state = 'running';
comment on view orc.running is 'Runs that a worker holds.';
create view orc.waiting as
select d.run_id as id, d.tenant_id, d.queue, d.state, d.waiting_for, d.concurrency_key, nullif(d.due_at, 'infinity') as due_at,
       case when d.state = 'waiting' then (
         select jsonb_agg(jsonb_strip_nulls(jsonb_build_object('step', w.step_id, 'kind', w.kind, 'topic', w.topic, 'from', w.who,
                                                               'run', w.child_run, 'deadline', w.deadline)) order by w.step_id)
         from orchestrator.wait w where w.tenant_id = d.tenant_id and w.run_id = d.run_id and w.state = 'waiting') end as waits
from orchestrator.due_work d where d.state in ('waiting', 'blocked', 'scheduled');
comment on view orc.waiting is 'Runs that wait: for their time, a key, or something else.';
create view orc.dead_letters as
select id, tenant_id, queue, attempt, finished_at, error, orc._fingerprint(error) as fingerprint, input from orc.runs where state = 'failed';
comment on view orc.dead_letters is 'Runs that failed for good; orc.retry_run and orc.retry_where try again.';
create view orc.failures as
select tenant_id, orc._fingerprint(error) as fingerprint, error ->> 'type' as type, min(error ->> 'message') as message,
       count(*) as runs, min(finished_at) as first_at, max(finished_at) as last_at, max(id::text)::uuid as latest_run
from orchestrator.run where state = 'failed'
group by tenant_id, orc._fingerprint(error), error ->> 'type';
comment on view orc.failures is 'Failed runs, grouped by what went wrong.';

create view orc.queues as
select d.tenant_id, d.queue, count(*) filter (where d.state = 'ready') as ready,
       count(*) filter (where d.state = 'running') as running, count(*) filter (where d.state = 'scheduled') as scheduled,
       count(*) filter (where d.state = 'blocked') as blocked, count(*) filter (where d.state = 'waiting') as waiting,
       orchestrator.now() - min(d.due_at) filter (where d.state = 'ready') as oldest_ready, q.max_running, q.paused_at, q.paused_by
from (select tenant_id, queue, state, due_at from orchestrator.due_work
      union all select tenant_id, name, null, null from orchestrator.queue) as d
left join orchestrator.queue q on q.tenant_id = d.tenant_id and q.name = d.queue
group by d.tenant_id, d.queue, q.max_running, q.paused_at, q.paused_by;
comment on view orc.queues is 'Queues: what is in them, their limits and pauses.';

create view orc.workers as
select w.id, w.name, w.queues, w.slots, w.registered_at, w.expires_at, w.ended_at,
       coalesce(w.ended_how, case when w.expires_at > orchestrator.now() then 'live' else 'silent' end) as state, w.is_idle,
       (select count(*) from orchestrator.due_work d where d.state = 'running' and d.worker_id = w.id) as running
from orchestrator.worker w;
comment on view orc.workers is 'Workers and their leases.';

create view orc.attempts as
select tenant_id, run_id, epoch, attempt, outcome, worker_id, started_at, finished_at, error from orchestrator.attempt
union all
select tenant_id, id, epoch, attempt, state, worker_id, started_at, finished_at, error from orchestrator.run where worker_id is not null
union all
select tenant_id, run_id, epoch, attempt, state, worker_id, started_at, null, null from orchestrator.due_work where state = 'running';
comment on view orc.attempts is 'Every attempt of every run.';

create view orc.steps as
select s.tenant_id, s.run_id, s.step_id, s.epoch, s.attempt,
       case when s.state = 'started' and not exists (
              select from orchestrator.due_work d
              where d.tenant_id = s.tenant_id and d.run_id = s.run_id and d.epoch = s.epoch and d.state = 'running')
            then 'unknown' else s.state end as state,
       s.started_at, s.finished_at, s.arguments, s.output, s.error,
       s.output_digest, s.output_bytes, s.is_cached
from orchestrator.step s;
comment on view orc.steps is 'Recorded steps. One that had started when its worker was lost is unknown: nobody saw its answer. A large value is read by orc.value(tenant_id, output_digest).';

grant select on orc.runs, orc.ready, orc.running, orc.waiting, orc.dead_letters, orc.failures, orc.queues, orc.workers,
  orc.attempts, orc.steps to orc_reader;
