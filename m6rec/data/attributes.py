"""Extra columns as one JSON object a row, and back. This module knows no column by name."""

import json
import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def pack(table: pa.Table, names: list[str]) -> pa.Array:
    """Return ``[num_rows]`` JSON objects of the columns ``names``; nulls are left out, an empty object is null.

    Each distinct value is written once, so a column of categories costs no Python per row.

    >>> pack(pa.table({"colour": ["red", None], "size": [1, None]}), ["colour", "size"]).to_pylist()
    ['{"colour": "red", "size": 1}', None]
    """
    if not names:
        return pa.nulls(len(table), pa.string())
    # Null handling "skip" of the join kernel loses whole rows (pyarrow 26), so nulls become empty texts first.
    parts = [pc.binary_join_element_wise(json.dumps(name), _literals(table[name]), ": ") for name in names]
    parts = [pc.fill_null(pc.binary_join_element_wise(part, ", ", ""), "") for part in parts]
    joined = pc.utf8_slice_codeunits(pc.binary_join_element_wise(*parts, ""), 0, -len(", "))
    return pc.if_else(pc.equal(joined, ""), None, pc.binary_join_element_wise("{", joined, "}", ""))


def _literals(column: pa.ChunkedArray) -> pa.Array:
    """Return each value as JSON text; null for null, NaN and empty containers."""
    column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # a column of no chunk
        column = pa.nulls(0, pa.string())
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_float16(column.type) or pa.types.is_float32(column.type):
        column = column.cast(pa.string()).cast(pa.float64())  # 0.1 stays 0.1, not 0.10000000149
    elif not _has_json_form(column.type):
        column = column.cast(pa.string())
    if pa.types.is_nested(column.type):
        return pa.array([_literal(value) for value in column.to_pylist()], pa.string())
    encoded = column.dictionary_encode()
    literals = pa.array([_literal(value) for value in encoded.dictionary.to_pylist()], pa.string())
    return literals.take(encoded.indices)


def _has_json_form(kind: pa.DataType) -> bool:
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating)
    return pa.types.is_boolean(kind) or pa.types.is_nested(kind) or any(check(kind) for check in checks)


def _literal(value: Any) -> str | None:
    value = _without_nulls(value)
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: kept for key, inner in value.items() if (kept := _without_nulls(inner)) is not None} or None
    if isinstance(value, list):
        return [kept for inner in value if (kept := _without_nulls(inner)) is not None] or None
    return value


def unpack(text: str | None) -> dict[str, Any]:
    """Return the attributes of one row.

    >>> unpack('{"colour": "red"}'), unpack(None)
    ({'colour': 'red'}, {})
    """
    return dict(json.loads(text)) if text else {}
