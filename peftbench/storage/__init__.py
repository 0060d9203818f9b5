"""Files that are written atomically and checked when read: digests, the cache, archives, sizes."""
