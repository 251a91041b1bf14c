"""The daemon: everything that touches the world on behalf of the pure core."""

from typing import Final

__version__: Final = "0.1.0"
