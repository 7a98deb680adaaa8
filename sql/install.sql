-- The library, in reading order. A page may use only what stands above it.
--
-- Two schemas: `orchestrator` holds facts (tables, and the functions that their defaults and checks
-- need), `orc` holds verbs and views. Facts are made once and then migrated: facts.sql and the
-- tables.sql say how they are today, migrations/ says how older ones get there. All other pages are
-- verbs: at each deploy schema `orc` is emptied and filled again from them, in one transaction.
-- So nothing in `orchestrator` may depend on `orc`.
--
-- `bin/db install` reads this page: it loads the pages in this order, keeps a ledger of migrations,
-- and refuses what isn't safe. psql can read it too, into an empty database, to look around:
--   psql -f sql/install.sql
-- What psql made has an empty ledger, and the program won't serve it (`bin/db reset` starts anew).

\set ON_ERROR_STOP on
begin;

-- Who owns, who may call: five roles and two schemas. Safe to run again.
\ir base/roles.sql

set local role orc_owner;
set local search_path = pg_catalog;

-- The clock that tests can steer, ids that carry their time, bounds on json.
\ir base/facts.sql

-- The migration ledger, the register of tables that are partitioned by time, and answers to requests.
\ir base/tables.sql

-- Tenants and principals: who owns, who acts, what proves it; and tenants' secrets.
\ir auth/tables.sql

-- Live and finished runs, attempts, steps, workers, queues, keys.
\ir work/tables.sql

-- What runs wait for, and what is published.
\ir pipelines/tables.sql

-- Tasks, their rules and plans, and the ledger of their instants.
\ir schedules/tables.sql

-- Names of events elsewhere, and what probes found.
\ir events/tables.sql

-- What is to leave: messages for sinks; and positions of what is published.
\ir outbox/tables.sql

-- Who sees which rows of all these tables.
\ir ops/tables.sql

-- Ways to say no: one helper for each SQLSTATE of ours.
\ir base/functions.sql

-- Partitions: made ahead of time, dropped after their retention, and the view of them.
\ir base/partitions.sql

-- Equal requests are answered alike.
\ir base/replies.sql

-- Who acts and what they may; the first agent, and whoami; keys and tokens, users, secrets.
\ir auth/acting.sql
\ir auth/functions.sql
\ir auth/keys.sql
\ir auth/users.sql
\ir auth/secrets.sql

-- Positions of what is published, and who queues what for sinks.
\ir outbox/functions.sql

-- The life of a run, in its order: its pipeline, enqueue, how it waits, claim, what its steps do, settle; the workers'
-- leases; what people do to runs and queues, and answer to those that wait; housekeeping.
\ir work/documents.sql
\ir work/enqueue.sql
\ir pipelines/waits.sql
\ir work/claim.sql
\ir events/match.sql
\ir pipelines/events.sql
\ir pipelines/values.sql
\ir pipelines/functions.sql
\ir pipelines/query.sql
\ir pipelines/tools.sql
\ir work/settle.sql
\ir work/workers.sql
\ir work/filters.sql
\ir work/control.sql
\ir pipelines/answers.sql

-- Tasks: their views, their plans, how instants and events become runs, what people do with them, why not.
\ir schedules/views.sql
\ir schedules/plan.sql
\ir schedules/fire.sql
\ir schedules/tasks.sql
\ir schedules/control.sql
\ir auth/agents.sql
\ir events/decide.sql
\ir schedules/tick.sql
\ir schedules/ledger.sql

-- Housekeeping, and work as people look at it: views, and lists by filters.
\ir work/keep.sql
\ir work/views.sql
\ir work/lists.sql
\ir schedules/lists.sql
\ir schedules/make.sql

-- How messages leave, and how those hear of changes who watch.
\ir outbox/deliver.sql
\ir streams/functions.sql

-- Invariants of work, and why a run is where it is.
\ir work/check.sql

-- What holds and what doesn't: help, health, gauges, check, the ledger as a view.
\ir ops/functions.sql
\ir ops/views.sql
\ir ops/overview.sql

-- The facts in words, one line each: equal databases give equal lines.
\ir ops/describe.sql

-- The last page looks at everything above it and closes what was left open.
\ir ops/seal.sql

-- The first partitions.
select * from orc.keep_partitions();

commit;
