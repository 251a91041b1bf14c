"""The short way to a handler: requests for a path without parameters go straight to it, all others the usual way.

Ten thousand hosts ask for three paths. What Starlette does between the server and a handler (three layers that look
for exceptions, and routes tried in turn) takes longer than the handler of a heartbeat.
"""

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from control_plane.conversation import Application


class Shortcut:
    """An ASGI application in front of another with the same routes."""

    def __init__(
        self,
        full: Application,
        routes: Sequence[Route],
        broken: Callable[[Request, Exception], Awaitable[Response]],
    ) -> None:
        """`broken` answers for a handler that failed; the failure goes on to the server, which logs it."""
        self._full, self._broken = full, broken
        self._direct = {
            (method, route.path): route.endpoint
            for route in routes
            if not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        endpoint = self._direct.get((scope["method"], scope["path"]))
        if endpoint is None:
            return await self._full(scope, receive, send)
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except Exception as error:
            await (await self._broken(request, error))(scope, receive, send)
            raise
        await response(scope, receive, send)
