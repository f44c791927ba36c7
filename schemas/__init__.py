"""The contract of Turnlog: every event on the log, every topic, and the documents that HTTP answers carry.

One module a topic. Nothing here does I/O and nothing here imports from `services`.
"""
