"""Pictures and label maps, in files and in the caller's memory: found, read, checked, resized, normalised."""
