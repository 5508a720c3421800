"""Edge OCR agent: reads pages on small machines and sends results, never images."""

__version__ = "0.1.0"
