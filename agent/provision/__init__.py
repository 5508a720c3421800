"""First start: settings, certificates and keys of a box, taken once from a stick or the boot partition."""
