"""What --precondition does: its options, and the operator that is measured in the place of the plain one."""
