"""Scores of answers against cases counted by hand, and intervals against a bootstrap that is written out."""

import numpy as np
import pytest

from slim.core.statistics import RESAMPLES
from slim.evaluation.metrics import ACCURACY, KL, MACRO_F1, PERPLEXITY, Figure, assess
from slim.evaluation.scorers import label_in, normalized, result_of, rouge, same_result, scorer_of, word_f1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("the cat sat", (2 / 3, 4 / 7, 2 / 3)),  # 3 of 3 and of 6 words, 2 of 2 and of 5 pairs, 3 in order
        ("Sat, cat, the!", (2 / 3, 0, 4 / 9)),  # the same words, no pair, 2 in order
        ("The cats sat on the mats.", (1, 1, 1)),  # stems
        ("a dog", (0, 0, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_rouge_by_hand(answer: str, expected: tuple[float, float, float]) -> None:
    """Against "the cat sat on the mat"."""
    found = rouge(answer, "the cat sat on the mat")
    assert list(found) == ["rouge1", "rouge2", "rougeL"]
    assert tuple(found.values()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "solution", "right"),
    [
        ("So she makes $18 every day.", "9 * 2 = 18\n#### 18", True),
        ("It is 1,000.50 in all.", "#### 1000.5", True),
        ("18.00", "#### 18", True),
        ("#### 18 apples, not 7", "#### 18", True),
        ("First 18, then 7.", "#### 18", False),
        ("-3", "#### 3", False),
        (r"Thus \boxed{12} of 30.", r"\boxed{12}", True),
        ("no idea", "#### 18", False),
        ("", "#### 18", False),
        ("#### Paris.", "#### paris", True),
        ("nothing", "nothing in it to compare", False),
    ],
)
def test_the_final_answer_counts(answer: str, solution: str, right: bool) -> None:
    """The text behind #### or the last number counts, however it is written."""
    assert same_result(answer, solution) == float(right)


def test_results_are_numbers_where_they_can_be() -> None:
    """Otherwise the marked words, or nothing."""
    assert result_of("#### 1,234") == 1234
    assert result_of("#### yes") == "yes"
    assert result_of("yes") is None
    assert result_of("1.") == 1


LABELS = ("billing", "delivery", "not delivery")


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Billing.", "billing"),
        ("The desk is delivery, not billing", "delivery"),
        ("It is not delivery", "not delivery"),
        ("rebilling", None),
        ("", None),
    ],
)
def test_the_label_in_an_answer(answer: str, label: str | None) -> None:
    """As a whole, else the first that stands in it as words; the longer of two that start together."""
    assert label_in(answer, LABELS) == label


def test_words_are_compared_as_squad_does() -> None:
    """Case, punctuation and articles do not matter; repeated words count as often as both have them."""
    assert normalized(" The  Eiffel-Tower, a tower! ") == "eiffeltower tower"
    assert word_f1("the old old tower", "Tower, old") == pytest.approx(2 * 2 / (3 + 2))
    assert word_f1("nothing", "tower") == 0


def test_every_kind_has_its_own_scorer() -> None:
    """Free text has none; question and answer is scored as maths where every answer ends in a marked number."""
    names = {
        kind: [measure.name for measure in scorer.measures] if (scorer := scorer_of(kind, ["one", "two"])) else None
        for kind in ("summarisation", "classification", "maths", "questions", "reading", "text", "chat", "choices")
    }
    assert names == {
        "summarisation": ["rouge1", "rouge2", "rougeL"],
        "classification": ["accuracy", "macro_f1"],
        "maths": ["exact_match"],
        "questions": ["exact_match", "token_f1"],
        "reading": ["exact_match", "token_f1"],
        "text": None,
        "chat": None,
        "choices": None,
    }
    worked = scorer_of("questions", ["2 + 2\n#### 4", "#### 5"])
    assert worked is not None
    np.testing.assert_array_equal(worked.columns(["4", "4"], ["#### 4", "#### 5"])["exact_match"], [1, 0])
    scorer = scorer_of("reading", ["Paris"])
    assert scorer is not None
    columns = scorer.columns(["paris", "in Paris"], ["Paris", "Paris"])
    np.testing.assert_allclose(columns["exact_match"], [1, 0])
    np.testing.assert_allclose(columns["token_f1"], [1, 2 / 3])


GOLD = ["a", "a", "a", "b", "b", "c"]
SAID = ["a", "a", "b", "b", "no label", "a"]


def f1(gold: list[str], said: list[str], label: str) -> float:
    """From precision and recall."""
    hits = sum(one == other == label for one, other in zip(gold, said, strict=True))
    if not hits:
        return 0.0
    precision, recall = hits / said.count(label), hits / gold.count(label)
    return 2 * precision * recall / (precision + recall)


def test_macro_f1_by_hand() -> None:
    """The mean over labels, each as much as any other; a text that is not a label matches none."""
    scorer = scorer_of("classification", GOLD)
    assert scorer is not None
    columns = scorer.columns(SAID, GOLD)
    assert assess(ACCURACY, columns)[0].value == pytest.approx(100 * 3 / 6)
    by_hand = (2 * 2 / (3 + 3) + 2 * 1 / (2 + 2) + 0) / 3
    assert by_hand == pytest.approx(sum(f1(GOLD, SAID, label) for label in "abc") / 3)
    assert assess(MACRO_F1, columns)[0].value == pytest.approx(100 * by_hand)


def test_the_interval_of_macro_f1_resamples_rows() -> None:
    """Labels that no resampled row has, asked or answered, do not count in it."""
    scorer = scorer_of("classification", GOLD)
    assert scorer is not None
    figure, _ = assess(MACRO_F1, scorer.columns(SAID, GOLD), seed=3)
    drawn = []
    for times in np.random.default_rng(3).multinomial(6, [1 / 6] * 6, size=RESAMPLES):
        rows = np.repeat(np.arange(6), times)
        gold, said = [GOLD[row] for row in rows], [SAID[row] for row in rows]
        there = set(gold) | (set(said) & set(GOLD))
        drawn.append(100 * sum(f1(gold, said, label) for label in there) / len(there))
    assert (figure.low, figure.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))


def test_macro_f1_where_nothing_is_found() -> None:
    """Of no answer that is a label, of one row, and of a label that was answered and never asked for."""
    scorer = scorer_of("classification", ["a", "b", "c"])
    assert scorer is not None
    assert assess(MACRO_F1, scorer.columns(["x", "y"], ["a", "b"]))[0] == Figure(value=0, low=0, high=0)
    assert assess(MACRO_F1, scorer.columns(["b"], ["b"]))[0] == Figure(value=100)
    assert assess(MACRO_F1, scorer.columns(["a", "c"], ["a", "b"]))[0].value == pytest.approx(100 / 3)


def test_differences_are_paired() -> None:
    """The same resampled rows of both models, written out; the seed decides; hard rows cancel."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 50, 20).astype(float)
    hard = rng.normal(3, 1, 20)
    first = {"surprise": tokens * hard, "predicted": tokens}
    mine = {"surprise": tokens * (hard + 0.1 + 0.02 * rng.random(20)), "predicted": tokens}
    figure, difference = assess(PERPLEXITY, mine, first, seed=5)
    assert difference is not None
    assert difference.low is not None
    assert difference.high is not None
    values, differences = [], []
    for times in np.random.default_rng(5).multinomial(20, [1 / 20] * 20, size=RESAMPLES):
        rows = np.repeat(np.arange(20), times)
        one, other = (np.exp(of["surprise"][rows].sum() / tokens[rows].sum()) for of in (mine, first))
        values.append(one)
        differences.append(one - other)
    assert figure.value == pytest.approx(np.exp(mine["surprise"].sum() / tokens.sum()))
    assert (figure.low, figure.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    assert (difference.low, difference.high) == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])))
    assert difference.high - difference.low < (np.percentile(values, 97.5) - np.percentile(values, 2.5)) / 2
    assert assess(PERPLEXITY, mine, first, seed=5) == (figure, difference)
    assert assess(PERPLEXITY, mine, first, seed=6)[1] != difference


def test_kl_is_per_token() -> None:
    """Not the mean of the rows' means."""
    columns = {"kl": np.array([1.0, 8.0]), "predicted": np.array([1.0, 4.0])}
    assert assess(KL, columns)[0].value == pytest.approx(9 / 5)


def test_one_row_gives_no_interval() -> None:
    """And says so."""
    columns = {"accuracy": np.array([1.0])}
    figure, difference = assess(ACCURACY, columns, columns)
    assert figure == Figure(value=100)
    assert difference is not None
    assert difference.words(1, sign=True) == "+0.0 (one row, no interval)"


def test_figures_in_words() -> None:
    """With a real minus sign, and the sign of a gain where it is a difference."""
    assert Figure(value=-1.24, low=-2.9, high=0.4).words(1, sign=True) == "−1.2 [−2.9, +0.4]"
    assert Figure(value=1234.5, low=1000, high=2000).words(0) == "1,234 [1,000, 2,000]"


def test_a_broken_model_has_a_finite_perplexity() -> None:
    """Its negative log-likelihood may be beyond any exponent."""
    columns = {"surprise": np.array([1e6, 1e6]), "predicted": np.array([1.0, 1.0])}
    assert np.isfinite(assess(PERPLEXITY, columns)[0].value)
