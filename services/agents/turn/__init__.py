"""The turn as a pure function: `decide(state, input, env) -> (state, emitted events)`.

No I/O, no clock, no randomness: time comes in with the environment and ids are derived from what they name. The
effects are not a third result: which model call should be in flight and which timer should ring both follow from the
state (`wanted_call`, `next_due`), so a worker that takes a partition over starts just what its forerunner had running.
"""
