from __future__ import annotations

import pytest

from cnnbatch.errors import UserError
from cnnbatch.truth import Class
from cnnbatch.truth.classes import ModelClasses, match_classes, match_map_classes

MODEL = ModelClasses(("cat", "", "motorbike", "sofa"), (1, 2, 3, 4), {"motorbike": "motorcycle"})


def test_names_count_before_ids() -> None:
    swapped = [Class("sofa", 1), Class("cat", 4)]
    assert match_classes(MODEL, swapped, {}) == {"sofa": "sofa", "cat": "cat"}
    assert match_classes(MODEL, [Class("motorcycle", 99)], {}) == {"motorcycle": "motorbike"}


def test_ids_count_where_most_are_alike() -> None:
    alike = [Class("cat", 1), Class("motorcycle", 3), Class("couch", 4)]
    assert match_classes(MODEL, alike, {}) == {"cat": "cat", "motorcycle": "motorbike", "couch": "sofa"}
    for other in ([Class("cat", 7), Class("motorcycle", 3), Class("couch", 4)], [Class("couch", 4)]):
        with pytest.raises(UserError, match=r"does not know: 'couch'\n"):
            match_classes(MODEL, other, {})
    with pytest.raises(UserError, match="'nothing'"):
        match_classes(MODEL, [Class("cat", 1), Class("nothing", 2)], {})  # an empty name is no class


def test_one_class_that_is_numbered_alike_says_nothing_of_others() -> None:
    model = ModelClasses(("person", "bicycle", "car", "train"), (1, 2, 3, 7))
    with pytest.raises(UserError, match=r"does not know: 'unicorn'\n"):
        match_classes(model, [Class("person", 1), Class("unicorn", 7)], {})


def test_what_the_job_says_wins() -> None:
    given = {"cat": "sofa", "couch": None}
    assert match_classes(MODEL, [Class("cat", 1), Class("couch", 4)], given) == given
    assert match_classes(MODEL, [], {"x": "y"}) == {}


def test_a_class_that_is_not_known_is_named_as_the_truth_names_it() -> None:
    with pytest.raises(UserError) as error:
        match_classes(MODEL, [Class("divan", 9), Class("sofas", 10), Class("cat", 1)], {"divan": "soffa"})
    first, *rest = str(error.value).split("\n")
    assert first == (
        "the ground truth has classes that the model does not know: 'divan', called 'soffa' in "
        "task.aliases (the nearest: 'sofa'), 'sofas' (the nearest: 'sofa')"
    )
    assert rest[0] == "  the model's: motorbike, cat, sofa"
    assert rest[1].endswith("'task.aliases={divan: null}'")


# Maps


MAPPED = [Class("background", 0), Class("car", 1), Class("lorry", 2), Class("tree", 3)]


def test_of_maps_the_known_classes_are_matched() -> None:
    model = ModelClasses(("car", "tree", "sky"))
    given = {"lorry": "car", "tree": None}
    assert match_map_classes(model, MAPPED, given) == {"car": "car", "lorry": "car", "tree": None}


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        (
            ("sky", "carr"),
            {},
            r"(?s)none of the classes .*: background, car, lorry, tree\n.*the model's: sky, "
            r"carr\n.*'task.aliases=\{car: carr\}'",
        ),
        (("car",), {"car": None}, "none of the classes"),
        (("car",), {"lorry": "cra"}, r"'lorry', called 'cra' in task.aliases \(the nearest: 'car'\)"),
    ],
)
def test_maps_without_a_known_class_are_refused(
    names: tuple[str, ...], given: dict[str, str | None], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        match_map_classes(ModelClasses(names), MAPPED, given)


def test_maps_of_which_no_class_is_left_are_refused() -> None:
    with pytest.raises(UserError, match=r"no class of the masks is left.*\n.*keep one in input.ignore"):
        match_map_classes(ModelClasses(("car",)), [], {})
