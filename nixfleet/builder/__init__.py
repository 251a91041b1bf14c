"""Builds on request: a builder takes jobs from NATS, builds hosts of repositories it knows, and fills a cache."""
