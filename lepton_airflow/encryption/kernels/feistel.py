"""The FF1 Feistel network (NIST SP 800-38G) on numerals: many strings of one length at a time.

Where half a string is a number below 2^63, which for digits means strings of up to 36, the ten rounds run on all strings at once:
the round function is one AES call per round for all of them and the arithmetic is NumPy's on 64-bit words. Longer strings are
enciphered one by one with Python's integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from lepton_airflow.encryption.kernels.blocks import BLOCK, AesBlocks, Words

Numerals = npt.NDArray[np.unsignedinteger]

_ROUNDS = 10
#: Sums of two residues and their differences must fit 64 bits.
_LARGEST_MODULUS = 1 << 63


@dataclass(frozen=True)
class Shape:
    """What FF1 derives from radix, length and tweak (SP 800-38G, algorithm 7, steps 1 to 5).

    :param length: n, numerals of a string
    """

    radix: int
    length: int
    tweak: bytes

    @property
    def left(self) -> int:
        """u, the numerals of the left half; the right half has v, the same or one more."""
        return self.length // 2

    @cached_property
    def moduli(self) -> tuple[int, int]:
        """radix^u for even rounds, radix^v for odd ones."""
        return self.radix**self.left, self.radix ** (self.length - self.left)

    @cached_property
    def number_bytes(self) -> int:
        """b, bytes that hold a right half."""
        return -(-(self.moduli[1] - 1).bit_length() // 8)

    @property
    def output_bytes(self) -> int:
        """d, bytes of the round function's output."""
        return 4 * -(-self.number_bytes // 4) + 4

    @cached_property
    def fixed_input(self) -> bytes:
        """P and Q up to the round's number and half: all of the round function's input that is the same in each round."""
        fixed = b"\x01\x02\x01" + self.radix.to_bytes(3, "big") + bytes([_ROUNDS, self.left % 256])
        fixed += self.length.to_bytes(4, "big") + len(self.tweak).to_bytes(4, "big") + self.tweak
        return fixed + bytes((-len(self.tweak) - self.number_bytes - 1) % BLOCK)


class Feistel:
    """FF1 under one AES key (16, 24 or 32 bytes), radix and tweak."""

    def __init__(self, key: bytes, *, radix: int, tweak: bytes) -> None:
        self._key = key
        self._aes = AesBlocks(key)
        self._radix = radix
        self._tweak = tweak

    def apply(self, numerals: Numerals, *, decrypt: bool) -> Numerals:
        """Encipher or decipher strings of one length.

        :param numerals: (g, n) each below the radix
        :returns: (g, n) of the same type
        """
        shape = Shape(self._radix, numerals.shape[1], self._tweak)
        if shape.moduli[1] < _LARGEST_MODULUS:
            return self._apply_to_all(numerals, shape, decrypt=decrypt)
        return self._apply_one_by_one(numerals, shape, decrypt=decrypt)

    def _apply_to_all(self, numerals: Numerals, shape: Shape, *, decrypt: bool) -> Numerals:
        left = _numbers(numerals[:, : shape.left], self._radix)
        right = _numbers(numerals[:, shape.left :], self._radix)
        # At most nine bytes of the input change: they and the end of the fixed input are its last block.
        fixed = shape.fixed_input
        whole = len(fixed) // BLOCK * BLOCK
        state = int.from_bytes(self._chain(fixed[:whole]), "big") ^ int.from_bytes(
            fixed[whole:].ljust(BLOCK, b"\0"), "big"
        )
        blocks = np.empty((len(numerals), 2), np.uint64)
        other, half = (right, left) if decrypt else (left, right)
        for number in reversed(range(_ROUNDS)) if decrypt else range(_ROUNDS):
            start = state ^ number << 8 * shape.number_bytes
            high, low = np.frombuffer(start.to_bytes(BLOCK, "big"), np.uint64)
            blocks[:, 0] = high
            np.bitwise_xor(half.astype(">u8").view(np.uint64), low, out=blocks[:, 1])
            modulus = shape.moduli[number % 2]
            residue = _residues(self._aes.encrypt(blocks), modulus, width=shape.output_bytes)
            # Adding or subtracting the modulus wraps round 2^64 exactly where it is not wanted.
            if decrypt:
                np.subtract(other, residue, out=other)
                np.add(other, np.uint64(modulus), out=residue)
            else:
                np.add(other, residue, out=other)
                np.subtract(other, np.uint64(modulus), out=residue)
            np.minimum(other, residue, out=other)
            other, half = half, other
        left, right = (half, other) if decrypt else (other, half)
        result = np.empty_like(numerals)
        _write_numerals(left, result[:, : shape.left], self._radix)
        _write_numerals(right, result[:, shape.left :], self._radix)
        return result

    def _apply_one_by_one(self, numerals: Numerals, shape: Shape, *, decrypt: bool) -> Numerals:
        result = np.empty_like(numerals)
        for row, string in enumerate(numerals.tolist()):
            left = _number(string[: shape.left], self._radix)
            right = _number(string[shape.left :], self._radix)
            other, half = (right, left) if decrypt else (left, right)
            for number in reversed(range(_ROUNDS)) if decrypt else range(_ROUNDS):
                output = self._round_output(shape, number, half)
                changed = other - output if decrypt else other + output
                other, half = half, changed % shape.moduli[number % 2]
            left, right = (half, other) if decrypt else (other, half)
            result[row, : shape.left] = _string(left, self._radix, shape.left)
            result[row, shape.left :] = _string(right, self._radix, shape.length - shape.left)
        return result

    def _round_output(self, shape: Shape, number: int, half: int) -> int:
        """y of algorithm 7, steps 6.ii to 6.iv."""
        tail = bytes([number]) + half.to_bytes(shape.number_bytes, "big")
        first = self._chain(shape.fixed_input + tail)
        output = first
        if shape.output_bytes > BLOCK:
            count = -(-shape.output_bytes // BLOCK)
            start = int.from_bytes(first, "big")
            more = b"".join((start ^ block).to_bytes(BLOCK, "big") for block in range(1, count))
            output += self._aes.encrypt(np.frombuffer(more, np.uint64).reshape(-1, 2)).tobytes()
        return int.from_bytes(output[: shape.output_bytes], "big")

    def _chain(self, message: bytes) -> bytes:
        """PRF (SP 800-38G, algorithm 6): the last block of a CBC chain that starts from zero; zero for an empty message."""
        chain = Cipher(algorithms.AES(self._key), modes.CBC(bytes(BLOCK))).encryptor()
        return chain.update(message)[-BLOCK:] if message else bytes(BLOCK)


def _residues(blocks: Words, modulus: int, *, width: int) -> Words:
    """The numbers in the first ``width`` (8 or 12) bytes of each block, modulo a number below 2^63."""
    divisor = np.uint64(modulus)
    numbers: Words = blocks.view(">u8")[:, 0].astype(np.uint64)
    numbers -= numbers // divisor * divisor  # several times faster than NumPy's remainder
    if width == 8:
        return numbers
    # 32 bits more. The quotient, below 2^32, is found in floating point and a little too small on purpose, by more than the
    # roundings can add: it is right or one too small, and what it leaves is below twice the modulus and fits 64 bits.
    more = blocks.view(">u8")[:, 1].astype(np.uint64) >> np.uint64(32)
    dividend = numbers.astype(np.float64) * 2.0**32 + more.astype(np.float64)
    quotient = (dividend * ((1 - 2.0**-50) / modulus)).astype(np.uint64)
    numbers = (numbers << np.uint64(32) | more) - quotient * divisor
    np.minimum(numbers, numbers - divisor, out=numbers)
    return numbers


def _numbers(numerals: Numerals, radix: int) -> Words:
    """NUM_radix (algorithm 1) of each row: the number that it writes, the most significant numeral first."""
    numbers = np.zeros(len(numerals), np.uint64)
    for column in range(numerals.shape[1]):
        np.multiply(numbers, np.uint64(radix), out=numbers)
        np.add(numbers, numerals[:, column], out=numbers)
    return numbers


def _write_numerals(numbers: Words, target: Numerals, radix: int) -> None:
    """STR_radix (algorithm 3) of each number into the rows of ``target``."""
    divisor = np.uint64(radix)
    for column in reversed(range(target.shape[1])):
        quotients = numbers // divisor
        target[:, column] = numbers - quotients * divisor
        numbers = quotients


def _number(numerals: list[int], radix: int) -> int:
    number = 0
    for numeral in numerals:
        number = number * radix + numeral
    return number


def _string(number: int, radix: int, length: int) -> list[int]:
    numerals = [0] * length
    for place in reversed(range(length)):
        number, numerals[place] = divmod(number, radix)
    return numerals
