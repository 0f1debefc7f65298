"""How products are checked: before the first one, between engines, between passes, and for their rounding."""
