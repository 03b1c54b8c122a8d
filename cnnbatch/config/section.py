"""What the sections of a job have in common: closed, frozen, strict models, and the types of their fields."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(strict=False)]  # YAML has lists, not tuples
Count = Annotated[int, Field(ge=1)]
Batch = Annotated[int, Field(ge=1, le=16_384)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Folds = Annotated[int, Field(ge=2, le=1_000)]
Seconds = Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False)]  # three years
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of a job: unknown keys are errors, values are not converted, nothing changes later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Place(Section):
    """A section that is a URL, or an object with ``url`` and options."""

    @model_validator(mode="before")
    @classmethod
    def _from_url(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str | list | tuple) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [schema["properties"]["url"], schema]}
