"""TorchScript archives: what their program and their objects may be, and how they are built again for torch to load."""
