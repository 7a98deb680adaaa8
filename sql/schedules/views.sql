-- Tasks and their ledger as people look at them. They stand before the verbs, which answer with rows of them.

create view orc.tasks as
select t.tenant_id, t.id, t.title, t.description, t.status, r.kind as schedule_kind, r.expr as schedule_expr, r.zone as timezone,
       p.document || case when t.probe is null then '{}' else jsonb_build_object('probe', t.probe) end as payload,
       t.priority, t.dedupe_key, extract(epoch from t.dedupe_window)::double precision as dedupe_window_seconds,
       t.max_attempts - 1 as max_retries, t.backoff as backoff_strategy, t.concurrency_key, t.concurrency_limit,
       t.catch_up, t.catch_up_limit, extract(epoch from t.grace)::double precision as grace_seconds, t.overlap,
       extract(epoch from t.jitter)::double precision as jitter_seconds, r.dst_gap, r.dst_fold, r.starts_at, r.ends_at,
       t.queue, t.timeout_seconds, t.labels, t.created_by, t.created_at, t.updated_at, t.version,
       nullif(least(l.next_at, (select min(d.due_at) from orchestrator.due_work d
                                where d.tenant_id = t.tenant_id and d.task_id = t.id and d.state = 'scheduled' and d.epoch = 0
                                  and d.due_at > orchestrator.now())),
              'infinity') as next_run_at,
       l.last_at as last_run_at, l.problem
from orchestrator.task t
join orchestrator.rule r on r.tenant_id = t.tenant_id and r.task_id = t.id and r.revision = t.revision
join orchestrator.plan l on l.tenant_id = t.tenant_id and l.task_id = t.id
join orchestrator.pipeline p on p.tenant_id = t.tenant_id and p.id = t.pipeline_id;
comment on view orc.tasks is 'Tasks with their present rules and their next runs.';

create view orc.occurrences as
select o.tenant_id, o.task_id, o.id, o.nominal_at, o.state, o.reason, o.run_id, o.event_id, o.decided_at,
       extract(epoch from o.decided_at - o.nominal_at)::double precision as late_seconds
from orchestrator.occurrence o;
comment on view orc.occurrences is 'The ledger: what became of each instant of a task, and of each event that it met.';

create view orc.schedulers as
select s.name, s.seen_at, s.seen_at > orchestrator.now() - interval '15 seconds' as is_live from orchestrator.scheduler s;
comment on view orc.schedulers is 'Schedulers and when they looked last.';

grant select on orc.tasks, orc.occurrences, orc.schedulers to orc_reader;
