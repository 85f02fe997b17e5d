"""Video files and bundles: reading and writing."""
