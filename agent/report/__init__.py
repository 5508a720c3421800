"""`edge-ocr report`: one file for a support ticket, without text, picture, key or password."""
