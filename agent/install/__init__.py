"""What a package does on the box: install, upgrade, go back, remove. It needs the standard library only."""
