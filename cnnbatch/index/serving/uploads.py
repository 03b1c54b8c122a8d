"""The photos of a request: one as its body, or several as the files of a form."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile

from cnnbatch.index.serving.questions import Photo
from cnnbatch.terminal import line

MOST_PHOTOS = 16
"""Photos in one request."""

_NAME = 200  # characters that are kept of a photo's name
_BYTES = {"type": "string", "format": "binary"}


async def photos_of(request: Request) -> tuple[Photo, ...]:
    """Return the photos of a request; raises HTTPException where there are none, or too many."""
    if _is_form(request):
        return await _photos_of_form(request)
    data = await request.body()
    if not data:
        raise HTTPException(422, "expected a photo as the body, or as a file of a form; got none")
    return (Photo("photo", data),)


async def two_photos_of(request: Request) -> tuple[Photo, Photo]:
    """Return the files ``first`` and ``second`` of a form; raises HTTPException."""
    if not _is_form(request):
        raise HTTPException(422, "expected a form with the two files first and second, got no form")
    async with request.form(max_files=2, max_fields=0) as form:
        files = {name: one for name, one in form.multi_items() if isinstance(one, UploadFile)}
        if {*files} != {"first", "second"}:
            got = ", ".join(sorted(map(line, files))) or "none"
            raise HTTPException(422, f"expected a form with the two files first and second, got {got}")
        return await _read(files["first"]), await _read(files["second"])


def a_body_of(*names: str) -> dict[str, Any]:
    """Return what the OpenAPI page says of a form with the files ``names``; without them of any photos."""
    if names:
        content = _form({name: _BYTES for name in names}, [*names])
    else:
        many = {"type": "array", "items": _BYTES, "maxItems": MOST_PHOTOS}
        content = _form({"photo": many}, ["photo"]) | {"image/*": {"schema": _BYTES}}
    return {"requestBody": {"required": True, "content": content}}


def _form(fields: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": fields, "required": required}
    return {"multipart/form-data": {"schema": schema}}


def _is_form(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0]
    return kind.strip().lower() == "multipart/form-data"


async def _photos_of_form(request: Request) -> tuple[Photo, ...]:
    async with request.form(max_files=MOST_PHOTOS, max_fields=0) as form:
        files = [one for _, one in form.multi_items() if isinstance(one, UploadFile)]
        if not files:
            raise HTTPException(422, "expected at least one file in the form, got none")
        return tuple([await _read(file) for file in files])


async def _read(file: UploadFile) -> Photo:
    return Photo(line(file.filename or "photo")[:_NAME], await file.read())
