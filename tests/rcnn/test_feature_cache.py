"""The cache of features: content comes back, damage is computed again, and the limit holds."""

import numpy as np
import pytest

from jaxcnn import UserError
from jaxcnn.rcnn.cache import Cache

LARGE = 10**9


def arrays(seed: int, rows: int = 20) -> dict[str, np.ndarray]:
    return {"features": np.random.default_rng(seed).normal(0, 1, (rows, 16)).astype(np.float16), "norms": np.ones(rows)}


def put(cache: Cache, *seeds: int) -> list[bool]:
    return [cache.put(f"key{seed}", arrays(seed)) for seed in seeds]


def test_what_was_put_comes_back_in_another_process(tmp_path):
    assert put(Cache(tmp_path / "new/features", LARGE), 0, 1) == [True, True]
    cache = Cache(tmp_path / "new/features", LARGE)
    found = cache.get("key1")
    assert found is not None
    for name, wanted in arrays(1).items():
        np.testing.assert_array_equal(found[name], wanted)
        assert found[name].dtype == wanted.dtype
    assert cache.get("another") is None
    assert cache.bytes == sum(path.stat().st_size for path in (tmp_path / "new/features").iterdir())


@pytest.mark.parametrize("damage", [b"", b"PK", "flip"])
def test_a_damaged_file_is_as_if_it_had_never_been_there(tmp_path, capsys, damage):
    put(Cache(tmp_path, LARGE), 0)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data) if damage == "flip" else damage)
    cache = Cache(tmp_path, LARGE)
    assert cache.get("key0") is None
    assert str(path) in capsys.readouterr().err
    assert put(cache, 0) == [True]
    assert cache.get("key0") is not None


def test_the_part_of_a_file_that_a_kill_leaves_is_none_of_the_cache(tmp_path):
    put(Cache(tmp_path, LARGE), 0)
    left = tmp_path / ".key1.npz.123"  # the name that an atomic write has before its move
    left.write_bytes(b"half")
    cache = Cache(tmp_path, LARGE)
    assert not left.exists(), "it would be bytes beyond the limit"
    assert not cache.claim("key1")
    assert cache.claim("key0")


def test_at_the_limit_the_oldest_files_that_are_not_used_go(tmp_path):
    put(cache := Cache(tmp_path, LARGE), 0, 1, 2)
    size = cache.bytes // 3
    cache = Cache(tmp_path, 3 * size + size // 2)
    assert cache.get("key0") is not None
    assert put(cache, 3) == [True]
    assert not cache.claim("key1"), "the oldest that was not used"
    assert cache.claim("key2")
    assert cache.bytes <= cache.limit


def test_where_all_files_are_used_further_ones_are_not_kept_and_this_is_said_once(tmp_path, capsys):
    put(cache := Cache(tmp_path, LARGE), 0)
    small = Cache(tmp_path / "small", int(2.5 * cache.bytes))
    assert put(small, 0, 1, 2, 3) == [True, True, False, False]
    assert small.refused == 2
    assert small.bytes <= small.limit
    assert capsys.readouterr().err.count("--cache-gb") == 1
    assert small.get("key0") is not None


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/features"):
        Cache(tmp_path / "file/features", LARGE)
