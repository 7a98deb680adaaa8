-- What proves who somebody is: keys of agents, and tokens.
--
-- A key is ork_<id, 16 hex digits>_<secret, 40 hex digits><checksum, 8>. It is made here, answered once, and only its
-- SHA-256 stays: the secret is random, so a slow hash would add nothing. The checksum (the first 32 bits of the SHA-256
-- of what stands before it) tells a typo from an unknown key without a look at the database.
--
-- A token names its key by `kid`, or has none and is signed with JWT_SECRET. A key has one algorithm. EdDSA keys are
-- public, of an issuer elsewhere, perhaps for one tenant only; HS256 keys are HMAC-SHA256(JWT_SECRET, material), so that
-- nothing here is secret. The service signs with the newest HS256 key, or with JWT_SECRET itself when there is none.

create function orc._make_key(tenant text, principal uuid, expires_at timestamptz default null, out key_id text, out key text)
language plpgsql as $$
declare
  v_random constant text := replace(gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
begin
  if expires_at <= orchestrator.now() then
    perform orc._invalid('The key would have expired already', 'expires_at', 'give a time to come');
  end if;
  key_id := right(v_random, 16);
  key := format('ork_%s_%s', key_id, left(v_random, 40));
  key := key || left(encode(sha256(convert_to(key, 'UTF8')), 'hex'), 8);
  insert into orchestrator.agent_key (tenant_id, id, principal_id, hash, expires_at)
  values (tenant, key_id, principal, sha256(convert_to(key, 'UTF8')), expires_at);
end $$;
comment on function orc._make_key(text, uuid, timestamptz) is 'A new key of a principal; only its hash stays.';

create function orc.issue_key(tenant text, agent text, expires_at timestamptz default null) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_agent constant uuid := (select p.id from orchestrator.principal p where p.tenant_id = tenant and p.name = agent
                            and p.kind <> 'user' and p.deleted_at is null);
  v_key record;
begin
  if v_agent is null then
    perform orc._not_found('There is no such agent', agent, 'orc.agents lists them');
  end if;
  v_key := orc._make_key(tenant, v_agent, expires_at);
  perform orc._audit(tenant, 'issue_key', v_agent::text, jsonb_build_object('key', v_key.key_id));
  return v_key.key;
end $$;
comment on function orc.issue_key(text, text, timestamptz) is
  'A further key of an agent, by its name: how the first admin of a new installation gets in. It is shown once.';

-- `last_used_at` is written once a minute at most, and by nobody who would have to wait.
create function orc.check_key(id text, hash bytea)
returns table (tenant_id text, principal_id uuid, kind text, name text, scopes text[], expires_at timestamptz)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_now constant timestamptz := orchestrator.now();
begin
  update orchestrator.agent_key k set last_used_at = v_now
  where (k.tenant_id, k.id) in (
    select u.tenant_id, u.id from orchestrator.agent_key u
    where u.id = check_key.id and u.hash = check_key.hash and (u.last_used_at < v_now - interval '1 minute') is not false
    for no key update skip locked);
  return query
    select p.tenant_id, p.id, p.kind, p.name, p.scopes, k.expires_at
    from orchestrator.agent_key k
    join orchestrator.principal p on p.tenant_id = k.tenant_id and p.id = k.principal_id and p.disabled_at is null
    where k.id = check_key.id and k.hash = check_key.hash and k.revoked_at is null and (k.expires_at <= v_now) is not true;
end $$;
comment on function orc.check_key(text, bytea) is 'The principal of a key that is neither expired nor revoked; no row for any other.';
grant execute on function orc.check_key(text, bytea) to orc_api;

create function orc.token_keys()
returns table (kid text, algorithm text, material bytea, for_tenant text, created_at timestamptz)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select kid, algorithm, material, for_tenant, created_at from orchestrator.token_key where retired_at is null order by created_at desc, kid
$$;
comment on function orc.token_keys() is 'The keys of tokens that are accepted, the newest first.';
grant execute on function orc.token_keys() to orc_api;

create function orc.add_token_key(kid text, algorithm text default 'HS256', public_key bytea default null, for_tenant text default null)
returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_random constant bytea := uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid());
begin
  if algorithm = 'EdDSA' and length(public_key) = 32 is not true then
    perform orc._invalid('An EdDSA key is the 32 bytes of an Ed25519 public key', 'public_key');
  elsif algorithm = 'HS256' and public_key is not null then
    perform orc._invalid('An HS256 key is made here', 'public_key', 'leave public_key out');
  end if;
  insert into orchestrator.token_key (kid, algorithm, material, for_tenant)
  values (kid, algorithm, coalesce(public_key, v_random), for_tenant);
end $$;
comment on function orc.add_token_key(text, text, bytea, text) is
  'Accepts tokens of a further key: EdDSA by its public key, HS256 made from JWT_SECRET, and then used for new tokens.';

create function orc.retire_token_key(kid text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  update orchestrator.token_key k set retired_at = orchestrator.now() where k.kid = retire_token_key.kid and k.retired_at is null;
  if not found then
    perform orc._not_found('There is no such key in use', kid, 'select * from orc.token_keys()');
  end if;
end $$;
comment on function orc.retire_token_key(text) is 'Accepts no more tokens of a key, within a second.';

create function orc._new_subject(tenant text, subject text) returns void
language plpgsql as $$
begin
  insert into orchestrator.tenant (id) values (tenant) on conflict do nothing;
  insert into orchestrator.principal (tenant_id, kind, name, subject, scopes)
  values (tenant, 'user', 'token:' || left(subject, 60) || case when length(subject) > 60 then ' ' || left(md5(subject), 16) else '' end,
          subject, '{any}')
  on conflict do nothing;
  if found then
    perform orc._audit(tenant, 'admit_subject', subject);
  end if;
end $$;
comment on function orc._new_subject(text, text) is 'Makes the principal of a subject that tokens name for the first time, and its tenant.';

create function orc._subject(tenant text, subject text, session uuid) returns orchestrator.principal
language sql stable as $$
  select p from orchestrator.principal p
  where p.tenant_id = tenant
    and (p.subject = _subject.subject or session is not null and p.id::text = _subject.subject)
    and (session is null or exists (select from orchestrator.session s
                                    where s.tenant_id = tenant and s.id = session and s.principal_id = p.id and s.ended_at is null))
$$;
comment on function orc._subject(text, text, uuid) is 'The principal that a token is for, while its session lasts.';

-- A token of ours names a session and its principal; one of another issuer a subject, which it alone understands.
-- So no issuer can speak for an agent, or for a user with a password.
create function orc.admit_subject(tenant text, subject text, session uuid default null)
returns table (tenant_id text, principal_id uuid, kind text, name text, scopes text[])
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  p orchestrator.principal := orc._subject(admit_subject.tenant, admit_subject.subject, admit_subject.session);
begin
  if p.id is null and admit_subject.session is null then
    perform orc._new_subject(admit_subject.tenant, admit_subject.subject);
    p := orc._subject(admit_subject.tenant, admit_subject.subject, null);
  end if;
  return query select p.tenant_id, p.id, p.kind, p.name, p.scopes where p.id is not null and p.disabled_at is null;
end $$;
comment on function orc.admit_subject(text, text, uuid) is
  'The principal of a valid token; a new subject or tenant is made. No row when it is disabled, or its session has ended.';
grant execute on function orc.admit_subject(text, text, uuid) to orc_api;
