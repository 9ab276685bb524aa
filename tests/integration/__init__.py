"""A test as a user of `simulator.testcontainers` would write it, and what it rests on."""
