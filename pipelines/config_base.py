"""What every section of a configuration is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Character = Annotated[str, Field(min_length=1, max_length=1)]


class Section(BaseModel):
    """A part of the configuration; frozen, so that what was validated stays valid."""

    model_config = ConfigDict(extra="forbid", frozen=True)
