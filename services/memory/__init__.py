"""Threads, messages and what a model should see of them: a projection of the journal in Qdrant."""
