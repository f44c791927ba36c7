"""Everything is killed and paused while thousands of turns run; afterwards the log must tell a flawless story."""
