-- Users: people with a password, and their sessions.
--
--            log_in            renew (rotates)           end, reuse, password changed, user disabled
--   (nothing) ──────► live ─────────────────────► live ──────────────────────────────────────────────► ended
--
-- Passwords come hashed (Argon2id), are compared in Python, and are read by nobody but the API.
-- A session counts its generations. A refresh token says its session and generation under a MAC of the service, so none is
-- kept here: the present generation is redeemed and makes the next one; the one before it, for ten seconds, answers
-- the same next one (a lost answer, two tabs); an older one was stolen or kept, and ends the session.

create view orc.users as
select p.tenant_id, p.id, p.name, p.scopes, p.disabled_at is not null as disabled, p.created_at, p.subject is not null as is_external
from orchestrator.principal p where p.kind = 'user' and p.deleted_at is null;
comment on view orc.users is 'Users: those with a password, and those that tokens of other issuers named.';
grant select on orc.users to orc_reader;

create function orc.user(tenant text, "user" uuid) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_user constant jsonb := (select to_jsonb(u) - 'tenant_id' from orc.users u where u.tenant_id = tenant and u.id = "user");
begin
  perform orc._require('admin');
  if v_user is null then
    perform orc._not_found('User not found: ' || "user", "user"::text, 'orc.users lists them');
  end if;
  return v_user;
end $$;
comment on function orc.user(text, uuid) is 'A user as an object: its row in orc.users.';
grant execute on function orc.user(text, uuid) to orc_api;

create function orc._refuse_name(tenant text, name text, except_for uuid default null) returns void
language plpgsql as $$
begin
  if name like 'token:%' then
    perform orc._invalid('Names that begin with token: are for subjects of tokens', 'name');
  elsif exists (select from orchestrator.principal p where p.tenant_id = tenant and p.name = _refuse_name.name and p.deleted_at is null
                and p.id is distinct from except_for) then
    perform orc._conflict(format('The name %L is taken', name), name, 'agents and users of a tenant have different names');
  end if;
end $$;
comment on function orc._refuse_name(text, text, uuid) is 'Refuses a name that somebody has.';

create function orc._check_scopes(scopes text[]) returns void
language plpgsql as $$
begin
  if exists (select from unnest(scopes) as s where (s ~ '^[a-z][a-z0-9_.:*-]{0,99}$') is not true) or cardinality(scopes) > 100 then
    perform orc._invalid('Scopes are at most 100 words such as tasks:write', 'scopes',
                         '"any" is all of them but admin, "admin" is everything');
  end if;
end $$;
comment on function orc._check_scopes(text[]) is 'Refuses what can''t be a scope.';

create function orc.create_user(tenant text, name text, password_hash text, scopes text[] default '{any}') returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_id uuid;
begin
  perform orc._require('admin');
  perform orc._refuse_name(tenant, name);
  perform orc._check_scopes(scopes);
  insert into orchestrator.tenant (id) values (tenant) on conflict do nothing;
  insert into orchestrator.principal (tenant_id, kind, name, scopes) values (tenant, 'user', name, scopes) returning id into v_id;
  insert into orchestrator.password (tenant_id, principal_id, hash) values (tenant, v_id, password_hash);
  perform orc._audit(tenant, 'create_user', v_id::text, jsonb_build_object('name', name, 'scopes', scopes));
  return orc.user(tenant, v_id);
end $$;
comment on function orc.create_user(text, text, text, text[]) is 'Makes a user with a password, which comes hashed.';
grant execute on function orc.create_user(text, text, text, text[]) to orc_api;

create function orc.list_users(tenant text, "limit" integer default 50, cursor uuid default null)
returns table (items jsonb, next_cursor uuid)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform orc._require('admin');
  return query
    with page as (
      select u.id, to_jsonb(u) - 'tenant_id' as item, row_number() over (order by u.id) as n from orc.users u
      where u.tenant_id = tenant and (cursor is null or u.id > cursor) order by u.id limit least("limit", 200) + 1)
    select coalesce(jsonb_agg(p.item order by p.id) filter (where p.n <= "limit"), '[]'),
           case when count(*) > "limit" then (array_agg(p.id order by p.id desc) filter (where p.n <= "limit"))[1] end
    from page p;
end $$;
comment on function orc.list_users(text, integer, uuid) is 'The users of a tenant, a page at a time.';
grant execute on function orc.list_users(text, integer, uuid) to orc_api;

create function orc._end_sessions(tenant text, principal uuid, why text) returns void
language sql as $$
  update orchestrator.session s set ended_at = orchestrator.now(), ended_how = why
  where s.tenant_id = tenant and s.principal_id = principal and s.ended_at is null
$$;
comment on function orc._end_sessions(text, uuid, text) is 'Ends every session of a user.';

create function orc.update_user(tenant text, "user" uuid, changes jsonb) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_before constant jsonb := orc.user(tenant, "user");
  v_scopes constant text[] := array(select jsonb_array_elements_text(changes -> 'scopes'));
begin
  if "user"::text = orc._actor() and (changes -> 'disabled')::boolean then
    perform orc._conflict('Nobody disables themselves', "user"::text, 'let another admin do it');
  elsif changes ? 'password_hash' and (v_before -> 'is_external')::boolean then
    perform orc._conflict('This user logs in elsewhere', "user"::text, 'its issuer keeps the password');
  end if;
  perform orc._check_scopes(v_scopes);
  update orchestrator.principal p
  set scopes = case when changes ? 'scopes' then v_scopes else p.scopes end,
      disabled_at = case when not changes ? 'disabled' then p.disabled_at
                         when (changes -> 'disabled')::boolean then coalesce(p.disabled_at, orchestrator.now()) end
  where p.tenant_id = tenant and p.id = "user";
  update orchestrator.password w set hash = changes ->> 'password_hash', changed_at = orchestrator.now()
  where changes ? 'password_hash' and w.tenant_id = tenant and w.principal_id = "user";
  if changes ? 'password_hash' or (changes -> 'disabled')::boolean then
    perform orc._end_sessions(tenant, "user", 'password or user changed');
  end if;
  perform orc._audit(tenant, 'update_user', "user"::text, changes - 'password_hash' ||
    case when changes ? 'password_hash' then '{"password": "changed"}' else '{}'::jsonb end);
  return orc.user(tenant, "user");
end $$;
comment on function orc.update_user(text, uuid, jsonb) is 'Changes scopes, disabled or password_hash of a user; the last two end their sessions.';
grant execute on function orc.update_user(text, uuid, jsonb) to orc_api;

create function orc.password_of(tenant text, name text) returns table (principal_id uuid, hash text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select p.id, w.hash from orchestrator.principal p
  join orchestrator.password w on w.tenant_id = p.tenant_id and w.principal_id = p.id
  where p.tenant_id = password_of.tenant and p.name = password_of.name and p.disabled_at is null
$$;
comment on function orc.password_of(text, text) is 'The hash that a password is compared with; the API asks for it at a login.';
grant execute on function orc.password_of(text, text) to orc_api;

create function orc.rehash_password(tenant text, principal uuid, old_hash text, new_hash text) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
  update orchestrator.password w set hash = new_hash
  where w.tenant_id = rehash_password.tenant and w.principal_id = principal and w.hash = old_hash
$$;
comment on function orc.rehash_password(text, uuid, text, text) is 'The same password by newer parameters, unless it was changed meanwhile.';
grant execute on function orc.rehash_password(text, uuid, text, text) to orc_api;

create function orc.begin_session(tenant text, principal uuid, lifetime interval default '30 days') returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_now constant timestamptz := orchestrator.now();
  v_id uuid;
begin
  delete from orchestrator.session s
  where s.tenant_id = tenant and s.principal_id = principal and least(s.ended_at, s.expires_at) < v_now - interval '1 day';
  insert into orchestrator.session (tenant_id, principal_id, expires_at, lifetime) values (tenant, principal, v_now + lifetime, lifetime)
  returning id into v_id;
  perform set_config('orchestrator.actor', principal::text, true);
  perform orc._audit(tenant, 'begin_session', principal::text, jsonb_build_object('session', v_id));
  return v_id;
end $$;
comment on function orc.begin_session(text, uuid, interval) is 'A session of a user who has shown the password. Its first generation is 1.';
grant execute on function orc.begin_session(text, uuid, interval) to orc_api;

-- No row when there is no such session any more. What ends it stays ended, although the caller is refused.
create function orc.renew_session(session uuid, generation integer)
returns table (tenant_id text, principal_id uuid, next_generation integer)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_now timestamptz;
  s orchestrator.session;
begin
  select o.* into s from orchestrator.session o
  join orchestrator.principal p on p.tenant_id = o.tenant_id and p.id = o.principal_id and p.disabled_at is null
  where o.id = renew_session.session for update of o;
  v_now := orchestrator.now();
  if s.id is null or s.ended_at is not null or s.expires_at <= v_now then
    return;
  elsif renew_session.generation = s.generation then
    update orchestrator.session o set generation = s.generation + 1, rotated_at = v_now, expires_at = v_now + s.lifetime
    where o.tenant_id = s.tenant_id and o.id = s.id;
    return query select s.tenant_id, s.principal_id, s.generation + 1;
  elsif renew_session.generation = s.generation - 1 and s.rotated_at > v_now - interval '10 seconds' then
    return query select s.tenant_id, s.principal_id, s.generation;
  elsif renew_session.generation < s.generation then
    perform set_config('orchestrator.actor', s.principal_id::text, true);
    update orchestrator.session o set ended_at = v_now, ended_how = 'a spent token was used again'
    where o.tenant_id = s.tenant_id and o.id = s.id;
    perform orc._audit(s.tenant_id, 'end_session', s.principal_id::text,
      jsonb_build_object('session', s.id, 'why', 'a spent token was used again', 'generation', renew_session.generation));
  end if;
end $$;
comment on function orc.renew_session(uuid, integer) is
  'Redeems a generation of a session for the next. The one before the present answers the same for ten seconds; an older one ends the session.';
grant execute on function orc.renew_session(uuid, integer) to orc_api;

create function orc.end_session(session uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  s orchestrator.session;
begin
  update orchestrator.session o set ended_at = orchestrator.now(), ended_how = 'logged out'
  where o.id = session and o.ended_at is null returning o.* into s;
  if s.id is not null then
    perform set_config('orchestrator.actor', s.principal_id::text, true);
    perform orc._audit(s.tenant_id, 'end_session', s.principal_id::text, jsonb_build_object('session', s.id, 'why', 'logged out'));
  end if;
end $$;
comment on function orc.end_session(uuid) is 'Logs a session out: neither its refresh token nor its access tokens are accepted any more.';
grant execute on function orc.end_session(uuid) to orc_api;

create function orc.uses_tokens() returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select exists (select from orchestrator.password) or exists (select from orchestrator.token_key where algorithm = 'HS256' and retired_at is null)
$$;
comment on function orc.uses_tokens() is 'Whether somebody may need a token that JWT_SECRET signs.';
grant execute on function orc.uses_tokens() to orc_api;
