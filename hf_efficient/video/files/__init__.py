"""Video files and bundles, read and written."""
