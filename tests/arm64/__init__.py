"""Tests on a bare arm64 Debian 12, emulated where this machine is none: `make test-arm64`."""
