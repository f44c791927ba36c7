DROP TABLE IF EXISTS usage_events SYNC;

DROP TABLE IF EXISTS usage_events_build SYNC;
