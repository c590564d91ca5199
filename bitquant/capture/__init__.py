"""Finding and rewriting the products of any trained model with torch.fx.

`discover` lists them, `mutate_class_` swaps a module's class in place, `wrap_owners_` puts children in charge of the
products that modules compute functionally, `freeze_` fixes one graph a module for export.
"""

from .check import check_model, check_values
from .discover import discover
from .errors import CaptureError
from .freeze import freeze_
from .mutate import mutate_class_, original_class
from .ordinary import ordinary, ordinary_
from .parameters import PART
from .purity import Snapshot
from .reference import FLOAT as CHILDREN
from .reference import child_kind
from .sites import Discovery, Site
from .stand_in import StandIn
from .wrap import code, owners, restore_owner_, wrap_owners_

__all__ = [
    "CHILDREN",
    "CaptureError",
    "PART",
    "Discovery",
    "Site",
    "Snapshot",
    "StandIn",
    "check_model",
    "check_values",
    "child_kind",
    "code",
    "discover",
    "freeze_",
    "mutate_class_",
    "ordinary",
    "ordinary_",
    "original_class",
    "owners",
    "restore_owner_",
    "wrap_owners_",
]
