"""A camera that pages are held under, and the process that looks through it."""
