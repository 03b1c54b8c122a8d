"""Conventions of face embedders: where their templates have the landmarks."""

from __future__ import annotations

import numpy as np
import pytest

from cnnbatch.models.face_conventions import CONVENTIONS, DLIB_PADDING, DLIB_POINTS, dlib_template


def test_dlibs_template_shrinks_with_its_padding() -> None:
    whole = np.array(dlib_template(0.0))
    assert np.allclose(whole, np.array(DLIB_POINTS) * 150 - 0.5)
    padded = np.array(dlib_template(0.25))
    assert np.allclose(padded, (whole + 0.5 + 0.25 * 150) / 1.5 - 0.5)
    assert CONVENTIONS["dlib"].template == dlib_template(DLIB_PADDING)


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
def test_templates_show_a_face(name: str) -> None:
    convention = CONVENTIONS[name]
    left_eye, right_eye, nose, left_mouth, right_mouth = convention.template
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    assert all(0 < x < convention.size[1] and 0 < y < convention.size[0] for x, y in convention.template)
