"""The pictures of the method pages."""
