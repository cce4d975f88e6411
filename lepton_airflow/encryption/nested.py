"""Arrow arrays of structs and lists, with some of the fields inside changed and the rest left as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lepton_airflow.encryption.kernels.columns import INT32_MAX, Index
from lepton_airflow.encryption.paths import Path

#: Takes an array of n values and gives another array of n values.
Change = Callable[[pa.Array], pa.Array]


def with_leaves(array: pa.Array, changes: Mapping[Path, Change], *, like: pa.DataType | None = None) -> pa.Array:
    """``array`` with the arrays at some paths changed.

    Values that are hidden behind the null of an outer struct or list are not shown to ``changes``.

    :param array: n values, possibly sliced
    :param changes: by path below ``array``; the empty path is ``array`` itself
    :param like: the type from which changed fields inside take their metadata, if it is not to stay as it is
    """
    if () in changes:
        return changes[()](array)
    if pa.types.is_struct(array.type):
        return _with_fields(array, changes, like)
    return _with_elements(array, changes, like)


def type_with_leaves(kind: pa.DataType, changes: Mapping[Path, Callable[[pa.DataType], pa.DataType]]) -> pa.DataType:
    """The type of what :func:`with_leaves` gives."""
    if () in changes:
        return changes[()](kind)
    if pa.types.is_struct(kind):
        fields = []
        for field in kind:
            below = {path[1:]: change for path, change in changes.items() if path[0] == field.name}
            fields.append(field.with_type(type_with_leaves(field.type, below)) if below else field)
        return pa.struct(fields)
    element = kind.value_field.with_type(type_with_leaves(kind.value_type, changes))
    return pa.large_list(element) if pa.types.is_large_list(kind) else pa.list_(element)


def lengths_of(array: pa.Array) -> Index:
    """(n,) elements of each list, 0 for a null."""
    lengths = pc.fill_null(pc.list_value_length(array).cast(pa.int64()), 0)
    numbers: Index = lengths.to_numpy(zero_copy_only=False)
    return numbers


def _with_fields(array: pa.Array, changes: Mapping[Path, Change], like: pa.DataType | None) -> pa.Array:
    seen = array.flatten()  # with the nulls of the struct itself
    children, fields = [], []
    for position, field in enumerate(array.type):
        below = {path[1:]: change for path, change in changes.items() if path[0] == field.name}
        child = array.field(position)
        if below:
            inner = None if like is None else like.field(position)
            child = with_leaves(seen[position], below, like=None if inner is None else inner.type)
            field = field if inner is None else field.with_metadata(inner.metadata)
            if not field.nullable and child.null_count:
                child = _without_validity(child)
        children.append(child)
        fields.append(field.with_type(child.type))
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(children, fields=fields, mask=mask)


def _with_elements(array: pa.Array, changes: Mapping[Path, Change], like: pa.DataType | None) -> pa.Array:
    large = pa.types.is_large_list(array.type)
    elements = with_leaves(array.flatten(), changes, like=None if like is None else like.value_type)
    offsets = np.concatenate([[0], np.cumsum(lengths_of(array))])
    large = large or int(offsets[-1]) > INT32_MAX
    element = array.type.value_field.with_type(elements.type)
    kind = pa.large_list(element) if large else pa.list_(element)
    width = pa.int64() if large else pa.int32()
    mask = array.is_null() if array.null_count else None
    build = pa.LargeListArray if large else pa.ListArray
    return build.from_arrays(pa.array(offsets, width), elements, type=kind, mask=mask)


def _without_validity(array: pa.Array) -> pa.Array:
    """The same values, and anything in place of nulls: for a field that has none, inside a struct that is null."""
    array = pa.concat_arrays([array])
    buffers = array.buffers()
    if pa.types.is_struct(array.type):
        children = [array.field(position) for position in range(array.type.num_fields)]
        return pa.Array.from_buffers(array.type, len(array), [None], children=children)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return pa.Array.from_buffers(array.type, len(array), [None, buffers[1]], children=[array.values])
    return pa.Array.from_buffers(array.type, len(array), [None, *buffers[1:]])
