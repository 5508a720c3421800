"""Documents: files of several pages, taken one page at a time."""
