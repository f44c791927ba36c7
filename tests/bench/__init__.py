"""`make bench`: figures of this machine, printed with what they were measured on. No test asserts a time."""
