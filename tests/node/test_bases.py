"""bases: contents kept within a bound."""

from goblet_node.mirror.bases import BaseCache


def test_the_contents_used_last_are_kept() -> None:
    cache = BaseCache(limit=10)
    cache.keep(1, b"aaaa")
    cache.keep(2, b"bbbb")
    assert cache.get(1) == b"aaaa"
    cache.keep(3, b"cccc")
    assert [cache.get(number) for number in (1, 2, 3)] == [b"aaaa", None, b"cccc"]


def test_the_newest_is_kept_whatever_its_size() -> None:
    cache = BaseCache(limit=10)
    cache.keep(1, b"a")
    cache.keep(2, b"b" * 100)
    assert (cache.get(1), cache.get(2)) == (None, b"b" * 100)
    cache.keep(3, b"c")
    assert (cache.get(2), cache.get(3)) == (None, b"c")


def test_keeping_a_content_again_counts_it_once() -> None:
    cache = BaseCache(limit=10)
    for _ in range(5):
        cache.keep(1, b"aaaa")
    cache.keep(2, b"bbbb")
    assert cache.get(1) == b"aaaa"
