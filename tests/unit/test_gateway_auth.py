"""Bearer tokens and scopes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streams.client import connect
from streams.gateway.auth import ANYONE, Authority
from streams.model.errors import BadInput, Forbidden, Unauthorized
from tests.support.gateway import running_gateway

TOKENS = [
    {"name": "game", "token": "g", "scopes": ["score:write", "score:read"]},
    {"name": "reader", "token": "r", "scopes": ["*:read"]},
    {"name": "boss", "token": "b", "scopes": ["*:*"]},
]


def tokens_file(path: Path, tokens: object = TOKENS) -> Path:
    path.write_text(json.dumps({"tokens": tokens}))
    return path


def test_without_a_file_everything_is_open(tmp_path: Path) -> None:
    assert Authority.load(tmp_path / "none.json").authenticate(None) is ANYONE


def test_unusable_files_are_refused_at_start(tmp_path: Path) -> None:
    for tokens in ("x", [{}], [{"token": "a", "scopes": ["score"]}], [{"token": "a", "scopes": ["score:fly"]}]):
        with pytest.raises(BadInput, match="cannot be read"):
            Authority.load(tokens_file(tmp_path / "tokens.json", tokens))


async def test_scopes_cover_keyspaces_and_actions(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "gateway") as edge:
        edge.gateway.authority = Authority.load(tokens_file(tmp_path / "tokens.json"))
        async with connect(edge.url) as nobody, connect(edge.url, bearer="wrong") as wrong:
            for client in (nobody, wrong):
                with pytest.raises(Unauthorized):
                    await client.put("score:a", {"add": 1})
        assert (await edge.http.get("/healthz")).status == 200
        assert (await edge.http.get("/v1/tables")).headers["WWW-Authenticate"] == "Bearer"
        async with connect(edge.url, bearer="g") as game:
            await game.put("score:a", {"add": 1})
            assert (await game.put_batch([{"key": "score:a", "value": {"add": 1}}])).accepted == 1
            mixed = await game.put_batch([{"key": "score:a", "value": {"add": 1}}, {"key": "kv:a", "value": 1}])
            assert mixed.accepted == 1 and "may not write kv" in mixed.rejected[0].reason
            assert [each["name"] for each in await game.tables()] == ["score"]
            for refused in (game.put("kv:a", 1), game.get("kv:a"), game.top("best"), game.put_keyspace("x")):
                with pytest.raises(Forbidden):
                    await refused
        async with connect(edge.url, bearer="r") as reader:
            assert (await reader.get("score:a")).value == 3  # type: ignore[union-attr]
            with pytest.raises(Forbidden):
                await reader.delete("score:a")
        async with connect(edge.url, bearer="b") as boss:
            await boss.put_keyspace("fresh")


async def test_the_registry_is_behind_them_too(tmp_path: Path) -> None:
    async with running_gateway(tmp_path / "gateway") as edge:
        edge.gateway.authority = Authority.load(tokens_file(tmp_path / "tokens.json"))
        schema = {"schema": '"string"'}
        wanted = [  # method, path, body, the token, the status
            ("GET", "/subjects", None, "", 401),
            ("GET", "/subjects", None, "g", 200),
            ("POST", "/subjects/notes-value/versions", schema, "", 401),
            ("POST", "/subjects/notes-value/versions", schema, "g", 403),
            ("POST", "/v1/registry/subjects/notes-value/versions", schema, "b", 200),
            ("POST", "/subjects/events.score-value/versions", schema, "r", 403),
            ("POST", "/subjects/events.score-value/versions", schema, "g", 409),  # allowed, and incompatible
            ("PUT", "/config", {"compatibility": "NONE"}, "g", 403),
            ("PUT", "/config/events.score-value", {"compatibility": "NONE"}, "g", 403),
            ("DELETE", "/config", None, "r", 403),
            ("PUT", "/config", {"compatibility": "BACKWARD"}, "b", 200),
        ]
        for method, path, body, token, status in wanted:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with edge.http.request(method, path, json=body, headers=headers) as answer:
                assert (answer.status, answer.headers.get("WWW-Authenticate")) == (
                    status,
                    "Bearer" if status == 401 else None,
                ), (method, path, token, await answer.text())
