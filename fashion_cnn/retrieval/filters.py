"""Conditions on catalogue columns: values, ranges, and colours that a text names.

No value is ever parsed as a query language.
"""

import re
from collections.abc import Callable, Mapping, Sequence
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
from fashion_cnn.pictures.photographs import COLOUR_COLUMN

# Maximum number of values that a message lists.
_LISTED_VALUES = 20
# Other spellings of colours.
_SPELLINGS = {"gray": "grey", "grey": "gray"}
# A part of a text in quotes.
_QUOTED = '["“”„][^"“”„]*["“”„]'
# A separator of colours, as in `in black and white`.
_BETWEEN_COLOURS = r"(?:\s*[,&/]\s*|\s+(?:and|or)\s+)"
# Punctuation that is left at the ends of a text without its colours.
_PUNCTUATION = " ,.;:!?&/()-"
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


@dataclass(frozen=True)
class TextColours:
    """The colours that a text names, and the rest of it.

    Attributes:
        values: values of the column `main_colour`.
        phrases: the parts of the text that name them, such as `in blue`.
        words: the rest of the text.
        quoted: the text with these parts in quotes, so that they are words too.
    """

    values: tuple[str, ...]
    phrases: tuple[str, ...]
    words: str
    quoted: str


def find_colours(text: str, colours: Sequence[str], is_word: Callable[[str], bool]) -> TextColours | None:
    """Find the colours in a text that filter products.

    A colour counts after "in", as in `dress in blue` or `in black and white`. Anywhere else it counts unless a product
    has it in its text: texts that name colours are searched for them as for any word. Text in quotes names none, nor
    does a part of a word such as `off-white`.

    Args:
        text: what the user typed.
        colours: the colours of the catalogue's products.
        is_word: returns whether the text of any product contains a word.

    Returns:
        The colours; None if the text names none.
    """
    by_name = {colour.casefold(): colour for colour in colours}
    for name, other_spelling in _SPELLINGS.items():
        if other_spelling in by_name:
            by_name.setdefault(name, by_name[other_spelling])
    if not by_name:
        return None
    colour = "|".join(re.escape(name) for name in sorted(by_name, key=len, reverse=True))
    run = rf"(?<![\w-])(?P<after_in>in\s+)?(?P<run>(?:{colour})(?:{_BETWEEN_COLOURS}(?:{colour}))*)(?![\w-])"
    values: list[str] = []
    phrases: list[str] = []
    words = quoted = ""
    end = 0
    for match in re.finditer(f"{_QUOTED}|{run}", text, re.IGNORECASE):
        # Regular expressions ignore more differences of case than `casefold` does, such as the dotless i.
        names = [name for name in re.findall(colour, match["run"] or "", re.IGNORECASE) if name.casefold() in by_name]
        if not names or not (match["after_in"] or not any(map(is_word, names))):
            continue
        values += [by_name[name.casefold()] for name in names]
        phrases.append(match[0])
        before, end = text[end : match.start()], match.end()
        words, quoted = f"{words}{before} ", f"{quoted}{before}“{match[0]}”"
    if not values:
        return None
    words = " ".join(f"{words}{text[end:]}".split()).strip(_PUNCTUATION)
    return TextColours(tuple(dict.fromkeys(values)), tuple(phrases), words, quoted + text[end:])


def allow_colours(conditions: Sequence[Condition], colours: Sequence[str]) -> tuple[Condition, ...]:
    """Allow colours: return conditions that products with one of these, or with a colour allowed before, meet.

    Args:
        conditions: conditions, which may allow colours already.
        colours: further values of the column `main_colour`.
    """
    others = tuple(each for each in conditions if each.column != COLOUR_COLUMN or not each.values)
    allowed = [value for each in conditions if each not in others for value in each.values]
    return (*others, Condition(COLOUR_COLUMN, (*allowed, *colours)))


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
