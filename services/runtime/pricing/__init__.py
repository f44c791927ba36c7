"""What usage costs. Pure but for `defaults`, which reads the prices that a package carries."""
