"""A folder in google/dreambooth's layout: subjects, nouns and photos, and what is said of one that is not whole."""

import pytest
from dreambooth_files import REAL, write

from booth import dreambooth_folder
from booth.contract.photos import open_photo
from booth.contract.prompt_sets import named
from booth.errors import ValidationError

WHOLE = {"rex": 2, "mug": 3, "plushie": 2}


def test_the_real_one_is_read_as_it_is():
    if not REAL.is_dir():
        pytest.skip("google/dreambooth is not here")
    found = dreambooth_folder.read(REAL, ["vase", "dog", "cat"])
    assert [(s.name, s.class_noun, s.is_live, len(s.photos)) for s in found.subjects] == [
        ("cat", "cat", True, 5),
        ("dog", "dog", True, 5),
        ("vase", "vase", False, 6),
    ]
    assert found.prompts_of(found.subjects[0]) == tuple(named("live"))
    assert found.prompts_of(found.subjects[2]) == tuple(named("objects"))
    assert found.subjects[0].photos[0] == REAL / "cat" / "00.jpg"
    assert open_photo((REAL / "candle_mpo" / "01.jpg").read_bytes()).mode == "RGB"  # two frames; the first is taken


@pytest.mark.parametrize("inner", ["", "dataset"])
def test_the_whole_table_is_read_without_names(tmp_path, inner):
    write(tmp_path / inner, WHOLE)
    found = dreambooth_folder.read(tmp_path)
    assert {s.name: (s.class_noun, s.is_live, len(s.photos)) for s in found.subjects} == {
        "rex": ("dog", True, 2),
        "mug": ("mug", False, 3),
        "plushie": ("stuffed animal", False, 2),
    }
    assert open_photo(found.subjects[0].photos[1].read_bytes()).size == (64, 64)


def test_who_lives_can_be_said(tmp_path):
    write(tmp_path, WHOLE)
    found = dreambooth_folder.read(tmp_path, live_nouns={"mug"})
    assert [s.is_live for s in found.subjects] == [False, True, False]


def problems(folder, subjects=None):
    with pytest.raises(ValidationError) as caught:
        dreambooth_folder.read(folder, subjects)
    return [(p.field, p.value, f"{p.message} {p.remedy}") for p in caught.value.problems]


def test_unknown_subjects_are_named_with_the_known_ones(tmp_path):
    write(tmp_path, WHOLE)
    found = problems(tmp_path, ["rex", "rx", "cup"])
    assert [(field, value) for field, value, _ in found] == [("subjects", "rx"), ("subjects", "cup")]
    assert "Known are rex, mug, plushie." in found[0][2]
    assert "No subject is named." in problems(tmp_path, [])[0][2]


def test_a_subject_without_two_photos_is_named(tmp_path):
    write(tmp_path, {"rex": 2, "mug": 1})
    (_, first, one), (_, second, none) = problems(tmp_path)
    assert first.endswith("mug")
    assert one.startswith("It has 1 photo. Give 2 or more: the ceiling compares photos with each other.")
    assert second.endswith("plushie")
    assert "has no folder. Folders are there for: rex, mug." in none
    assert [s.name for s in dreambooth_folder.read(tmp_path, ["rex"]).subjects] == ["rex"]


def test_a_folder_without_its_prompt_file_is_refused(tmp_path):
    assert "prompts_and_classes.txt" in problems(tmp_path)[0][2]
    assert "It is no folder" in problems(tmp_path / "nowhere")[0][2]
    (tmp_path / "prompts_and_classes.txt").write_text("subject_name,class\nrex,dog\n")
    assert "has nothing under 'Classes'" in problems(tmp_path)[0][2]
    (tmp_path / "prompts_and_classes.txt").write_bytes(b"\xff\xfe\xff")
    assert "It cannot be read" in problems(tmp_path)[0][2]
