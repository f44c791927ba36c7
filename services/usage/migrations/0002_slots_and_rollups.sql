CREATE TABLE IF NOT EXISTS usage_generations
(
    generation UInt32,
    slot String,
    live_since DateTime DEFAULT now()
)
ENGINE = MergeTree
ORDER BY generation;

CREATE TABLE IF NOT EXISTS usage_arrivals
(
    tenant_id String,
    usage_id String
)
ENGINE = Memory;

CREATE TABLE IF NOT EXISTS usage_conflicts_{slot}
(
    tenant_id LowCardinality(String),
    usage_id String,
    source_partition UInt32,
    source_offset UInt64,
    kept_partition UInt32,
    kept_offset UInt64,
    fields Array(String),
    kept Array(Nullable(String)),
    refused Array(Nullable(String))
)
ENGINE = ReplacingMergeTree
ORDER BY (tenant_id, usage_id, source_partition, source_offset);

CREATE TABLE IF NOT EXISTS usage_events_{slot}
(
    usage_id String,
    tenant_id LowCardinality(String),
    thread_id Nullable(String),
    turn_id Nullable(String),
    prompt_id Nullable(String),
    user_id Nullable(String),
    agent LowCardinality(Nullable(String)),
    agent_version LowCardinality(Nullable(String)),
    step UInt32,
    attempt UInt32,
    kind LowCardinality(String),
    provider LowCardinality(Nullable(String)),
    model LowCardinality(Nullable(String)),
    tool LowCardinality(Nullable(String)),
    input_tokens UInt64,
    cached_input_tokens UInt64,
    output_tokens UInt64,
    reasoning_tokens UInt64,
    latency_ms UInt64,
    first_token_ms Nullable(UInt64),
    outcome LowCardinality(String),
    estimated Bool,
    billable Bool,
    occurred_at DateTime64(6, 'UTC'),
    source_partition UInt32,
    source_offset UInt64,
    block_first UInt64,
    block_last UInt64,
    block_number UInt64
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, usage_id)
SETTINGS non_replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS usage_minutes_{slot}
(
    tenant_id LowCardinality(String),
    starts DateTime('UTC'),
    user_id Nullable(String),
    thread_id Nullable(String),
    agent LowCardinality(Nullable(String)),
    agent_version LowCardinality(Nullable(String)),
    kind LowCardinality(String),
    provider LowCardinality(Nullable(String)),
    model LowCardinality(Nullable(String)),
    tool LowCardinality(Nullable(String)),
    outcome LowCardinality(String),
    billable Bool,
    size UInt64,
    shape UInt8,
    events UInt64,
    input_tokens UInt64,
    cached_input_tokens UInt64,
    output_tokens UInt64,
    reasoning_tokens UInt64,
    latency_ms UInt64
)
ENGINE = SummingMergeTree((events, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, latency_ms))
PARTITION BY toYYYYMM(starts)
ORDER BY (tenant_id, starts, kind, provider, model, tool, agent, agent_version, user_id, thread_id, outcome, billable, size, shape)
SETTINGS allow_nullable_key = 1, non_replicated_deduplication_window = 1000;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_minutes_{slot}_view TO usage_minutes_{slot} AS
SELECT
    tenant_id, kind, provider, model, tool, agent, agent_version, user_id, thread_id, outcome, billable,
    toStartOfMinute(occurred_at, 'UTC') AS starts,
    toUInt64(roundDown(raw.input_tokens, [0, 32001, 100001, 128001, 200000, 200001, 256001, 272001, 512001, 524289])) AS size,
    toUInt8(if(
        raw.cached_input_tokens > raw.input_tokens OR raw.reasoning_tokens > raw.output_tokens,
        16,
        (raw.input_tokens > raw.cached_input_tokens) + 2 * (raw.cached_input_tokens > 0)
            + 4 * (raw.output_tokens > raw.reasoning_tokens) + 8 * (raw.reasoning_tokens > 0)
    )) AS shape,
    count() AS events,
    sum(raw.input_tokens) AS input_tokens,
    sum(raw.cached_input_tokens) AS cached_input_tokens,
    sum(raw.output_tokens) AS output_tokens,
    sum(raw.reasoning_tokens) AS reasoning_tokens,
    sum(raw.latency_ms) AS latency_ms
FROM usage_events_{slot} AS raw
GROUP BY tenant_id, starts, kind, provider, model, tool, agent, agent_version, user_id, thread_id, outcome, billable, size, shape;

CREATE TABLE IF NOT EXISTS usage_days_{slot}
(
    tenant_id LowCardinality(String),
    starts DateTime('UTC'),
    user_id Nullable(String),
    agent LowCardinality(Nullable(String)),
    agent_version LowCardinality(Nullable(String)),
    kind LowCardinality(String),
    provider LowCardinality(Nullable(String)),
    model LowCardinality(Nullable(String)),
    tool LowCardinality(Nullable(String)),
    outcome LowCardinality(String),
    billable Bool,
    size UInt64,
    shape UInt8,
    events UInt64,
    input_tokens UInt64,
    cached_input_tokens UInt64,
    output_tokens UInt64,
    reasoning_tokens UInt64,
    latency_ms UInt64
)
ENGINE = SummingMergeTree((events, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, latency_ms))
PARTITION BY toYYYYMM(starts)
ORDER BY (tenant_id, starts, kind, provider, model, tool, agent, agent_version, user_id, outcome, billable, size, shape)
SETTINGS allow_nullable_key = 1, non_replicated_deduplication_window = 1000;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_days_{slot}_view TO usage_days_{slot} AS
SELECT
    tenant_id, kind, provider, model, tool, agent, agent_version, user_id, outcome, billable,
    toStartOfDay(occurred_at, 'UTC') AS starts,
    toUInt64(roundDown(raw.input_tokens, [0, 32001, 100001, 128001, 200000, 200001, 256001, 272001, 512001, 524289])) AS size,
    toUInt8(if(
        raw.cached_input_tokens > raw.input_tokens OR raw.reasoning_tokens > raw.output_tokens,
        16,
        (raw.input_tokens > raw.cached_input_tokens) + 2 * (raw.cached_input_tokens > 0)
            + 4 * (raw.output_tokens > raw.reasoning_tokens) + 8 * (raw.reasoning_tokens > 0)
    )) AS shape,
    count() AS events,
    sum(raw.input_tokens) AS input_tokens,
    sum(raw.cached_input_tokens) AS cached_input_tokens,
    sum(raw.output_tokens) AS output_tokens,
    sum(raw.reasoning_tokens) AS reasoning_tokens,
    sum(raw.latency_ms) AS latency_ms
FROM usage_events_{slot} AS raw
GROUP BY tenant_id, starts, kind, provider, model, tool, agent, agent_version, user_id, outcome, billable, size, shape;

TRUNCATE TABLE usage_events_a;
TRUNCATE TABLE usage_minutes_a;
TRUNCATE TABLE usage_days_a;

INSERT INTO usage_events_a (usage_id, tenant_id, thread_id, turn_id, prompt_id, user_id, agent, agent_version, step, attempt, kind, provider, model, tool, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, latency_ms, first_token_ms, outcome, estimated, billable, occurred_at, source_partition, source_offset, block_first, block_last)
SELECT usage_id, tenant_id, thread_id, turn_id, prompt_id, user_id, agent, agent_version, step, attempt, kind, provider, model, tool, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, latency_ms, first_token_ms, outcome, estimated, billable, occurred_at, source_partition, source_offset, block_first, block_last FROM usage_events FINAL
SETTINGS max_partitions_per_insert_block = 0, insert_deduplicate = 0;

INSERT INTO usage_generations (generation, slot) VALUES (1, 'a');
