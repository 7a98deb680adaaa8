-- Calls of requests that came at the same time: one statement, one commit. Each has its own caller, and a subtransaction
-- of its own: null says that it was refused, or would have waited for a lock, and left nothing. Then it is to be made alone,
-- in a transaction of its own, where its error can be heard.

create function orc.together(calls jsonb) returns setof jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '20ms' as $$
declare
  c record;
  v_answer jsonb;
begin
  for c in select * from jsonb_to_recordset(calls)
             as c(verb text, tenant text, actor text, scopes text, request text, trace text, given jsonb) loop
    begin
      perform orc.acting(c.tenant, c.actor, c.scopes, c.request, coalesce(c.trace, ''));
      v_answer := case c.verb
        when 'run' then jsonb_build_object('run', orc.run(c.tenant, (c.given ->> 'run')::uuid, (c.given ->> 'owner')::uuid))
      end;
    exception when others then
      v_answer := null;
    end;
    return next v_answer;
  end loop;
end $$;
comment on function orc.together(jsonb) is
  'Calls of several callers, {verb, tenant, actor, scopes, request, trace, given}, each in a subtransaction. Null for one that is to be made alone.';
grant execute on function orc.together(jsonb) to orc_api;
