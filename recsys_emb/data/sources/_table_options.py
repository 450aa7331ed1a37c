"""The schema of ``table``: which column is what."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from recsys_emb.data.schema import CategoricalField, SequenceField
from recsys_emb.data.sources._fields import DenseColumn, Ratios, RawFields, SourceOptions

_NAME = r"^[A-Za-z_][A-Za-z0-9_.-]*$"
_SEPARATOR = "between the values of a text; lists in brackets, and of Parquet, need none"


Value = bool | int | float | str


def _several(given: Any) -> Any:
    return given if isinstance(given, (list, tuple)) else () if given is None else (given,)


Values = Annotated[tuple[Value, ...], BeforeValidator(_several)]


class LabelSpec(SourceOptions):
    """Which column says what was clicked; a bare text in the YAML is its name."""

    column: str = Field(description="of 0 and 1, or false and true, where the other keys are absent")
    positive: Values = Field((), description="the value of a click, such as Y, or a list of such values")
    negative: Values = Field((), description="the value of no click, or a list; absent: all others but a missing one")

    @model_validator(mode="before")
    @classmethod
    def _bare_column(cls, data: Any) -> Any:
        return {"column": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _apart(self) -> Self:
        both = sorted(str(v) for v in set(self.positive) & set(self.negative))
        if both:
            raise ValueError(f"{both[0]!r} cannot be both positive and negative")
        if self.negative and not self.positive:
            raise ValueError("negative needs positive, the value of a click, beside it")
        return self


class _Column(SourceOptions):
    """A field; a bare text in the YAML is its name."""

    name: str = Field(description="of the field; a bare text in place of the mapping is the name")
    column: str = Field("", description="where it is read from; absent: its name")

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, data: Any) -> Any:
        return {"name": data} if isinstance(data, str) else data

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        if not re.fullmatch(_NAME, value):
            how = f"{{name: {plain_name(value)}, column: {value!r}}}"
            raise ValueError(f"{value!r} is no name of a field (letters, digits, '_', '-' and '.'); write {how}")
        return value

    @property
    def source_column(self) -> str:
        return self.column or self.name


def plain_name(column: str) -> str:
    """A field's name that is like the column's: ``user_id`` for ``user id``."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", column).strip("_") or "field"
    return plain if re.match(r"[A-Za-z_]", plain) else f"_{plain}"


class DenseSpec(_Column):
    """A numeric column."""

    transform: Literal["none", "standard", "log1p"] = Field(
        "standard", description="standard: mean 0, deviation 1; log1p: sign(x) log(1 + |x|) first; none: as it is"
    )


class CategoricalSpec(_Column):
    """A column of one value per row; fields with the same ``vocabulary`` share their ids."""

    vocabulary: str = Field(
        "", pattern=r"^[A-Za-z0-9_.-]*$", description="fields of one vocabulary share their ids; absent: the name"
    )


class MultiValuedSpec(CategoricalSpec):
    """A column of any number of values per row: a list column of a Parquet file, or text with a separator."""

    separator: str | None = Field(None, min_length=1, description=_SEPARATOR)


class SequenceSpec(_Column):
    """A behaviour history, oldest first; its vocabulary is that of ``target``, the field whose past values it lists."""

    target: str = Field(description="the categorical field whose past values it lists; they share their ids")
    max_length: int = Field(50, ge=1, description="the last so many entries are kept")
    aligned_with: str | None = Field(None, description="an earlier sequence of the same length in every row")
    separator: str | None = Field(None, min_length=1, description=_SEPARATOR)


def _moment(given: Any) -> Any:
    """A date of the YAML as text."""
    return given.isoformat() if isinstance(given, datetime.date) else given


class SplitStart(SourceOptions):
    """Where a split of a split by time begins."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=False, extra="forbid", frozen=True)

    start: Annotated[int | float | str, BeforeValidator(_moment)] = Field(
        alias="from", description="its first time, such as 2026-11-20 or 2026-11-20 12:00, or a number as in the column"
    )


class SplitSpec(SourceOptions):
    """How rows go to the splits: ``all`` to one, by a ``column`` of train, valid and test, by ``time``, else at random.

    A bare text in the YAML is the one split of all rows.
    """

    all: Literal["train", "valid", "test"] | None = Field(None, description="the split of every row; or split: test")
    column: str | None = Field(None, description="a column with the values train, valid and test")
    time: str | None = Field(None, description="a column to order the rows by, oldest first")
    time_format: str | None = Field(
        None, description="how texts of time are written, such as '%m/%d/%Y %H:%M'; absent: ISO 8601 or numbers"
    )
    valid: SplitStart | None = Field(None, description="of a split by time: {from: 2026-11-13}; rows before are train")
    test: SplitStart | None = Field(
        None, description="of a split by time: {from: 2026-11-20}; without valid, ratios divide the rows before"
    )
    ratios: Ratios = Field((0.8, 0.1, 0.1), description="relative sizes of train, valid and test")
    seed: int = Field(1, ge=0, lt=2**63, description="seed of a random split")

    @model_validator(mode="before")
    @classmethod
    def _bare_split(cls, data: Any) -> Any:
        return {"all": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [way for way in ("all", "column", "time") if getattr(self, way) is not None]
        if len(ways) > 1:
            raise ValueError(f"give {ways[0]} or {ways[1]}, not both")
        if self.time_format is not None and self.time is None:
            raise ValueError("time_format says how the texts of time are written; give time too")
        for key in ("valid", "test"):
            if getattr(self, key) is not None and self.time is None:
                raise ValueError(f"{key}.from is a time; name the column of times as time")
        if self.valid is not None and self.test is None:
            raise ValueError("valid.from needs test.from, where valid ends")
        return self


class TableOptions(SourceOptions):
    """Options of ``table``, usually in a YAML file."""

    label: LabelSpec = Field(description="column of 0 and 1, or a mapping that says which values are clicks")
    label_threshold: float | None = Field(None, description="when set, a label above it is a click, others are none")
    dense: tuple[DenseSpec, ...] = Field((), description="numeric columns")
    categorical: tuple[CategoricalSpec, ...] = Field((), description="columns of one value per row")
    multi_valued: tuple[MultiValuedSpec, ...] = Field((), description="columns of any number of values per row")
    sequences: tuple[SequenceSpec, ...] = Field((), description="behaviour histories, oldest first")
    weight: str | None = Field(None, description="column of sample weights")
    user: str | None = Field(None, description="categorical field that GAUC groups by")
    split: SplitSpec = Field(SplitSpec(), description="all in one, by column, by time or at random")
    separator: str | None = Field(None, description="of a text file; by its name when absent: tab for .tsv, else comma")
    null_values: tuple[str, ...] = Field((), description="texts that mean a missing value, beside the empty one")

    @field_validator("separator")
    @classmethod
    def _one_byte(cls, value: str | None) -> str | None:
        if value is not None and len(value.encode()) != 1:
            raise ValueError("must be a single ASCII character")
        return value

    @property
    def fields(self) -> tuple[_Column, ...]:
        """Everything that a model may see."""
        return (*self.dense, *self.categorical, *self.multi_valued, *self.sequences)

    @property
    def aligned(self) -> set[str]:
        """Sequences whose values belong to those of another one, position by position."""
        pairs = [(s.name, s.aligned_with) for s in self.sequences if s.aligned_with is not None]
        return {name for pair in pairs for name in pair}

    @model_validator(mode="after")
    def _roles_fit(self) -> Self:
        """A field that is the label, or that tells the split, would leak it into every figure."""
        roles = {"label": self.label.column, "weight": self.weight}
        if self.label.positive and self.label_threshold is not None:
            raise ValueError("give label.positive or label_threshold, not both")
        roles |= {"split.column": self.split.column, "split.time": self.split.time}
        named = {role: column for role, column in roles.items() if column is not None}
        for role, column in named.items():
            other = next((r for r, c in named.items() if c == column and r != role), None)
            if other is not None:
                raise ValueError(f"column {column!r} cannot be both {role} and {other}")
            field = next((f for f in self.fields if f.source_column == column), None)
            if field is not None and role in ("label", "split.column"):
                raise ValueError(f"field {field.name!r} is read from {column!r}, the column of {role}; leave it out")
        return self

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        names = [f.name for f in self.fields]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"field {twice[0]!r} is given twice")
        if not self.categorical and not self.multi_valued:
            raise ValueError("no field to embed: give categorical or multi_valued")
        single = [f.name for f in self.categorical]
        if self.user is not None and self.user not in single:
            raise ValueError(f"user {self.user!r} is not one of categorical: {', '.join(single)}")
        for i, sequence in enumerate(self.sequences):
            if sequence.target not in single:
                raise ValueError(f"sequence {sequence.name!r}: target {sequence.target!r} is not one of categorical")
            if sequence.aligned_with is not None:
                other = next((s for s in self.sequences[:i] if s.name == sequence.aligned_with), None)
                if other is None:
                    raise ValueError(f"sequence {sequence.name!r}: aligned_with must name an earlier sequence")
                if other.max_length != sequence.max_length:
                    raise ValueError(f"sequence {sequence.name!r}: max_length must be that of {other.name!r}")
        return self

    def raw_fields(self) -> RawFields:
        """The fields as the encoder wants them."""
        vocabulary = {f.name: f.vocabulary or f.name for f in (*self.categorical, *self.multi_valued)}
        single = [CategoricalField(name=f.name, vocabulary=vocabulary[f.name]) for f in self.categorical]
        multi = [
            CategoricalField(name=f.name, vocabulary=vocabulary[f.name], multi_valued=True) for f in self.multi_valued
        ]
        sequences = [
            SequenceField(
                name=f.name,
                vocabulary=vocabulary[f.target],
                target=f.target,
                max_length=f.max_length,
                aligned_with=f.aligned_with,
            )
            for f in self.sequences
        ]
        return RawFields(
            dense=tuple(DenseColumn(f.name, f.transform) for f in self.dense),
            categorical=(*single, *multi),
            sequences=tuple(sequences),
            user=self.user,
            weighted=self.weight is not None,
        )
