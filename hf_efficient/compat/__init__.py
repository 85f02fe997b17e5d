"""One module for each library: every private or undocumented name of it that this package calls or overrides."""
