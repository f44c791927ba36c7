"""Consumer groups, one a service. The topic prefix is put before each: two installations can share a cluster."""

DEFINITIONS_GROUP = "turnlog-definitions"
AGENTS_GROUP = "turnlog-agents"
TOOLS_GROUP = "turnlog-tools"
MEMORY_GROUP = "turnlog-memory"
USAGE_GROUP = "turnlog-usage"
