-- What becomes of data that is there: kept in mind with its runs, copied, expired, erased.

-- name: insert_run_data
insert into run_data values ($run_id, $sha256, null, null)

-- name: forget_run_data
delete from run_data where run_id = $run_id

-- name: forget_run_rows
delete from run_rows where run_id = $run_id

-- name: forget_run_people
delete from run_people where run_id = $run_id

-- name: insert_run_rows
insert into run_rows select $run_id, $file, seq from given_rows

-- name: insert_run_people
insert into run_people
select distinct $run_id, md5_number_lower(subject)
from run_rows
join examples using (seq)
where run_id = $run_id and subject is not null

-- name: run_data
select sha256, expired_at, erased_at from run_data where run_id = $run_id

-- name: run_rows
select file, list(seq order by seq) from run_rows where run_id = $run_id group by file order by file

-- name: table_counts
select
    (select count(*) from examples),
    (select count(*) from dead_letters),
    (select count(*) from quarantine),
    (select count(*) from halves),
    (select count(*) from runs),
    (select count(*) from decisions)

-- name: identity
select store_id, schema_version from meta

-- name: oldest_examples
select coalesce(max(seq), 0) from (select seq from examples order by seq limit $count)

-- name: last_older
select least(
    coalesce((select max(seq) from examples where ingested_at < $before), 0),
    coalesce((select min(seq) - 1 from examples where ingested_at >= $before and ingested_at <= $at), 9223372036854775807),
    coalesce((select min(seq) from examples), 0) + $limit - 1
)

-- name: gone_examples
create or replace temp table gone as select topic, part, off from examples where seq <= $up_to

-- name: runs_with_rows_up_to
select distinct run_id from run_rows join run_data using (run_id) where seq <= $up_to and expired_at is null order by run_id

-- name: mark_expired
update run_data set expired_at = $at where run_id in (select unnest($run_ids::varchar[]))

-- name: delete_examples_up_to
delete from examples where seq <= $up_to

-- name: gone_dead_letters
insert into gone select topic, part, off from dead_letters where rejected_at < $before order by seq limit $limit

-- name: gone_quarantine
insert into gone select topic, part, off from quarantine where ingested_at < $before order by rowid limit $limit

-- name: gone_halves
insert into gone select topic, part, off from halves where ingested_at < $before order by rowid limit $limit

-- name: delete_gone_dead_letters
delete from dead_letters using gone where dead_letters.topic = gone.topic and dead_letters.part = gone.part and dead_letters.off = gone.off

-- name: delete_gone_quarantine
delete from quarantine using gone where quarantine.topic = gone.topic and quarantine.part = gone.part and quarantine.off = gone.off

-- name: delete_gone_halves
delete from halves using gone where halves.topic = gone.topic and halves.part = gone.part and halves.off = gone.off

-- name: delete_gone_examples
delete from examples using gone where examples.topic = gone.topic and examples.part = gone.part and examples.off = gone.off

-- name: skip_gone
insert into skips
with
    touched as (select topic, part, min(off) as first, max(off) + 1 as last from gone group by topic, part),
    ranges as (
        select topic, part, start, stop
        from skips
        join touched using (topic, part)
        where reason = $reason and stop >= first and start <= last
        union all
        select topic, part, off, off + 1 from gone
    ),
    breaks as (
        select *, start > max(stop) over (
            partition by topic, part order by start rows between unbounded preceding and 1 preceding
        ) as breaks
        from ranges
    ),
    islands as (
        -- not `count(*) filter`, which takes time by the square of the rows
        select *, sum(coalesce(breaks, false)::int) over (partition by topic, part order by start rows unbounded preceding) as island
        from breaks
    )
select topic, part, min(start), max(stop), $reason from islands group by topic, part, island

-- name: delete_merged_skips
delete from skips
using (select topic, part, min(off) as first, max(off) + 1 as last from gone group by topic, part) as touched
where
    skips.topic = touched.topic
    and skips.part = touched.part
    and reason = $reason
    and skips.rowid <= $up_to
    and stop >= first
    and start <= last

-- name: last_skip
select coalesce(max(rowid), -1) from skips

-- name: log_retention
insert into retention_log values ($at, $body)

-- name: first_run_with_rows
select run_id, created_at from (select run_id from run_rows limit 1) left join runs on id = run_id

-- name: trim_retention_log
delete from retention_log where passed_at < $before

-- name: newest_ingested
select max(ingested_at) from examples where ingested_at <= $at

-- name: newest_sent
select make_timestamp_ms(max(tail_ts)) from offsets where tail_ts >= 0 and tail_ts <= epoch_ms($at::timestamp)

-- name: delete_waits
delete from decisions
where
    action = 'wait'
    and number in (
        select number from decisions where action = 'wait' and decided_at < $before order by number limit $limit
    )
    and number < (select max(number) from decisions)

-- name: found_of_subject
-- halves are found by the ids of the others: they come first, and never go after those
create or replace temp table found as
select *, dense_rank() over (order by turn, row_group) as nth
from (
    select topic, part, off, 1 as turn, rowid // $row_group as row_group
    from halves
    where
        subject = $subject
        or id in (
            select id from examples where subject = $subject
            union
            select id from quarantine where subject = $subject
            union
            select id from halves where subject = $subject
        )
    union all
    select topic, part, off, 2, rowid // $row_group from quarantine where subject = $subject
    union all
    select topic, part, off, 3, rowid // $row_group from examples where subject = $subject
)

-- name: row_groups_found
select coalesce(max(nth), 0) from found

-- name: gone_of_found
create or replace temp table gone as select topic, part, off from found where nth <= $row_groups

-- name: runs_of_subject
select distinct run_id from run_people where person = md5_number_lower($subject) order by run_id

-- name: add_gone
insert into gone
select unnest($topics::varchar[]), unnest($parts::integer[]), unnest($offsets::bigint[])

-- name: mark_erased
update run_data set erased_at = $at where run_id in (select unnest($run_ids::varchar[]))

-- name: next_erasure
select coalesce(max(number), 0) + 1 from erasures

-- name: insert_erasure
insert into erasures values ($number, $subject, $asked_at, $finished_at, $body)

-- name: finish_erasure
update erasures set finished_at = $at where number = $number

-- name: erasures
select number, subject, asked_at, finished_at, body from erasures order by number

-- name: erased_subjects
select distinct subject from erasures

-- name: last_seq_at_least
update meta set last_seq = greatest(last_seq, $last_seq), last_letter = greatest(last_letter, $last_letter)

-- name: find_dead_letters
select rowid, seq
from dead_letters
where
    seq > $after
    and ($reason is null or reason = $reason)
    and ($topic is null or (topic = $topic and part = $part and off = $off))
order by rowid
limit $limit

-- name: find_quarantined
select topic, part, off, id, text, label, source, split, occurred_at, ingested_at, subject, reason, detail
from quarantine
where
    ($reason is null or reason = $reason)
    and ($source is null or source = $source)
    and ($label is null or label = $label)
    and ($topic is null or (topic = $topic and part = $part and off = $off))
order by rowid
limit $limit

-- name: first_seq
select coalesce(min(seq), 1) from examples
