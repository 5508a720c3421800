"""`edge-ocr check`: whether the agent can work here. One file for each subject; `doctor` has the list."""
