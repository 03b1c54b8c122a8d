"""Templates of faces: where they have their landmarks."""

from __future__ import annotations

import numpy as np
import pytest

from cnnbatch.models import face_templates
from cnnbatch.models.face_templates import TEMPLATES, dlib_template


def test_dlibs_template_shrinks_with_its_padding() -> None:
    whole = np.array(dlib_template(0.0).points)
    assert np.allclose(whole, np.array(face_templates.DLIB_POINTS) * 150 - 0.5)
    padded = np.array(dlib_template(0.25).points)
    assert np.allclose(padded, (whole + 0.5 + 0.25 * 150) / 1.5 - 0.5)
    assert TEMPLATES["dlib"] == dlib_template(face_templates.DLIB_PADDING)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_templates_show_a_face(name: str) -> None:
    template = TEMPLATES[name]
    left_eye, right_eye, nose, left_mouth, right_mouth = template.points
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    assert all(0 < x < template.size[1] and 0 < y < template.size[0] for x, y in template.points)
