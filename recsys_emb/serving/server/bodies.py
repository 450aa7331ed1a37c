"""Bodies of requests and answers: JSON and Arrow streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from recsys_emb.errors import UserError
from recsys_emb.files import one_line
from recsys_emb.validation import explain

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"


class Refused(UserError):
    """A request that is not answered with predictions.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Rows:
    """What is to be predicted: ``count`` rows as ``Artifact.encode`` takes them."""

    frame: pa.Table | dict[str, list[Any]]
    shared: Mapping[str, Any]
    count: int


class _Body(BaseModel):
    """A JSON body: ``rows`` as columns or as objects, and the values that all rows have."""

    model_config = ConfigDict(extra="forbid")

    rows: dict[str, list[Any]] | list[dict[str, Any]]
    shared: dict[str, Any] = {}


def read_rows(content_type: str, body: bytes) -> Rows:
    """The rows of a body.

    Raises:
        Refused: another content type (415), or a body that is not what it says (400).
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == JSON:
        return _read_json(body)
    if kind == ARROW:
        return _read_arrow(body)
    raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content-type {content_type!r}: send {JSON} or {ARROW}")


def write_answer(accepted: str, logits: np.ndarray) -> tuple[str, bytes]:
    """Content type and body of the answer: logits and probabilities, as Arrow where only that is ``accepted``."""
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    if accepted.partition(";")[0].strip().lower() != ARROW:
        answer = {"logits": logits.tolist(), "probabilities": probabilities.tolist()}
        return JSON, json.dumps(answer, allow_nan=False).encode()
    table = pa.table({"logit": logits, "probability": probabilities.astype(np.float32)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return ARROW, sink.getvalue().to_pybytes()


def _read_json(body: bytes) -> Rows:
    try:
        read = _Body.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        what = first["msg"] if first["type"] == "json_invalid" else explain(error, _Body)
        raise Refused(HTTPStatus.BAD_REQUEST, f"body: {one_line(ValueError(what))}") from None
    columns = read.rows if isinstance(read.rows, dict) else _columns(read.rows)
    return Rows(columns, read.shared, max(map(len, columns.values()), default=0))


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Raises Refused when a row lacks a field of another: that may be a slip, a missing value is null."""
    names = dict.fromkeys(name for row in rows for name in row)
    for number, row in enumerate(rows):
        if len(row) < len(names):
            lacking = next(name for name in names if name not in row)
            message = f"field {lacking!r}: not in row {number} (from 0), but in others; null is a missing value"
            raise Refused(HTTPStatus.BAD_REQUEST, message)
    return {name: [row[name] for row in rows] for name in names}


def _read_arrow(body: bytes) -> Rows:
    try:
        with pa.ipc.open_stream(body) as reader:
            table = reader.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Refused(HTTPStatus.BAD_REQUEST, f"body: no Arrow stream ({one_line(error)})") from None
    return Rows(table, {}, len(table))
