"""Prompt sets: the paper's as google/dreambooth publishes them, a user's own file, and what is refused."""

import pickle
import re

import pytest
from dreambooth_files import PROMPTS_AND_CLASSES, REAL

from booth.contract import limits
from booth.contract.prompt_files import of_dreambooth, of_file
from booth.contract.prompt_sets import SETS, PromptSetError, cases, checked, filled, label, named


def test_the_paper_s_sets_are_those_of_google_dreambooth():
    if not REAL.is_dir():
        pytest.skip("google/dreambooth is not here")
    found = of_dreambooth((REAL / "prompts_and_classes.txt").read_text())
    assert (found.objects, found.live) == (named("objects"), named("live"))
    assert len(found.class_nouns) == 30
    assert len(set(found.class_nouns.values())) == 15
    assert found.class_nouns["bear_plushie"] == "stuffed animal"


def test_every_set_fills():
    assert (len(SETS["objects"]), len(SETS["live"]), len(SETS["tinyworld"])) == (25, 25, 8)
    for name in SETS:
        templates = named(name)
        assert len(set(templates)) == len(templates)
        for template in templates:
            assert "sks dog" in filled(checked(template), "sks", "dog")
    assert filled(named("art")[0], "sks", "dog") == "a painting of a sks dog in the style of Vincent van Gogh"
    assert filled(named("objects")[20], "sks", "clock") == "a red sks clock"


def test_an_unknown_set_names_the_known_ones():
    with pytest.raises(PromptSetError, match=r"no prompt set 'object'\. Take one of objects, live, .*tinyworld"):
        named("object")


def test_a_template_takes_its_words_once():
    assert filled("a {subject} on {1}", "{1}", "dog") == "a {1} dog on dog"
    assert filled("a {0} {1} in the sea", "sks", "") == "a sks in the sea"  # no noun
    assert filled("a {0} {1} in the sea", "", "dog") == "a dog in the sea"
    assert filled("{subject}", "sks", "dog") == "sks dog"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("a {0} {1} in the jungle", "in the jungle"),
        ("a photo of a {0} {1} on a wooden floor", "on a wooden floor"),
        ("a photo of {subject} in the sea", "in the sea"),
        ("a cube shaped {0} {1}", "cube shaped"),
        ("a painting of a {0} {1} in the style of Rembrandt", "painting of ... in the style of Rembrandt"),
        ("an orange {subject}", "orange"),
        ("the {subject} at night", "at night"),
        ("a photo of {subject}", ""),
        ("{subject}", ""),
    ],
)
def test_a_label_is_what_is_not_the_subject(template, words):
    assert label(template) == words


def test_a_case_says_what_is_drawn_and_what_clip_is_told():
    templates = ["a {0} {1} in the jungle", "a red {subject}"]
    first, second = cases(templates, "sks", "dog", unseen=["red"])
    assert (first.prompt, first.text, first.clip_text) == ("a sks dog in the jungle",) + ("a dog in the jungle",) * 2
    assert (first.kind, first.label, first.is_unseen) == ("recontextualisation", "in the jungle", False)
    assert (second.kind, second.label, second.is_unseen) == ("own", "red", True)
    assert cases(templates, "sks", "dog", clip_text="identifier")[0].clip_text == "a sks dog in the jungle"
    assert cases(templates, "sks", "dog", clip_text="dropped")[0].clip_text == "a in the jungle"
    [inverted] = cases(["a {0} {1} beside a {1}"], "sks", "dog", phrase="<rex>")
    assert (inverted.prompt, inverted.text) == ("a <rex> beside a dog", "a dog beside a dog")
    assert {case.kind for name in SETS for case in cases(named(name), "sks", "dog")} == {
        "recontextualisation", "accessory", "property", "art", "viewpoint", "expression"
    }  # fmt: skip


def test_no_case_is_made_of_a_bad_template_or_label():
    with pytest.raises(PromptSetError, match="prompt 2 says nowhere where the subject stands"):
        cases(["a {subject}", "a dog"], "sks", "dog")
    with pytest.raises(PromptSetError, match=r"No prompt has the unseen label 'in the sea'. The labels are 'red'"):
        cases(["a red {subject}"], "sks", "dog", unseen=["in the sea"])
    with pytest.raises(PromptSetError, match="There is no prompt to draw"):
        cases([], "sks", "dog")


def test_a_file_has_one_template_a_line():
    text = "\ufeffa {subject} in the snow\r\n\r\n  a photo of a {0} {1} on the moon  \r\n"
    assert of_file(text) == ["a {subject} in the snow", "a photo of a {0} {1} on the moon"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "mine.txt has no prompt in it. Write one a line"),
        (" \n\n", "mine.txt has no prompt in it"),
        ("a {subject}\n\na dog in the snow", "mine.txt, line 3 says nowhere where the subject stands: 'a dog in"),
        ("a {1} in the snow", "line 1 says nowhere where the subject stands"),
        ("a {subjekt}", "line 1 holds '{subjekt}'"),
        ("a {subject} {", "line 1 holds '{'"),
        ("a {subject}\x07", "line 1 holds control characters: U+0007"),
        ("a {subject} " + "x" * limits.MAX_PROMPT_CHARS, "line 1 has 1012 characters"),
        ("a {subject}\n" * 201, "mine.txt has 201 prompts. Give at most 200"),
    ],
)
def test_what_is_no_prompt_file_is_refused(text, said):
    with pytest.raises(PromptSetError, match=re.escape(said)) as caught:
        of_file(text, "mine.txt")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_dreambooth_file_is_read_by_its_headers():
    found = of_dreambooth(PROMPTS_AND_CLASSES)
    assert found.class_nouns == {"rex": "dog", "mug": "mug", "plushie": "stuffed animal"}
    assert found.objects == ["a {0} {1} in the jungle", "a red {0} {1}"]
    assert found.live == ["a {0} {1} wearing a santa hat"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Live Subject Prompts", "Live ones", "has nothing under 'Live Subject Prompts'"),
        ("Classes\n", "", "has nothing under 'Classes'"),
        ("mug,mug", "mug", "line 5: 'mug' is no pair of subject and class"),
        ("mug,mug", "rex,mug", "line 5: 'rex,mug' is there twice"),
        ("'a red {0} {1}'", "'a red {0} {2}'", "line 12 holds '{2}'"),
        (".format(unique_token, class_token)", "", "is no prompt of google/dreambooth's form"),
    ],
)
def test_a_damaged_dreambooth_file_is_refused(old, new, said):
    assert old in PROMPTS_AND_CLASSES
    with pytest.raises(PromptSetError, match=re.escape(said)):
        of_dreambooth(PROMPTS_AND_CLASSES.replace(old, new))
