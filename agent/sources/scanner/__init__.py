"""A scanner of this machine, through SANE's `scanimage`."""
