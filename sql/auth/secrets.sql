-- Secrets: what comes here is encrypted, and what leaves is, too. The keys are the workers' and those
-- of whoever sets a value; the database never sees either.

create function orc.put_secret(tenant text, name text, key_id text, nonce bytea, ciphertext bytea, by text default null)
returns table (created boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if put_secret.name ~ '^[A-Za-z_][A-Za-z0-9_-]{0,63}$' is not true then
    perform orc._invalid('A secret''s name has letters, digits, _ and -, and begins with a letter or _', put_secret.name);
  elsif length(put_secret.nonce) = 12 and length(put_secret.ciphertext) between 17 and 1000000 is not true then
    perform orc._invalid('This is no secret encrypted by AES-GCM', put_secret.name, 'let `orc secret set` do it');
  end if;
  insert into orchestrator.tenant (id) values (tenant) on conflict do nothing;
  return query
    insert into orchestrator.secret as s (tenant_id, name, key_id, nonce, ciphertext, by)
    values (tenant, put_secret.name, put_secret.key_id, put_secret.nonce, put_secret.ciphertext, coalesce(put_secret.by, session_user))
    on conflict on constraint secret_is_set_once_for_its_tenant do update
    set key_id = excluded.key_id, nonce = excluded.nonce, ciphertext = excluded.ciphertext, by = excluded.by,
        created_at = excluded.created_at
    returning s.xmax = 0;
end $$;
comment on function orc.put_secret(text, text, text, bytea, bytea, text) is
  'Sets a secret of a tenant, encrypted by its caller; another value of that name is replaced. `orc secret set` calls it.';

create function orc.delete_secret(tenant text, name text) returns table (deleted boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  delete from orchestrator.secret s where s.tenant_id = tenant and s.name = delete_secret.name;
  if not found then
    perform orc._not_found('There is no such secret', delete_secret.name, 'orc.secrets lists them');
  end if;
  return query select true;
end $$;
comment on function orc.delete_secret(text, text) is 'Deletes a secret of a tenant.';

create function orc.secrets_of(wanted jsonb)
returns table (tenant_id text, name text, key_id text, nonce bytea, ciphertext bytea)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select s.tenant_id, s.name, s.key_id, s.nonce, s.ciphertext
  from jsonb_to_recordset(wanted) as w(tenant text, name text)
  join orchestrator.secret s on s.tenant_id = w.tenant and s.name = w.name
$$;
comment on function orc.secrets_of(jsonb) is 'Encrypted secrets by [{tenant, name}]: a worker asks for those of the run that it executes.';
grant execute on function orc.secrets_of(jsonb) to orc_worker;

create view orc.secrets as
  select tenant_id, name, key_id, created_at, by from orchestrator.secret;
comment on view orc.secrets is 'Which secrets there are, by which key, since when and by whom; not what they are.';
comment on column orc.secrets.tenant_id is 'Whose it is.';
comment on column orc.secrets.name is 'Its name.';
comment on column orc.secrets.key_id is 'Which key encrypted it.';
comment on column orc.secrets.created_at is 'When its value was set.';
comment on column orc.secrets.by is 'Who set it.';
grant select on orc.secrets to orc_reader;

create function orc.list_secrets(tenant text)
returns table (name text, key_id text, created_at timestamptz, by text)
language sql stable as $$
  select s.name, s.key_id, s.created_at, s.by from orc.secrets s where s.tenant_id = tenant order by s.name
$$;
comment on function orc.list_secrets(text) is 'Which secrets a tenant has; not what they are.';
grant execute on function orc.list_secrets(text) to orc_reader;
