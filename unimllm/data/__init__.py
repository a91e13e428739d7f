"""Training data: packing, and the cache of image codes."""
