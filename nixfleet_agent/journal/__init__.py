"""The journal: state, outbox and evidence in one SQLite file (see `store` first)."""
