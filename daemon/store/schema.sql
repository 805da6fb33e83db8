-- Times are UTC. The stream's tables have no index: offsets are compared, not looked up. Ingest only ever appends to them.

-- last_seq, last_letter: the last numbers given to an example and to a dead letter, so that none is given twice
create table meta (
    schema_version integer not null,
    store_id varchar not null,
    epoch bigint not null,
    last_seq bigint not null,
    last_letter bigint not null
);

-- tail_*: the last record below `next`; tail_ts and leader_epoch are -1 where the broker said none
create table offsets (
    topic varchar not null,
    part integer not null,
    start bigint not null,
    next bigint not null,
    tail_off bigint,
    tail_ts bigint,
    tail_key varchar,
    tail_value varchar,
    leader_epoch integer
);

create table examples (
    seq bigint not null,
    topic varchar not null,
    part integer not null,
    off bigint not null,
    id varchar not null,
    text varchar not null using compression zstd,
    label varchar not null,
    source varchar not null,
    split varchar not null,
    occurred_at timestamp not null,
    ingested_at timestamp not null,
    subject varchar
);

create table dead_letters (
    seq bigint not null,
    topic varchar not null,
    part integer not null,
    off bigint not null,
    reason varchar not null,
    detail varchar not null,
    key blob,
    value blob,
    rejected_at timestamp not null
);

create table quarantine (
    topic varchar not null,
    part integer not null,
    off bigint not null,
    id varchar not null,
    text varchar not null,
    label varchar not null,
    source varchar not null,
    split varchar not null,
    occurred_at timestamp not null,
    ingested_at timestamp not null,
    subject varchar,
    reason varchar not null,
    detail varchar not null
);

create table halves (
    topic varchar not null,
    part integer not null,
    off bigint not null,
    kind varchar not null,
    id varchar not null,
    text varchar,
    label varchar,
    prediction varchar,
    version integer,
    source varchar not null,
    occurred_at timestamp not null,
    ingested_at timestamp not null,
    subject varchar
);

create table skips (
    topic varchar not null, part integer not null, start bigint not null, stop bigint not null, reason varchar not null
);

create table gaps (
    topic varchar not null, part integer not null, start bigint not null, stop bigint not null, reason varchar not null
);

-- body: the whole value as JSON; the columns beside it are what one looks for
create table runs (id varchar not null, state varchar not null, created_at timestamp not null, body varchar not null);

create table decisions (
    number bigint not null, decided_at timestamp not null, action varchar not null, body varchar not null, acted_at timestamp
);

create table facts (key varchar not null, value varchar not null);

-- which examples a run was given; sha256 is its manifest's. Set when some of them were deleted since: *_at
create table run_data (run_id varchar not null, sha256 varchar not null, expired_at timestamp, erased_at timestamp);

create table run_rows (run_id varchar not null, file varchar not null, seq bigint not null);

-- whom a run was given examples of, by a digest of the subject: it outlives the examples, so that a person who is forgotten
-- after they expired still names every run
create table run_people (run_id varchar not null, person ubigint not null);

create table retention_log (passed_at timestamp not null, body varchar not null);

-- subject: the keyed hash of a person whose records are not taken again
create table erasures (
    number bigint not null, subject varchar not null, asked_at timestamp not null, finished_at timestamp, body varchar not null
);
