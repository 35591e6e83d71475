"""Static int8: preparation, equalization, the engine, and the search around it."""
