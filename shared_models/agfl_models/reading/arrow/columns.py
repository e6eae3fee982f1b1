"""The columns of a table: which of them are text, how long that is, and their values as JSON would have them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

_AT_ONCE = 64 << 20  # bytes


def field_at(schema: pyarrow.Schema, column: str) -> pyarrow.Field | None:
    """Return the column of this name, or the field in one that a name with dots leads to; None if there is none."""
    if column in schema.names:
        return schema.field(column)
    root, *path = column.split(".")
    field = schema.field(root) if root in schema.names else None
    for name in path:
        if field is None or not _is_struct(field.type):
            return None
        index = field.type.get_field_index(name)
        field = field.type.field(index) if index >= 0 else None
    return field


def array_at(batch: pyarrow.RecordBatch, column: str) -> pyarrow.Array:
    """Return the values of what `field_at` found."""
    import pyarrow.compute as pc

    if column in batch.schema.names:
        return batch.column(column)
    root, *path = column.split(".")
    return pc.struct_field(batch.column(root), path)


def is_plain(field: pyarrow.Field) -> bool:
    """Whether JSON could hold the values: text, numbers, truth, nothing, and lists and structures of those."""
    from pyarrow import types

    if b"ARROW:extension:name" in (field.metadata or {}) or _is_extension(field.type):
        return False
    kind = field.type
    if types.is_dictionary(kind):
        return is_text(kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return is_plain(kind.value_field)
    if types.is_struct(kind):
        return all(is_plain(kind.field(i)) for i in range(kind.num_fields))
    return is_scalar(kind)


def is_scalar(kind: pyarrow.DataType) -> bool:
    """Whether the values are what JSON calls a string, a number, true, false or null."""
    from pyarrow import types

    numbers = types.is_integer(kind) or types.is_floating(kind)
    return bool(is_text(kind) or numbers or types.is_boolean(kind) or types.is_null(kind))


def is_text(kind: pyarrow.DataType) -> bool:
    """Whether the values are text, in whatever form."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return is_text(kind.value_type) and not types.is_dictionary(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def inner_name(field: pyarrow.Field) -> str | None:
    """Return what the first text in a structure is called."""
    kind = field.type
    inner = [kind.field(i) for i in range(kind.num_fields)] if _is_struct(kind) else []
    return next((str(one.name) for one in inner if is_text(one.type)), None)


def described(kind: pyarrow.DataType) -> str:
    """Return a type for a person: that text is read as a dictionary is our own business."""
    return " ".join(re.sub(r"dictionary<values=(\w*string\w*), indices=\w+, ordered=\d>", r"\1", str(kind)).split())


def holds_text(field: pyarrow.Field) -> bool:
    """Whether it is text, or a structure with some in it, and nothing that is not plain."""
    return is_plain(field) and _has_text(field.type)


def characters(array: pyarrow.Array) -> int:
    """Return how many characters the text in it has; nothing is copied out of a dictionary for that."""
    import pyarrow.compute as pc
    from pyarrow import types

    kind = array.type
    if types.is_dictionary(kind):
        used = pc.value_counts(array.indices.drop_null())
        lengths = _lengths(array.dictionary).take(used.field("values"))
        return int(pc.sum(pc.multiply(lengths.cast("int64"), used.field("counts"))).as_py() or 0)
    if types.is_struct(kind):
        return sum(map(characters, array.flatten()))
    if types.is_nested(kind):
        return characters(array.flatten())
    return int(pc.sum(_lengths(array)).as_py() or 0) if is_text(kind) else 0


def longest(array: pyarrow.Array) -> int:
    """Return the bytes of the longest text in a dictionary, of the fields of a structure their sum."""
    import pyarrow.compute as pc
    from pyarrow import types

    if _is_struct(array.type):
        return sum(longest(array.field(i)) for i in range(array.type.num_fields))
    is_dictionary = types.is_dictionary(array.type)
    return int(pc.max(pc.binary_length(array.dictionary)).as_py() or 0) if is_dictionary else 0


def check_values(array: pyarrow.Array, max_length: int) -> None:
    """Raise ValueError unless what an array says of its parts holds: nothing lies outside, and all text is UTF-8.

    max_length: bytes of text, which views may reach by lying over each other.
    """
    import pyarrow.compute as pc
    from pyarrow import types

    array.validate()
    if types.is_string_view(array.type) and (pc.sum(_view_lengths(array)).as_py() or 0) > max_length:
        raise ValueError(f"its views are of more than {max_length / 2**20:,.0f} MiB")
    array.validate(full=True)


def values(array: pyarrow.Array) -> list[Any]:
    """Return the values. A text that a dictionary has once is one object, however often it stands in the column."""
    import pyarrow.compute as pc
    from pyarrow import types

    if not types.is_dictionary(array.type):
        return list(array.to_pylist())
    used = pc.unique(array.indices.drop_null())
    texts = dict(zip(used.to_pylist(), array.dictionary.take(used).to_pylist(), strict=True))
    return [texts.get(index) for index in array.indices.to_pylist()]


def _lengths(array: pyarrow.Array) -> pyarrow.Array:
    """Return the characters of each text; of a view, whose parts may lie over each other, the bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import types

    if not types.is_string_view(array.type):
        return pc.utf8_length(array)
    lengths = _view_lengths(array)
    if (pc.sum(lengths).as_py() or 0) > _AT_ONCE:
        return lengths
    return pc.utf8_length(array.cast(pa.large_string()))


def _view_lengths(array: pyarrow.Array) -> pyarrow.Array:
    """Return the bytes of each view, which pyarrow does not tell: the first of the four numbers that it has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    sizes = np.frombuffer(array.buffers()[1], np.int32)[4 * array.offset :: 4][: len(array)].astype(np.int64)
    return pa.array(sizes, mask=pc.is_null(array).to_numpy(zero_copy_only=False))


def _has_text(kind: pyarrow.DataType) -> bool:
    if _is_struct(kind):
        return any(_has_text(kind.field(i).type) for i in range(kind.num_fields))
    return is_text(kind)


def _is_struct(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_struct(kind))


def _is_extension(kind: pyarrow.DataType) -> bool:
    import pyarrow

    return isinstance(kind, pyarrow.BaseExtensionType)
