CREATE TABLE IF NOT EXISTS usage_rates
(
    version UInt64,
    digest UInt64,
    tenant_id String,
    kind LowCardinality(String),
    provider LowCardinality(Nullable(String)),
    model LowCardinality(Nullable(String)),
    tool LowCardinality(Nullable(String)),
    billable Bool,
    size UInt64,
    shape UInt8,
    begins DateTime('UTC'),
    cost_currency LowCardinality(String),
    cost_input Float64,
    cost_cached_input Float64,
    cost_output Float64,
    cost_reasoning Float64,
    cost_image Float64,
    cost_call Float64,
    price_currency LowCardinality(String),
    price_input Float64,
    price_cached_input Float64,
    price_output Float64,
    price_reasoning Float64,
    price_image Float64,
    price_call Float64
)
ENGINE = MergeTree
PARTITION BY version
ORDER BY (tenant_id, kind, begins);

CREATE OR REPLACE VIEW usage_money AS
SELECT
    hours.tenant_id AS tenant_id,
    hours.starts AS starts,
    hours.user_id AS user_id,
    hours.team_id AS team_id,
    hours.agent AS agent,
    hours.agent_version AS agent_version,
    hours.kind AS kind,
    hours.provider AS provider,
    hours.model AS model,
    hours.tool AS tool,
    hours.outcome AS outcome,
    hours.billable AS billable,
    hours.completes_turn AS completes_turn,
    hours.events AS events,
    if(ifNull(rates.cost_currency, '') = '' OR (hours.billable AND ifNull(rates.price_currency, '') = ''), hours.events, 0) AS unpriced_events,
    nullIf(toString(rates.cost_currency), '') AS cost_currency,
    if(ifNull(rates.cost_currency, '') = '', NULL, (
        hours.uncached * rates.cost_input + hours.cached * rates.cost_cached_input
        + hours.spoken * rates.cost_output + hours.reasoning * rates.cost_reasoning) / 1e6
        + hours.events * (hours.images * rates.cost_image + rates.cost_call)
    ) AS cost,
    nullIf(toString(rates.price_currency), '') AS price_currency,
    if(ifNull(rates.price_currency, '') = '', NULL, (
        hours.uncached * rates.price_input + hours.cached * rates.price_cached_input
        + hours.spoken * rates.price_output + hours.reasoning * rates.price_reasoning) / 1e6
        + hours.events * (hours.images * rates.price_image + rates.price_call)
    ) AS price
FROM
(
    SELECT
        tenant_id, starts, user_id, team_id, agent, agent_version, kind, provider, model, tool, outcome, billable,
        completes_turn, size, shape, images, events,
        toFloat64(input_tokens) - toFloat64(cached_input_tokens) AS uncached,
        toFloat64(cached_input_tokens) AS cached,
        toFloat64(output_tokens) - toFloat64(reasoning_tokens) AS spoken,
        toFloat64(reasoning_tokens) AS reasoning,
        if(tenant_id IN (SELECT tenant_id FROM usage_rates WHERE version = (SELECT max(version) FROM usage_rates) AND kind = ''), toString(tenant_id), '') AS whose,
        toString(kind) AS of_kind,
        ifNull(concat('=', provider), '') AS of_provider,
        ifNull(concat('=', model), '') AS of_model,
        ifNull(concat('=', tool), '') AS of_tool
    FROM usage_hours
) AS hours
ASOF LEFT JOIN
(
    SELECT
        tenant_id AS whose, billable, size, shape, begins,
        cost_currency, cost_input, cost_cached_input, cost_output, cost_reasoning, cost_image, cost_call,
        price_currency, price_input, price_cached_input, price_output, price_reasoning, price_image, price_call,
        toString(kind) AS of_kind,
        ifNull(concat('=', provider), '') AS of_provider,
        ifNull(concat('=', model), '') AS of_model,
        ifNull(concat('=', tool), '') AS of_tool
    FROM usage_rates
    WHERE version = (SELECT max(version) FROM usage_rates) AND kind != ''
) AS rates
ON hours.whose = rates.whose AND hours.of_kind = rates.of_kind AND hours.of_provider = rates.of_provider
    AND hours.of_model = rates.of_model AND hours.of_tool = rates.of_tool AND hours.billable = rates.billable
    AND hours.size = rates.size AND hours.shape = rates.shape AND hours.starts >= rates.begins;
