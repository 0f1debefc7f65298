"""TorchScript archives: what their program and their objects may be, and how they are built anew for torch to load."""
