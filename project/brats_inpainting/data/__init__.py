"""Cases, volumes, slices, masks: everything that knows about files and anatomy."""
