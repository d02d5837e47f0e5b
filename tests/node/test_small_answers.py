"""Small answers in memory: those used last, and no more than there is memory for."""

from goblet_node.serve.small_answers import _OVERHEAD, SmallAnswer, SmallAnswers


def answer(size: int, *, has_pack: bool = True) -> SmallAnswer:
    """Return an answer of so many bytes."""
    return SmallAnswer(data=b"x" * size, has_pack=has_pack)


def kept(answers: SmallAnswers[int], names: range = range(10)) -> list[int]:
    """Return the names that are kept, without counting that as a use that matters."""
    return [name for name in names if answers.take(name) is not None]


def test_what_was_added_is_there_until_it_is_let_go() -> None:
    answers: SmallAnswers[int] = SmallAnswers(memory=1 << 20)
    answers.add(1, answer(3))
    answers.add(2, answer(4, has_pack=False))
    assert answers.take(1) == answer(3)
    assert answers.take(2) == answer(4, has_pack=False)
    answers.let_go(1)
    answers.let_go(7)
    assert kept(answers) == [2]
    answers.clear()
    assert kept(answers) == []


def test_those_used_longest_ago_make_way_and_overhead_counts() -> None:
    size = 1000
    answers: SmallAnswers[int] = SmallAnswers(memory=3 * (size + _OVERHEAD))
    for name in (1, 2, 3):
        answers.add(name, answer(size))
    assert answers.take(1) is not None
    answers.add(4, answer(size))
    assert kept(answers) == [1, 3, 4]


def test_what_is_replaced_or_let_go_gives_its_memory_back() -> None:
    size = 1000
    answers: SmallAnswers[int] = SmallAnswers(memory=2 * (size + _OVERHEAD))
    for _ in range(5):
        answers.add(1, answer(size))
        answers.add(2, answer(size))
        answers.let_go(2)
    answers.add(3, answer(size))
    assert kept(answers) == [1, 3]


def test_what_is_larger_than_all_the_memory_is_not_kept() -> None:
    answers: SmallAnswers[int] = SmallAnswers(memory=1000)
    answers.add(1, answer(1000))
    assert kept(answers) == []
    answers.add(2, answer(10))
    assert kept(answers) == [2]
