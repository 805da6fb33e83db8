-- name: new_store
insert into meta values ($schema_version, $store_id, 0, 0, 0)

-- name: schema_version
select schema_version from meta

-- name: next_epoch
update meta set epoch = epoch + 1 returning epoch

-- name: next_offsets
select topic, part, next from offsets

-- name: tails
select topic, part, tail_off, tail_ts, tail_key, tail_value, leader_epoch from offsets where tail_off is not null

-- name: first_advance
insert into offsets
select $topic, $part, $start, $next, $tail_off, $tail_ts, $tail_key, $tail_value, $leader_epoch
where not exists (select 1 from offsets where topic = $topic and part = $part)

-- name: advance
update offsets
set
    next = $next,
    tail_off = coalesce($tail_off, tail_off),
    tail_ts = coalesce($tail_ts, tail_ts),
    tail_key = coalesce($tail_key, tail_key),
    tail_value = coalesce($tail_value, tail_value),
    leader_epoch = coalesce($leader_epoch, leader_epoch)
where topic = $topic and part = $part and next = $expected

-- name: insert_new_examples
insert into examples by name select * replace (nullif(subject, '') as subject) from new_examples

-- name: last_numbers
select last_seq, last_letter from meta

-- name: set_last_numbers
update meta set last_seq = $last_seq, last_letter = $last_letter

-- name: examples_by_split_and_label
select split, label, count(*), max(occurred_at) from examples group by split, label

-- name: dead_letters_by_reason
select reason, count(*) from dead_letters group by reason

-- name: quarantined_by_reason
select reason, count(*) from quarantine group by reason

-- name: range_counts
select
    (select coalesce(sum(stop - start), 0)::bigint from gaps),
    (select coalesce(sum(stop - start), 0)::bigint from skips),
    (select count(*) from halves)

-- name: letters_after
select rowid, seq from dead_letters where seq > $seq order by rowid limit $limit

-- name: letters_in_rows
select seq, topic, part, off, reason, detail, key, value, rejected_at
from dead_letters
where rowid between $first and $last
order by seq

-- name: letters_waiting
select count(*), min(rejected_at) from dead_letters where seq > $seq

-- name: newest_letters
select rowid, seq from (select rowid, seq from dead_letters order by rowid desc limit $limit) order by rowid

-- name: listed_letters
select topic, part, off, reason, detail, rejected_at
from dead_letters
where $reason is null or reason = $reason
order by seq desc
limit $limit

-- name: quarantined
select topic, part, off, id, text, label, source, split, occurred_at, ingested_at, subject, reason, detail
from quarantine
order by rowid desc
limit $limit

-- name: take_out_of_dead_letters
delete from dead_letters as kept
using (
    select unnest($topics::varchar[]) as topic, unnest($parts::integer[]) as part, unnest($offsets::bigint[]) as off
) as gone
where kept.topic = gone.topic and kept.part = gone.part and kept.off = gone.off

-- name: take_out_of_quarantine
delete from quarantine as kept
using (
    select unnest($topics::varchar[]) as topic, unnest($parts::integer[]) as part, unnest($offsets::bigint[]) as off
) as gone
where kept.topic = gone.topic and kept.part = gone.part and kept.off = gone.off

-- name: halves
select topic, part, off, kind, id, text, label, prediction, version, source, occurred_at, ingested_at, subject
from halves
where id in (select unnest($ids))
order by rowid

-- name: examples_after
select count(*) from examples where seq > $seq and ($split is null or split = $split)

-- name: window
select seq, id, text, label, source, split, occurred_at
from (
    from examples
    where
        seq > $after
        and seq <= $up_to
        and ($split is null or split = $split)
        and ($max_lateness is null or occurred_at >= ingested_at - $max_lateness)
    order by seq desc
    limit $limit
)
order by seq

-- name: late_examples
select count(*)
from examples
where seq > $after and seq <= $up_to and occurred_at < ingested_at - $max_lateness

-- name: examples_between
select seq, id, text, label, source, occurred_at
from examples
where seq > $after and seq <= $up_to and split = $split
order by seq

-- name: examples_in_ranges
select seq, id, text, label, source, occurred_at
from examples
where
    split = $split
    and seq in (
        select unnest(range(first, last + 1))
        from (select unnest($firsts::bigint[]) as first, unnest($lasts::bigint[]) as last)
    )

-- name: draw_replay
select seq
from (
    select seq, label, row_number() over (partition by label order by md5(id || ':' || $seed), seq) as place
    from candidates
)
order by place, label
limit $limit

-- name: draw_holdout
select seq
from candidates
order by md5(id || ':' || $seed), seq
limit $limit

-- name: delete_run
delete from runs where id = $id

-- name: insert_run
insert into runs values ($id, $state, $created_at, $body)

-- name: runs
select body from runs order by created_at desc, id desc limit $limit

-- name: run
select body from runs where id = $id

-- name: runs_in_states
select body from runs where state in (select unnest($states)) order by created_at, id

-- name: next_decision
select coalesce(max(number), 0) + 1 from decisions

-- name: insert_decision
insert into decisions values ($number, $decided_at, $action, $body, null)

-- name: acted
update decisions set acted_at = $at where number = $number

-- name: decisions
select number, body, acted_at from decisions order by number desc limit $limit

-- name: unacted_decisions
select number, body, acted_at from decisions where acted_at is null order by number

-- name: get_fact
select value from facts where key = $key

-- name: delete_fact
delete from facts where key = $key

-- name: insert_fact
insert into facts values ($key, $value)

-- name: coverage
-- Rows lie mostly in the order of their offsets: what follows one another there is one range, found without a sort or a partition.
with
    stored as (
        select topic, part, off from examples
        union all
        select topic, part, off from dead_letters
        union all
        select topic, part, off from quarantine
        union all
        select topic, part, off from halves
    ),
    numbered as (
        select *, sum(coalesce(breaks, true)::int) over (rows unbounded preceding) as island
        from (
            select
                *,
                topic != lag(topic) over () or part != lag(part) over () or off != lag(off) over () + 1 as breaks
            from stored
        )
    ),
    ranges as (
        select topic, part, greatest(r.start, o.start) as start, least(r.stop, o.next) as stop
        from (
            select min(topic) as topic, min(part) as part, min(off) as start, max(off) + 1 as stop from numbered group by island
            union all
            select topic, part, start, stop from gaps
            union all
            select topic, part, start, stop from skips
        ) as r
        join offsets as o using (topic, part)
        where r.start < o.next and r.stop > o.start
    ),
    fresh_from as (
        select
            *,
            greatest(start, coalesce(max(stop) over (partition by topic, part order by start, stop rows unbounded preceding exclude current row), start)) as fresh
        from ranges
    )
select
    (select coalesce(sum(next - start), 0)::bigint from offsets),
    (select count(*) from examples),
    (select count(*) from dead_letters),
    (select count(*) from quarantine),
    (select count(*) from halves),
    (select coalesce(sum(stop - start), 0)::bigint from gaps),
    (select coalesce(sum(stop - start), 0)::bigint from skips),
    (select coalesce(sum(stop - fresh), 0)::bigint from fresh_from where fresh < stop),
    (select count(distinct id) from examples)
