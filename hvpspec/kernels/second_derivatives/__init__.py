"""Functions whose second derivative torch lacks or has wrong, computed from elementary operations, which are right."""
