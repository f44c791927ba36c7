ALTER TABLE usage_events_{slot} UPDATE block_number = 0 WHERE block_number > 0 SETTINGS mutations_sync = 1;

DROP TABLE IF EXISTS usage_hours_{slot}_view SYNC;

CREATE TABLE IF NOT EXISTS usage_hours_{slot}
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
    team_id LowCardinality(Nullable(String)),
    completes_turn Bool,
    images UInt64,
    events UInt64,
    input_tokens UInt64,
    cached_input_tokens UInt64,
    output_tokens UInt64,
    reasoning_tokens UInt64,
    latency_ms UInt64
)
ENGINE = SummingMergeTree((events, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, latency_ms))
PARTITION BY toYYYYMM(starts)
ORDER BY (tenant_id, starts, kind, provider, model, tool, agent, agent_version, user_id, outcome, billable, size, shape, team_id, completes_turn, images)
SETTINGS allow_nullable_key = 1, non_replicated_deduplication_window = 1000;

TRUNCATE TABLE usage_hours_{slot};

INSERT INTO usage_hours_{slot} (tenant_id, starts, user_id, agent, agent_version, kind, provider, model, tool, outcome, billable, size, shape, team_id, completes_turn, images, events, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, latency_ms)
SELECT tenant_id, toStartOfHour(minutes.starts, 'UTC'), user_id, agent, agent_version, kind, provider, model, tool, outcome, billable, size, shape, team_id, completes_turn, images, events, input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, latency_ms FROM usage_minutes_{slot} AS minutes
SETTINGS max_partitions_per_insert_block = 0, insert_deduplicate = 0, parallel_distributed_insert_select = 2;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_hours_{slot}_view TO usage_hours_{slot} AS
SELECT
    tenant_id, kind, provider, model, tool, agent, agent_version, user_id, outcome, billable, team_id, completes_turn, images,
    toStartOfHour(occurred_at, 'UTC') AS starts,
    toUInt64(roundDown(raw.input_tokens, [0, 32001, 100001, 128001, 200000, 200001, 256001, 272001, 512001, 524289])) AS size,
    toUInt8(if(
        raw.cached_input_tokens > raw.input_tokens OR raw.reasoning_tokens > raw.output_tokens,
        16,
        (raw.input_tokens > raw.cached_input_tokens) + 2 * (raw.cached_input_tokens > 0)
            + 4 * (raw.output_tokens > raw.reasoning_tokens) + 8 * (raw.reasoning_tokens > 0) + 32 * (raw.images > 0)
    )) AS shape,
    count() AS events,
    sum(raw.input_tokens) AS input_tokens,
    sum(raw.cached_input_tokens) AS cached_input_tokens,
    sum(raw.output_tokens) AS output_tokens,
    sum(raw.reasoning_tokens) AS reasoning_tokens,
    sum(raw.latency_ms) AS latency_ms
FROM usage_events_{slot} AS raw
GROUP BY tenant_id, starts, kind, provider, model, tool, agent, agent_version, user_id, outcome, billable, size, shape, team_id, completes_turn, images;

CREATE OR REPLACE VIEW usage_hours AS
SELECT * FROM usage_hours_a WHERE (SELECT argMax(slot, generation) FROM usage_generations) = 'a'
UNION ALL
SELECT * FROM usage_hours_b WHERE (SELECT argMax(slot, generation) FROM usage_generations) = 'b';
