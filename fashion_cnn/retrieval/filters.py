"""Conditions on the columns of a catalogue: values and ranges, never a query language that a value could speak."""

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

# Values that are listed where another one was asked for.
_TOLD = 20
Value = str | int | float | bool | date


@dataclass(frozen=True)
class Condition:
    """A column holds one of `values`, or lies between `low` and `high`, both included; None leaves an end open."""

    column: str
    values: tuple[Value, ...] = ()
    low: Value | None = None
    high: Value | None = None

    def holds(self, table: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """For each row of `table` whether it does; not where the column is null. Shape `(rows,)`, bool."""
        column = table[self.column]
        parts = []
        if self.values:
            parts.append(pc.is_in(column, pa.array(self.values, column.type)))
        if self.low is not None:
            parts.append(pc.greater_equal(column, pa.scalar(self.low, column.type)))
        if self.high is not None:
            parts.append(pc.less_equal(column, pa.scalar(self.high, column.type)))
        holds: np.ndarray[tuple[int], np.dtype[np.bool_]] = reduce(
            and_, (pc.fill_null(part, False).to_numpy(zero_copy_only=False) for part in parts)
        )
        return holds

    def expression(self) -> Expr:
        """The same, as LanceDB takes it."""
        column = col(self.column)
        parts = [column.isin(list(self.values))] if self.values else []
        parts += [column >= lit(self.low)] if self.low is not None else []
        parts += [column <= lit(self.high)] if self.high is not None else []
        return reduce(and_, parts)


def parse_conditions(described: Mapping[str, Any], schema: pa.Schema) -> tuple[Condition, ...]:
    """What a person asks of columns: a value, a list of values, or {min: …, max: …}, by the column's name.

    None and [] ask for nothing. Raises UserError for a column that is not there, or a value that is not of its kind.
    """
    found = []
    for name, wanted in described.items():
        if name not in schema.names or pa.types.is_nested(schema.field(name).type):
            raise UserError(f"There is no column {name} to filter by: there are {', '.join(filterable(schema))}.")
        kind = schema.field(name).type
        if isinstance(wanted, Mapping):
            if unknown := wanted.keys() - {"min", "max"}:
                raise UserError(f"{name}: {min(map(str, unknown))} is no bound: say min, max or both.")
            low, high = (
                None if wanted.get(end) is None else _of_kind(name, wanted[end], kind) for end in ("min", "max")
            )
            if low is not None and high is not None and low > high:  # type: ignore[operator]
                raise UserError(f"{name}: from {low} to {high} there is nothing: say the smaller one first.")
            if low is not None or high is not None:
                found.append(Condition(name, low=low, high=high))
            continue
        values = wanted if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
        if chosen := tuple(_of_kind(name, value, kind) for value in values if value is not None):
            found.append(Condition(name, values=chosen))
    return tuple(found)


def unmet(asked: Sequence[Condition], table: pa.Table) -> list[str]:
    """A sentence for each value asked for that no row of `table` holds: which ones there are."""
    found = []
    for one in asked:
        there = pc.unique(table[one.column]).drop_null().to_pylist()
        for value in one.values:
            if value not in there:
                known = ", ".join(str(other) for other in sorted(there)[:_TOLD]) + (", …" if len(there) > _TOLD else "")
                found.append(f"No product has {one.column}={value}: there are {known}.")
    return found


def filterable(schema: pa.Schema) -> list[str]:
    """The columns that conditions can be on."""
    hidden = {"id", "key", "thumbnail", "vector"}
    return [field.name for field in schema if field.name not in hidden and not pa.types.is_nested(field.type)]


def _of_kind(name: str, value: Any, kind: pa.DataType) -> Value:
    try:
        # As text it is read as the column's values are.
        found: Value = pc.cast(pa.scalar(str(value)), kind).as_py()
    except (pa.ArrowException, TypeError) as error:
        raise UserError(f"{name}={value} is not possible: the column holds {kind}.") from error
    return found
