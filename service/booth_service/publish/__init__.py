"""From trained weights to a plain diffusers folder in the object store."""
