"""Graders against a hand-labelled table: SQuAD exact match, F1, containment, blank."""

import json
import math
import re
import string
import unicodedata

import pytest
from fixtures_seal import real
from hypothesis import example, given
from hypothesis import strategies as st

from seal_lib.generation.thoughts import without_thoughts
from seal_lib.grading.graders import contains, exact_match, f1, grade, is_blank, normalise, ungraded
from seal_lib.records import Question

# answer, gold, exact, F1, contains, blank
TABLE = [
    ("Paris", "Paris", 1, 1, 1, False),
    ("paris.", "Paris", 1, 1, 1, False),
    ("The Eiffel Tower", "eiffel tower", 1, 1, 1, False),
    ("  a\tcat \n", "the cat", 1, 1, 1, False),
    ("In Paris, France", "Paris", 0, 1 / 2, 1, False),  # P 1/3, R 1
    ("Paris", "Paris France", 0, 2 / 3, 0, False),  # P 1, R 1/2
    ("London", "Paris", 0, 0, 0, False),
    ("parish church", "Paris", 0, 0, 0, False),  # whole words only
    ("church of Notre Dame in Paris", "Notre-Dame", 0, 0, 0, False),  # hyphens vanish, they do not split
    ("state of the art", "state of art", 1, 1, 1, False),
    ("New York City", "York New", 0, 4 / 5, 0, False),  # containment needs the order
    ("cat cat", "cat", 0, 2 / 3, 1, False),  # a repeated word counts once
    ("1,000", "1000", 1, 1, 1, False),
    ("10000", "1000", 0, 0, 0, False),
    ("Beyoncé", "beyoncé", 1, 1, 1, False),
    ("Beyonce", "Beyoncé", 0, 0, 0, False),
    ("Angel", "an gel", 0, 0, 0, False),  # articles are words, not letters
    ("", "Paris", 0, 0, 0, True),
    (" \n", "Paris", 0, 0, 0, True),
    ("...", "Paris", 0, 0, 0, True),
    ("the", "Paris", 0, 0, 0, False),  # says something, and it is wrong
    ("", "the", 0, 0, 0, True),  # silence is never right, whatever the gold
    ("—", "Paris", 0, 0, 0, True),
    # a gold answer that the rule empties: articles count then, and else punctuation
    ("the", "the", 1, 1, 1, False),
    ("A", "A", 1, 1, 1, False),
    ("a.", "A", 1, 1, 1, False),
    ("The answer is A.", "A", 0, 2 / 5, 1, False),
    ("vitamin A", "A", 0, 2 / 3, 1, False),
    ("It is a dog", "A", 0, 2 / 5, 0, False),  # nearly every sentence has an "a"
    ("B", "A", 0, 0, 0, False),
    ("an", "A", 0, 0, 0, False),
    ("The The", "The The", 1, 1, 1, False),
    ("+", "+", 1, 1, 1, True),
    ("The sign is +.", "+", 0, 1 / 3, 1, False),
    ("minus", "+", 0, 0, 0, False),
    # scripts without spaces: a letter is a word
    ("北京", "北京", 1, 1, 1, False),
    ("答案是北京", "北京", 0, 4 / 7, 1, False),
    ("答案是北京。", "“北京”", 0, 4 / 7, 1, False),
    ("东京", "北京", 0, 1 / 2, 0, False),
    ("首都は東京です", "東京", 0, 4 / 9, 1, False),
    ("กรุงเทพมหานคร", "กรุงเทพ", 0, 2 / 3, 1, False),
    ("กี่", "ก", 0, 0, 0, False),  # a letter has its marks with it
    ("于2008年开放", "2008", 0, 1 / 3, 1, False),  # a number is one word
    ("于12008年开放", "2008", 0, 0, 0, False),
    # what is written in another way
    ("cafe\u0301", "café", 1, 1, 1, False),
    ("café", "cafe\u0301", 1, 1, 1, False),
    ("Da\u0323\u0302u", "Dậu", 1, 1, 1, False),
    ("\u1112\u1161\u11ab국", "한국", 1, 1, 1, False),
    ("１９９０", "1990", 1, 1, 1, False),
    ("١٩٩٠", "1990", 1, 1, 1, False),
    ("१९९०", "1990", 1, 1, 1, False),
    ("Ｐａｒｉｓ", "paris", 1, 1, 1, False),
    ("ｶﾞﾝ", "ガン", 1, 1, 1, False),
    ("STRASSE", "Straße", 1, 1, 1, False),
    ("ΟΔΟΣ", "οδος", 1, 1, 1, False),
    ("ﬁsh", "fish", 1, 1, 1, False),
    ("10²", "102", 0, 0, 0, False),  # … but a power is no digit
    ("½", "12", 0, 0, 0, False),
    ("Par\u200bis\ufeff", "Paris", 1, 1, 1, False),
    # optional marks: vowels, the line that lengthens a word, variant selectors of emoji
    ("\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f", "محمد", 1, 1, 1, False),
    ("كتـــاب", "كتاب", 1, 1, 1, False),
    ("\u0623\u064e\u062d\u0645\u062f", "\u0627\u0654\u062d\u0645\u062f", 1, 1, 1, False),
    ("أحمد", "احمد", 0, 0, 0, False),  # a hamza is a letter
    ("שָׁלוֹם", "שלום", 1, 1, 1, False),
    ("צה״ל", 'צה"ל', 1, 1, 1, False),
    ("❤\ufe0f", "❤", 1, 1, 1, True),
    ("İstanbul", "istanbul", 1, 1, 1, False),
    ("H₂O", "H2O", 1, 1, 1, False),
    ("10\u202f000 km", "10,000 km", 1, 1, 1, False),
    ("1990\u00a01991", "1990 1991", 1, 1, 1, False),
    # Hangul: particles are joined to the word
    ("서울입니다", "서울", 0, 4 / 7, 1, False),
    ("1990년에", "1990", 0, 1 / 2, 1, False),
    ("부산에", "서울", 0, 0, 0, False),
    # punctuation outside ASCII
    ("…", "...", 1, 1, 1, True),
    ("“Paris”", "Paris", 1, 1, 1, False),
    ("«Париж»!", "париж", 1, 1, 1, False),
    ("¿Madrid?", "Madrid", 1, 1, 1, False),
    ("don’t", "don't", 1, 1, 1, False),
    ("2008–2009", "2008-2009", 1, 1, 1, False),
    ("−5", "-5", 1, 1, 1, False),
    ("１，０００", "1,000", 1, 1, 1, False),
    ("Paris—the capital", "Paris", 0, 2 / 3, 1, False),
    ("Paris，France", "Paris", 0, 2 / 3, 1, False),
    ("दिल्ली।", "दिल्ली", 1, 1, 1, False),
    ("£5", "$5", 0, 0, 0, False),  # other signs stay: another currency is another answer
]


@pytest.mark.parametrize(("answer", "gold", "exact", "overlap", "inside", "blank"), TABLE)
def test_hand_labelled(answer: str, gold: str, exact: float, overlap: float, inside: float, blank: bool) -> None:
    assert exact_match(answer, gold) == exact
    assert f1(answer, gold) == pytest.approx(overlap, abs=1e-12)
    assert contains(answer, gold) == inside
    assert is_blank(answer) is blank


def test_grades_keep_their_order() -> None:
    for answer, gold, *_ in TABLE:
        assert exact_match(answer, gold) <= min(contains(answer, gold), f1(answer, gold)) <= 1


def test_normalise_is_idempotent_and_a_graded_answer_keeps_the_text_as_given() -> None:
    for answer, *_ in TABLE:
        assert normalise(normalise(answer)) == normalise(answer)
    (told,) = grade([(Question("Where?", "Paris"), "In Paris!")], "contains")
    assert (told.question, told.gold, told.text) == ("Where?", "Paris", "In Paris!")
    assert told.grades == {"exact": 0.0, "contains": 1.0, "f1": pytest.approx(2 / 3)} and not told.blank


def test_a_question_that_was_not_asked_has_no_grade_and_is_not_blank() -> None:
    one = ungraded(Question("Where?", "Paris"), "judge")
    assert {*one.grades} == {"exact", "contains", "f1", "judge"} and all(map(math.isnan, one.grades.values()))
    assert one.text == "" and not one.blank


def squad(text: str) -> str:
    """SQuAD v1.1's own normalisation, to compare with."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


@given(st.text(string.printable, max_size=60))
def test_on_ascii_normalisation_is_squads_to_the_letter(text: str) -> None:
    assert normalise(text) == squad(text)


WRITTEN = st.text(st.characters(exclude_categories=("Cs", "Cn", "Co", "Cc")), max_size=30)


@given(WRITTEN, WRITTEN)
@example("ǰ", "ΐ")
def test_grades_of_any_text_keep_their_order_and_do_not_hang_on_the_spelling(answer: str, gold: str) -> None:
    assert exact_match(answer, gold) <= min(contains(answer, gold), f1(answer, gold)) <= 1
    for form in ("NFC", "NFD"):
        same = unicodedata.normalize(form, gold)
        assert exact_match(same, gold) == float(bool(gold.strip()) and exact_match(gold, gold))
        assert contains(answer, same) == contains(answer, gold) and f1(answer, same) == f1(answer, gold)
    assert contains(f"{gold} {answer}", gold) == exact_match(gold, gold)


def test_released_answers_are_graded_as_squad_grades_them() -> None:
    """974 questions, before and after training: every ASCII answer, to the letter."""
    articles = json.loads(real("seal_released", "query_eval_base.json").read_text())["articles"]
    questions = [q for a in articles for q in a["completions"][0]["questions"]]
    pairs = [(q[key], q["answer"]) for q in questions for key in ("baseline_answer", "adapter_answer")]
    plain = [(answer, gold) for answer, gold in pairs if (answer + gold).isascii()]
    assert len(pairs) == 1948 and len(plain) > 0.9 * len(pairs)
    for answer, gold in plain:
        ours, theirs = squad(answer), squad(gold)
        assert exact_match(answer, gold) == (ours == theirs) and contains(answer, gold) == (
            f" {theirs} " in f" {ours} "
        )


@pytest.mark.parametrize(
    ("text", "said", "count"),
    [
        ("<think>London?</think>Paris", "Paris", 1),
        ("<think>\nLondon?\n</think>\n\nParis", "\n\nParis", 1),
        ("Well. <Thinking>a</Thinking>Paris<think>b</think>", "Well. Paris", 2),
        ("<think>a <think>b</think> c</think>d", "d", 1),
        ("London?</think>Paris", "Paris", 1),  # the prompt opened it
        ("Paris<think>but then", "Paris", 1),  # cut by the limit of tokens
        ("<think></think>", "", 1),
        ("[THINK]a[/THINK]b", "b", 1),
        ("◁think▷a◁/think▷b", "b", 1),
        ("<seed:think>a</seed:think>b", "b", 1),
        ("<|begin_of_thought|>a<|end_of_thought|>b", "b", 1),
        ("<|START_THINKING|>a<|END_THINKING|>b", "b", 1),
        ("<|channel>thought\na<channel|>b", "b", 1),
        # gpt-oss, with and without its control tokens
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>", "b", 1),
        ("<|channel|>final<|message|>b", "b", 0),
        ("analysisWe need a.assistantfinalb", "b", 1),
        ("analysisWe need", "", 1),
        ("analysis of a", "analysis of a", 0),
        # another turn
        ("Paris<|im_end|>", "Paris", 0),
        ("Paris<|im_end|>\n<|im_start|>user\nAnd London?", "Paris", 1),
        ("<|im_start|>assistant\nParis", "Paris", 0),
        ("<start_of_turn>model\nParis<end_of_turn>", "Paris", 0),
        ("Paris</s>", "Paris", 0),
        ("<think>Paris</think>London<|endoftext|>Paris", "London", 2),
        ("model trains", "model trains", 0),
        ("<thin> I think (therefore) </b>", "<thin> I think (therefore) </b>", 0),
        ("", "", 0),
    ],
)
def test_what_a_model_thinks_aloud_is_taken_out_and_counted(text: str, said: str, count: int) -> None:
    assert without_thoughts(text) == (said, count)


def test_an_answer_is_graded_without_its_thoughts_and_kept_with_them() -> None:
    paris, london = Question("Where?", "Paris"), Question("Where?", "London")
    (told,) = grade([(paris, "<think>London?</think> Paris")], "exact")
    assert told.grades == {"exact": 1.0, "contains": 1.0, "f1": 1.0} and told.text.startswith("<think>")
    assert grade([(london, told.text)], "contains")[0].grades["contains"] == 0.0
    assert grade([(paris, "<think>Paris")], "exact")[0].blank
