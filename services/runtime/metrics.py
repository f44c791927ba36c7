"""Every metric of the platform, with its meaning. Named as Prometheus asks: unit last, counters `_total`."""

from prometheus_client import Counter, Gauge, Histogram

TURNS_IN_FLIGHT = Gauge("turnlog_turns_in_flight", "Turns that this worker has open")
PARTITIONS_OWNED = Gauge("turnlog_partitions_owned", "Partitions of prompts that this worker owns")
TRANSACTIONS = Counter("turnlog_transactions_total", "Transactions by outcome", ["outcome"])
TRANSACTION_SECONDS = Histogram(
    "turnlog_transaction_seconds",
    "From begin to commit of a group",
    buckets=(0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.125, 0.25, 0.5, 1, 5),
)
TRANSACTION_EVENTS = Histogram(
    "turnlog_transaction_inputs", "Inputs decided in one transaction", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
RECOVERY_SECONDS = Histogram(
    "turnlog_partition_recovery_seconds",
    "From assignment of a partition to its first intake",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30),
)
TURNS = Counter("turnlog_turns_total", "Turns that ended, by terminal event", ["outcome"])
MODEL_CALLS = Counter("turnlog_model_calls_total", "Model calls by provider and outcome", ["provider", "outcome"])
MODEL_SECONDS = Histogram(
    "turnlog_model_call_seconds",
    "Length of a model call",
    ["provider"],
    buckets=(0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
RECORDS_REJECTED = Counter("turnlog_records_rejected_total", "Records sent to dead-letters", ["source", "reason"])
USAGE_CONFLICTS = Counter("turnlog_usage_conflicts_total", "Usage refused since its id came again with other values")
BUDGET_WARNINGS = Counter("turnlog_budget_warnings_total", "Soft caps that were reached")
BUDGET_STOPS = Counter(
    "turnlog_budget_stops_total", "Prompts rejected and turns ended since a budget is used up", ["what"]
)
