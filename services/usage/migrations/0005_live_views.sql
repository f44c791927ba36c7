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

CREATE OR REPLACE VIEW usage_conflicts AS
SELECT * FROM usage_conflicts_a FINAL WHERE (SELECT argMax(slot, generation) FROM usage_generations) = 'a'
UNION ALL
SELECT * FROM usage_conflicts_b FINAL WHERE (SELECT argMax(slot, generation) FROM usage_generations) = 'b';
