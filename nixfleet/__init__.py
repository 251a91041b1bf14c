"""The operator's and CI's command line: keys, tokens, signed releases, a view of the fleet, and audits of it."""
