"""The only door for HTTP: REST, SSE and OpenAI's protocol over the log."""
