"""Makes packages for boxes: a release's tree, the self-extracting `.run` and the `.deb` of it."""
