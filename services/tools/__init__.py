"""Runs the tools that agents call: Python functions, HTTP endpoints, tools of MCP servers."""
