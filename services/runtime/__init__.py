"""What every service shares: settings, Kafka, the partition owner, projections, health, logs, traces and metrics."""
