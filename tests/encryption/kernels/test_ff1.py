"""FF1 against NIST's samples and against a plain reading of the standard, value by value."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lepton_airflow.encryption.kernels.columns import SPAN_ROWS
from lepton_airflow.encryption.kernels.feistel import _residues
from lepton_airflow.encryption.kernels.ff1 import Ff1Kernel
from lepton_airflow.errors import InvalidData, SpecError, UnsupportedType

DIGITS = "0123456789"
LETTERS = DIGITS + "abcdefghijklmnopqrstuvwxyz"

# NIST, "FF1 Samples" (Cryptographic Standards and Guidelines, example values for SP 800-38G): key bytes, alphabet, tweak,
# plaintext, ciphertext. The keys are the first 16, 24 and 32 bytes of one string.
_KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3cef4359d8d580aa4f7f036d6f04fc6a94")
_SAMPLES = [
    (16, DIGITS, "", "0123456789", "2433477484"),
    (16, DIGITS, "39383736353433323130", "0123456789", "6124200773"),
    (16, LETTERS, "3737373770717273373737", "0123456789abcdefghi", "a9tv40mll9kdu509eum"),
    (24, DIGITS, "", "0123456789", "2830668132"),
    (24, DIGITS, "39383736353433323130", "0123456789", "2496655549"),
    (24, LETTERS, "3737373770717273373737", "0123456789abcdefghi", "xbj3kv35jrawxv32ysr"),
    (32, DIGITS, "", "0123456789", "6657667009"),
    (32, DIGITS, "39383736353433323130", "0123456789", "1001623463"),
    (32, LETTERS, "3737373770717273373737", "0123456789abcdefghi", "xs8a0azh2avyalyzuwd"),
]


@pytest.mark.parametrize("sample", range(1, 10))
def test_nist_samples_come_out_and_back(sample: int) -> None:
    key_bytes, alphabet, tweak, plaintext, ciphertext = _SAMPLES[sample - 1]
    kernel = Ff1Kernel(_KEY[:key_bytes], tweak=bytes.fromhex(tweak), alphabet=alphabet)
    assert kernel.encrypt(pa.array([plaintext] * 3)).to_pylist() == [ciphertext] * 3
    assert kernel.decrypt(pa.array([ciphertext] * 3)).to_pylist() == [plaintext] * 3


def ff1(key: bytes, tweak: bytes, radix: int, numerals: list[int], *, decrypt: bool = False) -> list[int]:
    """SP 800-38G, algorithms 7 and 8, step by step."""

    def aes(block: bytes) -> bytes:
        return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(block)

    def exclusive_or(x: bytes, y: bytes) -> bytes:
        return bytes(a ^ b for a, b in zip(x, y, strict=True))

    def prf(x: bytes) -> bytes:
        y = bytes(16)
        for j in range(0, len(x), 16):
            y = aes(exclusive_or(y, x[j : j + 16]))
        return y

    def num(x: list[int]) -> int:
        return sum(numeral * radix ** (len(x) - 1 - place) for place, numeral in enumerate(x))

    def string(x: int, m: int) -> list[int]:
        return [x // radix ** (m - 1 - place) % radix for place in range(m)]

    n, t = len(numerals), len(tweak)
    u = n // 2
    v = n - u
    a, b = numerals[:u], numerals[u:]
    bits = 0
    while 2**bits < radix**v:
        bits += 1
    size = -(-bits // 8)
    d = 4 * -(-size // 4) + 4
    p = bytes([1, 2, 1]) + radix.to_bytes(3, "big") + bytes([10, u % 256]) + n.to_bytes(4, "big") + t.to_bytes(4, "big")
    for i in reversed(range(10)) if decrypt else range(10):
        q = tweak + bytes((-t - size - 1) % 16) + bytes([i]) + num(a if decrypt else b).to_bytes(size, "big")
        r = prf(p + q)
        s = r
        for j in range(1, -(-d // 16)):
            s += aes(exclusive_or(r, j.to_bytes(16, "big")))
        y = int.from_bytes(s[:d], "big")
        m = u if i % 2 == 0 else v
        if decrypt:
            a, b = string((num(b) - y) % radix**m, m), a
        else:
            a, b = b, string((num(a) + y) % radix**m, m)
    return a + b


def test_the_reference_agrees_with_nist() -> None:
    for key_bytes, alphabet, tweak, plaintext, ciphertext in _SAMPLES:
        numerals = [alphabet.index(character) for character in plaintext]
        found = ff1(_KEY[:key_bytes], bytes.fromhex(tweak), len(alphabet), numerals)
        assert "".join(alphabet[numeral] for numeral in found) == ciphertext
        assert ff1(_KEY[:key_bytes], bytes.fromhex(tweak), len(alphabet), found, decrypt=True) == numerals


#: Alphabets of many sizes, ASCII and not, with characters of one to four bytes.
_ALPHABETS = [
    "01",
    DIGITS,
    "acgt",
    LETTERS,
    "".join(map(chr, range(33, 127))),
    "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "aé漢😀z",
    "".join(map(chr, range(0x4E00, 0x4E00 + 300))),
    "".join(map(chr, range(0x10000, 0x20000))),
]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    alphabet=st.sampled_from(_ALPHABETS),
    key=st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    tweak=st.binary(max_size=40),
    spread=st.sampled_from([0, 1, 5, 40]),
    extra=st.integers(0, 40),
    nulls=st.sampled_from([0.0, 0.3]),
    separated=st.booleans(),
    kind=st.sampled_from([pa.string(), pa.large_string()]),
    skip=st.integers(0, 9),
)
def test_the_kernel_equals_the_reference(
    seed: int,
    alphabet: str,
    key: bytes,
    tweak: bytes,
    spread: int,
    extra: int,
    nulls: float,
    separated: bool,
    kind: pa.DataType,
    skip: int,
) -> None:
    radix = len(alphabet)
    shortest = next(n for n in range(2, 25) if radix**n >= 1_000_000) + extra
    random = np.random.default_rng(seed)
    values: list[str | None] = []
    expected: list[str | None] = []
    for _ in range(14):
        numerals = random.integers(0, radix, size=shortest + int(random.integers(0, spread, endpoint=True))).tolist()
        blanks = [" " * int(separated and random.random() < 0.3) for _ in numerals]
        found = ff1(key, tweak, radix, numerals)
        missing = random.random() < nulls
        for column, row in ((values, numerals), (expected, found)):
            text = "".join(blank + alphabet[numeral] for blank, numeral in zip(blanks, row, strict=True))
            column.append(None if missing else text + "\t" * separated)
    kernel = Ff1Kernel(key, tweak=tweak, alphabet=alphabet, separators=" \t")
    array = pa.array(values, kind).slice(skip)
    encrypted = kernel.encrypt(array)
    encrypted.validate(full=True)
    assert encrypted.type == kind
    assert encrypted.to_pylist() == expected[skip:]
    decrypted = kernel.decrypt(encrypted)
    decrypted.validate(full=True)
    assert decrypted.equals(array)


@settings(max_examples=300, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 2**96 - 1), min_size=1, max_size=20),
    modulus=st.one_of(
        st.integers(1000, 2**63 - 1),
        st.integers(2**63 - 1000, 2**63 - 1),
        st.integers(2**32 - 1000, 2**32 + 1000),
        st.sampled_from([10**n for n in range(3, 19)]),
    ),
)
@example(numbers=[2**96 - 1, 0, 1], modulus=2**63 - 1)
@example(numbers=[2**96 - 1, 0, 1], modulus=1000)
def test_numbers_of_the_round_function_are_reduced_exactly(numbers: list[int], modulus: int) -> None:
    multiples = [number // modulus * modulus for number in numbers]
    numbers = [n for n in numbers + multiples + [m - 1 for m in multiples] if n >= 0]
    for width in (8, 12):
        numbers = [number % 256**width for number in numbers]
        data = b"".join(number.to_bytes(width, "big").ljust(16, b"\xa5") for number in numbers)
        found = _residues(np.frombuffer(data, np.uint64).reshape(-1, 2), modulus, width=width)
        assert found.tolist() == [number % modulus for number in numbers]


def test_separators_keep_their_places() -> None:
    kernel = Ff1Kernel(bytes(32), separators="-() +")
    values = ["4111-1111-1111-1111", "+49 (30) 901820", "  123456", "123456", "1-2-3-4-5-6-7-"]
    plain = ["4111111111111111", "4930901820", "123456", "123456", "1234567"]
    encrypted = kernel.encrypt(pa.array(values)).to_pylist()
    assert [[c for c in text if c in DIGITS] for text in encrypted] == [
        list(text) for text in kernel.encrypt(pa.array(plain)).to_pylist()
    ]
    for value, text in zip(values, encrypted, strict=True):
        assert [c if c in "-() +" else "0" for c in text] == [c if c in "-() +" else "0" for c in value]
    assert kernel.decrypt(pa.array(encrypted)).to_pylist() == values


def test_digits_of_every_length_come_back_through_both_paths() -> None:
    # Up to 36 digits go through the batch, more through Python's integers; 36 and 37 are the border.
    kernel = Ff1Kernel(bytes(range(32)), tweak=b"column")
    random = np.random.default_rng(1)
    for length in [*range(6, 45), 200, 4096]:
        values = ["".join(map(str, random.integers(0, 10, length))), "9" * length, "0" * length]
        encrypted = kernel.encrypt(pa.array(values)).to_pylist()
        assert kernel.decrypt(pa.array(encrypted)).to_pylist() == values
        if length < 250:
            expected = ff1(bytes(range(32)), b"column", 10, [int(digit) for digit in values[0]])
            assert encrypted[0] == "".join(map(str, expected))


def test_a_domain_is_permuted() -> None:
    kernel = Ff1Kernel(bytes(32))
    domain = pa.array([f"{number:06d}" for number in range(1_000_000)])
    encrypted = kernel.encrypt(domain)
    assert len(encrypted.unique()) == 1_000_000
    assert kernel.decrypt(encrypted).equals(domain)


def test_key_and_tweak_matter() -> None:
    values = pa.array([f"{number:016d}" for number in range(100)])
    results = [
        Ff1Kernel(key, tweak=tweak).encrypt(values).to_pylist()
        for key in (bytes(32), bytes(31) + b"\x01")
        for tweak in (b"", b"a", b"b", b"a" * 100)
    ]
    assert len({row for result in results for row in result}) == 800


def test_arrays_without_values_and_long_arrays() -> None:
    kernel = Ff1Kernel(bytes(32))
    for kind in (pa.string(), pa.large_string()):
        for array in (pa.array([], kind), pa.array([None] * 30, kind), pa.array(["123456"] * 4, kind).slice(4)):
            assert kernel.encrypt(array).equals(array)
    values: list[str | None] = [f"{number:09d}"[: 6 + number % 4] for number in range(2 * SPAN_ROWS + 5)]
    values[100::7] = [None] * len(values[100::7])
    array = pa.array(values).slice(3)
    encrypted = kernel.encrypt(array)
    encrypted.validate(full=True)
    assert kernel.decrypt(encrypted).equals(array)
    assert encrypted[SPAN_ROWS].as_py() == kernel.encrypt(array.slice(SPAN_ROWS, 1))[0].as_py()


def test_text_hidden_under_nulls_does_not_reach_the_output() -> None:
    text = b"123456" + b"SECRET" + b"654321"
    offsets = pa.py_buffer(np.array([0, 6, 12, 18], np.int32))
    array = pa.Array.from_buffers(pa.string(), 3, [pa.py_buffer(b"\x05"), offsets, pa.py_buffer(text)])
    encrypted = Ff1Kernel(bytes(32)).encrypt(array)
    assert encrypted[1].as_py() is None
    assert b"SECRET" not in encrypted.buffers()[2].to_pybytes()
    assert Ff1Kernel(bytes(32)).decrypt(encrypted).to_pylist() == ["123456", None, "654321"]


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("12345", "fewer than 6 characters"),
        ("", "fewer than 6 characters"),
        ("1-2-3-4-5", "fewer than 6 characters"),
        ("7" * 4097, "more than 4,096 characters"),
        ("123x456", "neither in the alphabet nor a separator"),
        ("123456٣", "neither in the alphabet nor a separator"),
    ],
)
def test_values_that_ff1_does_not_take_are_refused_and_not_repeated(value: str, rule: str) -> None:
    kernel = Ff1Kernel(bytes(32), separators="-", place="clinic.patients, column phone")
    array = pa.array(["1234567", value, None, "1234567", value])
    for apply in (kernel.encrypt, kernel.decrypt):
        with pytest.raises(InvalidData, match=rule) as caught:
            apply(array)
        text = str(caught.value)
        assert text.startswith("clinic.patients, column phone: There are values (2 in this batch)")
        assert not value or value not in text


def test_the_smallest_domain_follows_the_radix() -> None:
    for alphabet, shortest in (("01", 20), (DIGITS, 6), (LETTERS, 4), ("".join(map(chr, range(0x4E00, 0x5200))), 2)):
        kernel = Ff1Kernel(bytes(32), alphabet=alphabet)
        kernel.encrypt(pa.array([alphabet[1] * shortest]))
        with pytest.raises(InvalidData):
            kernel.encrypt(pa.array([alphabet[1] * (shortest - 1)]))


@pytest.mark.parametrize(
    ("alphabet", "separators"),
    [("", ""), ("0", ""), ("0110", ""), (DIGITS, "5"), (DIGITS, "--"), ("01\ud800", "")],
)
def test_alphabets_that_are_none_are_refused(alphabet: str, separators: str) -> None:
    with pytest.raises(SpecError, match="clinic"):
        Ff1Kernel(bytes(32), alphabet=alphabet, separators=separators, place="clinic.patients, column phone")


def test_other_types_and_keys_are_refused() -> None:
    with pytest.raises(UnsupportedType, match="takes text, not int64"):
        Ff1Kernel(bytes(32)).encrypt(pa.array([1234567]))
    with pytest.raises(UnsupportedType):
        Ff1Kernel(bytes(32)).decrypt(pa.array([b"1234567"]))
    with pytest.raises(ValueError, match="16, 24 or 32"):
        Ff1Kernel(bytes(31))


def test_threads_may_share_a_kernel() -> None:
    kernel = Ff1Kernel(bytes(32))
    arrays = [pa.array([f"{number * (seed + 1):012d}" for number in range(3000)]) for seed in range(16)]
    with ThreadPoolExecutor(8) as threads:
        decrypted = list(threads.map(kernel.decrypt, threads.map(kernel.encrypt, arrays)))
    assert all(left.equals(right) for left, right in zip(arrays, decrypted, strict=True))
