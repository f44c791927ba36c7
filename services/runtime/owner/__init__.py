"""The partition owner: one worker at a time decides for a partition, exactly once, around calls that take minutes.

Read `actor` for what an owner runs, `partition` for the group commit, `takeover` for the order in which a partition is
taken, `worker` for membership.
"""
