-- Answers to requests that carry an Idempotency-Key, so that the same request is answered the same again.
--
-- A request takes its key by a lock that ends with its transaction, looks, acts, and writes its answer down before it
-- commits. Another one with the key finds the lock taken (in flight), the answer (done; other, when it asked for something
-- else), or nothing, when the first one came to nothing. The look is a statement of its own after the lock: it sees what
-- whoever had the lock before has committed.

create function orc.recall_reply(tenant text, principal text, route text, key text, fingerprint bytea)
returns table (state text, status smallint, headers jsonb, content_type text, body bytea, run uuid)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  if not pg_try_advisory_xact_lock(hashtextextended(format('orc reply %L %L %L %L', tenant, principal, route, key), 0)) then
    return query select 'in flight', null::smallint, null::jsonb, null, null::bytea, null::uuid;
    return;
  end if;
  return query
    select case when r.fingerprint = recall_reply.fingerprint then 'done' else 'other' end, r.status, r.headers, r.content_type, r.body, r.run_id
    from orchestrator.reply r
    where r.tenant_id = recall_reply.tenant and r.principal = recall_reply.principal and r.route = recall_reply.route
      and r.key = recall_reply.key and r.answered_at > orchestrator.now() - interval '24 hours';
  if not found then
    return query select 'new', null::smallint, null::jsonb, null, null::bytea, null::uuid;
  end if;
end $$;
comment on function orc.recall_reply(text, text, text, text, bytea) is
  'Takes an idempotency key until the end of the transaction. It is new, in flight, done (with its answer) or of another request.';
grant execute on function orc.recall_reply(text, text, text, text, bytea) to orc_api;

create function orc.keep_reply(
  tenant text, principal text, route text, key text, fingerprint bytea, status integer, headers jsonb, content_type text, body bytea, run uuid)
returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
  insert into orchestrator.reply as r (tenant_id, principal, route, key, fingerprint, status, headers, content_type, body, run_id)
  values (tenant, principal, route, key, fingerprint, status, headers, content_type, body, run)
  on conflict (tenant_id, principal, route, key) do update
  set fingerprint = excluded.fingerprint, status = excluded.status, headers = excluded.headers, content_type = excluded.content_type,
      body = excluded.body, run_id = excluded.run_id, answered_at = excluded.answered_at
$$;
comment on function orc.keep_reply(text, text, text, text, bytea, integer, jsonb, text, bytea, uuid) is
  'Writes the answer to a request down, in the transaction of what it did.';
grant execute on function orc.keep_reply(text, text, text, text, bytea, integer, jsonb, text, bytea, uuid) to orc_api;
