"""The driver: it plans, runs, shows and remembers what the playbooks do; it knows none of their names."""
