"""One request within its time, and the calls of administration, which are just that."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from croupier.wire import Arm, Changed, Policy, UnavailableError, error_of

T = TypeVar("T")


class _Arms(msgspec.Struct):
    arms: list[Arm]


class _Policies(msgspec.Struct):
    policies: list[Policy]


class Calls:
    """What `AsyncClient` is built on: a connection pool to one address."""

    def __init__(self, base_url: str, api_key: str | None, request_timeout_s: float) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        # _call's own deadline is the only one: httpx bounds each read and write, not their sum.
        self._http = httpx.AsyncClient(base_url=base_url, headers=headers, timeout=None, trust_env=False)
        self._request_timeout_s = request_timeout_s

    async def put_policy(self, name: str, definition: Mapping[str, Any]) -> Changed:
        """Makes or changes a policy; `definition` is the body that docs/http.md describes."""
        return decoded(await self._admin("PUT", _path(name), dict(definition)), Changed)

    async def patch_policy(self, name: str, changes: Mapping[str, Any]) -> Changed:
        """Changes the members that `changes` has."""
        return decoded(await self._admin("PATCH", _path(name), dict(changes)), Changed)

    async def delete_policy(self, name: str) -> Changed:
        """Removes a policy for good; rewards of its decisions are refused from then on."""
        return decoded(await self._admin("DELETE", _path(name)), Changed)

    async def policy(self, name: str) -> Policy:
        """One policy as the server shows it."""
        return decoded(await self._admin("GET", _path(name)), Policy)

    async def policies(self) -> list[Policy]:
        """All policies."""
        return decoded(await self._admin("GET", "/v1/policies"), _Policies).policies

    async def put_item(
        self,
        policy: str,
        item: str,
        *,
        paused: bool = False,
        embedding: Sequence[float] | None = None,
        clusters: Sequence[int] | None = None,
    ) -> Changed:
        """Adds an item; a new one of a diag-linucb policy needs an embedding or clusters."""
        body = {"paused": paused, "embedding": embedding, "clusters": clusters}
        return decoded(await self._admin("PUT", _path(policy, item), body), Changed)

    async def pause_item(self, policy: str, item: str, paused: bool = True) -> Changed:
        """Stops showing an item, or shows it again; its rewards teach all the while."""
        return decoded(await self._admin("PATCH", _path(policy, item), {"paused": paused}), Changed)

    async def delete_item(self, policy: str, item: str) -> Changed:
        """Removes an item."""
        return decoded(await self._admin("DELETE", _path(policy, item)), Changed)

    async def put_graph(self, policy: str, graph: bytes, *, keeps_clusters: bool = False) -> Changed:
        """Uploads the bytes of an npz file, as `croupier graph build` writes it."""
        path = f"{_path(policy)}/graph?keeps_clusters={str(keeps_clusters).lower()}"
        answer = await self._call("PUT", path, graph, self._request_timeout_s, "application/octet-stream")
        return decoded(answer, Changed)

    async def arms(self, policy: str, *, segment: str = "all", limit: int = 100, offset: int = 0) -> list[Arm]:
        """A page of arms, in the policy's order."""
        path = f"{_path(policy)}/arms?segment={quote(segment, safe='')}&limit={limit}&offset={offset}"
        return decoded(await self._admin("GET", path), _Arms).arms

    async def _admin(self, method: str, path: str, body: object = None) -> bytes:
        return await self._call(method, path, body, self._request_timeout_s)

    async def _call(
        self, method: str, path: str, body: object, within_s: float, kind: str = "application/json"
    ) -> bytes:
        """One request in `within_s` altogether: name lookup, connect and every byte of the answer."""
        content = body if isinstance(body, bytes) else None if body is None else msgspec.json.encode(body)
        try:
            async with asyncio.timeout(within_s):
                answer = await self._http.request(method, path, content=content, headers={"Content-Type": kind})
        except TimeoutError:
            raise UnavailableError(f"no answer within {within_s:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise UnavailableError(f"{type(error).__name__}: {error}") from None
        if answer.is_success:
            return answer.content
        raise error_of(answer.status_code, answer.content, answer.headers.get("Retry-After"))


def decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:  # a page of some proxy
        raise UnavailableError(f"not an answer of croupier: {error}") from None


def _path(policy: str, item: str | None = None) -> str:
    path = f"/v1/policies/{quote(policy, safe='')}"
    return path if item is None else f"{path}/items/{quote(item, safe='')}"
