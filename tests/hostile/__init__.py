"""Attacks on real processes, one test for each row of table A in `docs/threats.md`, each named after its row."""
