-- The tables of schema 1, attached as `copied`, into those of schema 3.

insert into meta
select 3, store_id, epoch, (select coalesce(max(seq), 0) from copied.examples), (select count(*) from copied.dead_letters)
from copied.meta;

insert into offsets by name select topic, part, start, next from copied.offsets;

insert into examples by name from copied.examples order by rowid;

insert into dead_letters by name select *, row_number() over (order by rowid) as seq from copied.dead_letters order by rowid;

insert into gaps by name from copied.gaps;

insert into runs by name from copied.runs;

insert into decisions by name from copied.decisions order by number;

insert into facts by name from copied.facts;
