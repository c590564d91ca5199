"""What a model costs: parameters, storage, operations and estimated time, layer by layer."""

from .convention import CONSISTENT, CONVENTIONS, PAPER, Convention
from .device import DEVICES, Device
from .profile import Profile, ProfiledLayer, profile

__all__ = ["CONSISTENT", "CONVENTIONS", "DEVICES", "PAPER", "Convention", "Device", "Profile", "ProfiledLayer", "profile"]
