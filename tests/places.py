"""Where the checkout lies, and beside it the folder of real images and weights."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
SHARED = CHECKOUT.parent / "shared"
