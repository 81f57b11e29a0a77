"""Real servers on loopback for the tests, each a process that its fixture starts and ends."""
