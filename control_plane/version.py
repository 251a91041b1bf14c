"""Which build this is."""

import importlib.metadata
from typing import Final

PACKAGE: Final = "nixfleet-agent"

VERSION: Final = importlib.metadata.version(PACKAGE)
