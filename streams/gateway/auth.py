"""Bearer tokens with scopes, once an operator configures them; without a configuration everything is open.

The file is JSON: `{"tokens": [{"name": "ci", "token": "…", "scopes": ["score:write", "*:read"]}]}`. A scope is
`KEYSPACE:ACTION`; `*` stands for all of either. Actions: `read`, `write`, `deploy` (UDFs that fold the
keyspace's events), `admin` (definitions, and all that `deploy` allows).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from streams.model.errors import BadInput, Forbidden, Unauthorized

ACTIONS = ("read", "write", "deploy", "admin")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, and what for they may: `scopes` are (keyspace, action) pairs."""

    name: str
    scopes: frozenset[tuple[str, str]]

    def may(self, keyspace: str, action: str) -> bool:
        """Whether a scope covers the action; an empty `keyspace` is one that no keyspace owns."""
        return any(where in ("*", keyspace) and what in ("*", action) for where, what in self.scopes)


ANYONE = Principal("", frozenset({("*", "*")}))


class Authority:
    """Knows the tokens. Only their SHA-256 is kept; comparing takes constant time."""

    def __init__(self, tokens: dict[str, Principal] | None = None) -> None:
        self._by_digest = {hashlib.sha256(token.encode()).digest(): who for token, who in (tokens or {}).items()}

    @classmethod
    def load(cls, path: Path) -> Authority:
        """From a tokens file; BadInput when it cannot be read. A missing file opens everything."""
        try:
            entries = json.loads(path.read_text())["tokens"]
            return cls({entry["token"]: _principal(entry) for entry in entries})
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{path} cannot be read: {error!r}", field="tokens", fix="see streams/gateway/auth.py"
            ) from None

    def authenticate(self, authorization: str | None) -> Principal:
        """Who sent the `Authorization` header; Unauthorized when tokens are configured and this is none of them."""
        if not self._by_digest:
            return ANYONE
        scheme, _, token = (authorization or "").partition(" ")
        digest = hashlib.sha256(token.strip().encode()).digest()
        if scheme.lower() == "bearer":
            for known, who in self._by_digest.items():
                if hmac.compare_digest(known, digest):
                    return who
        raise Unauthorized("no valid bearer token", field="Authorization", fix="send Authorization: Bearer TOKEN")


def authorize(who: Principal, keyspace: str, action: str) -> None:
    """Forbidden unless a scope of `who` covers `action` on `keyspace`."""
    if who is not ANYONE and not who.may(keyspace, action):
        raise Forbidden(
            f"the token may not {action} {keyspace or 'this'}", field="Authorization", fix="use a token with that scope"
        )


def authorize_deploy(who: Principal, keyspaces: Iterable[str]) -> None:
    """Forbidden unless `who` may deploy and remove UDFs that fold these keyspaces' events."""
    for keyspace in keyspaces:
        if who is not ANYONE and not who.may(keyspace, "admin"):
            authorize(who, keyspace, "deploy")


def _principal(entry: dict[str, object]) -> Principal:
    scopes = set()
    for scope in entry["scopes"]:  # type: ignore[attr-defined]
        keyspace, _, action = str(scope).rpartition(":")
        if not keyspace or action not in (*ACTIONS, "*"):
            raise ValueError(f"scope {scope!r} is not KEYSPACE:ACTION")
        scopes.add((keyspace, action))
    return Principal(str(entry.get("name", "")), frozenset(scopes))
