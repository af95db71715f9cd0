"""Known models, the location of their files, and their settings. Imports no torch."""
