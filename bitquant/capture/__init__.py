"""Finding and rewriting the products of any trained model with torch.fx.

`discover` lists them, `mutate_class_` swaps a module's class in place, `wrap_owners_` puts children in charge of the
products that modules compute functionally, `freeze_` fixes one graph a module for export.
"""

from .discover import discover
from .errors import CaptureError
from .mutate import mutate_class_
from .sites import Discovery, Site

__all__ = ["CaptureError", "Discovery", "Site", "discover", "mutate_class_"]
