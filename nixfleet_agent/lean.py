"""Keep what the daemon does not run on out of its memory. Imported before anything else that is large.

httpx imports its own command line when click, rich and pygments can be imported (measured: 49 ms and 6 MB more). They
are installed here for other programs, so the daemon tells the import system that this one module is not there; httpx
has a path of its own for that.
"""

import sys

if "httpx" not in sys.modules:
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # the documented way to block an import
