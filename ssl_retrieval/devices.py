"""Which device to run on."""

import torch

from ssl_retrieval.errors import UserError


def pick(name: str) -> torch.device:
    """Resolve ``auto`` (CUDA when there, else CPU) or check a device name.

    Raises:
        UserError: No such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name!r} is not usable on this machine: use auto or cpu") from error
    return device
