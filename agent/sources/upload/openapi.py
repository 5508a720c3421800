"""The description of what can be asked, as OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

import msgspec

from agent import __version__
from agent.page import PageResult
from agent.sources.upload.body import ENDINGS, FORM
from agent.sources.upload.problems import TITLES, ProblemDocument

READ_STATUSES = (400, 401, 403, 408, 411, 413, 415, 422, 429, 500, 503, 504)
_JSON = dict[str, Any]


class Answer(msgspec.Struct, frozen=True):
    """What was read.

    Attributes:
        key: of the file.
        kept: the result is in the outbox.
        pages: of a picture one, of a document all; a page that failed has `error` and `reason`.
    """

    key: str
    kept: bool
    pages: tuple[PageResult, ...]


class Health(msgspec.Struct, frozen=True):
    """Whether pages are read.

    Attributes:
        ready: they are.
        reason: why not, one word; "" when they are.
        waiting: files sent and not answered.
    """

    ready: bool
    reason: str
    waiting: int


def document(max_bytes: int, *, has_token: bool) -> bytes:
    """Return the description as JSON.

    Args:
        max_bytes: of a file.
        has_token: requests need one.
    """
    _, schemas = msgspec.json.schema_components(
        (Answer, Health, ProblemDocument), ref_template="#/components/schemas/{name}"
    )
    text = {"text/plain": {"schema": {"type": "string"}}}
    paths: _JSON = {
        "/v1/read": {"post": _read(max_bytes, has_token)},
        "/ping": {"get": _get("alive", "The program is there.", text)},
        "/healthz": {"get": _health()},
        "/metrics": {"get": _get("metrics", "Counts.", text)},
        "/v1/openapi.json": {"get": _get("describe", "This.", {"application/json": {"schema": {"type": "object"}}})},
    }
    described: _JSON = {
        "openapi": "3.1.0",
        "info": {"title": "edge-ocr", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }
    return msgspec.json.encode(described)


def _schema(name: str) -> _JSON:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def _problem(status: int) -> _JSON:
    return {"description": TITLES[status], "content": {"application/problem+json": _schema("ProblemDocument")}}


def _get(operation: str, said: str, content: _JSON) -> _JSON:
    answers: _JSON = {"200": {"description": said, "content": content}, **_refusals((400, 403))}
    return {"operationId": operation, "summary": said, "responses": answers}


def _refusals(statuses: tuple[int, ...]) -> _JSON:
    return {str(status): _problem(status) for status in statuses}


def _health() -> _JSON:
    content = {"application/json": _schema("Health")}
    get = _get("health", "Pages are read.", content)
    get["responses"]["503"] = {"description": "They are not, for now.", "content": content}
    return get


def _read(max_bytes: int, has_token: bool) -> _JSON:
    file = {"type": "string", "format": "binary", "maxLength": max_bytes}
    form = {"type": "object", "properties": {"file": file}, "required": ["file"]}
    kinds: _JSON = {kind: {"schema": file} for kind in ENDINGS}
    store = {
        "name": "store",
        "in": "query",
        "schema": {"type": "string", "enum": ["0", "1"], "default": "1"},
        "description": "0: the result is answered and not kept.",
    }
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
        "description": "The same key with the same file gives the same answer, and one result.",
    }
    return {
        "operationId": "read",
        "summary": "Read a picture or a document, and wait for what is on it.",
        "parameters": [store, key],
        "requestBody": {"required": True, "content": {**kinds, FORM: {"schema": form}}},
        "responses": {
            "200": {"description": "What was read.", "content": {"application/json": _schema("Answer")}},
            **_refusals(READ_STATUSES),
        },
        **({"security": [{"token": []}]} if has_token else {}),
    }
