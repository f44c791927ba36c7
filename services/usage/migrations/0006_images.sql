ALTER TABLE usage_events_{slot} UPDATE block_number = 0 WHERE block_number > 0 SETTINGS mutations_sync = 1;

ALTER TABLE usage_events_{slot}
    ADD COLUMN IF NOT EXISTS images UInt64;

ALTER TABLE usage_minutes_{slot}
    ADD COLUMN IF NOT EXISTS images UInt64,
    MODIFY ORDER BY (tenant_id, starts, kind, provider, model, tool, agent, agent_version, user_id, thread_id, outcome, billable, size, shape, team_id, completes_turn, images);

DROP TABLE IF EXISTS usage_minutes_{slot}_view SYNC;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_minutes_{slot}_view TO usage_minutes_{slot} AS
SELECT
    tenant_id, kind, provider, model, tool, agent, agent_version, user_id, thread_id, outcome, billable, team_id, completes_turn, images,
    toStartOfMinute(occurred_at, 'UTC') AS starts,
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
GROUP BY tenant_id, starts, kind, provider, model, tool, agent, agent_version, user_id, thread_id, outcome, billable, size, shape, team_id, completes_turn, images;

ALTER TABLE usage_days_{slot}
    ADD COLUMN IF NOT EXISTS images UInt64,
    MODIFY ORDER BY (tenant_id, starts, kind, provider, model, tool, agent, agent_version, user_id, outcome, billable, size, shape, team_id, completes_turn, images);

DROP TABLE IF EXISTS usage_days_{slot}_view SYNC;

CREATE MATERIALIZED VIEW IF NOT EXISTS usage_days_{slot}_view TO usage_days_{slot} AS
SELECT
    tenant_id, kind, provider, model, tool, agent, agent_version, user_id, outcome, billable, team_id, completes_turn, images,
    toStartOfDay(occurred_at, 'UTC') AS starts,
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

CREATE OR REPLACE VIEW usage_events AS
SELECT * FROM usage_events_a FINAL WHERE (SELECT argMax(slot, generation) FROM usage_generations) = 'a'
UNION ALL
SELECT * FROM usage_events_b FINAL WHERE (SELECT argMax(slot, generation) FROM usage_generations) = 'b';

CREATE OR REPLACE VIEW usage_minutes AS
SELECT * FROM usage_minutes_a WHERE (SELECT argMax(slot, generation) FROM usage_generations) = 'a'
UNION ALL
SELECT * FROM usage_minutes_b WHERE (SELECT argMax(slot, generation) FROM usage_generations) = 'b';

CREATE OR REPLACE VIEW usage_days AS
SELECT * FROM usage_days_a WHERE (SELECT argMax(slot, generation) FROM usage_generations) = 'a'
UNION ALL
SELECT * FROM usage_days_b WHERE (SELECT argMax(slot, generation) FROM usage_generations) = 'b';
