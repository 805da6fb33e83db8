-- The tables of schema 2, attached as `copied`, into those of schema 3.

insert into meta by name select 3 as schema_version, * exclude (schema_version) from copied.meta;

insert into offsets by name from copied.offsets;

insert into examples by name from copied.examples order by rowid;

insert into dead_letters by name from copied.dead_letters order by rowid;

insert into quarantine by name from copied.quarantine order by rowid;

insert into halves by name from copied.halves order by rowid;

insert into skips by name from copied.skips order by rowid;

insert into gaps by name from copied.gaps order by rowid;

insert into runs by name from copied.runs;

insert into decisions by name from copied.decisions order by number;

insert into facts by name from copied.facts;

insert into run_data by name from copied.run_data;

insert into run_rows by name from copied.run_rows order by rowid;

insert into retention_log by name from copied.retention_log order by rowid;

insert into erasures by name from copied.erasures order by number;

insert into run_people
select distinct run_id, md5_number_lower(subject)
from copied.run_rows
join copied.examples using (seq)
where subject is not null
union
select unnest(from_json(body -> 'runs', '["varchar"]')), md5_number_lower(subject) from copied.erasures;
