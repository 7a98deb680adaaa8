-- What enqueue needs of a pipeline, read from its document once. The table is small: a row a pipeline.

alter table orchestrator.pipeline
  add column queue text generated always as (
    case when jsonb_typeof(document #> '{defaults,queue}') = 'string' then document #>> '{defaults,queue}' end) stored,
  add column priority smallint generated always as (
    case when document #>> '{defaults,priority}' ~ '^[0-9]{1,3}$' then (document #>> '{defaults,priority}')::smallint end) stored,
  add column concurrency_key text generated always as (
    case when jsonb_typeof(document #> '{concurrency,key}') = 'string' then document #>> '{concurrency,key}' end) stored,
  add column concurrency_limit integer generated always as (
    case when document #>> '{concurrency,limit}' ~ '^[0-9]{1,6}$' then (document #>> '{concurrency,limit}')::integer end) stored,
  add column on_conflict text generated always as (document #>> '{concurrency,on_conflict}') stored;
comment on column orchestrator.pipeline.queue is 'The queue of its runs, when enqueue names none.';
comment on column orchestrator.pipeline.priority is 'Their priority, when enqueue gives none.';
comment on column orchestrator.pipeline.concurrency_key is 'Their concurrency key, with ${…} for values of the input, when enqueue gives none.';
comment on column orchestrator.pipeline.concurrency_limit is 'The slots of that key; null: 1.';
comment on column orchestrator.pipeline.on_conflict is 'What becomes of a new run when that key is full: queue (null), skip, replace or cancel_running.';
