"""A fleet's keys: made together, rotated one at a time, described to every host by `trust.json`."""
