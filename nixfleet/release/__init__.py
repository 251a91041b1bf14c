"""From a fleet description to signed files: read, check, resolve (all pure), sign, publish."""
