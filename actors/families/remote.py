"""Architectures whose code comes with the checkpoint and is run only where that is allowed."""

from __future__ import annotations

from actors.families.base import Family

REMOTE = Family(
    pooling="cls",
    layers="layer",
    load_arguments={"trust_remote_code": True},
    packed=False,
)
