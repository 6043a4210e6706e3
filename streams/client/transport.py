"""HTTP for the client: connections, tokens, and problems turned back into errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import aiohttp
import orjson
from yarl import URL

from streams.model.errors import StreamsError, Timeout, Unavailable, error_of
from streams.model.token import Token

TIMEOUT_S = 60.0
CONNECT_S = 5.0
IDLE_S = 45.0
CATCH_UP_S = 30.0
LINE_BYTES_MAX = 64 << 20


class Transport:
    """Requests to one gateway, with the session's token on each."""

    def __init__(self, url: str, bearer: str | None, catch_up_s: float = CATCH_UP_S) -> None:
        self._url = url
        self._bearer = bearer
        self._catch_up_s = catch_up_s
        self._http: aiohttp.ClientSession | None = None
        self._closed = False
        self.token = Token()

    def open(self) -> None:
        """Get ready; connects with the first request."""
        self._closed = False
        if self._http is None:
            headers = {"Authorization": f"Bearer {self._bearer}"} if self._bearer else {}
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=TIMEOUT_S)
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
            self._http = aiohttp.ClientSession(
                headers=headers, timeout=timeout, connector=connector, read_bufsize=1 << 20
            )

    async def close(self) -> None:
        """Close the connections; idempotent. What is asked after it is refused, until it is opened again."""
        self._closed = True
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def json(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        *,
        headers: dict[str, str] | None = None,
        body: bytes | AsyncIterator[bytes] | None = None,
        catch_up_s: float | None = None,
    ) -> Any:
        """The answer's JSON; its token is merged into the session's. Raises what the problem says.

        A read that the region has not caught up for is asked again, for `catch_up_s` in all (None: the session's): a
        gateway holds it only for seconds, a load may take longer to fold.
        """
        began, asked = time.monotonic(), 0
        deadline = began + (self._catch_up_s if catch_up_s is None else catch_up_s)
        while True:
            asked += 1
            try:
                return await self._once(method, path, query, headers, body)
            except Timeout as error:
                if method != "GET" or error.field != "Causal-Token":
                    raise
                if time.monotonic() >= deadline:
                    error.detail += f"; asked {asked} times in {time.monotonic() - began:.0f} s" if asked > 1 else ""
                    raise
                await asyncio.sleep(min(error.retry_after_s, max(0.0, deadline - time.monotonic())))

    async def _once(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        headers: dict[str, str] | None,
        body: bytes | AsyncIterator[bytes] | None,
    ) -> Any:
        sent = dict(headers or {})
        if self.token.positions:
            sent["Causal-Token"] = self.token.encode()
        try:
            async with self._session.request(
                method, self._target(path), params=query, headers=sent, data=body, allow_redirects=False
            ) as answer:
                raw = await answer.read()
                self._observe(answer)
                if answer.status != 200:
                    raise problem(answer.status, answer.headers, raw)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(
                f"{self._url} does not answer: {error or type(error).__name__}",
                fix="is the system up? see `streams status`",
            ) from error
        return orjson.loads(raw)

    async def exchange(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: aiohttp.ClientTimeout,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """One request as it is: status, headers and body of the answer, whatever they say.

        Raises aiohttp's errors, which tell whether anything was sent, and TimeoutError.
        """
        sent = {**headers, "Causal-Token": self.token.encode()} if self.token.positions else dict(headers)
        async with self._session.request(
            method, self._target(path), params=query, headers=sent, data=body, timeout=timeout, allow_redirects=False
        ) as answer:
            raw = await answer.read()
            self._observe(answer)
            return answer.status, answer.headers, raw

    def twin(self, url: str) -> Transport:
        """The same session's way to another gateway, with connections of its own."""
        return Transport(url.rstrip("/"), self._bearer, self._catch_up_s)

    @property
    def url(self) -> str:
        """The gateway's."""
        return self._url

    async def events(self, path: str, query: dict[str, str], last: str) -> AsyncGenerator[tuple[str, str, bytes], None]:
        """Server-sent events of `PATH:subscribe` as (id, kind, data), until the connection ends; keep-alives have no
        data. What broke off within an event is dropped, its id too."""
        headers = {"Last-Event-ID": last} if last else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=IDLE_S)
        async with self._session.get(
            self._target(path + ":subscribe"), params=query, headers=headers, timeout=timeout
        ) as answer:
            if answer.status != 200:
                raise problem(answer.status, answer.headers, await answer.read())
            kind, data = "", b""
            async for line in _lines(answer.content):
                name, _, value = line.partition(b":")
                value = value.removeprefix(b" ")
                if not line:
                    yield last, kind or "message", data
                    kind, data = "", b""
                elif name == b"id":
                    last = value.decode()
                elif name == b"event":
                    kind = value.decode()
                elif name == b"data":
                    data = data + b"\n" + value if data else value

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise Unavailable("this client is closed", fix="use it within its `async with`")
        if self._http is None:
            self.open()
        assert self._http is not None
        return self._http

    def _target(self, path: str) -> URL:
        return URL(self._url + path, encoded=True)

    def _observe(self, answer: aiohttp.ClientResponse) -> None:
        text = answer.headers.get("Causal-Token")
        if text:
            self.token = self.token.merge(Token.decode(text))


def problem(status: int, headers: Mapping[str, str], raw: bytes) -> StreamsError:
    """The error of a problem document; one that says the status where there is none."""
    try:
        error = error_of(status, orjson.loads(raw))
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        text = f"the gateway answered {status}: {raw[:200].decode(errors='replace')!r}"
        return error_of(status, {"detail": text})
    if isinstance(error, Timeout):
        error.retry_after_s = float(headers.get("Retry-After", 1))
    return error


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise Unavailable("an event is too large")
        for line in whole:
            yield line.removesuffix(b"\r")
