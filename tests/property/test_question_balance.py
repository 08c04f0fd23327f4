"""The choice of questions for the evaluation: answers evenly, and no option known by its wording."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.evaluation.balance import take_choices, take_evenly
from videoxl2.training.priors import OptionBalance, answer_label, wording
from videoxl2.training.qa import QA
from videoxl2.training.wording import LETTERS

SEEDED = settings(max_examples=80, deadline=None, derandomize=True)

plain = st.builds(
    lambda text, answer: QA("where", text, answer, (), None, ()),
    st.sampled_from(["Where is the dog?", "Where is the red car?", "Is the blue van near or far?"]),
    st.sampled_from(["left", "left", "left", "middle", "right"]),
)
OPTIONS = (
    "walks",
    "runs",
    "falls down",
    "loiters",
    "drops a bag",
    "a person in a red shirt",
    "a person in a blue shirt",
)


@st.composite
def choice(draw: st.DrawFn) -> QA:
    """Four options of which the first of the list is right wherever it is offered: the text gives it away."""
    options = draw(st.permutations(OPTIONS))[:4]
    right = options.index("walks") if "walks" in options else draw(st.integers(0, 3))
    return QA("choice", "What happens?", LETTERS[right], tuple(options), None, ())


@SEEDED
@given(items=st.lists(plain, max_size=40), number=st.integers(0, 40))
def test_answers_differ_by_one_at_most_while_they_last(items: list[QA], number: int) -> None:
    pairs = list(enumerate(items))
    taken = take_evenly(pairs, number)
    assert len(taken) == min(number, len(items)) and len({place for place, _ in taken}) == len(taken)
    there, got = Counter(map(answer_label, items)), Counter(answer_label(item) for _, item in taken)
    for name in there:
        assert got[name] == there[name] or got[name] >= max(got.values(), default=0) - 1, (there, got)
    assert take_evenly(pairs, number) == taken


@SEEDED
@given(items=st.lists(choice(), max_size=40), number=st.integers(0, 40))
def test_no_wording_is_right_much_more_often_than_one_in_four(items: list[QA], number: int) -> None:
    pairs = list(enumerate(items))
    taken = take_choices(pairs, number)
    assert len(taken) <= min(number, len(items)) and len({place for place, _ in taken}) == len(taken)
    assert bool(taken) == bool(items and number)
    balance = OptionBalance()
    for _, item in taken:
        balance.add(item)
    for name, right in balance.right.items():
        assert right <= balance.offered[name] / 4 + 1
    assert balance.right["walks"] <= 1, "what is right wherever it is offered is taken once"


def test_wordings_hide_colours_and_numbers() -> None:
    assert wording("A person in a red shirt walks") == wording("a person in a blue shirt walks")
    assert wording("12 to 20 seconds\nA. x") == "# to # seconds"


def test_a_guess_follows_what_was_right_before() -> None:
    balance = OptionBalance()
    for answer in ("B", "A", "B"):
        balance.add(QA("choice", "?", answer, ("runs", "walks", "falls", "loiters"), None, ()))
    assert balance.guess(QA("choice", "?", "A", ("drops a bag", "loiters", "walks", "runs"), None, ())) == "C"


def test_the_first_of_two_things_is_told_by_its_place() -> None:
    def order(answer: str) -> QA:
        return QA("order", "Which comes first: a dog running, or a car driving?", answer, (), None, ())

    assert [answer_label(order(text)) for text in ("a dog running", "a car driving", "yes")] == [
        "first",
        "second",
        "yes",
    ]
