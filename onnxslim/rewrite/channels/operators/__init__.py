"""What each operator does with channels: one file per family, and what they share."""
