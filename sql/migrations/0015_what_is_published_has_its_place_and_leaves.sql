-- What leaves is queued for its sinks, and what is published has its place among all that was.

create sequence orchestrator.position;
comment on sequence orchestrator.position is 'What is published, counted: orc._next_position gives the numbers out.';

alter table orchestrator.event add column position bigint;
update orchestrator.event e set position = o.place
from (select tenant_id, id, row_number() over (order by transaction_id, id) as place from orchestrator.event) as o
where e.tenant_id = o.tenant_id and e.id = o.id;
select setval('orchestrator.position', greatest(1, (select max(position) from orchestrator.event)));
alter table orchestrator.event alter column position set not null;
comment on column orchestrator.event.position is 'Where it stands among all that was published; GET /events/stream goes by it.';
create index event_by_position on orchestrator.event (tenant_id, position);

create table orchestrator.sink (
  name text not null,
  takes_events boolean not null,
  registered_at timestamptz not null default orchestrator.now(),
  retired_at timestamptz,
  constraint sink_is_registered_once primary key (name),
  constraint name_of_a_sink_is_a_word check (name ~ '^[a-z][a-z0-9_]{0,39}$')
);
comment on table orchestrator.sink is 'Where messages go: what relays have registered.';
comment on column orchestrator.sink.name is 'As orchestrator/sinks calls it, such as redis_stream.';
comment on column orchestrator.sink.takes_events is 'Whether each event is queued for it; if not, only what is addressed to it.';
comment on column orchestrator.sink.registered_at is 'When a relay first had it.';
comment on column orchestrator.sink.retired_at is 'Since when no relay has it: nothing is queued for it any more, and what was queued stays.';
grant select on orchestrator.sink to orc_reader;

create table orchestrator.delivery (
  sink text not null,
  relay text,
  held_until timestamptz,
  seen_at timestamptz not null default orchestrator.now(),
  low_water bigint not null default 0,
  failed_since timestamptz,
  problem text,
  constraint a_sink_is_delivered_to_by_one primary key (sink),
  constraint it_is_a_sink foreign key (sink) references orchestrator.sink (name) on delete cascade,
  constraint a_hold_has_an_end check ((relay is null) = (held_until is null)),
  constraint what_fails_says_why check ((failed_since is null) = (problem is null)),
  constraint problem_of_a_delivery_is_bounded check (length(problem) <= 1000)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 500);
comment on table orchestrator.delivery is 'How deliveries to each sink go: one relay at a time, so that their order holds.';
comment on column orchestrator.delivery.sink is 'The sink.';
comment on column orchestrator.delivery.relay is 'The relay that delivers to it.';
comment on column orchestrator.delivery.held_until is 'Until when, unless it says more: then another one may.';
comment on column orchestrator.delivery.seen_at is 'When a relay last had it, to some seconds.';
comment on column orchestrator.delivery.low_water is 'No queued message stands at or below this position: looking starts above it.';
comment on column orchestrator.delivery.failed_since is 'Since when it takes nothing.';
comment on column orchestrator.delivery.problem is 'Why.';
grant select on orchestrator.delivery to orc_reader;

create table orchestrator.message (
  sink text not null,
  position bigint not null,
  tenant_id text not null,
  id uuid not null default orchestrator.new_id(),
  address text not null,
  key text not null,
  body jsonb,
  queued_at timestamptz not null default orchestrator.now(),
  tries smallint not null default 0,
  due_at timestamptz,
  aside_at timestamptz,
  problem text,
  constraint message_has_one_position primary key (sink, position),
  constraint message_goes_to_a_sink foreign key (sink) references orchestrator.sink (name) on delete cascade,
  constraint address_and_key_are_bounded check (length(address) between 1 and 400 and length(key) between 1 and 400),
  constraint what_is_aside_says_why check (aside_at is null or problem is not null),
  constraint problem_of_a_message_is_bounded check (length(problem) <= 1000)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
comment on table orchestrator.message is 'What is to leave: one row for each sink, gone when it was delivered.';
comment on column orchestrator.message.sink is 'Where it goes.';
comment on column orchestrator.message.position is 'Its place: messages with the same key leave in this order.';
comment on column orchestrator.message.tenant_id is 'Whose it is.';
comment on column orchestrator.message.id is 'The same however often it is delivered; of an event, the event''s.';
comment on column orchestrator.message.address is 'Where in the sink: a stream, a channel, a topic.';
comment on column orchestrator.message.key is 'What it is about: the order holds within a key.';
comment on column orchestrator.message.body is 'What it says; null: the event of its id.';
comment on column orchestrator.message.queued_at is 'When it was written.';
comment on column orchestrator.message.tries is 'How often the sink refused it.';
comment on column orchestrator.message.due_at is 'Not before; until then, later ones of its key wait, too.';
comment on column orchestrator.message.aside_at is 'When it was moved aside, after too many tries; orc.retry_messages brings it back.';
comment on column orchestrator.message.problem is 'Why it was refused the last time.';
grant select on orchestrator.message to orc_reader;
create index message_that_waits on orchestrator.message (sink, tenant_id, key) where due_at is not null;
create index message_aside on orchestrator.message (sink, position) where aside_at is not null;
