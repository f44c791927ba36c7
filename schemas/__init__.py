"""The contract of Turnlog: every event on the log, every topic, and the documents that HTTP answers carry.

One module a topic. Nothing here imports from `services`, and nothing does I/O but the two tools of the contract:
`generate` (what others read of it) and `history` (what was committed before).
"""
