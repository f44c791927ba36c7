"""The metrics of the tools worker, with their meaning."""

from prometheus_client import Counter, Gauge, Histogram

CALLS = Counter(
    "turnlog_tool_calls_total", "Tool calls answered, by outcome: ok or the code of tool.failed", ["outcome"]
)
CALL_SECONDS = Histogram(
    "turnlog_tool_call_seconds",
    "Length of a tool call that was run, all attempts together",
    ["tool"],
    buckets=(0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
CALLS_RUNNING = Gauge("turnlog_tool_calls_running", "Tool calls that this worker runs now")
CALLS_WAITING = Gauge("turnlog_tool_calls_waiting", "Tool calls read that wait for a place; beyond these none is read")
THREADS_ABANDONED = Gauge(
    "turnlog_tool_threads_abandoned", "Threads of sync tools that outlived their call's time limit"
)
