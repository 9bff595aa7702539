"""The ways in: command line, server, pages."""
