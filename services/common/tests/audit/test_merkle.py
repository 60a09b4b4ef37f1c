"""RFC 9162 trees: the published vectors, and every proof for every small tree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kars_common.audit import merkle

# The eight leaves and roots that Certificate Transparency implementations test against.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PROOFS = {  # (leaf, size): path
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
}
CONSISTENCY = {  # (old, new): path
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}


class MemoryTree:
    """All nodes of a tree, and its roots, by the definition in the RFC."""

    def __init__(self, entries: list[bytes]) -> None:
        self.leaves = [merkle.leaf_hash(entry) for entry in entries]

    def mth(self, start: int, end: int) -> bytes:
        if start == end:
            return merkle.EMPTY_ROOT
        if end - start == 1:
            return self.leaves[start]
        split = 1
        while split * 2 < end - start:
            split *= 2
        return merkle.node_hash(self.mth(start, start + split), self.mth(start + split, end))

    def read(self, level: int, index: int) -> bytes:
        return self.mth(index << level, (index + 1) << level)


def test_known_roots() -> None:
    grown = merkle.CompactRange()
    for leaf, root in zip(LEAVES, ROOTS, strict=True):
        grown.append(merkle.leaf_hash(leaf), [])
        assert grown.root().hex() == root


def test_empty_tree_has_the_hash_of_nothing() -> None:
    assert (
        merkle.CompactRange().root().hex()
        == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


@pytest.mark.parametrize(("leaf", "size"), list(PROOFS))
def test_known_inclusion_proofs(leaf: int, size: int) -> None:
    proof = merkle.inclusion_proof(MemoryTree(LEAVES).read, leaf, size)
    assert [h.hex() for h in proof] == PROOFS[leaf, size]


@pytest.mark.parametrize(("old", "new"), list(CONSISTENCY))
def test_known_consistency_proofs(old: int, new: int) -> None:
    proof = merkle.consistency_proof(MemoryTree(LEAVES).read, old, new)
    assert [h.hex() for h in proof] == CONSISTENCY[old, new]


def test_every_proof_of_every_small_tree_verifies_and_no_other() -> None:
    tree = MemoryTree([bytes([i]) for i in range(34)])
    roots = [tree.mth(0, size) for size in range(35)]
    for size in range(1, 35):
        for leaf in range(size):
            path = merkle.inclusion_proof(tree.read, leaf, size)
            assert merkle.verify_inclusion(tree.leaves[leaf], leaf, size, path, roots[size])
            assert not merkle.verify_inclusion(tree.leaves[leaf], leaf, size, path, roots[size - 1])
            assert not merkle.verify_inclusion(tree.leaves[leaf], leaf, size, [*path, bytes(32)], roots[size])
            assert not merkle.verify_inclusion(merkle.leaf_hash(b"x"), leaf, size, path, roots[size])
            assert not path or not merkle.verify_inclusion(
                tree.leaves[leaf], leaf, size, path[1:], roots[size]
            )
        for old in range(size + 1):
            path = merkle.consistency_proof(tree.read, old, size)
            assert merkle.verify_consistency(old, roots[old], size, roots[size], path)
            assert not merkle.verify_consistency(old, bytes(32), size, roots[size], path)
            if 0 < old < size:
                assert not merkle.verify_consistency(old, roots[old], size, bytes(32), path)
                assert not merkle.verify_consistency(old, roots[old], size, roots[size], path[:-1])
                assert not merkle.verify_consistency(old, roots[old], size, roots[size], [*path, bytes(32)])


@given(st.integers(0, 300), st.integers(0, 300), st.lists(st.binary(min_size=32, max_size=32), max_size=12))
def test_invented_proofs_do_not_verify(old: int, new: int, path: list[bytes]) -> None:
    assert not merkle.verify_consistency(old, b"\1" * 32, new, b"\2" * 32, path)
    assert not merkle.verify_inclusion(b"\1" * 32, old, new, path, b"\2" * 32)


def test_edge_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="edge nodes"):
        merkle.CompactRange(3, [bytes(32)])
