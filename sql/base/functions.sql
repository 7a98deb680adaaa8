-- How a verb says no: what, which, and what to do next, under a SQLSTATE that says how it's meant.
--
--   OR403 forbidden    OR404 not found    OR409 conflict with what is    OR410 stale lease: drop the work
--   OR422 bad input    OR429 too many, too fast: try later
--
--   perform orc._not_found('There is no such run', run_id::text, 'orc.runs lists what there is');
--
-- Clients turn the code into a class or a status, and show the words as they are. `which` goes to the
-- detail of the error and `next_step` to its hint.

create function orc._forbidden(what text, which text default null, next_step text default null) returns void
language plpgsql as $$
begin
  raise exception using errcode = 'OR403', message = what, detail = coalesce(which, ''), hint = coalesce(next_step, '');
end $$;
comment on function orc._forbidden(text, text, text) is 'Raises OR403: the caller may not do this.';

create function orc._not_found(what text, which text default null, next_step text default null) returns void
language plpgsql as $$
begin
  raise exception using errcode = 'OR404', message = what, detail = coalesce(which, ''), hint = coalesce(next_step, '');
end $$;
comment on function orc._not_found(text, text, text) is 'Raises OR404: there is no such thing.';

create function orc._conflict(what text, which text default null, next_step text default null) returns void
language plpgsql as $$
begin
  raise exception using errcode = 'OR409', message = what, detail = coalesce(which, ''), hint = coalesce(next_step, '');
end $$;
comment on function orc._conflict(text, text, text) is 'Raises OR409: it contradicts what is there.';

create function orc._gone(what text, which text default null, next_step text default null) returns void
language plpgsql as $$
begin
  raise exception using errcode = 'OR410', message = what, detail = coalesce(which, ''), hint = coalesce(next_step, '');
end $$;
comment on function orc._gone(text, text, text) is 'Raises OR410: the lease is stale, the work is somebody else''s.';

create function orc._invalid(what text, which text default null, next_step text default null) returns void
language plpgsql as $$
begin
  raise exception using errcode = 'OR422', message = what, detail = coalesce(which, ''), hint = coalesce(next_step, '');
end $$;
comment on function orc._invalid(text, text, text) is 'Raises OR422: the input makes no sense.';

create function orc._too_many(what text, which text default null, next_step text default null) returns void
language plpgsql as $$
begin
  raise exception using errcode = 'OR429', message = what, detail = coalesce(which, ''), hint = coalesce(next_step, '');
end $$;
comment on function orc._too_many(text, text, text) is 'Raises OR429: too many or too fast, later is fine.';

grant execute on function
  orc._forbidden(text, text, text), orc._not_found(text, text, text), orc._conflict(text, text, text),
  orc._gone(text, text, text), orc._invalid(text, text, text), orc._too_many(text, text, text)
  to orc_api, orc_worker, orc_reader;

create function orc.clock() returns timestamptz
language sql stable as $$
  select orchestrator.now()
$$;
comment on function orc.clock() is 'The time of the database.';
grant execute on function orc.clock() to orc_api, orc_worker, orc_reader;
