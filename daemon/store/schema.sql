-- Times are UTC. The stream's tables are only ever appended to, and have no index: offsets are compared, not looked up.

create table meta (schema_version integer not null, store_id varchar not null, epoch bigint not null);

create table offsets (topic varchar not null, part integer not null, start bigint not null, next bigint not null);

create table examples (
    seq bigint not null,
    topic varchar not null,
    part integer not null,
    off bigint not null,
    id varchar not null,
    text varchar not null,
    label varchar not null,
    source varchar not null,
    split varchar not null,
    occurred_at timestamp not null,
    ingested_at timestamp not null
);

create table dead_letters (
    topic varchar not null,
    part integer not null,
    off bigint not null,
    reason varchar not null,
    detail varchar not null,
    key blob,
    value blob,
    rejected_at timestamp not null
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
