"""State that a float checkpoint does not have."""

from torch import nn


class OptionalState(nn.Module):
    """A module that keeps the state it has when a state_dict holds none of its keys: so the float checkpoint of the
    original model loads into a student, whose quantizers keep their calibration."""

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
