"""How well a face can be recognised: how blurred it is, and where it looks; from its chip and five landmarks.

The angles come from one rigid head for everybody, so that they are estimates, within some ten degrees.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

HEAD = np.array(
    [(-31.5, -36.0, 28.0), (31.5, -36.0, 28.0), (0.0, 0.0, 0.0), (-26.0, 37.0, 26.0), (26.0, 37.0, 26.0)]
)
"""Left eye, right eye, nose, left and right corner of the mouth, in mm: x to the right of the picture, y
down, z away from the viewer. Seen from the front it is ArcFace's template (Deng et al. 2019) with 63 mm
between the pupils; the depths are those of an average head."""

HALF_PROFILE, PROFILE = 15.0, 45.0
"""Degrees of yaw, to either side, from which on a face is a half profile, or a profile."""

_TINY = 1e-6
_BLUR_SIDE = 11
"""Pixels over which a picture is blurred to compare it with itself, as Crete et al. have it."""


def pose(landmarks: NDArray[Any]) -> NDArray[np.float32]:
    """Return yaw, pitch and roll in degrees, float32 (K, 3), of ``landmarks`` (K, 5, 2), (x, y) in pixels.

    Yaw is positive where the face looks to the right side of the picture, pitch where it looks up, roll where
    it is tilted clockwise; the first two are as if the tilt was undone. The rotation is that of the scaled
    orthographic projection of `HEAD` which fits best (DeMenthon and Davis 1995, "Model-based object pose in
    25 lines of code", section 3). NaN where all points are one.
    """
    points = np.asarray(landmarks, np.float64)
    points = points - points.mean(1, keepdims=True)
    fitted = np.einsum("kpi,jp->kij", points, np.linalg.pinv(HEAD - HEAD.mean(0)))  # [K, 2, 3]
    left, _, right = np.linalg.svd(fitted, full_matrices=False)
    across, down = (left @ right).transpose(1, 0, 2)  # The nearest rows of a rotation.
    toward = np.cross(across, down)
    yaw = np.arctan2(toward[:, 0], np.hypot(toward[:, 1], toward[:, 2]))
    pitch = np.arctan2(-toward[:, 1], toward[:, 2])
    roll = np.arctan2(down[:, 0], across[:, 0])
    angles = np.degrees(np.stack([yaw, pitch, roll], axis=1))
    angles[~points.any((1, 2))] = np.nan
    found: NDArray[np.float32] = angles.astype(np.float32)
    return found


def pose_name(yaw: float | None) -> str:
    """Return ``frontal``, ``half profile`` or ``profile``, by yaw in degrees; ``unknown`` without one."""
    if yaw is None:
        return "unknown"
    return "frontal" if abs(yaw) < HALF_PROFILE else "half profile" if abs(yaw) < PROFILE else "profile"


def blur(chip: NDArray[np.uint8]) -> float:
    """Return how blurred a picture is, from 0 (sharp) to 1, of ``chip`` uint8 (H, W, 3), RGB.

    It is blurred again along each axis: the less its differences between neighbours fall, the more it was
    blurred before; the axis in which it is more blurred counts. As scikit-image's ``blur_effect`` (Crete et
    al. 2007, "The blur effect: perception and estimation with a new no-reference perceptual blur metric").
    NaN where no neighbours differ.
    """
    import cv2

    gray = chip.astype(np.float32) @ np.array([0.2125, 0.7154, 0.0721], np.float32) / 255
    inside = np.s_[2:-1, 2:-1]  # As scikit-image has it.
    found = []
    for across in (True, False):
        kernel = (_BLUR_SIDE, 1) if across else (1, _BLUR_SIDE)
        again = cv2.blur(gray, kernel, borderType=cv2.BORDER_REFLECT)
        before, after = (
            np.abs(cv2.Sobel(one, cv2.CV_32F, int(across), int(not across), borderType=cv2.BORDER_REFLECT))
            for one in (gray, again)
        )
        total = float(before[inside].sum())
        lost = float(np.maximum(before - after, 0)[inside].sum())
        found.append((total - lost) / total if total > _TINY * gray.size else np.nan)
    return float(np.nanmax(found)) if not np.isnan(found).all() else float("nan")
