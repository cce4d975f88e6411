"""The tree against RFC 6962's published vectors and an independent implementation of the RFC's own recursive definitions."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_airflow.audit.merkle import (
    Frontier,
    leaf_hash,
    leaf_hashes,
    node_hash,
    root,
    verify_consistency,
    verify_inclusion,
)

# The reference data of the Certificate Transparency projects for RFC 6962.
INPUTS = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
H1 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
H01 = "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
H23 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
H4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
H45 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
H67 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
H4567 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
LEAVES = [leaf_hash(data) for data in INPUTS]


@pytest.mark.parametrize("size", range(9))
def test_roots_equal_the_published_ones(size: int) -> None:
    assert root(LEAVES[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize(
    ("index", "size", "path"),
    [
        (0, 1, []),
        (0, 8, [H1, H23, H4567]),
        (5, 8, [H4, H67, ROOTS[4]]),
        (2, 3, [H01]),
        (1, 5, [ROOTS[1], H23, H4]),
    ],
)
def test_published_inclusion_proofs_hold(index: int, size: int, path: list[str]) -> None:
    proof, top = [bytes.fromhex(node) for node in path], bytes.fromhex(ROOTS[size])
    assert verify_inclusion(leaf=LEAVES[index], index=index, size=size, proof=proof, root_hash=top)


@pytest.mark.parametrize(
    ("old", "size", "path"),
    [(1, 1, []), (1, 8, [H1, H23, H4567]), (6, 8, [H45, H67, ROOTS[4]]), (2, 5, [H23, H4])],
)
def test_published_consistency_proofs_hold(old: int, size: int, path: list[str]) -> None:
    proof, before, after = [bytes.fromhex(node) for node in path], *(bytes.fromhex(ROOTS[each]) for each in (old, size))
    assert verify_consistency(old_size=old, old_root=before, size=size, root_hash=after, proof=proof)


# The RFC's definitions, written as it states them, on the data and not on hashes; shares no code with the package.
def mth(data: list[bytes]) -> bytes:
    if not data:
        return hashlib.sha256().digest()
    if len(data) == 1:
        return hashlib.sha256(b"\x00" + data[0]).digest()
    k = 1
    while k * 2 < len(data):
        k *= 2
    return hashlib.sha256(b"\x01" + mth(data[:k]) + mth(data[k:])).digest()


def path(m: int, data: list[bytes]) -> list[bytes]:
    if len(data) == 1:
        return []
    k = 1
    while k * 2 < len(data):
        k *= 2
    return [*path(m, data[:k]), mth(data[k:])] if m < k else [*path(m - k, data[k:]), mth(data[:k])]


def subproof(m: int, data: list[bytes], complete: bool) -> list[bytes]:
    if m == len(data):
        return [] if complete else [mth(data)]
    k = 1
    while k * 2 < len(data):
        k *= 2
    if m <= k:
        return [*subproof(m, data[:k], complete), mth(data[k:])]
    return [*subproof(m - k, data[k:], False), mth(data[:k])]


def flipped(proof: list[bytes], position: int) -> list[bytes]:
    return [*proof[:position], bytes([proof[position][0] ^ 1]) + proof[position][1:], *proof[position + 1 :]]


def data(size: int) -> list[bytes]:
    return [str(number).encode() for number in range(size)]


@given(st.lists(st.binary(max_size=20), max_size=70), st.integers(0, 70))
def test_the_root_and_the_frontier_are_the_rfcs_tree(values: list[bytes], split: int) -> None:
    frontier = Frontier()
    for value in values:
        frontier.append(leaf_hash(value))
    hashes = leaf_hashes(values)
    assert hashes == [leaf_hash(value) for value in values]
    together = Frontier()
    together.extend(hashes[:split])
    together.extend(hashes[split:])
    assert together.nodes == frontier.nodes
    assert frontier.root() == root(hashes) == mth(values)
    restored = Frontier(frontier.size, frontier.nodes)
    restored.append(leaf_hash(b"next"))
    assert restored.root() == mth([*values, b"next"])


@pytest.mark.parametrize("size", range(1, 35))
def test_every_inclusion_proof_of_the_rfc_proves_its_own_leaf_and_no_other(size: int) -> None:
    values = data(size)
    top = mth(values)
    for index in range(size):
        proof = path(index, values)
        for claimed in range(size + 1):
            leaf = leaf_hash(values[index])
            good = verify_inclusion(leaf=leaf, index=claimed, size=size, proof=proof, root_hash=top)
            assert good == (claimed == index)


@pytest.mark.parametrize("size", range(1, 35))
def test_every_consistency_proof_of_the_rfc_proves_its_two_trees_and_no_others(size: int) -> None:
    values = data(size)
    other = [b"x", *values[1:]]
    for old in range(1, size + 1):
        proof = subproof(old, values, True)
        sizes = {"old_size": old, "size": size}
        before, after = mth(values[:old]), mth(values)
        assert verify_consistency(**sizes, old_root=before, root_hash=after, proof=proof)
        assert not verify_consistency(**sizes, old_root=mth(values[: old - 1]), root_hash=after, proof=proof)
        assert not verify_consistency(**sizes, old_root=mth(other[:old]), root_hash=after, proof=proof)
        foreign = subproof(old, other, True)
        assert not verify_consistency(**sizes, old_root=before, root_hash=mth(other), proof=foreign)
        for position in range(len(proof)):
            assert not verify_consistency(**sizes, old_root=before, root_hash=after, proof=flipped(proof, position))


@pytest.mark.parametrize(
    ("proof", "root_of_nothing", "good"), [([], b"", True), ([], b"x", False), ([b""], b"", False)]
)
def test_every_tree_extends_the_empty_one_without_a_proof(
    proof: list[bytes], root_of_nothing: bytes, good: bool
) -> None:
    old_root = hashlib.sha256(root_of_nothing).digest()
    claim = verify_consistency(old_size=0, old_root=old_root, size=8, root_hash=bytes.fromhex(ROOTS[8]), proof=proof)
    assert claim == good


@given(st.integers(2, 40), st.data())
def test_a_damaged_proof_is_refused(size: int, drawn: st.DataObject) -> None:
    values = data(size)
    index = drawn.draw(st.integers(0, size - 1))
    proof = path(index, values)
    broken = list(proof)
    position = drawn.draw(st.integers(0, len(proof) - 1))
    match drawn.draw(st.sampled_from(["flip", "drop", "repeat", "append"])):
        case "flip":
            broken = flipped(proof, position)
        case "drop":
            del broken[position]
        case "repeat":
            broken.insert(position, broken[position])
        case "append":
            broken.append(leaf_hash(b""))
    leaf, top = leaf_hash(values[index]), mth(values)
    assert not verify_inclusion(leaf=leaf, index=index, size=size, proof=broken, root_hash=top)


def test_leaves_and_nodes_are_kept_apart() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)


@pytest.mark.parametrize(("size", "nodes"), [(3, [b"x" * 32]), (1, [b"short"]), (0, [b"x" * 32])])
def test_a_frontier_that_does_not_fit_its_size_is_refused(size: int, nodes: list[bytes]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Frontier(size, nodes)


def test_a_proof_for_a_leaf_or_tree_that_is_not_there_is_refused() -> None:
    top = bytes.fromhex(ROOTS[8])
    for index in (-1, 8):
        assert not verify_inclusion(leaf=LEAVES[index % 8], index=index, size=8, proof=path(0, INPUTS), root_hash=top)
    for old in (-1, 9):
        assert not verify_consistency(old_size=old, old_root=top, size=8, root_hash=top, proof=[])
