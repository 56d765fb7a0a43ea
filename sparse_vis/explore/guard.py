"""Only the page itself, opened with the address that was printed, may talk to its server."""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparse_vis.explore.page import POLICY

HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self)",
    "Referrer-Policy": "no-referrer",  # addresses contain the token
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Refuses requests without the token, from other origins, or under another name of this computer.

    Otherwise any web page could send requests to 127.0.0.1, or let a host name of its own point there.
    """

    def __init__(self, app: ASGIApp, token: str, port: int):
        self.app, self.token = app, token
        names = ("127.0.0.1", "localhost")
        # Browsers leave out port 80, the default of http://.
        self.hosts = {*names} if port == 80 else {f"{name}:{port}" for name in names}

    def fault(self, scope: Scope) -> str | None:
        """The sentence that refuses a request; None if nothing is wrong with it."""
        headers, query = Headers(scope=scope), QueryParams(scope["query_string"])
        if headers.get("host") not in self.hosts:
            return "this server answers to 127.0.0.1 and localhost only; open the address that it printed."
        origin = headers.get("origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.hosts}:
            return "this request comes from another page; open the address that the server printed."
        given = headers.get("x-token") or query.get("token") or ""
        if not secrets.compare_digest(given.encode(), self.token.encode()):
            return "the token is missing or wrong; open the address that the server printed."
        return None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # there are no websockets; lifespan has no requests
            return await self.app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        fault = self.fault(scope)
        answer = self.app if fault is None else PlainTextResponse(fault, status_code=403)
        await answer(scope, receive, send_with_headers)
