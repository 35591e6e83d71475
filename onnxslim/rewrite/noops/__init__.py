"""When a node changes nothing: one rule by operator."""
