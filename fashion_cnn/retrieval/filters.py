"""Conditions on catalogue columns: values and ranges. No value is ever parsed as a query language."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.expr import Expr, col, lit

from fashion_cnn.errors import UserError

# Maximum number of values that a message lists.
_LISTED_VALUES = 20
Value = str | int | float | bool | date


@dataclass(frozen=True)
class Condition:
    """Condition on one column: one of `values`, or between `low` and `high`.

    Attributes:
        column: name of the column.
        values: allowed values; empty for a range.
        low: smallest allowed value, inclusive; None for no limit.
        high: largest allowed value, inclusive; None for no limit.
    """

    column: str
    values: tuple[Value, ...] = ()
    low: Value | None = None
    high: Value | None = None

    def mask(self, table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Return which rows of `table` meet the condition, `(rows,)` bool; a null never does."""
        column = table[self.column]
        parts = []
        if self.values:
            parts.append(pc.is_in(column, pa.array(self.values, column.type)))
        if self.low is not None:
            parts.append(pc.greater_equal(column, pa.scalar(self.low, column.type)))
        if self.high is not None:
            parts.append(pc.less_equal(column, pa.scalar(self.high, column.type)))
        mask: np.ndarray[tuple[int], np.dtype[np.bool_]] = reduce(
            and_, (pc.fill_null(part, False).to_numpy(zero_copy_only=False) for part in parts)
        )
        return mask

    def expression(self) -> Expr:
        """Return the condition as a LanceDB expression."""
        column = col(self.column)
        parts = [column.isin(list(self.values))] if self.values else []
        parts += [column >= lit(self.low)] if self.low is not None else []
        parts += [column <= lit(self.high)] if self.high is not None else []
        return reduce(and_, parts)


def parse_conditions(filters: Mapping[str, Any], schema: pa.Schema) -> tuple[Condition, ...]:
    """Parse filters of a user.

    Args:
        filters: a value, a list of values, or {min: ..., max: ...} by column name; None and [] are no filter.
        schema: columns of the catalogue.

    Raises:
        UserError: if a column does not exist or a value is not of its type.
    """
    conditions = []
    for name, choice in filters.items():
        if name not in (filterable := _filterable(schema)):
            raise UserError(f"There is no column {name} to filter by: use one of {', '.join(filterable)}.")
        kind = schema.field(name).type
        if isinstance(choice, Mapping):
            if unknown := choice.keys() - {"min", "max"}:
                raise UserError(f"{name}: {min(map(str, unknown))} is not a bound: use min, max or both.")
            low, high = (None if choice.get(end) is None else _cast(name, choice[end], kind) for end in ("min", "max"))
            if low is not None and high is not None and low > high:  # type: ignore[operator]
                raise UserError(f"{name}: min={low} is above max={high}: swap them.")
            if low is not None or high is not None:
                conditions.append(Condition(name, low=low, high=high))
            continue
        values = choice if isinstance(choice, Sequence) and not isinstance(choice, str) else [choice]
        if chosen := tuple(_cast(name, value, kind) for value in values if value is not None):
            conditions.append(Condition(name, values=chosen))
    return tuple(conditions)


def describe_unmatched(conditions: Sequence[Condition], table: pa.Table) -> list[str]:
    """Write a sentence for each requested value that no row of `table` has, with the values that exist."""
    sentences = []
    for condition in conditions:
        known = pc.unique(table[condition.column]).drop_null().to_pylist()
        for value in condition.values:
            if value not in known:
                listed = [str(other) for other in sorted(known)[:_LISTED_VALUES]]
                listed += ["…"] if len(known) > _LISTED_VALUES else []
                sentences.append(f"No product has {condition.column}={value}: the values are {', '.join(listed)}.")
    return sentences


def _filterable(schema: pa.Schema) -> list[str]:
    hidden = {"id", "key", "thumbnail", "vector"}
    return [field.name for field in schema if field.name not in hidden and _is_comparable(field.type)]


def _is_comparable(kind: pa.DataType) -> bool:
    """Return whether Arrow compares values of a type; it cannot for some that no table of products has."""
    is_type = pa.types
    unsupported = (is_type.is_nested, is_type.is_dictionary, is_type.is_float16, is_type.is_run_end_encoded)
    return not any(test(kind) for test in unsupported)


def _cast(name: str, value: Any, kind: pa.DataType) -> Value:
    try:
        # Cast from text, as the values of a CSV are.
        cast: Value = pc.cast(pa.scalar(str(value)), kind).as_py()
    except (pa.ArrowException, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{name}={value} is not possible: the column holds {kind}.") from error
    return cast
