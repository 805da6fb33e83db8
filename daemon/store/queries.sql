-- name: new_store
insert into meta values ($schema_version, $store_id, 0)

-- name: schema_version
select schema_version from meta

-- name: next_epoch
update meta set epoch = epoch + 1 returning epoch

-- name: epoch
select epoch from meta

-- name: next_offsets
select topic, part, next from offsets

-- name: first_advance
insert into offsets
select $topic, $part, $start, $next
where not exists (select 1 from offsets where topic = $topic and part = $part)

-- name: advance
update offsets set next = $next where topic = $topic and part = $part and next = $expected

-- name: examples_by_split_and_label
select split, label, count(*), max(seq), max(occurred_at) from examples group by split, label

-- name: dead_letters_by_reason
select reason, count(*) from dead_letters group by reason

-- name: gap_offsets
select coalesce(sum(stop - start), 0)::bigint from gaps

-- name: dead_letters
select topic, part, off, reason, detail, key, value, rejected_at from dead_letters order by rowid desc limit $limit

-- name: examples_after
select count(*) from examples where seq > $seq and ($split is null or split = $split)

-- name: window
select seq, id, text, label, source, split, occurred_at
from (
    from examples
    where seq > $after and seq <= $up_to and ($split is null or split = $split)
    order by seq desc
    limit $limit
)
order by seq

-- name: snapshot_train
select seq, id, text, label, source, occurred_at, true as recent
from (
    from examples
    where split = 'train' and seq > $recent_after and seq <= $data_cut
    order by seq desc
    limit $limit
)
order by seq

-- name: snapshot_replay
select seq, id, text, label, source, occurred_at, false as recent
from (
    select *, row_number() over (partition by label order by md5(id || ':' || $seed), seq) as place
    from examples
    where split = 'train' and seq <= least($recent_after, $data_cut)
    order by place, label
    limit $limit
)
order by seq

-- name: snapshot_validation
select seq, id, text, label, source, occurred_at, seq > $recent_after as recent
from (
    from examples
    where split = 'validation' and seq <= $data_cut
    order by seq desc
    limit $limit
)
order by seq

-- name: snapshot_holdout
select seq, id, text, label, source, occurred_at, seq > $recent_after as recent
from (
    (
        from examples
        where split = 'holdout' and seq > $recent_after and seq <= $data_cut
        order by seq desc
        limit $limit
    )
    union all
    (
        from examples
        where split = 'holdout' and seq <= least($recent_after, $data_cut)
        order by md5(id || ':' || $seed), seq
        limit $limit
    )
)
order by seq

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

-- name: get_fact
select value from facts where key = $key

-- name: delete_fact
delete from facts where key = $key

-- name: insert_fact
insert into facts values ($key, $value)

-- name: coverage
with
    stored as (select topic, part, off from examples union all select topic, part, off from dead_letters),
    placed as (
        select distinct topic, part, off
        from stored
        join offsets using (topic, part)
        where off >= start and off < next
    )
select
    (select coalesce(sum(next - start), 0)::bigint from offsets),
    (select count(*) from examples),
    (select count(*) from dead_letters),
    (select coalesce(sum(stop - start), 0)::bigint from gaps),
    (select count(*) from placed),
    (select count(*) from placed join gaps using (topic, part) where off >= start and off < stop),
    (select count(distinct id) from examples)
