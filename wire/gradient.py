"""The answers of a Gradient server's API that an agent reads, all of them in snake_case.

Every answer lies in an `Envelope`; what its `message` is to be depends on what was asked. A class says what a
well-formed answer is, never whether to believe it. Members that no decision needs are not read.
"""

from collections.abc import Mapping
from typing import Final

import attrs

from wire.json_value import JsonValue
from wire.presence import SHORT_TEXT

API: Final = "/api/v1"
ENTRY_POINTS: Final = API + "/projects/{project}/entry-points"
"""`project` is ORGANIZATION/PROJECT."""
BUILD: Final = API + "/builds/{build_id}"

REQUEST_ID_HEADER: Final = "x-request-id"
"""In every answer; a client's own is kept."""

SUCCEEDED: Final = frozenset({"Completed", "Substituted"})
UNFINISHED: Final = frozenset({"Queued", "Building", "FailedTransient"})
"""`FailedTransient` is not final: the build is tried again."""
OUT: Final = "out"
"""The output that is the system itself."""


@attrs.frozen(kw_only=True)
class Envelope:
    """What every answer is. With `error` the message is the text of the error, whatever the HTTP status."""

    error: bool
    message: JsonValue = None


@attrs.frozen(kw_only=True)
class EntryPoint:
    """One of the systems that the last evaluation of a project found. No `build_id`: it came to no build."""

    build_id: str | None = attrs.field(default=None, metadata=SHORT_TEXT)
    build_status: str = attrs.field(metadata=SHORT_TEXT)


@attrs.frozen(kw_only=True)
class Build:
    """One build. `output` maps the names of outputs to store paths without the store, absent while there are none."""

    status: str = attrs.field(metadata=SHORT_TEXT)
    architecture: str = attrs.field(metadata=SHORT_TEXT)
    output: Mapping[str, str] = attrs.field(factory=dict)


SNAKE_CASE: Final[tuple[type, ...]] = (Envelope, EntryPoint, Build)
"""Bodies whose own members are written in snake_case."""
