"""What a model costs: parameters, storage, operations and estimated time, layer by layer."""

from .convention import CONSISTENT, CONVENTIONS, PAPER, Convention
from .costs import profile
from .device import DEVICES, Device
from .table import Profile, ProfiledLayer

__all__ = [
    "CONSISTENT",
    "CONVENTIONS",
    "DEVICES",
    "PAPER",
    "Convention",
    "Device",
    "Profile",
    "ProfiledLayer",
    "profile",
]
