"""Many images: reading ahead, batches, devices and the cache of scores."""
