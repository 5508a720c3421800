"""The HTTP side of the upload source: loopback or a unix socket only; requests become files, results become answers."""
