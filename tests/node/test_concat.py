"""concat: where a pack's entries lie, and what goes before them."""

from goblet_node.mirror.concat import body, log_header
from goblet_testing.packs import HandMade, pack_of


def test_header_body_and_trailer_are_the_whole_of_a_pack() -> None:
    pack = pack_of([HandMade(kind=3, content=b"x"), HandMade(kind=3, content=b"y")])
    entries = body(len(pack))
    assert log_header(2) + pack[entries.start : entries.stop] + pack[-20:] == pack
    assert len(body(len(pack_of([])))) == 0
