"""What was used: a projection of `usage` in ClickHouse."""
