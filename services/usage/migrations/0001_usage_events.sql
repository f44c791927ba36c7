CREATE TABLE IF NOT EXISTS usage_events
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
    block_last UInt64
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(occurred_at)
ORDER BY (tenant_id, usage_id);
