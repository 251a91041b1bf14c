"""Where a host's intent comes from: one module a source, all behind `interface.IntentSource`."""
