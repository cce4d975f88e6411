"""What the two batch kernels for authenticated encryption share: frames, spans, and the values that do not fit a batch."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lepton_airflow.encryption.kernels.blocks import BLOCK_ITEM, Layout, Words, gather, scatter, scatter_exactly
from lepton_airflow.encryption.kernels.columns import BinaryColumn, BinaryOutput, Bytes, Index, Span, item_of, windows
from lepton_airflow.encryption.kernels.failures import NotAuthentic

Voids = npt.NDArray[np.void]
Places = Iterable[tuple[int, int, int]]

_LONGEST_PREFIX = 8

#: The nonces or trailers of a cipher that has none.
NOTHING: Voids = np.empty(0, BLOCK_ITEM)


@dataclass(frozen=True)
class Batch:
    """Values that are encrypted or decrypted together.

    :ivar headers: (layout.count,) what precedes each encrypted value; before encryption the nonces
    :ivar blocks: (layout.blocks, 2) the values or the encrypted values; what is behind the end of a value is arbitrary
    :ivar trailers: (layout.count,) what follows each encrypted value, nothing before encryption
    """

    layout: Layout
    headers: Voids
    blocks: Words
    trailers: Voids

    def planes(self) -> Iterator[tuple[int, Words]]:
        """Each plane of blocks, as a view: worked on one by one they stay in the cache."""
        for plane in reversed(range(self.layout.planes)):
            yield plane, self.blocks[self.layout.plane(plane)]


class BatchAead(ABC):
    """A cipher under one key whose ciphertexts are ``prefix | header | encrypted value | trailer``.

    May be shared between threads.

    :param prefix: what each ciphertext begins with, at most 8 bytes: Tink's ``01 | key id``, or nothing
    """

    #: Bytes before and after the encrypted value; together at least 16, and one of them at least 15.
    header: ClassVar[int]
    trailer: ClassVar[int]
    #: Bytes of a random nonce: the whole header, or 0 for a deterministic cipher.
    nonce: ClassVar[int]
    #: Bytes up to which a value is worked on in the batch; beyond, one call per value is as fast.
    longest: ClassVar[int]
    #: A plane of blocks with fewer values is not worth its NumPy calls.
    fewest: ClassVar[int]

    def __init__(self, prefix: bytes) -> None:
        if len(prefix) > _LONGEST_PREFIX:
            raise ValueError(f"a prefix has at most {_LONGEST_PREFIX} bytes")
        self._prefix = prefix
        self._body = len(prefix) + self.header
        self._prefix_word = np.uint64(int.from_bytes(prefix.ljust(_LONGEST_PREFIX, b"\0"), "big"))
        self._start = np.dtype([("prefix", np.void, len(prefix)), ("header", np.void, self.header)])

    @property
    def overhead(self) -> int:
        """Bytes by which a ciphertext is longer than its value."""
        return self._body + self.trailer

    def decrypt(self, array: pa.Array) -> pa.Array:
        """Decrypt every value. Nothing leaves unless all are authentic.

        :param array: n ciphertexts or nulls with 32-bit or 64-bit offsets, possibly sliced
        :returns: n byte strings, null where ``array`` is null, with offsets as wide as the input's
        :raises NotAuthentic: values that are too short, begin with another prefix, were changed, or were encrypted under
            another key or with other associated data
        :raises UnsupportedType: ``array`` is of another type
        """
        column = BinaryColumn(array)
        output = BinaryOutput(column, change=-self.overhead)
        failed = [rows for span in column.spans() for rows in self._decrypt_span(column.data, span, output)]
        if failed:
            raise NotAuthentic(np.concatenate(failed))
        return output.finish()

    def _encrypt(self, array: pa.Array, *, nonces: bytes | None) -> pa.Array:
        """Encrypt every value, with nonces that are given for each row, or drawn."""
        column = BinaryColumn(array)
        output = BinaryOutput(column, change=self.overhead)
        given = None if nonces is None else np.frombuffer(nonces, np.uint8).reshape(column.rows, self.nonce)
        for span in column.spans():
            of_span = None if given is None else given[span.first : span.stop]
            if of_span is not None and span.present is not None:
                of_span = of_span[span.present]
            self._encrypt_span(column.data, span, output, nonces=of_span)
        return output.finish()

    def _encrypt_span(self, data: Bytes, span: Span, output: BinaryOutput, *, nonces: Bytes | None) -> None:
        """Encrypt the values of one span into ``output``.

        :param nonces: (m, nonce) if they are given
        """
        layout = Layout(span.lengths, longest=self.longest, fewest=self.fewest)
        count, total = layout.count, layout.total
        sources, targets = layout.ordered(span.starts), layout.ordered(output.starts(span))
        if nonces is None:
            # One call for all: a call for each value costs as much as its encryption.
            nonces = np.frombuffer(os.urandom(self.nonce * total), np.uint8).reshape(total, self.nonce)
        else:
            nonces = layout.ordered(nonces)
        given = nonces.view(item_of(self.nonce)).reshape(-1) if self.nonce else NOTHING
        starts = np.empty(total, self._start)
        self._words(starts)[:] = self._prefix_word  # and as much of the header as the rest of eight bytes
        if count:
            bodies = targets[:count] + self._body
            blocks = gather(data, sources[:count], layout)
            sealed = self._seal(Batch(layout, given[:count], blocks, NOTHING))
            # The last block of a value may spill over the 15 bytes that follow: its own trailer or the next value's prefix
            # and header, which are written after it.
            scatter(output.data, bodies, layout, sealed.blocks)
            starts["header"][:count] = sealed.headers
            if self.trailer:
                windows(output.data, self.trailer)[bodies + layout.lengths] = sealed.trailers
        if self.nonce:
            starts["header"][count:] = given[count:]
        windows(output.data, self._body)[targets] = starts.view(item_of(self._body))
        if count < total:
            lengths = layout.ordered(span.lengths)[count:].tolist()
            headers = (targets[count:] + len(self._prefix)).tolist()
            others = zip(sources[count:].tolist(), lengths, headers, strict=True)
            self._seal_each(data.data, output.data.data, others)

    def _decrypt_span(self, data: Bytes, span: Span, output: BinaryOutput) -> list[Index]:
        """Decrypt the values of one span into ``output``.

        :returns: row numbers of values that are not authentic
        """
        failed: list[Index] = []
        whole = span.lengths >= self.overhead
        if not whole.all():
            failed.append(span.rows(np.flatnonzero(~whole)))
            span = span.only(np.flatnonzero(whole))
        plain_lengths = span.lengths - self.overhead
        layout = Layout(plain_lengths, longest=self.longest, fewest=self.fewest)
        count, total = layout.count, layout.total
        sources, targets = layout.ordered(span.starts), layout.ordered(output.starts(span))
        starts = windows(data, self._body)[sources]
        authentic = self._have_prefix(starts)
        if count:
            bodies = sources[:count] + self._body
            headers = starts[:count].view(self._start)["header"].copy()
            trailers = windows(data, self.trailer)[bodies + layout.lengths] if self.trailer else NOTHING
            blocks, proven = self._open(Batch(layout, headers, gather(data, bodies, layout), trailers))
            authentic[:count] &= proven
            if authentic[:count].all():
                scatter_exactly(output.data, targets[:count], layout, blocks)
        if count < total:
            lengths = layout.ordered(plain_lengths)[count:].tolist()
            headers = (sources[count:] + len(self._prefix)).tolist()
            others = zip(headers, lengths, targets[count:].tolist(), strict=True)
            authentic[count:] &= self._open_each(data.data, output.data.data, others)
        if not authentic.all():
            failed.append(span.rows(layout.positions(np.flatnonzero(~authentic))))
        return failed

    def _have_prefix(self, starts: Voids) -> npt.NDArray[np.bool_]:
        """Whether each of the items ``prefix | header`` begins with the prefix."""
        if not self._prefix:
            return np.ones(len(starts), np.bool_)
        shift = np.uint64(8 * (_LONGEST_PREFIX - len(self._prefix)))
        same: npt.NDArray[np.bool_] = self._words(starts) >> shift == self._prefix_word >> shift
        return same

    @staticmethod
    def _words(starts: Voids) -> npt.NDArray[np.uint64]:
        """The first eight bytes of each item as a number, big-endian."""
        return np.ndarray((len(starts),), ">u8", buffer=starts, strides=(starts.itemsize,))

    @abstractmethod
    def _seal(self, batch: Batch) -> Batch:
        """Encrypt the values of a batch; its blocks may be overwritten."""

    @abstractmethod
    def _open(self, batch: Batch) -> tuple[Words, npt.NDArray[np.bool_]]:
        """The values' blocks, with anything behind the end of a value, and for each value whether it is authentic."""

    @abstractmethod
    def _seal_each(self, source: memoryview, target: memoryview, places: Places) -> None:
        """Encrypt values one by one.

        :param places: for each its first byte in ``source``, its length, and where in ``target`` its header begins, which is
            there already if it is a nonce
        """

    @abstractmethod
    def _open_each(self, source: memoryview, target: memoryview, places: Places) -> list[bool]:
        """Decrypt values one by one.

        :param places: for each where in ``source`` its header begins, its length, and its first byte in ``target``
        :returns: for each whether it is authentic
        """
