"""A folder that scanners, shares and people put files into."""
