-- Views about the library itself.

create view orc.migrations as
select name, applied_at, applied_by, program_version, breaking, digest
from orchestrator.migration order by name;
comment on view orc.migrations is 'The migrations that this schema has seen.';
comment on column orc.migrations.name is 'A number and a sentence.';
comment on column orc.migrations.applied_at is 'When it was applied.';
comment on column orc.migrations.applied_by is 'The login that applied it.';
comment on column orc.migrations.program_version is 'The version of the program that applied it.';
comment on column orc.migrations.breaking is 'Whether programs that do not know it must stop.';
comment on column orc.migrations.digest is 'SHA-256 of its text.';

create view orc.gauges as
select name, labels, value from orc.gauges();
comment on view orc.gauges is 'Figures for monitoring; the same as the verb of this name.';
comment on column orc.gauges.name is 'What is measured, with its unit.';
comment on column orc.gauges.labels is 'Which one of several.';
comment on column orc.gauges.value is 'The figure.';

grant select on orc.migrations, orc.gauges to orc_reader;
