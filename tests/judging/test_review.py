"""A judgement read pair by pair: marked words, filters, the sort, and HTML that no output can write."""

import random
import re
from html.parser import HTMLParser

import pytest

from slim.judging.pair_html import named_pair, pair
from slim.judging.review import MOST_MATCHES, Wanted, by_disagreement, chosen, disagreement, reference_scores, table
from slim.judging.review import word_diff as diff
from slim.judging.votes import Votes
from tests.judgements import compared, judgement

EVIL = "<script>alert(1)</script> **bold** <img src=x onerror=alert(2)> `code` &lt; $x$ </div><style>*{}</style>"


def test_the_marked_words_are_those_that_the_other_lacks() -> None:
    assert diff("the cat sat", "the dog sat down") == (
        [("the ", False), ("cat", True), (" sat", False)],
        [("the ", False), ("dog", True), (" sat ", False), ("down", True)],
    )
    assert diff("one two three", "one") == ([("one ", False), ("two three", True)], [("one", False)])
    assert diff("", "new words") == ([], [("new words", True)])


def test_white_space_alone_makes_no_difference() -> None:
    assert diff("a  b\n", "a\nb") == ([("a  b\n", False)], [("a\nb", False)])


def test_the_pieces_join_to_the_whole_text_and_the_rest_is_common() -> None:
    """Over random texts, by a reference of its own: without what is marked both texts are the same words."""
    chance = random.Random(0)
    for _ in range(200):
        one, other = (
            "".join(chance.choice(["a", "b", "<c>", " ", "\n", "  ", "d"]) for _ in range(chance.randrange(30)))
            for _ in range(2)
        )
        first, second = diff(one, other)
        assert ("".join(text for text, _ in first), "".join(text for text, _ in second)) == (one, other)
        left = ["".join(text for text, lacking in pieces if not lacking).split() for pieces in (first, second)]
        assert left[0] == left[1]


def test_answers_that_loop_are_left_unmarked() -> None:
    """Comparing them would take minutes; each is then one piece."""
    one, other = "a b c " * 1000, "a b " * 1500
    assert MOST_MATCHES < 1000 * 1500
    assert diff(one, other) == ([(one, False)], [(other, False)])


PAIRS = judgement(
    [
        compared("oo", "short", "a longer answer", question="Where is the Harbour?"),
        compared("pp", "x" * 40, "y", reference="the truth"),
        compared("op", "one", "two"),
        compared("tt", "same", "same"),
        compared("xo", "a", "b"),
    ]
)


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        (Wanted(), [0, 1, 2, 3, 4]),
        (Wanted(judgments=frozenset({"tie"})), [2, 3]),
        (Wanted(judgments=frozenset({"tie"}), flip=True), [2]),
        (Wanted(flip=False), [0, 1, 3, 4]),
        (Wanted(judgments=frozenset({"error", "pruned_model"})), [1, 4]),
        (Wanted(longest=(15, 40)), [0, 1]),
        (Wanted(longest=(16, 39)), []),
        (Wanted(text=" hARBOUR "), [0]),
        (Wanted(text="TRUTH"), [1]),
        (Wanted(text="t it is"), [3]),
        (Wanted(text="refusal"), [4]),
    ],
)
def test_filters(wanted: Wanted, places: list[int]) -> None:
    assert chosen(PAIRS, wanted) == places


def test_disagreement_by_hand() -> None:
    """Positive where the loser is closer to the reference; half of it for a tie."""
    won, lost, tied = (compared(said, "a", "b") for said in ("pp", "oo", "tt"))
    assert disagreement(won, (0.75, 0.25)) == 0.5
    assert disagreement(won, (0.25, 0.75)) == -0.5
    assert disagreement(lost, (0.25, 0.75)) == 0.5
    assert disagreement(tied, (0.75, 0.25)) == disagreement(tied, (0.25, 0.75)) == 0.25


def test_the_most_contradicted_verdict_comes_first() -> None:
    reference = "red green blue white"
    found = judgement(
        [
            compared("pp", "nothing", reference, reference=reference),  # the reference agrees
            compared("oo", "nothing", reference, reference=reference),  # it says the opposite
            compared("tt", "nothing", reference, reference=reference),
            compared("pp", "no reference", "at all"),
            compared("xx", "nothing", reference, reference=reference),
            compared("pp", "red green", "red", reference=reference),  # opposite, but closely
        ]
    )
    scores = reference_scores(found)
    assert scores[0] == (0, 1)
    assert scores[5] == pytest.approx((2 / 3, 2 / 5))
    assert 3 not in scores
    assert by_disagreement(found, range(6), scores) == [1, 2, 5, 0, 3, 4]


def test_the_table_has_all_of_it() -> None:
    rows = table(PAIRS, {1: (0.5, 0.25)}, {1: "tie"})
    assert len(rows) == 5
    one = rows[1]
    assert (one["original_answer"], one["pruned_answer"], one["judgment"]) == ("x" * 40, "y", "pruned_model")
    assert (one["original_first_verdict"], one["pruned_first_reason"]) == ("pruned_model", "p it is")
    assert (one["original_score"], one["pruned_score"], one["vote"]) == (0.5, 0.25, "tie")
    assert rows[2]["flip"] is True
    assert (rows[4]["original_first_verdict"], rows[4]["original_first_reason"]) == (None, "refusal")
    assert (rows[0]["vote"], rows[0]["original_score"]) == (None, None)


class Elements(HTMLParser):
    """Elements and text of HTML as a browser reads it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.said = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.said += data


def test_outputs_show_as_text() -> None:
    """Whatever a model, a judge or a row says, no element of its own comes of it, and every sign of it is shown."""
    one = compared("xx", f"first {EVIL}", f"second {EVIL} more", question=EVIL, reference=EVIL)
    one = one.model_copy(
        update={"orders": tuple(order.model_copy(update={"failure": EVIL, "raw": EVIL}) for order in one.orders)}
    )
    shown = Elements(named_pair(0, one, Votes(), None))
    assert shown.tags <= {"div", "h4", "h5", "p", "b", "em", "mark"}
    assert shown.attributes == {"class"}
    assert shown.said.count(EVIL) == 8  # question, two answers, reference, and twice each order


def test_a_blind_pair_names_no_model() -> None:
    """The HTML of two unnamed answers is the same but for the answers when they change places."""
    one = compared("pp", "first answer here", "second answer there", reference="truth")
    sides = diff(one.response1, one.response2)
    there = pair("Row 1", one.question, one.reference, [("Answer A", sides[0], "one"), ("Answer B", sides[1], "one")])
    back = pair("Row 1", one.question, one.reference, [("Answer A", sides[1], "one"), ("Answer B", sides[0], "one")])
    assert not re.search("original|pruned|better|it is", there)
    swapped = {"first": "second", "second": "first", "here": "there", "there": "here"}
    assert re.sub(r"\b(first|second|here|there)\b", lambda word: swapped[word[0]], there) == back
